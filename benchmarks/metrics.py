"""Times the whole metric computation against torchmetrics with both of its backends, and measures peak memory.

    python benchmarks/metrics.py                                # 1,600 images x 300 detections x 80 boxes, every side
    python benchmarks/metrics.py --images 12065 --sides ours    # memory at the size of the validation split

Every side gets the same images in a fresh process. Timed: all update() calls and compute(), not making the images.
The ratio is one of CPU seconds (every side runs on one core), which neighbours on the machine disturb least.
"ours" computes all of COCO's numbers and those per class, AP and AR at 300 detections, MR-2 and JI; torchmetrics
computes COCO's numbers, and with class_metrics=True (three evaluations) those per class: the fair comparison.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed, too

HEIGHT, WIDTH = 1080, 1920
SIDES = {
    "ours": "recipe.evaluation.metrics: COCO, per class, 300 detections, MR-2, JI",
    "ours-report": "the same, and details() for the report",
    "faster": "torchmetrics, faster_coco_eval, no per-class numbers",
    "faster-classes": "torchmetrics, faster_coco_eval, per class",
    "pycocotools": "torchmetrics, pycocotools, no per-class numbers",
    "pycocotools-classes": "torchmetrics, pycocotools, per class",
}


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    """[n, 4] xyxy: sides of 8 to 200 pixels, evenly spread over COCO's small, medium and large."""
    extent = np.exp(rng.uniform(np.log(8), np.log(200), (n, 2)))
    corner = rng.uniform(0, 1, (n, 2)) * (np.array([WIDTH, HEIGHT]) - extent)
    return np.hstack([corner, corner + extent])


def synthetic_image(image_id: int, n_det: int, n_box: int) -> dict[str, Any]:
    """Most boxes found with some noise, a few of them twice; the other detections are noise with low scores."""
    rng = np.random.default_rng(image_id)
    targets, target_labels = random_boxes(rng, n_box), rng.integers(0, 2, n_box)
    found = rng.permutation(n_box)[: n_box * 9 // 10]
    found = np.append(found, rng.choice(found, n_box // 4))[:n_det]
    side = np.tile(targets[found, 2:] - targets[found, :2], 2)
    boxes = np.vstack([targets[found] + rng.normal(0, 0.06, side.shape) * side, random_boxes(rng, n_det - len(found))])
    scores = np.append(rng.beta(4, 2, len(found)), rng.beta(1, 6, n_det - len(found)))
    return {
        "pred_xyxy": boxes.astype(np.float32),
        "scores": scores.astype(np.float32),
        "labels": np.append(target_labels[found], rng.integers(0, 2, n_det - len(found))),
        "target_xyxy": targets.astype(np.float32),
        "target_labels": target_labels,
    }


def run_ours(images: Iterator[dict[str, Any]], side: str) -> tuple[np.ndarray, float, float]:
    """[2] wall and CPU seconds, memory before in MB, map."""
    import pycocotools.mask  # noqa: F401
    import scipy.optimize
    import scipy.sparse.csgraph  # noqa: F401  imported once per process, not part of the computation

    from recipe.evaluation.metrics import DetectionMetrics

    metrics, before, seconds = DetectionMetrics(), peak_mb(), np.zeros(2)
    for image_id, image in enumerate(images):
        seconds += timed(lambda: metrics.update(image_id, size=(HEIGHT, WIDTH), **image))[0]  # noqa: B023
    spent, numbers = timed(metrics.compute)
    seconds += spent
    if side == "ours-report":
        seconds += timed(metrics.details)[0]
    return seconds, before, numbers["map"]


def run_torchmetrics(images: Iterator[dict[str, Any]], side: str) -> tuple[np.ndarray, float, float]:
    """[2] wall and CPU seconds, memory before in MB, map."""
    import torch
    from torchmetrics.detection import MeanAveragePrecision

    warnings.filterwarnings("ignore", message="Encountered more than 100 detections")
    backend = "pycocotools" if side.startswith("pycocotools") else "faster_coco_eval"
    metric = MeanAveragePrecision(backend=backend, class_metrics=side.endswith("classes"))
    before, seconds = peak_mb(), np.zeros(2)
    for image in images:
        tensors = {name: torch.from_numpy(array) for name, array in image.items()}
        preds = [{"boxes": tensors["pred_xyxy"], "scores": tensors["scores"], "labels": tensors["labels"]}]
        targets = [{"boxes": tensors["target_xyxy"], "labels": tensors["target_labels"]}]
        seconds += timed(lambda: metric.update(preds, targets))[0]  # noqa: B023
    spent, numbers = timed(metric.compute)
    return seconds + spent, before, float(numbers["map"])


def timed(call: Callable[[], Any]) -> tuple[np.ndarray, Any]:
    """[2] wall and CPU seconds, and what the call returned."""
    start = time.perf_counter(), time.process_time()
    result = call()
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]]), result


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(side: str, args: argparse.Namespace) -> dict[str, float]:
    """One side in a fresh process, so that peak memory is its own."""
    sizes = [str(value) for value in (args.images, args.detections, args.boxes)]
    command = [sys.executable, __file__, "--images", sizes[0], "--detections", sizes[1], "--boxes", sizes[2]]
    done = subprocess.run([*command, "--child", side], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--detections", type=int, default=300, help="per image")
    parser.add_argument("--boxes", type=int, default=80, help="per image")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        images = (synthetic_image(i, args.detections, args.boxes) for i in range(args.images))
        run = run_ours if args.child.startswith("ours") else run_torchmetrics
        seconds, before, value = run(images, args.child)
        row = {"wall": seconds[0], "cpu": seconds[1], "before": before, "peak": peak_mb(), "map": value}
        print(json.dumps(row))
        return
    print(f"{args.images} images x {args.detections} detections x {args.boxes} boxes")
    print(f"{'':57} {'wall s':>7} {'CPU s':>7} {'ms/image':>8} {'times':>6} {'peak MB':>8} {'at start':>8} {'map':>9}")
    first = None
    for side in args.sides:
        row = measure(side, args)
        first = first or row["cpu"]
        print(
            f"{SIDES[side]:57} {row['wall']:7.1f} {row['cpu']:7.1f} {row['cpu'] / args.images * 1e3:8.2f} "
            f"{row['cpu'] / first:6.1f} {row['peak']:8.0f} {row['before']:8.0f} {row['map']:9.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
