"""Optimizer steps at real image sizes: this recipe, plain, compiled and in 8 bits, beside the literal plan.

    python benchmarks/train_step.py --size large --edges 960 1536 --batch 2 --device cuda [--memory_gb 20]
    python benchmarks/train_step.py                                          # small, on the CPU: only that it runs

Random weights of the true size, 85 boxes an image, a fresh process a side. Each round is a step on 16:9, 3:2, 4:3 and
1:1: the recipe sees each batch at its own size; the plan (stock model and loss, fp32 weights under autocast) on a
canvas of both edges with its mask. `--memory_gb` caps the allocator as a smaller card would.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import profile
from transformers import DetrForObjectDetection

from recipe.config import Config
from recipe.data.batches import normalise
from recipe.data.geometry import Geometry
from recipe.model.backbone import FrozenBackbone, large_backbone, tiny_backbone
from recipe.model.detector import EVEN, detector_config, freeze, initialise
from recipe.model.detr import Detr
from recipe.model.precision import EIGHT_BITS, quantise

SIZES = {"tiny": tiny_backbone, "large": large_backbone}
SHAPES = {"16:9": (1080, 1920), "3:2": (1000, 1500), "4:3": (1200, 1600), "1:1": (1200, 1200)}
MEAN = STD = (0.5, 0.5, 0.5)
COMPLETE = {"labelled": torch.ones(2, dtype=torch.bool), "ignored": torch.zeros(0, 4)}  # each class, everywhere


def batch(options: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    """uint8 images of one size and 85 boxes each, as the loader hands them over."""
    pixels = torch.randint(0, 256, (options.batch, 3, *size), dtype=torch.uint8)
    labels = [
        {"class_labels": torch.randint(0, 2, (85,)), "boxes": torch.rand(85, 4) * 0.3 + 0.05, **COMPLETE}
        for _ in range(options.batch)
    ]
    return {"pixel_values": pixels, "labels": labels}


def on_canvas(inputs: dict[str, Any], canvas: tuple[int, int]) -> dict[str, Any]:
    """Padded at the right and below, with the mask: as the stock processor hands it over, in float."""
    inputs = normalise(inputs, MEAN, STD)
    pixels = inputs["pixel_values"]
    height, width = pixels.shape[-2:]
    mask = torch.zeros((len(pixels), *canvas), dtype=torch.int64)
    mask[:, :height, :width] = 1
    padded = nn.functional.pad(pixels, (0, canvas[1] - width, 0, canvas[0] - height))
    return {"pixel_values": padded, "pixel_mask": mask, "labels": inputs["labels"]}


def build(side: str, options: argparse.Namespace) -> DetrForObjectDetection:
    backbone = SIZES[options.size]()
    detr = detector_config(Config(data="-"), backbone)
    if side == "plan":
        detr.auxiliary_loss = True
        model = DetrForObjectDetection(detr)
        model.model.freeze_backbone()
        return model
    model = Detr(detr, FrozenBackbone(backbone))
    initialise(model, EVEN)
    freeze(model, torch.bfloat16 if options.device == "cuda" else torch.float32).to(options.device)
    quantise(model.model.backbone, side if side in EIGHT_BITS else "bf16")
    if side != "ours":
        model.model.backbone.model.compile_layers(required=options.device == "cuda")
    return model


def run(side: str, options: argparse.Namespace, results: Any) -> None:
    """Puts images/s at each shape and the peak GiB, or None where the memory did not do."""
    torch.manual_seed(0)
    cuda = options.device == "cuda"
    if cuda and options.memory_gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.memory_gb * 2**30 / total)
    geometry = Geometry(*options.edges)
    hosts = {name: batch(options, geometry.resized(*shape)) for name, shape in SHAPES.items()}
    if side == "plan":  # the usual pipeline normalises and pads in the workers
        hosts = {name: on_canvas(host, tuple(options.edges)) for name, host in hosts.items()}
    times: dict[str, list[float]] = {name: [] for name in SHAPES}
    try:
        model = build(side, options).to(options.device).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=cuda)
        for number in range(options.rounds):
            profiled = options.profile and number == options.rounds - 1
            with profile() if profiled else contextlib.nullcontext() as found:
                for name, host in hosts.items():
                    times[name].append(step(side, model, optimizer, host, options.device))
            if profiled:
                print(found.key_averages().table(sort_by=f"self_{options.device}_time_total", row_limit=30))
    except torch.OutOfMemoryError:
        results.put((side, None, None))
        return
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    half = options.rounds // 2  # the first rounds warm up
    results.put((side, {name: options.batch / statistics.median(each[half:]) for name, each in times.items()}, peak))


def step(side: str, model: nn.Module, optimizer: torch.optim.Optimizer, host: dict[str, Any], device: str) -> float:
    """Seconds of one optimizer step, from the batch on the host to the new weights."""
    start = time.perf_counter()
    labels = [{name: value.to(device) for name, value in label.items()} for label in host["labels"]]
    inputs = {name: value.to(device) for name, value in host.items() if name != "labels"} | {"labels": labels}
    inputs = inputs if side == "plan" else normalise(inputs, MEAN, STD)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        loss = model(**inputs).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--edges", type=int, nargs=2, default=[96, 160], help="shortest and longest edge")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--sides", nargs="+", choices=("plan", "ours", "compiled", "fp8", "int8"), default=["plan", "ours"]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory_gb", type=float)
    parser.add_argument("--profile", action="store_true", help="print the kernels of the last round")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    table = Table("side", *(f"{name}, images/s" for name in SHAPES), "peak GiB")
    summary = []
    for side in options.sides:
        process = context.Process(target=run, args=(side, options, results))
        process.start()
        _, speed, peak = results.get()
        process.join()
        memory = "-" if peak is None else f"{peak:.1f}"
        if speed is None:
            table.add_row(side, *["out of memory"] * len(SHAPES), memory)
            summary.append(f"{side} out of memory")
        else:
            table.add_row(side, *(f"{value:.2f}" for value in speed.values()), memory)
            summary.append(f"{side} {statistics.harmonic_mean(speed.values()):.2f} images/s, {memory} GiB")
    Console().print(table)
    print(f"summary: batch {options.batch}, {options.edges[0]}x{options.edges[1]}: {'; '.join(summary)}")


if __name__ == "__main__":
    main()
