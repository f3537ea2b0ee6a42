"""What a run writes down while it goes: metrics.jsonl, Trackio, and the pictures of every evaluation.

trackio show --project crowd-detr
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TrackioCallback, rewrite_logs

from recipe.pace import Pace, describe
from recipe.run import amend_record, device

logger = logging.getLogger(__name__)

LOG_FILE = "metrics.jsonl"


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


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a killed process left unfinished is dropped."""
    path = folder / LOG_FILE
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class PaceLog(TrainerCallback):
    """After the first 50 steps: the pace, the hours of the whole run, and the same on HF Jobs; kept in run.json.

    The first 10 are not counted (kernels are chosen, workers start), nor is a step before which a checkpoint was
    written or an evaluation ran.
    """

    WARM, STEPS = 10, 50

    def __init__(self, train_images: int, validation_images: int, command: str) -> None:
        self.images, self.command = (train_images, validation_images), command
        self._step, self._counted, self._seconds = 0, 0, 0.0
        self._last: float | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now, self._step = time.perf_counter(), self._step + 1
        if self.WARM < self._step <= self.STEPS and self._last is not None:
            self._counted, self._seconds = self._counted + 1, self._seconds + now - self._last
        self._last = now
        if self._step == self.STEPS and self._counted and state.is_world_process_zero:
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            rate = round(batch * self._counted / self._seconds, 3)
            pace = Pace(rate, device(), *self.images, epochs=round(state.num_train_epochs, 2))
            logger.info(describe(pace, self.command))
            amend_record(Path(args.output_dir), pace=pace.record())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = None


class Trackio(TrackioCallback):
    """The library's callback, with the Trainer's step, and without the rows that an interrupted run already sent."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        super().__init__()
        self._sent = {_row_key(row, row["step"]) for row in sent}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None or _row_key(logs, state.global_step) in self._sent:
            return
        if not self._initialized:
            self.setup(args, state, model)
        # The library passes no step: Trackio then counts rows by itself, and a resumed run repeats some.
        self._trackio.log({**rewrite_logs(logs), "train/global_step": state.global_step}, step=state.global_step)

    def log_pictures(self, pictures: dict[str, np.ndarray], step: int) -> None:
        """Show drawn images, uint8 [h, w, 3], beside the curves."""
        if self._initialized:
            images = {f"predictions/{name}": self._trackio.Image(picture) for name, picture in pictures.items()}
            self._trackio.log(images, step=step)


def _row_key(row: dict[str, Any], step: int) -> tuple[Any, ...]:
    return step, *sorted(name for name in row if name not in ("step", "epoch"))
