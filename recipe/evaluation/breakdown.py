"""Where a detector fails and at which score to use it: `DetectionMetrics.details()`, which the report draws.

IoU 0.5 where nothing else is said; a detection is kept when its score is *above* a threshold, as
`post_process_object_detection` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from recipe.evaluation.matching import IOU_THRESHOLDS, ImageBoxes, match, overlapping
from recipe.evaluation.ranking import RECALL_POINTS, Ranked

SIZE_EDGES = (0, 8, 16, 32, 96, np.inf)  # square root of the area in pixels; the lower end belongs to the bin
SIZE_RANGES = np.array([(a * a, np.nextafter(b * b, 0)) for a, b in pairwise(SIZE_EDGES)])
SIZE_NAMES = ("<8", "8-16", "16-32", "32-96", ">=96")
DENSITY_EDGES = (0, 20, 50, 100, 200, np.inf)  # boxes per image; the upper end belongs to the bin
DENSITY_NAMES = ("<=20", "21-50", "51-100", "101-200", ">200")
HIT, DUPLICATE, WRONG_CLASS, BADLY_PLACED, BACKGROUND, IGNORED, UNUSED = range(7)


def with_none(values: np.ndarray) -> list[float | None]:
    """None in place of NaN, which JSON lacks."""
    return [None if np.isnan(value) else value for value in values.tolist()]


def precision_recall(ranked: Ranked, t: int) -> dict[str, list[float | None]]:
    """COCO's interpolated curve at IOU_THRESHOLDS[t]; score is the lowest one needed, None where not reached."""
    precision, score, _ = ranked.curves(0, [t])
    return {"recall": RECALL_POINTS.tolist(), "precision": precision[0].tolist(), "score": with_none(score[0])}


def above_thresholds(ranked: Ranked, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of the detections above each threshold; NaN without detections or targets."""
    kept = np.searchsorted(-ranked.scores.astype(np.float64), -thresholds)  # how many lie above
    hits, found = (np.append(0, np.cumsum(column))[kept] for column in ranked.hits_at(0))
    targets = ranked.count_targets() or np.nan
    precision = np.divide(hits, found, out=np.full(len(kept), np.nan), where=found > 0)
    return {
        "threshold": thresholds,
        "precision": precision,
        "recall": hits / targets,
        "f1": 2 * hits / (found + targets),
    }


def threshold_curve(ranked: Ranked) -> dict[str, list[float | None]]:
    """above_thresholds() at 0, 0.01, ... 1."""
    return {key: with_none(column) for key, column in above_thresholds(ranked, np.linspace(0, 1, 101)).items()}


def operating_points(ranked: Ranked) -> dict[str, dict[str, float] | None]:
    """The threshold of the best F1, and the lowest one whose precision is at least 0.9; None where there is none.

    A threshold lies halfway to the next lower score, so that rounding moves no detection across it.
    """
    scores = ranked.scores.astype(np.float64)
    lower = np.append(scores[1:], 0)
    columns = above_thresholds(ranked, ((scores + lower) / 2)[scores > lower])
    f1, precise = columns["f1"], np.flatnonzero(columns["precision"] >= 0.9)

    def point(i: int) -> dict[str, float]:
        return {key: float(column[i]) for key, column in columns.items()}

    return {
        "best_f1": point(int(f1.argmax())) if (f1 > 0).any() else None,
        "precision_90": point(int(precise[-1])) if len(precise) else None,
    }


def bins(names: Sequence[str], parts: Iterable[tuple[Ranked, int]], threshold: float) -> list[dict[str, Any]]:
    """One row per bin, a part of the images and an area range; numbers without a cap, -1 without targets."""
    rows = []
    for name, (ranked, a) in zip(names, parts, strict=True):
        precision, _, recall = ranked.curves(a)
        row: dict[str, Any] = {"bin": name, "images": int(ranked.times.sum()), "boxes": ranked.count_targets(a)}
        row |= {"ap": float(precision.mean()), "ap_50": float(precision[0].mean()), "recall": float(recall[0])}
        above = ranked.times[ranked.image[ranked.hits_at(a)[0] & (ranked.scores > threshold)]].sum()
        row["recall_best_f1"] = int(above) / row["boxes"] if row["boxes"] else -1.0
        rows.append(row)
    return rows


def by_density(ranked: Ranked, boxes: np.ndarray) -> list[tuple[Ranked, int]]:
    """The parts for bins(): `ranked` in the images of each of DENSITY_NAMES; boxes [I] per image, of all classes."""
    place = np.searchsorted(DENSITY_EDGES, np.maximum(boxes, 1)) - 1  # no boxes: the first bin
    return [(replace(ranked, times=ranked.times * (place == b)), 0) for b in range(len(DENSITY_NAMES))]


def name_errors(image: ImageBoxes, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What became of an image's detections above their class's threshold, in the manner of TIDE (ECCV 2020).

    HIT by COCO's matching at IoU 0.5, IGNORED in a crowd region, else the first that applies: DUPLICATE (IoU >= 0.5
    with a target of its class that a better score took), WRONG_CLASS (IoU >= 0.5 with another class), BADLY_PLACED
    (0.1 <= IoU < 0.5 with its class), BACKGROUND. Unlike in TIDE every target without a hit is missed.
    Returns [N] the kind of each detection, [N] the target that a HIT found (-1 otherwise), [m] the missed targets.
    """
    kind, target = np.full(len(image.scores), UNUSED), np.full(len(image.scores), -1)
    kept = np.flatnonzero(image.scores > thresholds[image.labels])
    pairs = overlapping(image.boxes[kept], image.targets, image.crowd)
    same = image.labels[kept][pairs.detection] == image.target_labels[pairs.target]
    (hit, ignored), taken = match(pairs.where(same), len(kept), image.crowd, ~image.crowd[None], IOU_THRESHOLDS[:1])
    best_same, best_other = np.zeros((2, len(kept)))  # IoU with a person or head, of its own class and of the others
    for best, of_class in ((best_same, same), (best_other, ~same)):
        det, _, iou = pairs.where(of_class & ~image.crowd[pairs.target])
        np.maximum.at(best, det, iou)
    rules = [hit[0] > 0, ignored[0] > 0, best_same >= 0.5, best_other >= 0.5, best_same >= 0.1]
    kind[kept] = np.select(rules, [HIT, IGNORED, DUPLICATE, WRONG_CLASS, BADLY_PLACED], BACKGROUND)
    target[kept] = np.where(hit[0] > 0, taken, -1)
    return kind, target, np.setdiff1d(np.flatnonzero(~image.crowd), target)


def count_errors(
    images: Sequence[ImageBoxes], thresholds: Mapping[str, float]
) -> tuple[dict[str, dict[str, int]], list[dict[str, int]]]:
    """Hits, missed and false kinds of each class of `thresholds`, and the 12 images with most missed targets."""
    kinds, lost = np.zeros((len(thresholds), UNUSED + 1), np.int64), np.zeros(len(thresholds), np.int64)
    rows, limits = [], np.array(list(thresholds.values()))
    for image in images:
        kind, _, missed = name_errors(image, limits)
        np.add.at(kinds, (image.labels, kind), 1)
        np.add.at(lost, image.target_labels[missed], 1)
        hits, duplicates, *false = np.bincount(kind, minlength=IGNORED)[:IGNORED].tolist()
        row = {"image_id": image.image_id, "boxes": hits + len(missed), "hits": hits, "misses": len(missed)}
        rows.append(row | {"duplicates": duplicates, "false_positives": sum(false)})
    columns = np.column_stack([kinds[:, HIT], lost, kinds[:, DUPLICATE:IGNORED]]).tolist()
    names = ("hits", "missed", "duplicate", "wrong_class", "badly_placed", "background")
    errors = {name: dict(zip(names, row, strict=True)) for name, row in zip(thresholds, columns, strict=True)}
    return errors, sorted(rows, key=lambda row: (-row["misses"], row["image_id"]))[:12]
