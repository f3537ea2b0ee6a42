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

from recipe.evaluation.matching import (
    CHUNK,
    IOU_THRESHOLDS,
    RECALL_POINTS,
    ImageBoxes,
    Pairs,
    Ranked,
    mark,
    match,
    overlapping,
    xywh,
)

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
    curve = ranked.curve(0, t)
    score = [None if np.isnan(s) else float(s) for s in curve.score]
    return {"recall": RECALL_POINTS.tolist(), "precision": curve.precision.tolist(), "score": score}


def threshold_curve(ranked: Ranked) -> dict[str, list[float | None]]:
    """Precision, recall and F1 of the detections above each threshold; None where none is, or there is no target."""
    hits, found = np.cumsum(ranked.lane(0, 0), axis=1)
    kept = np.searchsorted(-ranked.scores.astype(np.float64), -THRESHOLDS)
    hits, found = (np.append(0, column)[kept] for column in (hits, found))
    targets = int(ranked.positives[0])
    return {
        "threshold": THRESHOLDS.tolist(),
        "precision": [h / n if n else None for h, n in zip(hits.tolist(), found.tolist(), strict=True)],
        "recall": [h / targets if targets else None for h in hits.tolist()],
        "f1": [2 * h / (n + targets) if targets else None for h, n in zip(hits.tolist(), found.tolist(), strict=True)],
    }


def operating_points(ranked: Ranked) -> dict[str, dict[str, float] | None]:
    """The threshold of the best F1, and the lowest one whose precision is at least 0.9.

    A threshold lies halfway to the next lower score, so that rounding moves no detection across it. None where there
    are no targets or no hits, or where that precision is never reached.
    """
    targets = int(ranked.positives[0])
    hit, counted = ranked.lane(0, 0)
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


def summary(ranked: Ranked, a: int, threshold: float) -> dict[str, float]:
    """AP, AP at IoU 0.5, recall with all detections (no cap) and those above the threshold; -1 without targets."""
    curves, targets = ranked.curves(a), int(ranked.positives[a])
    above = int(ranked.lane(a, 0)[0][ranked.scores > threshold].sum())
    return {
        "boxes": targets,
        "ap": float(np.mean([curve.precision for curve in curves])),
        "ap_50": float(curves[0].precision.mean()),
        "recall": curves[0].recall,
        "recall_best_f1": above / targets if targets else -1.0,
    }


def mark_by_size(images: Sequence[ImageBoxes]) -> list[np.ndarray]:
    """Match again with SIZE_RANGES in place of COCO's small, medium and large; marks for Ranked.of()."""
    marks: list[np.ndarray] = []
    for first in range(0, len(images), CHUNK):
        part = images[first : first + CHUNK]
        ends = np.cumsum([len(image.scores) for image in part])[:-1]
        marks += np.split(mark(part, overlapping(part), SIZE_RANGES), ends, axis=2)
    return marks


def by_size(ranked: Ranked, threshold: float) -> list[dict[str, Any]]:
    """One row per size bin; `ranked` comes from mark_by_size(). Detections of other sizes only count as hits."""
    return [{"bin": name, **summary(ranked, a, threshold)} for a, name in enumerate(SIZE_NAMES)]


def by_density(ranked: Ranked, images: Sequence[ImageBoxes], label: int, threshold: float) -> list[dict[str, Any]]:
    """One row per bin of boxes per image (all classes together)."""
    boxes = [max(np.sum(~image.crowd), 1) for image in images]  # an image without boxes belongs to the first bin
    bins = np.searchsorted(DENSITY_EDGES, boxes) - 1
    own = np.array([np.sum((image.target_labels == label) & ~image.crowd) for image in images])
    rows = []
    for b, name in enumerate(DENSITY_NAMES):
        part = replace(ranked, kept=(bins == b)[ranked.image], positives=np.array([own[bins == b].sum()]))
        rows.append({"bin": name, "images": int(np.sum(bins == b)), **summary(part, 0, threshold)})
    return rows


def recall_ceiling(images: Sequence[ImageBoxes], num_queries: int) -> float:
    """The share of boxes that a detector with so many queries can find at all; 1.0 when there are no boxes."""
    boxes = np.array([np.sum(~image.crowd) for image in images], np.int64)
    return float(np.minimum(boxes, num_queries).sum() / boxes.sum()) if boxes.any() else 1.0


class Verdict(NamedTuple):
    """What became of one image's detections and targets at an operating point."""

    kind: np.ndarray  # [N] HIT ... UNUSED
    target: np.ndarray  # [N] the target a HIT found, -1 otherwise
    missed: np.ndarray  # [m] targets that nobody found


def judge(image: ImageBoxes, thresholds: np.ndarray) -> Verdict:
    """Name the kind of each detection above its class's threshold, in the manner of TIDE (Bolya et al., ECCV 2020).

    HIT by COCO's matching at IoU 0.5, IGNORED in a crowd region, else the first that applies: DUPLICATE (IoU >= 0.5
    with a target of its class that a better score took), WRONG_CLASS (IoU >= 0.5 with another class), BADLY_PLACED
    (0.1 <= IoU < 0.5 with its class), BACKGROUND. Unlike TIDE: plain counts instead of the AP each kind costs; "both
    wrong" is background; every unmatched target is missed, so that hits + missed = targets.
    """
    from pycocotools import mask

    kind, target = np.full(len(image.scores), UNUSED), np.full(len(image.scores), -1)
    kept = np.flatnonzero(image.scores > thresholds[image.labels])
    if len(kept) and len(image.targets):
        iou = np.asarray(mask.iou(xywh(image.boxes[kept]), xywh(image.targets), image.crowd))
        same = image.labels[kept, None] == image.target_labels
        d, g = np.nonzero(same & (iou >= 0.5))
        pairs = Pairs(d, g, iou[d, g])
        found = match(pairs, len(kept), image.crowd, image.crowd[None], IOU_THRESHOLDS[:1])[0, 0]
        iou[:, image.crowd] = 0
        best_same, best_other = (np.where(own, iou, 0).max(1) for own in (same, ~same))
        rules = [found >= 0, best_same >= 0.5, best_other >= 0.5, best_same >= 0.1]
        kind[kept] = np.select(rules, [HIT, DUPLICATE, WRONG_CLASS, BADLY_PLACED], BACKGROUND)
        kind[kept[(found >= 0) & image.crowd[found]]] = IGNORED
        target[kept] = np.where(kind[kept] == HIT, found, -1)
    else:
        kind[kept] = BACKGROUND
    left = ~image.crowd
    left[target[target >= 0]] = False
    return Verdict(kind, target, np.flatnonzero(left))


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
        verdict = judge(image, limits)
        np.add.at(kinds, (image.labels, verdict.kind), 1)
        np.add.at(missed, image.target_labels[verdict.missed], 1)
        hits, duplicates, *false = np.bincount(verdict.kind, minlength=IGNORED)[:IGNORED].tolist()
        row = {"image_id": image.image_id, "boxes": int(np.sum(~image.crowd)), "hits": hits}
        rows.append(row | {"misses": len(verdict.missed), "duplicates": duplicates, "false_positives": sum(false)})
    errors = {
        name: {"hits": int(own[HIT]), "missed": int(lost)}
        | dict(zip(FALSE_KINDS, own[1:IGNORED].tolist(), strict=True))
        for name, own, lost in zip(thresholds, kinds, missed, strict=True)
    }
    return errors, sorted(rows, key=lambda row: (-row["misses"], row["image_id"]))[:12]
