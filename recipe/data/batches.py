"""Batches of images of one size, as uint8, normalised on the device.

    sampler = SizeBatchSampler(dataset, 2, shuffle=True, seed=42)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, worker_init_fn=worker_init, num_workers=8)
    inputs = normalise(next(iter(loader)), processor.image_mean, processor.image_std)  # after the move to the device

Workers hand over bytes, not floats: normalising costs a worker 45 ms an image and the device nothing.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from functools import cache
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler

from recipe.data.images import BadImage

if TYPE_CHECKING:
    from recipe.data.dataset import CrowdDataset

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SizeBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) whose images have one resized size; every image exactly once an epoch.

    The last batch of each size is short: of 55,442 images in 144 sizes (five usual ratios, a quarter cropped by hand,
    both orientations) 0.3 % of the batches at batch size 2, 1.9 % at 8. A small set has more of them: 1,000 images in
    92 sizes make batches of 1.9 and 5.5 on average, ten images in ten sizes batches of one.

    The epoch is the dataset's: that is the one object which accelerate's `set_epoch` reaches through any nesting of
    its wrappers (BatchSamplerShard in SkipBatchSampler hides this sampler, so a resumed run on two GPUs would
    otherwise repeat the order of epoch 0).

    `batch_size` is None, by which accelerate hands complete batches to the processes; given a number, it would lose
    the group in which a size's last, short batch stands.

    Args:
        processes: how many share the batches. Some batches are split until the count divides evenly, so that no
            process has to repeat images; only with too few images does accelerate repeat a batch.
    """

    batch_size = None
    drop_last = False

    def __init__(
        self, dataset: CrowdDataset, batch_size: int, *, shuffle: bool = True, seed: int = 0, processes: int = 1
    ) -> None:
        self.dataset = dataset
        self.images_per_batch = batch_size
        self.shuffle = shuffle
        self.seed = seed
        sizes = dataset.annotations.sizes(dataset.geometry)  # [n, 2]
        _, self._group, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
        batches = int(np.sum(-(-counts // batch_size)))
        self._length = min(-(-batches // processes) * processes, len(sizes))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.dataset.epoch
        for batch in self._batches(epoch):
            yield [(epoch, index) for index in batch.tolist()]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        images = rng.permutation(len(self._group)) if self.shuffle else np.arange(len(self._group))
        groups = self._group[images]
        batches = []
        for group in range(groups.max() + 1):
            indices = images[groups == group]
            batches += np.split(indices, range(self.images_per_batch, len(indices), self.images_per_batch))
        while len(batches) < len(self):
            batches.sort(key=len)
            longest = batches.pop()
            batches += np.array_split(longest, 2)
        if self.shuffle:
            return [batches[place] for place in rng.permutation(len(batches))]
        return sorted(batches, key=lambda batch: int(batch[0]))


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack images of one size.

    Returns:
        pixel_values: uint8 [B, 3, H, W].
        labels: for each image a dict of tensors: class_labels int64 [n], boxes float32 [n, 4] cxcywh normalised,
            image_id int64 [1], size and orig_size int64 [2], labelled bool [classes], ignored float32 [k, 4] cxcywh.
        error: only where an image is bad: why, in one line. The batch is empty then, and `normalise` raises.
    """
    for sample in samples:
        if "error" in sample:
            return {"pixel_values": torch.empty((0, 3, 16, 16), dtype=torch.uint8), "labels": [], **sample}
    pixels = np.stack([sample["pixels"] for sample in samples]).transpose(0, 3, 1, 2)  # [B, 3, H, W]
    labels = [
        {name: torch.atleast_1d(torch.as_tensor(value)) for name, value in sample.items() if name != "pixels"}
        for sample in samples
    ]
    return {"pixel_values": torch.from_numpy(pixels), "labels": labels}


def worker_init(worker: int) -> None:
    """What a loader's worker does first: it ignores signals, ends with the main process, and sends arrays by its pipe.

    systemd, Slurm and Ctrl-C signal the workers too, but the main process, which writes a checkpoint then, still needs
    them. They end when it closes the loader; when it is killed, the kernel ends them.

    torch would send each tensor through a file in /dev/shm, of which Docker gives 64 MB: a worker that finds it full
    loses its batch, and the training waits for ever. The pipe needs no room, and costs 1.5 ms of a step of 200.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    ForkingPickler.register(torch.Tensor, lambda tensor: (torch.from_numpy, (tensor.numpy(),)))


@atexit.register
def _end_workers() -> None:
    """torch leaves an open loader's workers to multiprocessing, which sends a SIGTERM that they ignore, and waits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would print a traceback for each
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def normalise(batch: dict[str, Any], mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Turn a collated batch into the model's inputs, on the device that its pixels lie on.

    Args:
        mean, std: of the saved processor, three numbers each, for pixels from 0 to 1.

    Returns:
        pixel_values: float32 [B, 3, H, W], equal to the saved processor's.
        labels: the same dicts, of tensors on that device.

    Raises:
        BadImage: an image of the batch cannot be trained on.
    """
    if "error" in batch:
        if os.environ.get("RANK", "0") != "0":  # the command line prints what rank 0 raises, which has other images
            logger.error("error: %s", batch["error"])
        raise BadImage(batch["error"])
    pixels = batch["pixel_values"]
    labels = [
        {name: value.to(pixels.device, non_blocking=True) for name, value in label.items()}
        for label in batch["labels"]
    ]
    scaled_mean, scaled_std = _scaled(tuple(mean), tuple(std), pixels.device)
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return {"pixel_values": values.sub_(scaled_mean).div_(scaled_std), "labels": labels}


@cache
def _scaled(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:  # [3, 1, 1] each
    """On the scale of a byte, rounded as the processor rounds them; sent once: each transfer would wait."""
    first, second = (torch.tensor(values).mul(255).view(3, 1, 1).to(device) for values in (mean, std))
    return first, second
