"""Where a detector fails and at which score to use it: size and density bins, operating points, error kinds.

Everything here feeds `DetectionMetrics.details()`, which the report draws. IoU 0.5 where nothing else is said, and
a detection is kept when its score is *above* a threshold, as `post_process_object_detection` does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from recipe.evaluation.matching import IOU_THRESHOLDS, ImageBoxes, match, pairwise_iou
from recipe.evaluation.ranking import RECALL_POINTS, Ranked

SIZE_EDGES = (0, 8, 16, 32, 96, np.inf)  # square root of the area in pixels; the lower end belongs to the bin
SIZE_RANGES = np.array([(a * a, np.nextafter(b * b, 0)) for a, b in pairwise(SIZE_EDGES)])
SIZE_NAMES = ("<8", "8-16", "16-32", "32-96", ">=96")
DENSITY_EDGES = (0, 20, 50, 100, 200, np.inf)  # boxes per image; the upper end belongs to the bin
DENSITY_NAMES = ("<=20", "21-50", "51-100", "101-200", ">200")
THRESHOLDS = np.linspace(0, 1, 101)
HIT, DUPLICATE, WRONG_CLASS, BADLY_PLACED, BACKGROUND, IGNORED, UNUSED = range(7)
FALSE_KINDS = ("duplicate", "wrong_class", "badly_placed", "background")  # 1 to 4


def precision_recall(ranked: Ranked, t: int) -> dict[str, list[float | None]]:
    """COCO's interpolated curve at IOU_THRESHOLDS[t]; score is the lowest one needed, None where not reached."""
    (curve,) = ranked.curves(0, [t])
    score = [None if np.isnan(s) else float(s) for s in curve.score]
    return {"recall": RECALL_POINTS.tolist(), "precision": curve.precision.tolist(), "score": score}


def threshold_curve(ranked: Ranked) -> dict[str, list[float | None]]:
    """Precision, recall and F1 of the detections above each threshold; None where none is, or there is no target."""
    kept = np.searchsorted(-ranked.scores.astype(np.float64), -THRESHOLDS)  # [101] how many lie above
    hits, found = (np.append(0, np.cumsum(column))[kept].tolist() for column in ranked.hits_at(0))
    targets = ranked.count_targets()
    return {
        "threshold": THRESHOLDS.tolist(),
        "precision": [h / n if n else None for h, n in zip(hits, found, strict=True)],
        "recall": [h / targets if targets else None for h in hits],
        "f1": [2 * h / (n + targets) if targets else None for h, n in zip(hits, found, strict=True)],
    }


def operating_points(ranked: Ranked) -> dict[str, dict[str, float] | None]:
    """The threshold of the best F1, and the lowest one whose precision is at least 0.9.

    A threshold lies halfway to the next lower score, so that rounding moves no detection across it. None where there
    are no targets or no hits, or where that precision is never reached.
    """
    targets = ranked.count_targets()
    hit, counted = ranked.hits_at(0)
    if not targets or not hit[ranked.scores > 0].any():
        return {"best_f1": None, "precision_90": None}
    lower = np.append(ranked.scores[1:], 0)
    ends = np.flatnonzero(ranked.scores > lower)  # equal scores are kept or dropped together
    hits, found = np.cumsum(hit)[ends], np.maximum(np.cumsum(counted)[ends], 1)
    f1 = 2 * hits / (found + targets)

    def point(i: int) -> dict[str, float]:
        threshold = (float(ranked.scores[ends[i]]) + float(lower[ends[i]])) / 2
        values = {"precision": hits[i] / found[i], "recall": hits[i] / targets, "f1": f1[i]}
        return {"threshold": threshold, **{key: float(value) for key, value in values.items()}}

    precise = np.flatnonzero((hits >= 0.9 * found) & (hits > 0))
    return {"best_f1": point(int(np.argmax(f1))), "precision_90": point(int(precise[-1])) if len(precise) else None}


def numbers_of_bin(ranked: Ranked, a: int, threshold: float) -> dict[str, float]:
    """AP, AP at IoU 0.5, recall with all detections (no cap) and those above the threshold; -1 without targets."""
    curves, targets = ranked.curves(a), ranked.count_targets(a)
    above = int(ranked.times[ranked.image[ranked.hits_at(a)[0] & (ranked.scores > threshold)]].sum())
    return {
        "boxes": targets,
        "ap": float(np.mean([curve.precision for curve in curves])),
        "ap_50": float(curves[0].precision.mean()),
        "recall": curves[0].recall,
        "recall_best_f1": above / targets if targets else -1.0,
    }


def by_size(ranked: Ranked, threshold: float) -> list[dict[str, Any]]:
    """One row per size bin; `ranked` was matched in SIZE_RANGES: detections of other sizes only count as hits."""
    return [{"bin": name, **numbers_of_bin(ranked, a, threshold)} for a, name in enumerate(SIZE_NAMES)]


def by_density(ranked: Ranked, images: Sequence[ImageBoxes], threshold: float) -> list[dict[str, Any]]:
    """One row per bin of boxes per image (all classes together), of the images in which the class is annotated."""
    boxes = [max(np.sum(~image.crowd), 1) for image in images]  # an image without boxes belongs to the first bin
    bins = np.searchsorted(DENSITY_EDGES, boxes) - 1
    rows = []
    for b, name in enumerate(DENSITY_NAMES):
        part = replace(ranked, times=ranked.times * (bins == b))
        rows.append({"bin": name, "images": int(part.times.sum()), **numbers_of_bin(part, 0, threshold)})
    return rows


def recall_ceiling(images: Sequence[ImageBoxes], num_queries: int) -> float:
    """The share of boxes that a detector with so many queries can find at all; 1.0 when there are no boxes."""
    boxes = np.array([np.sum(~image.crowd) for image in images], np.int64)
    return float(np.minimum(boxes, num_queries).sum() / boxes.sum()) if boxes.any() else 1.0


class ImageErrors(NamedTuple):
    """What became of one image's detections and targets at an operating point."""

    kind: np.ndarray  # [N] HIT ... UNUSED
    target: np.ndarray  # [N] the target a HIT found, -1 otherwise
    missed: np.ndarray  # [m] targets that nobody found


def name_errors(image: ImageBoxes, thresholds: np.ndarray) -> ImageErrors:
    """Name the kind of each detection above its class's threshold, in the manner of TIDE (Bolya et al., ECCV 2020).

    HIT by COCO's matching at IoU 0.5, IGNORED in a crowd region, else the first that applies: DUPLICATE (IoU >= 0.5
    with a target of its class that a better score took), WRONG_CLASS (IoU >= 0.5 with another class), BADLY_PLACED
    (0.1 <= IoU < 0.5 with its class), BACKGROUND. Unlike TIDE: plain counts instead of the AP each kind costs; "both
    wrong" is background; every unmatched target is missed, so that hits + missed = targets.
    """
    kind, target = np.full(len(image.scores), UNUSED), np.full(len(image.scores), -1)
    kept = np.flatnonzero(image.scores > thresholds[image.labels])
    iou = pairwise_iou(image.boxes[kept], image.targets, image.crowd)
    same = image.labels[kept, None] == image.target_labels
    matches = match(iou * same, image.crowd, ~image.crowd[None], IOU_THRESHOLDS[:1])
    iou[:, image.crowd] = 0
    best_same, best_other = ((iou * own).max(axis=1, initial=0) for own in (same, ~same))
    rules = [matches.hit[0] > 0, matches.ignored[0] > 0, best_same >= 0.5, best_other >= 0.5, best_same >= 0.1]
    kind[kept] = np.select(rules, [HIT, IGNORED, DUPLICATE, WRONG_CLASS, BADLY_PLACED], BACKGROUND)
    target[kept] = np.where(matches.hit[0] > 0, matches.target, -1)
    left = ~image.crowd
    left[target[target >= 0]] = False
    return ImageErrors(kind, target, np.flatnonzero(left))


def count_errors(
    images: Sequence[ImageBoxes], thresholds: Mapping[str, float]
) -> tuple[dict[str, dict[str, int]], list[dict[str, int]]]:
    """Hits, missed and the false kinds per class, and the 12 images with most missed targets (ties: lower id).

    `thresholds` names the classes in the order of their labels.
    """
    kinds = np.zeros((len(thresholds), UNUSED + 1), np.int64)
    missed = np.zeros(len(thresholds), np.int64)
    rows, limits = [], np.array(list(thresholds.values()))
    for image in images:
        found = name_errors(image, limits)
        np.add.at(kinds, (image.labels, found.kind), 1)
        np.add.at(missed, image.target_labels[found.missed], 1)
        hits, duplicates, *false = np.bincount(found.kind, minlength=IGNORED)[:IGNORED].tolist()
        row = {"image_id": image.image_id, "boxes": int(np.sum(~image.crowd)), "hits": hits}
        rows.append(row | {"misses": len(found.missed), "duplicates": duplicates, "false_positives": sum(false)})
    errors = {
        name: {"hits": int(own[HIT]), "missed": int(lost)}
        | dict(zip(FALSE_KINDS, own[1:IGNORED].tolist(), strict=True))
        for name, own, lost in zip(thresholds, kinds, missed, strict=True)
    }
    return errors, sorted(rows, key=lambda row: (-row["misses"], row["image_id"]))[:12]
