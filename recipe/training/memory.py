"""Which batch size fits? The densest batch of the data is tried before the first step, not met after hours.

find_batch_size(args, model, processor, dataset)      # changes batch size and accumulation, never their product
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce, send_to_device
from torch import nn

from recipe.arguments import Arguments
from recipe.data.batches import collate, normalise
from recipe.data.dataset import CrowdDataset
from recipe.schema import UserError

logger = logging.getLogger(__name__)

ROOM_TO_SPARE = 0.9  # of the GPU's memory: what a batch larger than the one asked for may take


def find_batch_size(
    args: Arguments, model: nn.Module, processor: Any, dataset: CrowdDataset, *, grow: bool = True
) -> int:
    """Try the fullest and largest images: the whole effective batch at once, or what is asked for, or less.

    The loss is normalised over the whole optimizer step, so that only memory and speed depend on the division.
    Matching and loss grow with the boxes of an image, so a random batch proves nothing.

    Args:
        grow: also try more than `--per_device_train_batch_size`; not for a resumed run: its batches stay.

    Raises:
        UserError: not even one image fits; it names the smaller size that needs about 0.73 of the memory.
    """
    asked = args.per_device_train_batch_size
    effective = asked * args.gradient_accumulation_steps
    sizes = [size for size in range(effective, 0, -1) if effective % size == 0 and (grow or size <= asked)]
    for size in sizes:
        if fits(args, model, processor, dataset, size, ROOM_TO_SPARE if size > asked else 1.0):
            break
    else:
        raise UserError(
            f"not even one image of {args.shortest_edge} to {args.longest_edge} pixels fits into the GPU's memory; "
            "try `--shortest_edge 800 --longest_edge 1333`"
        )
    if size != asked:
        args.per_device_train_batch_size, args.gradient_accumulation_steps = size, effective // size
        why = "has room for" if size > asked else "holds no more than"
        logger.warning("the GPU %s batch %d x accumulation %d", why, size, effective // size)
    return size


def densest(dataset: CrowdDataset, size: int) -> list[int]:
    """The `size` images with most boxes among those that are resized to the most pixels; too few are repeated."""
    notes = dataset.annotations
    resized = notes.sizes(dataset.geometry)  # [n, 2]
    largest = (resized == resized[resized.prod(axis=1).argmax()]).all(axis=1)  # [n] bool
    order = np.argsort(-notes.counts, kind="stable")
    return [int(index) for index in np.resize(order[largest[order]], size)]


def fits(args: Arguments, model: nn.Module, processor: Any, dataset: CrowdDataset, size: int, share: float) -> bool:
    """One forward and backward of the densest batch, within a share of the GPU's memory; no weight changes."""
    device, fine = args.device, True
    model.to(device).train()
    cuda = device.type == "cuda"
    try:
        if cuda:
            torch.cuda.set_per_process_memory_fraction(share, device)
        batch = send_to_device(collate([dataset[index] for index in densest(dataset, size)]), device)
        inputs = normalise(batch, processor.image_mean, processor.image_std)
        # The trial's dropout must not change the run.
        with torch.random.fork_rng([device] if cuda else []), torch.autocast(device.type, torch.bfloat16, args.bf16):
            model(**inputs).loss.backward()
    except torch.OutOfMemoryError:
        fine = False
    finally:
        model.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
            torch.cuda.empty_cache()
    # On every process, as all continue with the same size.
    return bool(reduce(torch.tensor(float(fine), device=device), reduction="mean") == 1)
