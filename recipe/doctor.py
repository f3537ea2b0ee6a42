"""`recipe doctor`: everything that can be found out before hours are spent.

    recipe doctor --data USER/CROWD --backbone facebook/dinov3-vitl16-pretrain-lvd1689m --hub_model_id USER/MODEL
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recipe.schema import UserError

GIB = 2**30
IMPORTS = ("torch", "torchvision", "transformers", "datasets", "accelerate", "faster_coco_eval", "trackio", "simplejpeg")
MIN_DISK = 10 * GIB  # ViT-L once, 8 checkpoints of the trainable part with its optimizer, and the Arrow cache's start
# CUDA major version of the locked torch -> oldest NVIDIA driver that runs it (NVIDIA's CUDA compatibility table).
OLDEST_DRIVER = {12: 525, 13: 580}
Finding = tuple[str, bool | None, str]  # what, fine (None: worth knowing), in words


def doctor(options: argparse.Namespace) -> int:
    """Print one line per check. Returns 1 if anything would stop a training, else 0."""
    findings = [finding for check in checks(options) for finding in check()]
    table = Table(box=None, show_header=False)
    for what, fine, words in findings:
        table.add_row({True: "[green]ok", False: "[red]FAILS", None: "[yellow]note"}[fine], what, words)
    Console(width=None).print(table)
    return 1 if any(fine is False for _, fine, _ in findings) else 0


def checks(options: argparse.Namespace) -> Iterator[Callable[[], Iterator[Finding]]]:
    """The checks that these options ask for, cheapest first."""
    yield imports
    yield gpu
    yield lambda: disk(Path(options.output_dir or "."))
    if options.data:
        yield lambda: dataset(options.data)
    if options.backbone:
        yield lambda: backbone(options.backbone)
    if options.hub_model_id or options.trackio_space_id:
        yield lambda: token(options.hub_model_id, options.trackio_space_id)


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
    import torch

    yield "driver", *driver(torch.version.cuda, installed_driver())
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            yield f"GPU {index}", True, f"{found.name}, {found.total_memory / GIB:.0f} GiB"
    else:
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
    """Free space where the run will be written."""
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    yield "disk", free >= MIN_DISK, f"{free / GIB:.0f} GiB free at {there}, {MIN_DISK / GIB:.0f} are needed"


def dataset(data: str) -> Iterator[Finding]:
    """Both splits open and hold the columns of the contract."""
    from recipe.data import load_split

    for split in ("train", "validation"):
        try:
            _, annotations, _ = load_split(data, split)
        except UserError as error:
            yield f"data {split}", False, str(error)
        else:
            yield f"data {split}", True, f"{len(annotations)} images, {int(annotations.counts.sum())} boxes"


def backbone(name: str) -> Iterator[Finding]:
    """The weights are in reach: a folder, or a gated repo whose licence was accepted."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    if Path(name).is_dir():
        there = any(Path(name).glob("*.safetensors"))
        yield "backbone", there, name if there else f"{name} holds no safetensors file"
        return
    try:
        HfApi().auth_check(name)
    except GatedRepoError:
        yield "backbone", False, f"{name} is gated: accept its licence on its page, then `hf auth login`"
    except (HfHubHTTPError, OSError, ValueError) as error:
        yield "backbone", False, f"{name}: {str(error).strip().splitlines()[0]}; or give `--backbone DIR`"
    else:
        yield "backbone", True, f"{name} can be fetched"


def token(model: str | None, space: str | None) -> Iterator[Finding]:
    """The token may write where the run will push: found now, not at the first upload."""
    from recipe.access import check_write_access

    for kind, name in (("model", model), ("space", space)):
        if name:
            try:
                yield f"{kind} repo", True, check_write_access(name, kind)
            except UserError as error:
                yield f"{kind} repo", False, str(error)
