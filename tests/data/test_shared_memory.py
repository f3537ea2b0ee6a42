"""Batches cross from the workers with and without shared memory: Docker gives a container 64 MB of it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from recipe.data import batches
from recipe.data.batches import collate, fits_shared_memory

FULL_BATCH = 2 * 3 * 960 * 1536  # bytes


class Crowd(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        boxes = {"class_labels": np.arange(index), "boxes": np.ones((index, 4), np.float32)}
        sizes = {"canvas": (32, 48), "size": (24, 30), "orig_size": (24, 30)}
        return {"image_id": index, "pixels": pixels, **boxes, **sizes}


@pytest.mark.parametrize("roomy", [True, False])
def test_batches_arrive_alike_whichever_way_they_come(monkeypatch, roomy):
    """Where /dev/shm is full a worker loses its batch, and the training waits for it for ever, without a word."""
    monkeypatch.setattr(batches, "fits_shared_memory", lambda *_: roomy)
    here = list(DataLoader(Crowd(), batch_size=3, collate_fn=collate))
    there = list(DataLoader(Crowd(), batch_size=3, collate_fn=collate, num_workers=2))
    for one, other in zip(here, there, strict=True):
        assert other["pixel_values"].is_shared() == roomy
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert one["pixel_values"].stride() == other["pixel_values"].stride()
        for mine, theirs in zip(one["labels"], other["labels"], strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_dockers_64_megabytes_do_not_hold_the_batches_of_eight_workers(monkeypatch):
    def with_megabytes(count):
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=count * 256, f_frsize=4096))
        return fits_shared_memory(FULL_BATCH, workers=8)

    assert not with_megabytes(64)
    assert with_megabytes(1024)


def test_a_system_without_shared_memory_uses_pipes(monkeypatch):
    def missing(_):
        raise FileNotFoundError

    monkeypatch.setattr(os, "statvfs", missing)
    assert not fits_shared_memory(FULL_BATCH, workers=1)
