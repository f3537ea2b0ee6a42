"""The run folder: who it belongs to, which of its checkpoints are whole, and what made it (run.json).

claim(Path("outputs/run"), identity, resume="auto")  ->  the checkpoint to go on from, or None
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from recipe.config import Config
from recipe.schema import UserError
from recipe.version import commit, lock

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "huggingface-hub", "trackio")
# What may differ between a run and its continuation: nothing of it reaches a weight.
FREE = {"preset", "data", "output_dir", "resume", "max_hours", "push_minutes", "shown_images"}
TRAINING_IDENTITY = ("num_train_epochs", "max_steps", "learning_rate", "weight_decay", "warmup_steps",
                     "lr_scheduler_type", "lr_scheduler_kwargs", "max_grad_norm", "optim", "optim_args",
                     "adam_beta1", "adam_beta2", "adam_epsilon", "metric_for_best_model", "greater_is_better",
                     "seed", "bf16", "fp16", "per_device_train_batch_size", "gradient_accumulation_steps")  # fmt: skip


def identity(config: Config, args: TrainingArguments, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the weights: a run may only be continued with the same."""
    own = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    training = {name: getattr(args, name) for name in TRAINING_IDENTITY}
    found = own | training | {"processes": args.world_size, "dataset": dict(dataset)}
    return json.loads(json.dumps(found, default=str))


def claim(folder: Path, wanted: Mapping[str, Any], resume: str) -> Path | None:
    """Take `folder` for this run.

    Returns:
        The last whole checkpoint of the same run, or None to start anew. Checkpoints that a killed process left half
        written or half deleted are removed.

    Raises:
        UserError: the folder cannot be written, holds something else or another run, or `resume` is "never" and it
            holds a run at all.
    """
    writable(folder, "--output_dir")
    if not (folder / RUN_FILE).exists():
        if any(folder.iterdir()):
            raise UserError(f"--output_dir {folder}: holds files that are not a run of this recipe; choose another")
        return None
    if resume == "never":
        raise UserError(
            f"--output_dir {folder}: holds another run. Give another folder, delete it, "
            "or go on with it by `--resume auto`"
        )
    check_same(read_record(folder)["identity"], wanted, f"--output_dir {folder}")
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        find_best(checkpoint)
    return checkpoint


def writable(folder: Path, flag: str) -> Path:
    """The folder that `flag` names, made where it is not there.

    Raises:
        UserError: nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # one that was there already may be read-only
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written ({error.strerror}); choose another folder") from error
    return folder


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with the run that lies at `where` under other settings.

    Raises:
        UserError: naming each setting that differs.
    """
    differing = [
        f"{name} was {found.get(name)}, now {wanted.get(name)}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise UserError(
            f"{where}: holds a run with other settings: {'; '.join(differing)}. Give the same settings to go on with "
            f"it, or another {where.split()[0]} to start a new one"
        )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; broken ones are removed, so that nothing takes them for whole."""
    for checkpoint in checkpoints(folder)[::-1]:
        if is_whole(checkpoint):
            return checkpoint
        logger.warning("%s was left half written by a killed process: removed", checkpoint)
        shutil.rmtree(checkpoint)
    return None


def find_best(checkpoint: Path) -> None:
    """Name the best checkpoint beside this one by where it lies now.

    Trainer remembers the path that it was written to. In a folder that was moved, or is mounted elsewhere, it would
    pass over the best model and keep the last.
    """
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    best = checkpoint.parent / f"checkpoint-{state['best_global_step']}"
    if best.is_dir() and state["best_model_checkpoint"] != str(best):
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(state | {"best_model_checkpoint": str(best)}, indent=2, sort_keys=True) + "\n")
        partial.replace(path)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint-N folders, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The N of checkpoint-N."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there; Trainer writes trainer_state.json last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        shards = set(json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"].values())
    except (OSError, ValueError):
        return False
    files = {path.name for path in checkpoint.iterdir()}
    return {"config.json", "optimizer.pt", "scheduler.pt", *shards} <= files and any(
        name.startswith("rng_state") for name in files
    )


def write_record(
    folder: Path, config: Config, args: TrainingArguments, wanted: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    """Write run.json: settings, versions, device, commit, and `extra`. Tokens are left out."""
    training = {name: value for name, value in args.to_dict().items() if "token" not in name}
    record = {
        "run_name": args.run_name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": without_tokens(sys.argv),
        "commit": commit(),
        "lock": lock(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "device": device(),
        "processes": args.world_size,
        "config": dataclasses.asdict(config),
        "training": training,
        "identity": dict(wanted),
        **extra,
    }
    _write(folder, record)


def amend_record(folder: Path, **fields: Any) -> None:
    """Add to run.json what only the training itself can tell."""
    _write(folder, read_record(folder, required=True) | fields)


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    partial = folder / f"{RUN_FILE}.partial"
    partial.write_text(json.dumps(record, indent=2, default=str) + "\n")
    partial.replace(folder / RUN_FILE)


def without_tokens(argv: Sequence[str]) -> list[str]:
    """A command line, with the values of its `--..._token` flags left out."""
    flag = r"--[\w-]*token[\w-]*"
    return [
        re.sub(f"^({flag}=).+", r"\1...", word) if not re.fullmatch(flag, before) else "..."
        for before, word in zip(["", *argv], argv, strict=False)
    ]


def read_record(folder: Path, *, required: bool = False) -> dict[str, Any]:
    """The contents of run.json; empty where there is none, or a UserError if it is `required`."""
    path = folder / RUN_FILE
    if required and not path.exists():
        raise UserError(f"{folder}: holds no run of this recipe (no {RUN_FILE})")
    return dict(json.loads(path.read_text())) if path.exists() else {}


def device() -> str:
    """What the run computes on, in words."""
    if not torch.cuda.is_available():
        return f"CPU ({os.cpu_count()} cores)"
    gpu = torch.cuda.get_device_properties(0)
    return f"{torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
