"""The frozen forward: memory and time of the lean one beside the stock one, and how far apart their features are.

    python benchmarks/backbone.py --layers    # 8 bits: the cosine of each kind of layer to fp32, with outlier channels
    python benchmarks/backbone.py [--size large] [--height 960 --width 1536] [--device cuda --dtype bfloat16]

On a CPU the peak is that of the process, one fresh process a side; on a GPU that of the allocator.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import DINOv3ViTBackbone, DINOv3ViTConfig

from recipe.model.backbone import FrozenBackbone, large_backbone
from recipe.model.precision import EIGHT_BITS, EightBitLinear

SMALL = DINOv3ViTConfig(
    hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6, num_register_tokens=4
)
SIZES = {"small": SMALL, "large": large_backbone()}


def run(side: str, options: argparse.Namespace, results: Any) -> None:
    torch.manual_seed(0)
    kind = FrozenBackbone if side == "ours" else DINOv3ViTBackbone
    model = kind(SIZES[options.size]).to(options.device, getattr(torch, options.dtype)).eval().requires_grad_(False)
    images = torch.randn(1, 3, options.height, options.width, device=options.device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model(images)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.synchronize()
    start = time.perf_counter()
    features = model(images).feature_maps[-1].float().cpu()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss * 1024  # fmt: skip
    results.put((side, seconds, peak - before, features.numpy()))


@torch.no_grad()
def cosines() -> None:
    """Random ViT-L-shaped weights; 4 of the channels are so many times as large as the others."""
    torch.manual_seed(0)
    table = Table("layer", "outliers", *(f"{precision}: mean, least" for precision in EIGHT_BITS))
    shapes = {"q, k, v": (1024, 3072), "o_proj": (1024, 1024), "up_proj": (1024, 4096), "down_proj": (4096, 1024)}
    for name, (inputs, outputs) in shapes.items():
        layer = torch.nn.Linear(inputs, outputs)
        for factor in (1, 10, 100):
            tokens = torch.randn(512, inputs)
            tokens = torch.nn.functional.gelu(tokens) if name == "down_proj" else tokens
            tokens[:, torch.randperm(inputs)[:4]] *= factor
            found = [EightBitLinear(layer, dtype)(tokens) for dtype, _, _ in EIGHT_BITS.values()]
            similar = [torch.nn.functional.cosine_similarity(each, layer(tokens), dim=-1) for each in found]
            table.add_row(name, f"{factor}x", *(f"{each.mean():.4f}, {each.min():.4f}" for each in similar))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    if options.layers:
        return cosines()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    found = {}
    for side in ("stock", "ours"):
        process = context.Process(target=run, args=(side, options, results))
        process.start()
        found[side] = results.get()
        process.join()
    table = Table("side", "seconds an image", "MB an image beyond the weights")
    for side, seconds, extra, _ in found.values():
        table.add_row(side, f"{seconds:.2f}", f"{extra / 1e6:.0f}")
    Console().print(table)
    difference = abs(found["stock"][3] - found["ours"][3]).max()
    print(f"largest difference of the features: {difference:.1e} at {options.height}x{options.width}")


if __name__ == "__main__":
    main()
