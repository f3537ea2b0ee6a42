"""Matching and loss, 300 queries, 85 boxes an image, 6 decoder layers: this recipe beside transformers.

python benchmarks/matcher.py [--batch 2 8 16]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DetrConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from recipe.model.loss import detection_loss

CONFIG = DetrConfig(auxiliary_loss=True, num_labels=2)
COMPLETE = {"labelled": torch.ones(2, dtype=torch.bool), "ignored": torch.zeros(0, 4)}  # each class, everywhere


def inputs(batch: int, boxes: int = 85, queries: int = 300) -> tuple:
    torch.manual_seed(batch)
    logits = torch.randn(6, batch, queries, 3)
    coords = torch.rand(6, batch, queries, 4) * 0.4 + 0.1
    labels = [
        {"class_labels": torch.randint(0, 2, (boxes,)), "boxes": torch.rand(boxes, 4) * 0.3 + 0.05, **COMPLETE}
        for _ in range(batch)
    ]
    return logits, coords, labels


def ours(logits: Tensor, boxes: Tensor, labels: list) -> Tensor:
    return detection_loss(logits, boxes, labels, CONFIG)[0]


def stock(logits: Tensor, boxes: Tensor, labels: list) -> Tensor:
    return ForObjectDetectionLoss(logits[-1], labels, logits.device, boxes[-1], CONFIG, logits, boxes)[0]


def measure(loss_of: Callable, logits: Tensor, boxes: Tensor, labels: list, repeats: int) -> tuple[float, float]:
    """Median CPU milliseconds of forward and backward, and the loss."""
    times = []
    for _ in range(repeats):
        leaves = logits.clone().requires_grad_(), boxes.clone().requires_grad_()
        start = time.process_time()
        loss = loss_of(*leaves, labels)
        loss.backward()
        times.append((time.process_time() - start) * 1000)
    return statistics.median(times), float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("batch", "transformers, CPU ms", "ours, CPU ms", "ratio", "difference of the losses")
    for batch in options.batch:
        data = inputs(batch)
        measure(ours, *data, 1)  # warm up
        mine, loss = measure(ours, *data, options.repeats)
        theirs, expected = measure(stock, *data, min(options.repeats, 3))
        table.add_row(
            str(batch), f"{theirs:.0f}", f"{mine:.0f}", f"{theirs / mine:.1f}", f"{abs(loss - expected):.1e}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
