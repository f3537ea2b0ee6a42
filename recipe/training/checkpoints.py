"""The checkpoints of a run: sealed when they are complete, passed over when they are damaged.

last_checkpoint(Path("outputs/run"))       # the newest complete one, to resume from
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe.record import RUN_FILE

logger = logging.getLogger(__name__)

SEAL = "seal.json"
HASHES: dict[tuple[int, int, int], str] = {}  # device, inode and mtime of a file -> its sha256


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint-N folders, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The N of checkpoint-N."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


class Seal(TrainerCallback):
    """Writes seal.json, sizes and hashes of all files, last into every checkpoint: what has none is not complete."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def seal(checkpoint: Path) -> None:
    """Note the size and the sha256 of every file, on the disk itself: a power cut may come at any time after."""
    found = {}
    for path in sorted(path for path in checkpoint.iterdir() if path.name != SEAL):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        found[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    partial = checkpoint / f"{SEAL}.partial"
    with partial.open("w") as file:
        file.write(json.dumps(found, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(checkpoint / SEAL)


def sha256(path: Path) -> str:
    """Of a file; the frozen backbone, one file under many names, is read once."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        key = status.st_dev, status.st_ino, status.st_mtime_ns
        if key not in HASHES:
            HASHES[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return HASHES[key]


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where every file is as it was sealed."""
    try:
        sealed = json.loads((checkpoint / SEAL).read_text())
        for name, noted in sealed.items():
            path = checkpoint / name
            if path.stat().st_size != noted["size"] or sha256(path) != noted["sha256"]:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        return "its writing was interrupted" if missing == SEAL else f"{missing} is missing"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{SEAL} cannot be read ({error})"
    return None


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there as it was written."""
    return damage(checkpoint) is None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; damaged ones are passed over, each in one line, and never deleted."""
    for checkpoint in checkpoints(folder)[::-1]:
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning("%s is passed over: %s", checkpoint, wrong)
    return None


def seal_old_checkpoints(folder: Path) -> None:
    """Version 0.1 sealed nothing: its checkpoints, of which trainer_state.json was written last, are sealed now."""
    record = folder / RUN_FILE
    if record.exists() and '"identity"' in record.read_text():
        for checkpoint in checkpoints(folder):
            with contextlib.suppress(OSError, ValueError):
                json.loads((checkpoint / "trainer_state.json").read_text())
                seal(checkpoint)


class Resume(TrainerCallback):
    """Step, optimizer and scheduler of a resumed run are those of the checkpoint, or an error.

    The best model is the one beside it: Trainer remembers the path that it was written to, and in a folder that was
    moved, or is mounted elsewhere, would keep the last model for the best.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any
    ) -> None:
        if self.checkpoint is None:
            return
        steps = {state.global_step, found["lr_scheduler"].last_epoch}
        if steps != {step_of(self.checkpoint)} or not found["optimizer"].state_dict()["state"]:
            raise RuntimeError(f"{self.checkpoint.name} was restored in part: step and scheduler are at {steps}")
        best = self.checkpoint.with_name(f"checkpoint-{state.best_global_step}")
        if best.is_dir():
            state.best_model_checkpoint = str(best)
