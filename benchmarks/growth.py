"""Does it stay linear? Packs, loads and evaluates 1x, 4x and 16x the data, each in a process of its own.

python benchmarks/growth.py [--images 250] [--evaluated 750]

- pack: `data_prep pack` with two workers; photographs of 3 megapixels and 0.34 MB with 85 boxes;
- load: `load_split`, then an epoch of `CrowdDataset`, augmented, in one process;
- evaluate: `DetectionMetrics` over images with 300 detections and 80 boxes, and all numbers of the report.

Memory is the peak of what the process and its children allocated (Pss_Anon): pages of mapped files can be dropped.
Goals: time grows with an exponent below 1.05, memory stays.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from metrics import HEIGHT, WIDTH, synthetic_image
from packing import cpu_seconds, make_folder, memory

TIMES = (1, 4, 16)


def pack(root: Path, images: int) -> Callable[[], object]:
    from data_prep.shards import pack
    from recipe.schema import arrow_schema

    arrow_schema()  # its imports are not part of the packing
    make_folder(root / "yolo", images)
    return lambda: pack(root / "yolo", root / "packed", workers=2)


def load(root: Path, images: int) -> Callable[[], object]:
    from recipe.config import Config
    from recipe.data.augment import build_augmentation
    from recipe.data.dataset import CrowdDataset, load_split
    from recipe.data.geometry import Geometry

    def epoch() -> None:
        source, annotations, _ = load_split(str(root / "packed"), "train")
        dataset = CrowdDataset(source, annotations, Geometry(), build_augmentation(Config(data="-")), seed=1)
        for index in range(len(dataset)):
            dataset[(1, index)]

    return epoch


def evaluate(root: Path, images: int) -> Callable[[], object]:
    import scipy.optimize  # noqa: F401

    from recipe.evaluation.metrics import DetectionMetrics

    metrics = DetectionMetrics()
    made = [synthetic_image(number, 300, 80) for number in range(100)]

    def run() -> None:
        for number in range(images):
            metrics.update(number, size=(HEIGHT, WIDTH), **made[number % len(made)])
        metrics.compute()
        metrics.details()

    return run


STAGES = {"pack": pack, "load": load, "evaluate": evaluate}


def anonymous_mb() -> float:
    return memory(os.getpid(), "Pss_Anon")


def child(stage: str, root: Path, images: int) -> None:
    """Prints seconds, CPU seconds, and MB before and at the peak."""
    run = STAGES[stage](root, images)
    before = peak = anonymous_mb()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), cpu_seconds()
    run()
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    done.set()
    watcher.join()
    print(seconds, cpu, before, max(peak, anonymous_mb()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=250, help="packed and loaded at 1x")
    parser.add_argument("--evaluated", type=int, default=750, help="evaluated at 1x")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child[0], Path(args.child[1]), int(args.child[2]))
    print("| stage | images | seconds | CPU ms an image | memory above the start, MB |\n|---|---:|---:|---:|---:|")
    spent: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for times in TIMES:
        with tempfile.TemporaryDirectory() as root:
            environment = os.environ | {"HF_DATASETS_CACHE": f"{root}/cache", "HF_HUB_OFFLINE": "1"}
            environment |= {"OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
            for stage in STAGES:
                images = times * (args.evaluated if stage == "evaluate" else args.images)
                command = [sys.executable, __file__, "--child", stage, root, str(images)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                seconds, cpu, before, peak = map(float, done.stdout.split()[-4:])
                spent[stage].append(cpu)
                print(
                    f"| {stage} | {images} | {seconds:.1f} | {1e3 * cpu / images:.2f} | {peak - before:.0f} |",
                    flush=True,
                )
    for stage, seconds_spent in spent.items():
        exponent = np.polyfit(np.log(TIMES), np.log(seconds_spent), 1)[0]
        print(f"{stage}: CPU time grows with an exponent of {exponent:.3f} (goal below 1.05)")


if __name__ == "__main__":
    main()
