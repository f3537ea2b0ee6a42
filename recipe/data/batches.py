"""Batches of one orientation as uint8, normalised on the device.

    loader = DataLoader(dataset, batch_sampler=OrientationBatchSampler(dataset, 2, seed=42), collate_fn=collate)
    inputs = normalise(next(iter(loader)))  # after the move to the device

Workers hand over bytes, not floats: normalising costs a worker 45 ms an image and the device nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler, get_worker_info

if TYPE_CHECKING:
    from recipe.data.dataset import CrowdDataset

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class OrientationBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) that never mix orientations; every sample exactly once an epoch.

    The epoch is the dataset's: that is the one object which accelerate's `set_epoch` reaches through any nesting of
    its wrappers (BatchSamplerShard in SkipBatchSampler hides this sampler, so a resumed run on two GPUs would
    otherwise repeat the order of epoch 0).

    `batch_size` is None, by which accelerate hands whole batches to the processes; given a number, it would lose the
    group in which an orientation's last, short batch stands.

    Args:
        processes: how many share the batches. Some batches are split until the count divides evenly, so that no
            process has to repeat samples; only with too few samples does accelerate repeat a whole batch.
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
        self.processes = processes

    def __len__(self) -> int:
        portrait = int(self.dataset.annotations.portrait.sum())
        whole = sum(-(-count // self.images_per_batch) for count in (portrait, len(self.dataset) - portrait))
        return min(-(-whole // self.processes) * self.processes, len(self.dataset))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.dataset.epoch
        for batch in self._batches(epoch):
            yield [(epoch, index) for index in batch.tolist()]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        portrait = self.dataset.annotations.portrait
        batches = []
        for flags in (portrait, ~portrait):
            indices = np.flatnonzero(flags)
            if self.shuffle:
                rng.shuffle(indices)
            batches += np.split(indices, range(self.images_per_batch, len(indices), self.images_per_batch))
        batches = [batch for batch in batches if len(batch)]
        while len(batches) < len(self):
            batches.sort(key=len)
            longest = batches.pop()
            batches += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
        if self.shuffle:
            return [batches[place] for place in rng.permutation(len(batches))]
        return sorted(batches, key=lambda batch: int(batch[0]))


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Lay the images of a batch at the top left of their common canvas.

    Returns:
        pixel_values: uint8 [B, 3, H, W], zero where padded (a view of [B, H, W, 3] memory).
        labels: for each image a dict of tensors: class_labels int64 [n], boxes float32 [n, 4], image_id int64 [1],
            size and orig_size int64 [2].
    """
    batch = torch.empty((len(samples), *samples[0]["canvas"], 3), dtype=torch.uint8)
    for canvas, sample in zip(batch.numpy(), samples, strict=True):
        h, w = sample["size"]
        canvas[:h, :w] = sample["pixels"]
        canvas[h:] = 0
        canvas[:h, w:] = 0
    labels = [
        {
            "class_labels": torch.from_numpy(sample["class_labels"]),
            "boxes": torch.from_numpy(sample["boxes"]),
            "image_id": torch.tensor([sample["image_id"]]),
            "size": torch.tensor(sample["size"]),
            "orig_size": torch.tensor(sample["orig_size"]),
        }
        for sample in samples
    ]
    worker = get_worker_info()
    if worker is None:
        return {"pixel_values": _channels_first(batch.numpy()), "labels": labels}
    fits = fits_shared_memory(batch.nbytes, worker.num_workers)
    pixels = batch.permute(0, 3, 1, 2) if fits else _ThroughPipe(batch.numpy())
    return {"pixel_values": pixels, "labels": _Leaving(labels)}


def undisturbed(worker: int) -> None:
    """In each worker of a loader: systemd, Slurm and Ctrl-C signal it too, but the main process, which writes a whole
    checkpoint then, still needs it. It ends when the main process says so."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def fits_shared_memory(size: int, workers: int) -> bool:
    """Whether /dev/shm holds two more batches of `size` bytes from every worker.

    Docker gives 64 MB unless told otherwise. A worker that finds it full loses its batch, and the training waits for
    that batch for ever.
    """
    try:
        disk = os.statvfs("/dev/shm")
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize >= 2 * workers * size


class _ThroughPipe:
    """Pixels on their way out of a worker without shared memory; they arrive as a tensor. Twice the copying."""

    def __init__(self, pixels: np.ndarray) -> None:  # uint8 [B, H, W, 3]
        self.pixels = pixels

    def __reduce__(self) -> tuple[Any, ...]:
        return _channels_first, (self.pixels,)


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class _Leaving(list[dict[str, torch.Tensor]]):
    """Labels on their way out of a worker, as NumPy; they arrive as a plain list of dicts of tensors.

    As tensors each would cross in a shared-memory file of its own: 40 open files for a batch of 8, and 1.5 ms of the
    main process for an image, against 0.1 ms.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, ([{name: value.numpy() for name, value in label.items()} for label in self],)


def _arrived(labels: list[dict[str, np.ndarray]]) -> list[dict[str, torch.Tensor]]:
    return [{name: torch.from_numpy(value) for name, value in label.items()} for label in labels]


def normalise(batch: dict[str, Any]) -> dict[str, Any]:
    """Turn a collated batch into the model's inputs, on the device that its pixels lie on.

    Returns:
        pixel_values: float32 [B, 3, H, W], ImageNet-normalised; the padding is exactly 0, as in the stock processor,
            which pads after it normalises.
        pixel_mask: bool [B, H, W], true on the image.
        labels: the same dicts, of tensors on that device.
    """
    pixels = batch["pixel_values"]
    labels = [
        {name: value.to(pixels.device, non_blocking=True) for name, value in label.items()}
        for label in batch["labels"]
    ]
    height, width = pixels.shape[-2:]
    size = torch.stack([label["size"] for label in labels])  # [B, 2]
    rows = torch.arange(height, device=pixels.device) < size[:, :1]  # [B, H]
    columns = torch.arange(width, device=pixels.device) < size[:, 1:]  # [B, W]
    mask = rows[:, :, None] & columns[:, None, :]
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = _mean_std(pixels.device)
    values = values.sub_(mean).div_(std)
    return {"pixel_values": values.mul_(mask[:, None]), "pixel_mask": mask, "labels": labels}


@cache
def _mean_std(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:  # [3, 1, 1] each
    """On the scale of a byte, rounded as the stock processor rounds them; sent once: each transfer would wait."""
    mean, std = (torch.tensor(values).mul(255).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.to(device), std.to(device)
