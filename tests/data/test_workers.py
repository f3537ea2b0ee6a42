"""A loader's workers: batches come by the pipe, and they end with the main process, never before, never after."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from recipe.data.batches import collate, worker_init

SIDE = 400  # a batch of 1 MB: more than a pipe holds


class Crowd(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        boxes = {"class_labels": np.arange(index), "boxes": np.ones((index, 4), np.float32)}
        return {"image_id": index, "pixels": pixels, **boxes, "size": (SIDE, SIDE)}


def test_batches_arrive_alike_without_shared_memory():
    """Where /dev/shm is full (Docker gives 64 MB) a worker loses its batch, and the training waits for it for ever."""
    here = list(DataLoader(Crowd(), batch_size=3, collate_fn=collate))
    there = list(DataLoader(Crowd(), batch_size=3, collate_fn=collate, num_workers=2, worker_init_fn=worker_init))
    for one, other in zip(here, there, strict=True):
        assert not other["pixel_values"].is_shared()
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        other["pixel_values"].sub_(1)  # writable, as any tensor
        for mine, theirs in zip(one["labels"], other["labels"], strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


SCRIPT = """
import os, sys, time
from torch.utils.data import DataLoader
from recipe.data.batches import collate, worker_init
from test_workers import Crowd

class Endless(Crowd):
    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        if "hang" in sys.argv and index > 8:
            while True:
                time.sleep(1)
        return super().__getitem__(index)

loader = DataLoader(Endless(), batch_size=2, collate_fn=collate, num_workers=2, worker_init_fn=worker_init,
                    persistent_workers=True)
batches = iter(loader)
next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
if "signals" in sys.argv:
    import signal
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    print("ready", flush=True)
    sys.stdin.readline()  # the signals come
    for _ in range(6):
        next(batches)
    print("six more", flush=True)
sys.stdin.readline()
"""


def start(tmp_path: Path, *words: str) -> tuple[subprocess.Popen, list[int]]:
    """A main process with two workers that have more batches ready than a pipe holds."""
    (tmp_path / "tmp").mkdir()
    paths = [os.getcwd(), str(Path(__file__).parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path / "tmp")},
    )
    return process, [int(word) for word in process.stdout.readline().split()]


def ended(workers: list[int], seconds: float) -> bool:
    """Whether all of these processes are gone within so many seconds; a zombie of init's is gone, too."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        states = [Path(f"/proc/{pid}/stat") for pid in workers]
        with_state = [path.read_text().rsplit(")")[-1].split()[0] for path in states if path.exists()]
        if not [state for state in with_state if state != "Z"]:
            return True
        time.sleep(0.1)
    return False


def tell(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def test_workers_outlive_signals_to_the_group_and_end_with_the_main_process(tmp_path):
    """systemd, Slurm and Ctrl-C signal them too, while the main process finishes a step and writes its checkpoint.
    Nothing stays in TMPDIR: tensors sent by file descriptor leave a `pymp-*` folder for each worker that is killed."""
    process, workers = start(tmp_path, "signals")
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGTERM, signal.SIGINT):
        os.killpg(process.pid, number)
    tell(process)
    assert process.stdout.readline() == "six more\n"
    assert not ended(workers, 0.1)
    tell(process)
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()
    assert ended(workers, 1)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("word", ["", "hang"])
def test_workers_end_when_the_main_process_is_killed(tmp_path, word):
    """They stand before a full pipe that nobody reads: without the kernel's help they would stay for ever."""
    process, workers = start(tmp_path, word)
    time.sleep(0.5)
    process.kill()
    process.wait()
    assert ended(workers, 5)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("word", ["", "hang"])
def test_an_open_loader_does_not_keep_the_main_process_from_its_end(tmp_path, word):
    """Its workers ignore SIGTERM, by which multiprocessing would end them and then wait for them for ever."""
    process, workers = start(tmp_path, word)
    time.sleep(0.5)
    tell(process)
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()
    assert ended(workers, 1)


def test_a_closed_loader_ends_its_workers_at_once():
    loader = DataLoader(Crowd(), batch_size=1, collate_fn=collate, num_workers=2, worker_init_fn=worker_init)
    batches = iter(loader)
    next(batches)
    workers = [child.pid for child in multiprocessing.active_children()]
    start = time.monotonic()
    del batches
    assert ended(workers, 1)
    assert time.monotonic() - start < 4  # torch waits 5 seconds for one that does not end by itself
