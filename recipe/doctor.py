"""`recipe doctor`: everything that can be found out before hours are spent; it takes the flags of `recipe train`.

recipe doctor
recipe doctor --data USER/CROWD --hub_model_id USER/MODEL --output_dir outputs/run
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipe.arguments import Arguments, parse
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.hub import check_read_access, check_write_access, is_repo_id, short_timeouts
from recipe.model.backbone import large_backbone
from recipe.model.detector import DETECTORS, build_processor, detector_config, freeze
from recipe.model.precision import quantise
from recipe.pace import Pace
from recipe.schema import UserError
from recipe.training.memory import find_batch_size
from recipe.training.run import device

GIB = 2**30
IMPORTS = ("torch", "torchvision", "transformers", "datasets", "accelerate", "albumentations", "trackio", "cv2")
MIN_DISK = 10 * GIB  # ViT-L once, and 8 checkpoints of the trained part with its optimizer
# CUDA major version of the locked torch -> oldest NVIDIA driver that runs it (NVIDIA's CUDA compatibility table).
OLDEST_DRIVER = {12: 525, 13: 580}
# GB of a training with ViT-L, by arithmetic: libraries, weights and optimizer; and each million pixels of a batch, of
# which benchmarks/step_budget.py counts 0.35 kept for backward.
FIXED_GB, GB_PER_MEGAPIXEL = 3.0, 0.38
Finding = tuple[bool | None, str]  # fine (None: worth knowing), in words


def doctor(options: argparse.Namespace) -> int:
    """Print a row for each check, as it is made. Returns 1 if any would stop a training."""
    flags = options.flags
    if not any(word.split("=")[0] in ("--data", "--preset") for word in flags):
        flags = ["--preset", "pilot", *flags]
    console, failed = Console(), 0
    with short_timeouts():
        for what, check in checks(parse(flags)):
            try:
                fine, words = check()
            except UserError as error:
                fine, words = False, str(error)
            row = Table(box=None, show_header=False)  # one for each: the next check may take a while
            for width in (5, 16, None):
                row.add_column(width=width, overflow="fold")
            row.add_row({True: "[green]ok", False: "[red]FAILS", None: "[yellow]note"}[fine], what, Text(words))
            console.print(row)
            failed += fine is False
    print(f"{failed} to mend" if failed else f"ready: {shlex.join(['recipe', 'train', *flags])}")
    return int(failed > 0)


def checks(args: Arguments) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """What is looked at, and how; a check that raises UserError has failed."""
    for name in IMPORTS:
        yield name, partial(library, name)
    yield "driver", lambda: driver(torch.version.cuda, installed_driver())
    yield "device", lambda: (True if torch.cuda.is_available() else None, device())
    yield "output_dir", partial(disk, Path(args.output_dir))
    for flag in ["init_from"] if args.init_from else ["backbone", "detr_init"]:
        if (name := getattr(args, flag)) not in ("tiny", "none"):
            yield flag, partial(weights, flag, name)
    for kind, name in {"model": args.hub_model_id, "space": args.trackio_space_id}.items():
        if name:
            yield f"{kind} repo", partial(repo, kind, name, args.hub_token)
    if args.data:
        splits: dict[str, CrowdDataset] = {}
        yield "data train", partial(data, args, "train", splits)
        yield "data validation", partial(data, args, "validation", splits)
        if len(splits) == 2:
            yield "memory", partial(memory, args, splits["train"])
            yield "hours", partial(hours, args, **splits)


def library(name: str) -> Finding:
    """One of those that fail late or turn silently into slower ones when they are missing."""
    try:
        return True, str(getattr(importlib.import_module(name), "__version__", "there"))
    except ImportError as error:
        return False, f"cannot be imported ({error}); run `make setup`"


def driver(cuda: str | None, installed: str | None) -> Finding:
    """Whether NVIDIA driver `installed` ("580.95.05") runs a torch built for `cuda` ("13.2")."""
    if cuda is None:
        return None, "this torch is built without CUDA"
    oldest = OLDEST_DRIVER[int(cuda.split(".")[0])]
    if installed is None:
        return None, f"no NVIDIA driver found; this torch needs R{oldest} or newer (CUDA {cuda})"
    fine = int(installed.split(".")[0]) >= oldest
    return fine, f"{installed}; CUDA {cuda} needs R{oldest} or newer"


def installed_driver() -> str | None:
    """The version that nvidia-smi reports, or None."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def disk(folder: Path) -> Finding:
    """Room and the right to write where the run will be."""
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return False, f"{folder}: cannot be written ({error.strerror}); give another `--output_dir`"
    free = shutil.disk_usage(there).free
    return free >= MIN_DISK, f"{free / GIB:.0f} GiB free at {there}, {MIN_DISK / GIB:.0f} are needed"


def weights(flag: str, name: str) -> Finding:
    """A folder with weights, or a repo within reach, whose licence was accepted where it is gated."""
    if Path(name).is_dir():
        there = any(Path(name).glob("*.safetensors"))
        return there, name if there else f"{name} holds no safetensors file"
    if not is_repo_id(name):
        return False, f"{name}: neither a folder nor the USER/NAME of a Hub repo; give `--{flag} DIR`"
    try:
        return True, check_read_access(name)
    except UserError as error:
        optional = flag == "detr_init"  # without it the training starts from scratch, and says so
        return None if optional else False, f"{error}; or give `--{flag} DIR`"


def repo(kind: str, name: str, token: str | None) -> Finding:
    """The token may write where the run will push: found now, not at the first upload."""
    return True, check_write_access(name, kind, token)


def data(args: Arguments, split: str, splits: dict[str, CrowdDataset]) -> Finding:
    """Open a split into `splits`; it holds the columns of the contract."""
    limit = {"train": args.max_train_images, "validation": args.max_val_images}[split]
    source, annotations, _ = load_split(
        str(args.data), split, revision=args.data_revision, limit=limit, seed=args.seed
    )
    splits[split] = CrowdDataset(source, annotations, Geometry(args.shortest_edge, args.longest_edge))
    return True, f"{len(annotations)} images, {int(annotations.counts.sum())} boxes"


def memory(args: Arguments, train: CrowdDataset) -> Finding:
    """The batch that fits, tried with random weights of ViT-L's shape; without a GPU what it needs by arithmetic."""
    if torch.cuda.is_available():
        model = DETECTORS[args.detector](detector_config(args, large_backbone()))
        freeze(model, torch.bfloat16 if args.bf16 else torch.float32)
        quantise(model.model.backbone, args.backbone_precision)
        size = find_batch_size(args, model, build_processor(args, large_backbone()), train)
        return True, f"the densest images fit at batch {size} x {args.gradient_accumulation_steps}"
    largest = train.annotations.sizes(train.geometry).prod(axis=1).max() / 1e6
    batch = args.per_device_train_batch_size
    needed = FIXED_GB + GB_PER_MEGAPIXEL * largest * batch
    return (
        None,
        f"about {needed:.1f} GB of a GPU at batch {batch} of {largest:.2f} Mpixels, by arithmetic for ViT-L",
    )


def hours(args: Arguments, train: CrowdDataset, validation: CrowdDataset) -> Finding:
    """How long the run takes, by the rate that arithmetic gives a card, and the size of these images."""
    card = device() if torch.cuda.is_available() else "1 x A10G"
    evaluated = min(args.eval_images or len(validation), len(validation))
    pace = Pace.computed(card, len(train), evaluated, args.num_train_epochs)
    if pace is None:
        return None, f"no rate is known for {card}; the log says it after 50 steps"
    size = train.annotations.sizes(train.geometry).prod(axis=1).mean() / (960 * 1536)  # the rates are of this one
    return None, f"about {pace.hours * size:.1f} for {pace.epochs:g} epochs on {card}, by arithmetic (docs/guide.md)"
