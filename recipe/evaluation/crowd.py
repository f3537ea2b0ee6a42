"""The crowd benchmarks' metrics: MR-2 (log-average miss rate) and JI (Jaccard index).

As CrowdDet's toolkit computes them for CrowdHuman (arXiv:1805.00123; JI: arXiv:2003.09163): boxes clipped to the
image, IoU above 0.5, crowd regions ignored by intersection over the detection's own area.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recipe.evaluation.matching import ImageBoxes, Matches, match, pairwise_iou
from recipe.evaluation.ranking import Ranked

ABOVE_HALF = np.nextafter(0.5, 1)
FPPI_POINTS = (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000)  # the toolkit's rounding
JI_THRESHOLDS = np.arange(10) * 0.1


def match_crowd(image: ImageBoxes, num_classes: int) -> tuple[Matches, np.ndarray]:
    """MR-2's matches (one range, one threshold), and [classes, 10] JI ratios, see jaccard()."""
    crowd, limits = image.crowd, image.size[::-1] * 2
    boxes, targets = np.clip(image.boxes, 0, limits), np.clip(image.targets, 0, limits)
    iou = pairwise_iou(boxes, targets, crowd) * (image.labels[:, None] == image.target_labels)
    iou[iou <= 0.5] = 0
    same = image.target_labels[:, None] == image.target_labels[crowd]
    hidden = ((pairwise_iou(targets, targets[crowd], crowd[crowd]) > 0.5) & same).any(axis=1)
    ratios = np.empty((num_classes, len(JI_THRESHOLDS)))
    for label in range(num_classes):
        own, real = image.labels == label, (image.target_labels == label) & ~crowd
        in_region = iou[own][:, crowd].any(axis=1)
        ratios[label] = jaccard(iou[own][:, real], image.scores[own], in_region, hidden[real])
    return match(iou, crowd, ~crowd[None], np.array([ABOVE_HALF]))[0], ratios


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


def jaccard(iou: np.ndarray, scores: np.ndarray, in_region: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """JI's ratio in one image and class: matched / (detections + targets - matched) above scores 0.0, 0.1, ... 0.9.

    The matching is the bipartite one of largest total IoU. What lies by more than half in a crowd region (detections:
    in_region [N] bool, targets: hidden [M] bool) counts only when matched. `iou` [N, M] is 0 where it is not above
    0.5. [10] float64, NaN where nothing counts.
    """
    from scipy.optimize import linear_sum_assignment

    ratios, near = np.full(len(JI_THRESHOLDS), np.nan), iou.any(axis=1)
    for i, threshold in enumerate(JI_THRESHOLDS):
        above = scores > threshold
        rows = np.flatnonzero(above & near)
        taken, columns = linear_sum_assignment(iou[rows], maximize=True)
        real = iou[rows[taken], columns] > 0
        rows, columns = rows[taken[real]], columns[real]
        detections = np.count_nonzero(above & ~in_region) + np.count_nonzero(in_region[rows])
        targets = np.count_nonzero(~hidden) + np.count_nonzero(hidden[columns])
        if detections + targets:
            ratios[i] = len(rows) / (detections + targets - len(rows))
    return ratios


def best_jaccard(ratios: Sequence[np.ndarray]) -> float:
    """JI of one class from jaccard() of every image: the mean over those that count, at the best score; 0 if none."""
    counted = ~np.isnan(ratios)
    return float((np.where(counted, ratios, 0).sum(0) / np.maximum(counted.sum(0), 1)).max())
