"""What a GPU sustains at the shapes of a training step: the figures that `step_budget.py` and `pace.py` assume.

    python benchmarks/ceilings.py --device cuda
    python benchmarks/ceilings.py --tokens 64           # small, on the CPU: only that it runs

Linear layers of ViT-L in bf16 and fp8, attention without and with a bias, and a pass over a token map.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

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
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device=device)
        rows, weight = hidden.to(torch.float8_e4m3fn), up.to(torch.float8_e4m3fn).t()

        def scaled() -> torch.Tensor:  # the scale of each row has to be found anew, that of the weights has not
            hidden.abs().amax(1)
            return torch._scaled_mm(rows, weight, one, one, out_dtype=torch.bfloat16)

        found["fp8 linear"] = work / 2 / seconds(scaled, device) / 1e12
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
