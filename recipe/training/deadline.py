"""The end of a machine's time: stop with a full checkpoint, so that the same command resumes elsewhere.

recipe train --max_hours 11.5 ...
"""

from __future__ import annotations

import signal
import time
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Deadline(TrainerCallback):
    """Stops when `max_hours` are over or SIGTERM arrives; `reason` says which, None while neither did.

    Within an epoch the checkpoint is written and nothing is evaluated. At an epoch's end the evaluation still runs, or
    the resumed run, which starts with the next epoch, would never have it.
    """

    def __init__(self, max_hours: float | None) -> None:
        self.end = None if max_hours is None else time.monotonic() + max_hours * 3600
        self.reason: str | None = None
        self._sigterm = False
        self._within_epoch = False
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: Any) -> None:
        self._sigterm = True

    def _over(self, args: TrainingArguments) -> bool:
        """Whether any process is over its time: all must stop at the same step, or the others wait for ever."""
        over = self._sigterm or (self.end is not None and time.monotonic() > self.end)
        if args.world_size > 1:
            over = bool(reduce(torch.tensor(float(over), device=args.device), reduction="sum") > 0)
        return over

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self._over(args) and state.global_step < state.max_steps:
            self.reason = "SIGTERM" if self._sigterm else "the time given by --max_hours is up"
            self._within_epoch = not float(state.epoch or 0).is_integer()
            control.should_training_stop = True
            control.should_save = self._within_epoch  # else `on_epoch_end` saves, after the evaluation
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.reason is not None:
            control.should_save = not self._within_epoch
            control.should_evaluate &= not self._within_epoch
        return control
