"""Times the complete metric computation against torchmetrics and hotcoco, and measures peak memory.

    python benchmarks/metrics.py                                # 1,600 images x 300 detections x 80 boxes
    python benchmarks/metrics.py --images 12065 --sides ours    # memory at the size of the validation split
    pip install --target X hotcoco==1.3.0 && PYTHONPATH=X python benchmarks/metrics.py --sides ours hotcoco

Every side gets the same images in a fresh process. Timed: updates and results, not making the images. The ratio is one
of CPU seconds (every side runs on one core), which neighbours on the machine disturb least. "ours" computes COCO's
numbers, those per class, AP and AR at 300 detections, AP50 without a cap, MR-2 and JI; torchmetrics COCO's numbers and
those per class (class_metrics=True); hotcoco COCO's numbers only.
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
Images = Iterator[dict[str, Any]]
Side = tuple[Callable[[int, dict[str, Any]], Any], Callable[[], float]]  # update(image_id, image); result() -> map


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


def ours(details: bool = False, intervals: bool = False) -> Side:
    import pycocotools.mask  # noqa: F401
    import scipy.optimize  # noqa: F401  imported once per process, not part of the computation

    from recipe.evaluation.bootstrap import bootstrap
    from recipe.evaluation.metrics import DetectionMetrics

    metrics = DetectionMetrics()

    def result() -> float:
        if details:
            metrics.details()
        if intervals:
            bootstrap(metrics)
        return metrics.compute()["map"]

    return lambda image_id, image: metrics.update(image_id, size=(HEIGHT, WIDTH), **image), result


def torchmetrics(backend: str) -> Side:
    import torch
    from torchmetrics.detection import MeanAveragePrecision

    warnings.filterwarnings("ignore", message="Encountered more than 100 detections")
    metric = MeanAveragePrecision(backend=backend, class_metrics=True)

    def update(image_id: int, image: dict[str, Any]) -> None:
        tensors = {name: torch.from_numpy(array) for name, array in image.items()}
        preds = {"boxes": tensors["pred_xyxy"], "scores": tensors["scores"], "labels": tensors["labels"]}
        metric.update([preds], [{"boxes": tensors["target_xyxy"], "labels": tensors["target_labels"]}])

    return update, lambda: float(metric.compute()["map"])


def hotcoco() -> Side:
    from hotcoco import StreamingEval

    from recipe.evaluation.matching import xywh

    metric = StreamingEval([{"id": 0, "name": "person"}, {"id": 1, "name": "head"}])
    seen = 0

    def update(image_id: int, image: dict[str, Any]) -> None:
        nonlocal seen
        targets = xywh(image["target_xyxy"])
        rows = [
            {"id": seen + k, "image_id": image_id, "category_id": label, "bbox": box, "area": box[2] * box[3]}
            for k, (label, box) in enumerate(zip(image["target_labels"].tolist(), targets.tolist(), strict=True), 1)
        ]
        seen += len(rows)
        ids = np.full(len(image["scores"]), image_id)
        found = np.column_stack([ids, xywh(image["pred_xyxy"]), image["scores"], image["labels"]])
        metric.update([{"id": image_id}], [row | {"iscrowd": 0} for row in rows], found)

    def result() -> float:
        evaluation = metric.finalize()
        evaluation.accumulate()
        evaluation.summarize()
        return float(evaluation.stats[0])

    return update, result


SIDES: dict[str, Callable[[], Side]] = {
    "ours": ours,
    "ours, details": lambda: ours(details=True),
    "ours, intervals": lambda: ours(intervals=True),
    "faster": lambda: torchmetrics("faster_coco_eval"),
    "pycocotools": lambda: torchmetrics("pycocotools"),
    "hotcoco": hotcoco,
}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(side: str, images: Images) -> dict[str, float]:
    update, result = SIDES[side]()
    start, cpu = peak_mb(), 0.0
    for image_id, image in enumerate(images):
        before = time.process_time()
        update(image_id, image)
        cpu += time.process_time() - before
    before = time.process_time()
    value = result()
    return {"cpu": cpu + time.process_time() - before, "start": start, "peak": peak_mb(), "map": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--detections", type=int, default=300, help="per image")
    parser.add_argument("--boxes", type=int, default=80, help="per image")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "ours, details", "faster"])
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        images = (synthetic_image(i, args.detections, args.boxes) for i in range(args.images))
        return print(json.dumps(measure(args.child, images)))
    print(f"{args.images} images x {args.detections} detections x {args.boxes} boxes\n")
    print("| side | CPU s | ms an image | times | peak MB | at start | map |\n|---|---:|---:|---:|---:|---:|---:|")
    first = None
    for side in args.sides:
        # In a fresh process, so that peak memory is its own.
        command = [sys.executable, __file__, *sys.argv[1:], "--child", side]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        first = first or row["cpu"]
        print(
            f"| {side} | {row['cpu']:.1f} | {row['cpu'] / args.images * 1e3:.2f} | {row['cpu'] / first:.1f} "
            f"| {row['peak']:.0f} | {row['start']:.0f} | {row['map']:.6f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
