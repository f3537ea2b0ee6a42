"""`recipe doctor`: everything that can be found out before hours are spent.

recipe doctor --pace
recipe doctor --data USER/CROWD --backbone facebook/dinov3-vitl16-pretrain-lvd1689m --hub_model_id USER/MODEL
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipe.schema import UserError

if TYPE_CHECKING:
    from transformers import DINOv3ViTConfig

GIB = 2**30
IMPORTS = ("torch", "torchvision", "transformers", "datasets", "accelerate", "trackio", "cv2", "simplejpeg")
MIN_DISK = 10 * GIB  # ViT-L once, 8 checkpoints of the trainable part with its optimizer, and the Arrow cache's start
# CUDA major version of the locked torch -> oldest NVIDIA driver that runs it (NVIDIA's CUDA compatibility table).
OLDEST_DRIVER = {12: 525, 13: 580}
Finding = tuple[str, bool | None, str]  # what, fine (None: worth knowing), in words


def doctor(options: argparse.Namespace) -> int:
    """Print a row for each check that the options ask for, as it is made. Returns 1 if any would stop a training."""
    from recipe.hub import impatiently

    checks = [imports(), gpu(), disk(Path(options.output_dir or "."))]
    if options.pace:
        checks.append(pace())
    if options.data:
        checks.append(dataset(options.data))
    if options.backbone:
        checks.append(backbone(options.backbone))
    checks.append(token({"model": options.hub_model_id, "space": options.trackio_space_id}))
    console, failed = Console(), 0
    with impatiently():
        for what, fine, words in chain.from_iterable(checks):
            row = Table(box=None, show_header=False)  # one for each: the next check may take a while
            for width in (5, 15, None):
                row.add_column(width=width, overflow="fold")
            row.add_row({True: "[green]ok", False: "[red]FAILS", None: "[yellow]note"}[fine], what, Text(words))
            console.print(row)
            failed += fine is False
    print(f"{failed} to mend" if failed else f"ready: {training(options)}")
    return int(failed > 0)


def training(options: argparse.Namespace) -> str:
    """The command that was looked into, in full."""
    names = ("data", "backbone", "hub_model_id", "trackio_space_id", "output_dir")
    flags = [word for name in names if (value := getattr(options, name)) for word in (f"--{name}", value)]
    return shlex.join(["recipe", "train", *([] if options.data else ["--preset", "pilot"]), *flags])


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


def pace() -> Iterator[Finding]:
    """Images per second of the training step, and what that would be on a10g-large."""
    import torch

    from recipe.model.detector import large_backbone
    from recipe.pace import Pace
    from recipe.training.run import device

    if not torch.cuda.is_available():
        yield "pace", None, "without a GPU there is none to measure"
        return
    found = Pace(step_rate(large_backbone(), 960, 1536, steps=12), device(), 0, 0, 0)
    rate = f"{found.images_per_second:.2f} images/s"
    yield "pace", None, f"{rate} of training with ViT-L at 960x1536, without the loader"
    there = found.on("A10G")
    if there is not None and "A10G" not in found.device:
        rate = f"{there.images_per_second:.2f}"
        yield "", None, f"about {rate} on a10g-large, by the peak bf16 TFLOPS of both: jobs/launch.py --pace {rate}"


def step_rate(backbone: DINOv3ViTConfig, height: int, width: int, *, steps: int, batch: int = 2) -> float:
    """Images per second of forward, loss, backward and update, on random images of 85 boxes and random weights."""
    import torch
    from transformers import DetrForObjectDetection

    from recipe.config import parse_train
    from recipe.data.batches import normalise
    from recipe.model.detector import detr_config, freeze, initialise

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    model = DetrForObjectDetection(detr_config(parse_train(["--preset", "pilot"])[0], backbone))
    initialise(model)
    model = freeze(model, torch.bfloat16 if kind == "cuda" else torch.float32).to(kind).train()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    boxes = torch.rand(85, 4, device=kind) * 0.3 + 0.05
    size = torch.tensor([height, width], device=kind)
    label = {"class_labels": torch.zeros(85, dtype=torch.long, device=kind), "boxes": boxes, "size": size}
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        pixels = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, device=kind)
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda"):
            loss = model(**normalise({"pixel_values": pixels, "labels": [label] * batch})).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the GPU
        times.append(time.perf_counter() - began)
    return batch / statistics.median(times[steps // 3 :])


def dataset(data: str) -> Iterator[Finding]:
    """Both splits open and hold the columns of the contract."""
    from recipe.data.dataset import load_split

    for split in ("train", "validation"):
        try:
            _, annotations, _ = load_split(data, split)
        except UserError as error:
            yield f"data {split}", False, str(error)
        else:
            yield f"data {split}", True, f"{len(annotations)} images, {int(annotations.counts.sum())} boxes"


def backbone(name: str) -> Iterator[Finding]:
    """The weights are in reach: a folder, or a gated repo whose licence was accepted."""
    from recipe.hub import check_read_access, is_repo_id

    if name == "tiny":
        yield "backbone", True, "tiny: random, nothing to fetch"
        return
    if Path(name).is_dir():
        there = any(Path(name).glob("*.safetensors"))
        yield "backbone", there, name if there else f"{name} holds no safetensors file"
        return
    if not is_repo_id(name):
        yield "backbone", False, f"{name}: neither a folder nor the USER/NAME of a Hub repo; give `--backbone DIR`"
        return
    try:
        yield "backbone", True, check_read_access(name)
    except UserError as error:
        yield "backbone", False, f"{error}; or give `--backbone DIR`"


def token(repos: Mapping[str, str | None]) -> Iterator[Finding]:
    """The token may write where the run will push: found now, not at the first upload."""
    from recipe.hub import check_write_access

    for kind, name in repos.items():
        if name:
            try:
                yield f"{kind} repo", True, check_write_access(name, kind)
            except UserError as error:
                yield f"{kind} repo", False, str(error)
