"""What a GPU sustains at the shapes of a training step: the figures that `step_budget.py` and `pace.py` assume.

    python benchmarks/ceilings.py --device cuda
    python benchmarks/ceilings.py --tokens 64           # small, on the CPU: only that it runs

Linear layers of ViT-L in bf16 and 8 bits, attention without and with a bias, and a pass over a token map.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from recipe.model.precision import EIGHT_BITS, by_rows, eight_bit_linear

WIDTH, HEADS, BATCH = 1024, 16, 2  # of DINOv3 ViT-L


def seconds(call: Callable[[], object], device: str, repeats: int = 20) -> float:
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=5189, help="of an image: 54 x 96 patches at 16:9, and 5")
    options = parser.parse_args()
    device, tokens = options.device, options.tokens

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    hidden, up, down = random(BATCH * tokens, WIDTH), random(4 * WIDTH, WIDTH), random(WIDTH, 4 * WIDTH)
    work = 2 * 2 * BATCH * tokens * 4 * WIDTH * WIDTH
    found = {"linear": work / seconds(lambda: linear(linear(hidden, up), down), device) / 1e12}
    for precision, (dtype, _, capability) in EIGHT_BITS.items():
        if device == "cuda" and torch.cuda.get_device_capability() >= capability:
            rows, scales = by_rows(up, dtype)
            layer = torch.compile(eight_bit_linear)  # the rows of the activations have to be scaled anew
            took = seconds(lambda rows=rows, scales=scales, layer=layer: layer(hidden, rows, scales, None), device)
            found[f"{precision} linear"] = work / 2 / took / 1e12
    query = random(BATCH, HEADS, tokens, WIDTH // HEADS)
    work = 4 * BATCH * HEADS * tokens * tokens * (WIDTH // HEADS)
    attend = scaled_dot_product_attention
    found["attention"] = work / seconds(lambda: attend(query, query, query), device) / 1e12
    bias = random(BATCH, 1, tokens, tokens)
    found["with a bias"] = work / seconds(lambda: attend(query, query, query, bias), device) / 1e12
    bandwidth = 2 * hidden.nbytes / seconds(lambda: torch.nn.functional.gelu(hidden), device) / 1e9
    rates = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
    print(f"summary: {tokens} tokens, batch {BATCH}: {rates} TFLOP/s; a pass over the token map {bandwidth:.3g} GB/s")


if __name__ == "__main__":
    main()
