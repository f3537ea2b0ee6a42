"""One optimizer step: this recipe, plain and with `--torch_compile`, beside the literal plan (stock model and loss,
fp32 weights under autocast).

    python benchmarks/train_step.py --size large --height 960 --width 1536 --batch 2 --device cuda [--memory_gb 20]
    python benchmarks/train_step.py                                          # small, on the CPU: only that it runs

Random weights of the true size, 85 boxes an image, a fresh process a side. On a GPU the share of the FLOP floor is
taken from a bf16 matrix product measured in the same run; `--memory_gb` caps the allocator as a smaller card would.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import DetrForObjectDetection

from recipe.config import parse_train
from recipe.data.batches import normalise
from recipe.model.detector import compile_backbone, detr_config, freeze, initialise, large_backbone, tiny_backbone

SIZES = {"tiny": tiny_backbone(), "large": large_backbone()}


def batch(options: argparse.Namespace) -> dict[str, Any]:
    """uint8 images and 85 boxes each, as the loader hands them over."""
    size = torch.tensor([options.height, options.width])
    pixels = torch.randint(0, 256, (options.batch, options.height, options.width, 3), dtype=torch.uint8)
    labels = [
        {"class_labels": torch.randint(0, 2, (85,)), "boxes": torch.rand(85, 4) * 0.3 + 0.05, "size": size}
        for _ in range(options.batch)
    ]
    return {"pixel_values": pixels.permute(0, 3, 1, 2), "labels": labels}


def build(side: str, options: argparse.Namespace) -> DetrForObjectDetection:
    config, _ = parse_train(["--preset", "pilot"])
    model = DetrForObjectDetection(detr_config(config, SIZES[options.size]))
    if side == "plan":
        model.model.freeze_backbone()
        return model
    initialise(model)
    model = freeze(model, torch.bfloat16 if options.device == "cuda" else torch.float32)
    if side == "compiled":
        compile_backbone(model)
    return model


def run(side: str, options: argparse.Namespace, results: Any) -> None:
    torch.manual_seed(0)
    cuda = options.device == "cuda"
    if cuda and options.memory_gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.memory_gb * 2**30 / total)
    model = build(side, options).to(options.device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=cuda)
    host = batch(options)
    if side == "plan":  # the usual pipeline normalises in the workers and sends floats
        host = normalise(host)
    times = []
    try:
        for _ in range(options.steps):
            start = time.perf_counter()
            labels = [{key: value.to(options.device) for key, value in label.items()} for label in host["labels"]]
            inputs = {key: value.to(options.device) for key, value in host.items() if key != "labels"}
            inputs = inputs | {"labels": labels} if side == "plan" else normalise(inputs | {"labels": labels})
            with torch.autocast(options.device, dtype=torch.bfloat16, enabled=cuda):
                loss = model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    except torch.cuda.OutOfMemoryError:
        results.put((side, None, None))
        return
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    results.put((side, options.batch / statistics.median(times[len(times) // 3 :]), peak))


def ceiling() -> float:
    """TFLOP/s of a bf16 matrix product on this GPU."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * 8192**3 / statistics.median(times) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory_gb", type=float)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    found = {}
    for side in ("plan", "ours", "compiled"):
        process = context.Process(target=run, args=(side, options, results))
        process.start()
        found[side] = results.get()
        process.join()
    table = Table("side", "images/s", "peak GiB")
    for side, speed, peak in found.values():
        table.add_row(
            side, "out of memory" if speed is None else f"{speed:.2f}", "-" if peak is None else f"{peak:.1f}"
        )
    Console().print(table)
    for side in ("ours", "compiled"):
        if found["plan"][1] and found[side][1]:
            print(f"{side} is {found[side][1] / found['plan'][1]:.2f} times as fast as the plan")
    if options.device == "cuda" and options.size == "large" and found["ours"][1]:
        tflop = 7.65 * options.height * options.width / (960 * 1536)  # an image's forward and backward, by arithmetic
        roof = ceiling()
        print(f"{found['ours'][1] * tflop / roof:.0%} of the floor that a ceiling of {roof:.0f} TFLOP/s allows")


if __name__ == "__main__":
    main()
