"""The crowd benchmarks' metrics: MR-2 (log-average miss rate) and JI (Jaccard index).

As CrowdDet's toolkit computes them for CrowdHuman (arXiv:1805.00123; JI: arXiv:2003.09163): boxes clipped to the
image, IoU above 0.5, crowd regions ignored by intersection over the detection's own area.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recipe.evaluation.matching import ImageBoxes, Pairs, match, overlapping
from recipe.evaluation.ranking import Ranked

ABOVE_HALF = np.nextafter(0.5, 1)
FPPI_POINTS = (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000)  # the toolkit's rounding
JI_THRESHOLDS = np.arange(10) * 0.1


def match_crowd(image: ImageBoxes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """MR-2's matches [2, 1, N] (one range, one threshold), and [classes, 10] JI ratios, see jaccard()."""
    crowd, limits = image.crowd, image.size[::-1] * 2
    boxes, targets = np.clip(image.boxes, 0, limits), np.clip(image.targets, 0, limits)
    pairs = overlapping(boxes, targets, crowd)
    pairs = pairs.where((pairs.iou > 0.5) & image.same_class(pairs))
    hidden = np.zeros(len(targets), bool)
    if crowd.any():
        target, region, iou = overlapping(targets, targets[crowd], crowd[crowd])
        same = image.target_labels[target] == image.target_labels[crowd][region]
        hidden[target[(iou > 0.5) & same]] = True
    matches, _ = match(pairs, len(boxes), crowd, ~crowd[None], np.array([ABOVE_HALF]))
    return matches, jaccard(image, pairs, hidden, np.arange(num_classes))


def log_average_miss_rate(ranked: Ranked) -> float:
    """MR-2: the geometric mean of the miss rate at nine counts of false positives per image; lower is better.

    Dollar et al., PAMI 2012, with CrowdHuman's reading of the curve: the first point at or beyond each count, the
    last point where the curve ends before. A miss rate is at least 1e-10, so that one perfect point does not make the
    mean zero. Empty images count, too; -1 without targets.
    """
    targets, times = ranked.count_targets(), ranked.times[ranked.image]
    if not targets:
        return -1.0
    if not len(times):
        return 1.0
    hit, counted = ranked.hits_at(-1)
    hits, false = (np.cumsum(times * own, dtype=np.int32) for own in (hit, counted & ~hit))
    index = np.minimum(np.searchsorted(false / ranked.times.sum(), FPPI_POINTS), len(hits) - 1)
    return float(np.exp(np.log(np.maximum(1 - hits[index] / targets, 1e-10)).mean()))


def jaccard(image: ImageBoxes, pairs: Pairs, hidden: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """JI's ratio of each class: matched / (detections + targets - matched) above scores 0.0, 0.1, ... 0.9.

    The matching is the bipartite one of largest total IoU, of the `pairs` of one class above 0.5. What lies by more
    than half in a crowd region (of the targets: hidden [M] bool) counts only when matched. [classes, 10] float64, NaN
    where nothing counts.
    """
    from scipy.optimize import linear_sum_assignment

    above = image.scores > JI_THRESHOLDS[:, None]  # [10, N]
    in_region = np.zeros(len(image.scores), bool)
    in_region[pairs.detection[image.crowd[pairs.target]]] = True
    det, target, iou = pairs.where(~image.crowd[pairs.target])
    alone = (np.bincount(det)[det] == 1) & (np.bincount(target)[target] == 1)  # [P] nobody else wants either
    matched, found = np.zeros_like(above), np.zeros((len(above), len(hidden)), bool)  # detections, targets
    matched[:, det[alone]] = found[:, target[alone]] = above[:, det[alone]]
    rivals, rivalled = np.unique(det[~alone]), np.unique(target[~alone])
    wanted = np.zeros((len(rivals), len(rivalled)))  # IoU
    wanted[np.searchsorted(rivals, det[~alone]), np.searchsorted(rivalled, target[~alone])] = iou[~alone]
    for i in range(len(above)):
        kept = np.flatnonzero(above[i, rivals])
        row, column = linear_sum_assignment(wanted[kept], maximize=True)
        real = wanted[kept[row], column] > 0
        matched[i, rivals[kept[row[real]]]] = found[i, rivalled[column[real]]] = True
    own = np.float64(image.labels[:, None] == classes)  # [N, classes]
    people = np.float64((image.target_labels[:, None] == classes) & ~image.crowd[:, None])  # [M, classes]
    hits = matched @ own
    either = (matched | above & ~in_region) @ own + (found | ~hidden) @ people - hits
    return np.divide(hits, either, out=np.full(hits.shape, np.nan), where=either > 0).T


def best_jaccard(ratios: Sequence[np.ndarray]) -> float:
    """JI of one class from jaccard() of every image: the mean over those that count, at the best score; 0 if none."""
    counted = ~np.isnan(ratios)
    return float((np.where(counted, ratios, 0).sum(0) / np.maximum(counted.sum(0), 1)).max())
