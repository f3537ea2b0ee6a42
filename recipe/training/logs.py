"""What a run writes down while it goes: every row in metrics.jsonl, its pace in run.json and the log.

recipe sync OUTPUT_DIR        shows the rows on a Trackio dashboard (recipe/training/dashboard.py)
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe.pace import Pace, pace_in_words
from recipe.record import LOG_FILE, RUN_FILE, RunRecord
from recipe.training.run import device

logger = logging.getLogger(__name__)


class MetricsLog(TrainerCallback):
    """Every logged row in OUTPUT_DIR/metrics.jsonl, so that nothing is lost when a dashboard cannot be reached.

    A resumed run first cuts the file back to its checkpoint: rows that the killed process wrote after it come again.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            rows = "".join(json.dumps(row) + "\n" for row in state.log_history)
            (Path(args.output_dir) / LOG_FILE).write_text(rows)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if state.is_world_process_zero:
            with (Path(args.output_dir) / LOG_FILE).open("a") as file:
                file.write(json.dumps({**logs, "step": state.global_step}) + "\n")


class PaceLog(TrainerCallback):
    """After the first 50 steps: the pace and the hours of the run, also on HF Jobs.

    The first 10 steps are not counted (kernels are chosen, workers start), nor is a step before which a checkpoint was
    written or an evaluation ran.
    """

    WARM, STEPS = 10, 50

    def __init__(self, train_images: int, validation_images: int, command: str) -> None:
        self.images, self.command = (train_images, validation_images), command
        self._step, self._seconds = 0, list[float]()  # of each step that counts
        self._last: float | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any) -> None:
        now, self._step = time.perf_counter(), self._step + 1
        if self.WARM < self._step <= self.STEPS and self._last is not None:
            self._seconds.append(now - self._last)
        self._last = now
        if self._step == self.STEPS and self._seconds and state.is_world_process_zero:
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            rate = round(batch * len(self._seconds) / sum(self._seconds), 3)
            # state.num_train_epochs is rounded up, of --max_steps and of a fraction alike.
            epoch = math.ceil(len(found["train_dataloader"]) / args.gradient_accumulation_steps)
            pace = Pace(rate, device(), *self.images, epochs=round(state.max_steps / epoch, 2))
            logger.info(pace_in_words(pace, self.command))
            record = RunRecord.load(Path(args.output_dir) / RUN_FILE)
            record.pace = vars(pace)
            record.write(Path(args.output_dir))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = None

    on_evaluate = on_save
