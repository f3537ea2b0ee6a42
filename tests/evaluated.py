"""A small evaluated crowd for the tests of the report: photographs, labels and made-up detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packed
from PIL import Image

from recipe.data.annotations import read_annotations
from recipe.data.dataset import CrowdDataset
from recipe.data.geometry import Geometry
from recipe.evaluation.metrics import DetectionMetrics

HISTORY: list[dict[str, Any]] = []  # three epochs
for epoch in (1, 2, 3):
    by_class = {f"eval_{key}_{name}": 0.1 * epoch for key in ("map", "mr2") for name in ("person", "head")}
    HISTORY.append({"epoch": epoch - 0.5, "step": 2 * epoch - 1, "loss": 9.0 / epoch})
    HISTORY.append({"epoch": epoch, "step": 2 * epoch, "eval_loss": 10.0 / epoch, "eval_map": 0.1 * epoch} | by_class)


def dataset(folder: Path, rows: list[dict[str, Any]]) -> CrowdDataset:
    """The rows of a shard as the evaluation sees them, without the Arrow cache."""
    packed.write(folder, rows, "validation")
    paths = [str(path) for path in sorted(folder.glob("data/validation-*.parquet"))]
    return CrowdDataset(rows, read_annotations(paths, "validation"), Geometry(240, 360))


def crowd(folder: Path, count: int = 5) -> CrowdDataset:
    """Landscape and portrait images with 24 boxes each."""
    return dataset(folder, packed.crowd(count, size=(240, 360), boxes=24))


def evaluate(data: CrowdDataset, found: float = 0.6, noise: int = 10, seed: int = 0) -> DetectionMetrics:
    """Metrics of a detector that finds a share of the boxes, doubles some and invents others."""
    rng = np.random.default_rng(seed)
    metrics = DetectionMetrics()
    metrics.step = 8
    for row in range(len(data)):
        targets = data.annotations_with_crowds.targets(row)
        hit = rng.random(len(targets["target_labels"])) < found
        hits = targets["target_xyxy"][hit] + rng.normal(0, 0.5, (int(hit.sum()), 4))
        corner = rng.uniform(0, 150, (noise, 2))
        boxes = np.concatenate([hits, hits[:3] + 0.5, np.hstack([corner, corner + rng.uniform(5, 60, (noise, 2))])])
        labels = np.concatenate([targets["target_labels"][hit], targets["target_labels"][hit][:3],
                                 rng.integers(0, 2, noise)])  # fmt: skip
        scores = np.concatenate([rng.uniform(0.4, 1, len(hits)), rng.uniform(0.4, 0.6, len(hits[:3])),
                                 rng.uniform(0, 0.6, noise)])  # fmt: skip
        image_id = int(data.annotations.image_id[row])
        metrics.update(image_id, pred_xyxy=boxes, scores=scores, labels=labels, **targets)
    return metrics


def pixels(path: Path) -> np.ndarray:
    """A PNG as [h, w, 3]; fails when it is blank."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.std() > 5
    return picture


def colored(picture: np.ndarray, rgb: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    return int((picture == np.array(rgb, np.uint8)).all(axis=2).sum())
