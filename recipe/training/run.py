"""The run folder: one process owns it, and run.json says what made it.

lock = lock_run_folder(Path("outputs/run"))
check_run_folder(Path("outputs/run"), fixed_settings(args) | dataset, resume="auto")
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from recipe.arguments import Arguments
from recipe.config import Config
from recipe.hub import newest_commit
from recipe.record import RunRecord, commit, lock, without_tokens
from recipe.schema import UserError

LOCK_FILE = ".lock"
LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "huggingface-hub", "trackio")
# What may differ between a run and its resumption: nothing of it reaches a weight.
MAY_CHANGE_ON_RESUME = {"preset", "data", "output_dir", "resume", "max_hours", "push_minutes", "shown_images",
                        "early_stopping_patience"}  # fmt: skip
TRAINING_SETTINGS = ("num_train_epochs", "max_steps", "learning_rate", "weight_decay", "warmup_steps",
                     "lr_scheduler_type", "lr_scheduler_kwargs", "max_grad_norm", "optim", "optim_args",
                     "adam_beta1", "adam_beta2", "adam_epsilon", "metric_for_best_model", "greater_is_better",
                     "seed", "bf16", "fp16", "per_device_train_batch_size", "gradient_accumulation_steps")  # fmt: skip


def fixed_settings(args: Arguments) -> dict[str, Any]:
    """Everything that decides the weights, but the data: a run is resumed with the same or not at all."""
    names = [flag.name for flag in fields(Config) if flag.name not in MAY_CHANGE_ON_RESUME]
    found = {name: getattr(args, name) for name in (*names, *TRAINING_SETTINGS)}
    return json.loads(json.dumps(found | {"processes": args.world_size}, default=str))


def fix_revisions(args: Arguments, pushed: RunRecord | None) -> None:
    """Branches become commits: those of the run that is resumed, else today's. The same on every process.

    Args:
        pushed: the record of the run on the Hub.
    """
    earlier = pushed or RunRecord.read(Path(args.output_dir))
    if earlier:
        backbone = earlier.settings["backbone_revision"]
    else:
        backbone = newest_commit(args.backbone, args.backbone_revision, "model")
    if earlier and earlier.settings["data"] == args.data:
        data = earlier.dataset["revision"]
    else:  # or a push to the dataset between the two downloads would give its splits from two commits
        data = newest_commit(args.data or "", args.data_revision, "dataset")
    args.backbone_revision, args.data_revision = broadcast_object_list([backbone, data])


def check_run_folder(folder: Path, expected: Mapping[str, Any], resume: str) -> None:
    """UserError for a folder that holds something else or another run, or where `resume` is "never" a run at all."""
    record = RunRecord.read(folder)
    if record is None:
        if any(path.name != LOCK_FILE for path in folder.iterdir()):
            raise UserError(f"--output_dir {folder}: holds files that are not a run of this recipe; choose another")
    elif resume == "never":
        raise UserError(
            f"--output_dir {folder}: holds a run. Give another folder, delete it, or resume it by `--resume auto`"
        )
    else:
        record.check_same(expected, f"--output_dir {folder}")


def lock_run_folder(folder: Path) -> IO[str]:
    """Own `folder` until this process ends, however it ends: the kernel keeps the lock, on network disks the server.

    Returns the open file that holds the lock; UserError where nothing can be written, or another process trains.
    """
    file = (writable(folder, "--output_dir") / LOCK_FILE).open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: loader workers do not inherit it
    except OSError as error:
        file.seek(0)
        raise UserError(
            f"--output_dir {folder}: {file.read().strip() or 'another process'} trains there; "
            "wait for it, end it, or give another folder"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def check_shared(folder: Path, lock: IO[str] | None) -> None:
    """All processes read the checkpoints that the first one writes; only that one has the `lock`.

    Raises:
        UserError: in all of them, where one has the folder of another disk.
    """
    PartialState().wait_for_everyone()  # until it is locked
    seen = ""
    if lock is not None:  # the open file itself: closing a second one would end the lock (POSIX)
        lock.seek(0)
        seen = lock.read()
    elif (folder / LOCK_FILE).exists():
        seen = (folder / LOCK_FILE).read_text()
    if len({*gather_object([seen])}) > 1:
        where = "is another folder on each machine; give one on a disk that they share"
        raise UserError(f"--output_dir {folder}: {where}")


def writable(folder: Path, flag: str) -> Path:
    """The folder that `flag` names, made where it is not there; UserError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # one that was there already may be read-only
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written ({error.strerror}); choose another folder") from error
    return folder


def write_record(folder: Path, args: Arguments, expected: Mapping[str, Any], dataset: Mapping[str, Any]) -> RunRecord:
    """Write run.json: settings, versions, device, commit. Tokens are left out; a resumed run keeps its name and id."""
    name = folder.resolve().name if args.run_name in (None, args.output_dir) else args.run_name
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = replace(
        RunRecord.read(folder) or RunRecord(name, uuid.uuid4().hex, started, {}, {}, {}),
        settings={name: value for name, value in args.to_dict().items() if "token" not in name},
        fixed_settings=dict(expected),
        dataset=dict(dataset),
        command=without_tokens(sys.argv),
        commit=commit(),
        lock=lock(),
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        device=device(),
        processes=args.world_size,
    )
    record.write(folder)
    return record


def device() -> str:
    """What the run computes on, in words."""
    if not torch.cuda.is_available():
        return f"CPU ({os.cpu_count()} cores)"
    gpu = torch.cuda.get_device_properties(0)
    count = os.environ.get("WORLD_SIZE", torch.cuda.device_count())  # of all machines
    return f"{count} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
