"""Does it fit? The densest batch of the data is tried before the first step, not met after hours.

fit(trainer)      ->  the batch size that fits; the effective batch stays the same
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from recipe.data.batches import collate
from recipe.schema import UserError
from recipe.training.trainer import CrowdTrainer

logger = logging.getLogger(__name__)


def fit(trainer: CrowdTrainer) -> int:
    """Divide the batch and multiply the accumulation until a forward and backward of the fullest images fits.

    Matching and loss grow with the boxes of an image, so a random batch proves nothing.

    Raises:
        UserError: not even one image fits; it names the smaller canvas that needs about 0.73 of the memory.
    """
    args = trainer.args
    while not all_fit(trainer, args.per_device_train_batch_size):
        if args.per_device_train_batch_size == 1:
            raise UserError(
                f"not even one image of {trainer.recipe.shortest_edge} to {trainer.recipe.longest_edge} pixels fits "
                "into the GPU's memory; try `--shortest_edge 800 --longest_edge 1333`"
            )
        batch = args.per_device_train_batch_size
        smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
        args.gradient_accumulation_steps *= batch // smaller
        args.per_device_train_batch_size = trainer._train_batch_size = smaller
        logger.warning("out of memory: batch %d x accumulation %d instead", smaller, args.gradient_accumulation_steps)
    return args.per_device_train_batch_size


def all_fit(trainer: CrowdTrainer, size: int) -> bool:
    """Whether the densest batch fits on every process: they must go on with the same size."""
    fine = torch.tensor(float(fits(trainer, densest(trainer, size))), device=trainer.args.device)
    return bool(trainer.accelerator.reduce(fine, reduction="mean") == 1)


def densest(trainer: CrowdTrainer, size: int) -> dict[str, Any]:
    """The `size` images with most boxes, of the orientation that has the fullest image."""
    annotations = trainer.train_dataset.annotations
    order = np.argsort(-annotations.counts, kind="stable")
    same = order[annotations.portrait[order] == annotations.portrait[order[0]]][:size]
    return collate([trainer.train_dataset[int(index)] for index in np.resize(same, size)])


def fits(trainer: CrowdTrainer, batch: dict[str, Any]) -> bool:
    """Run one forward and backward without changing a weight."""
    device = trainer.args.device
    model = trainer.model.to(device).train()
    try:
        inputs = trainer._prepare_inputs(batch)
        # The trial's dropout must not change the run.
        with torch.random.fork_rng([device] if device.type == "cuda" else []), trainer.accelerator.autocast():
            model(**inputs).loss.backward()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
