"""`recipe doctor`: everything that can be found out before hours are spent; it takes the flags of `recipe train`.

recipe doctor
recipe doctor --data USER/CROWD --hub_model_id USER/MODEL --output_dir outputs/run
"""

from __future__ import annotations

import importlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
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
Finding = tuple[str, bool | None, str]  # what, fine (None: worth knowing), in words


def doctor(flags: Sequence[str]) -> int:
    """Print a row for each check, as it is made. Returns 1 if any would stop a training."""
    given = any(word.split("=")[0] in ("--data", "--preset") for word in flags)
    args = parse([*flags] if given else ["--preset", "pilot", *flags])
    checks = [imports(), gpu(), disk(Path(args.output_dir)), data(args), weights(args), repos(args), memory(args)]
    console, failed = Console(), 0
    with short_timeouts():
        for what, fine, words in chain.from_iterable(checks):
            row = Table(box=None, show_header=False)  # one for each: the next check may take a while
            for width in (5, 15, None):
                row.add_column(width=width, overflow="fold")
            row.add_row({True: "[green]ok", False: "[red]FAILS", None: "[yellow]note"}[fine], what, Text(words))
            console.print(row)
            failed += fine is False
    command = shlex.join(["recipe", "train", *([] if given else ["--preset", "pilot"]), *flags])
    print(f"{failed} to mend" if failed else f"ready: {command}")
    return int(failed > 0)


def imports() -> Iterator[Finding]:
    """The libraries that fail late or turn silently into slower ones when they are missing."""
    for name in IMPORTS:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            yield name, False, f"cannot be imported ({error}); run `make setup`"
        else:
            yield name, True, str(getattr(module, "__version__", "there"))


def gpu() -> Iterator[Finding]:
    """GPU, memory, and whether the driver is new enough for the locked CUDA."""
    yield "driver", *driver(torch.version.cuda, installed_driver())
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", True, f"{found.name}, {found.total_memory / GIB:.0f} GiB"
    if not torch.cuda.is_available():
        yield "GPU", None, "none visible: training runs on the CPU, fit for the pilot only"


def driver(cuda: str | None, installed: str | None) -> tuple[bool | None, str]:
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


def disk(folder: Path) -> Iterator[Finding]:
    """Room and the right to write where the run will be."""
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        yield "disk", False, f"{folder}: cannot be written ({error.strerror}); give another `--output_dir`"
        return
    free = shutil.disk_usage(there).free
    yield "disk", free >= MIN_DISK, f"{free / GIB:.0f} GiB free at {there}, {MIN_DISK / GIB:.0f} are needed"


def data(args: Arguments) -> Iterator[Finding]:
    """Both splits open and hold the columns of the contract."""
    for split in ("train", "validation") if args.data else ():
        try:
            _, annotations, _ = load_split(str(args.data), split, revision=args.data_revision)
        except UserError as error:
            yield f"data {split}", False, str(error)
        else:
            yield f"data {split}", True, f"{len(annotations)} images, {int(annotations.counts.sum())} boxes"


def weights(args: Arguments) -> Iterator[Finding]:
    """Everything that is loaded is in reach: a folder, or a repo, whose licence was accepted where it is gated."""
    for flag in ("backbone", "detr_init", "init_from"):
        name = getattr(args, flag)
        if name in (None, "tiny", "none") or (flag != "init_from" and args.init_from):
            continue
        if Path(name).is_dir():
            there = any(Path(name).glob("*.safetensors"))
            yield flag, there, name if there else f"{name} holds no safetensors file"
        elif not is_repo_id(name):
            yield flag, False, f"{name}: neither a folder nor the USER/NAME of a Hub repo; give `--{flag} DIR`"
        else:
            try:
                yield flag, True, check_read_access(name)
            except UserError as error:
                optional = flag == "detr_init"  # without it the training starts from scratch, and says so
                yield flag, None if optional else False, f"{error}; or give `--{flag} DIR`"


def repos(args: Arguments) -> Iterator[Finding]:
    """The token may write where the run will push: found now, not at the first upload."""
    for kind, name in {"model": args.hub_model_id, "space": args.trackio_space_id}.items():
        if name:
            try:
                yield f"{kind} repo", True, check_write_access(name, kind, args.hub_token)
            except UserError as error:
                yield f"{kind} repo", False, str(error)


def memory(args: Arguments) -> Iterator[Finding]:
    """The batch that fits, tried with random weights of ViT-L's shape; and the hours that the run takes."""
    if not args.data:
        return
    try:
        (source, train, _), (_, validation, _) = (load_split(args.data, split) for split in ("train", "validation"))
    except UserError:
        return  # `data` has said why
    if not torch.cuda.is_available():
        yield "memory", None, "without a GPU there is nothing to try; ViT-L at 960x1536 takes about 4 GB at batch 2"
    else:
        model = DETECTORS[args.detector](detector_config(args, large_backbone()))
        freeze(model, torch.bfloat16 if args.bf16 else torch.float32)
        dataset = CrowdDataset(source, train, Geometry(args.shortest_edge, args.longest_edge))
        try:
            quantise(model.model.backbone, args.backbone_precision)
            size = find_batch_size(args, model, build_processor(args, large_backbone()), dataset)
            yield "memory", True, f"the densest images fit at batch {size} x {args.gradient_accumulation_steps}"
        except UserError as error:
            yield "memory", False, str(error)
    estimate = Pace.computed(device(), len(train), len(validation), args.num_train_epochs)
    if estimate is not None:
        yield (
            "hours",
            None,
            f"about {estimate.hours:.0f} for {estimate.epochs:g} epochs, by arithmetic (docs/guide.md)",
        )
