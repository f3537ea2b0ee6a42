"""The crowd benchmarks' metrics: MR-2 (log-average miss rate) and JI (Jaccard index).

Both follow the CrowdHuman benchmark (Shao et al. 2018, arXiv:1805.00123; JI: Chu et al., CVPR 2020,
arXiv:2003.09163) as the toolkit published with CrowdDet computes them: boxes clipped to the image, IoU above 0.5,
crowd regions ignored by intersection over the detection's own area.
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
    crowd, limits = image.crowd, (*image.size[::-1], *image.size[::-1])
    boxes, targets = np.clip(image.boxes, 0, limits), np.clip(image.targets, 0, limits)
    iou = pairwise_iou(boxes, targets, crowd) * (image.labels[:, None] == image.target_labels)
    iou[iou <= 0.5] = 0
    hidden = np.zeros(len(crowd), bool)  # more than half in a crowd region of the same class
    if crowd.any():
        same = image.target_labels[:, None] == image.target_labels[crowd]
        hidden = ((pairwise_iou(targets, targets[crowd], crowd[crowd]) > 0.5) & same).any(axis=1)
    ratios = np.empty((num_classes, len(JI_THRESHOLDS)))
    for label in range(num_classes):
        own, real = image.labels == label, (image.target_labels == label) & ~crowd
        in_region = iou[own][:, crowd].any(axis=1)
        ratios[label] = jaccard(iou[own][:, real], image.scores[own], in_region, hidden[real])
    return match(iou, crowd, ~crowd[None], np.array([ABOVE_HALF])), ratios


def log_average_miss_rate(ranked: Ranked) -> float:
    """MR-2: the geometric mean of the miss rate at nine counts of false positives per image from 0.01 to 1.

    Dollar et al., "Pedestrian Detection: An Evaluation of the State of the Art", PAMI 2012, with CrowdHuman's reading
    of the curve: the first point at or beyond each count, the last point where the curve ends before. As in Dollar's
    code a miss rate is at least 1e-10, so that one perfect point does not make the mean zero. Lower is better. Empty
    images count, too; -1 without targets.
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

    The matching is the bipartite one of largest total IoU. Detections [N] and targets [M] that stay unmatched and lie
    by more than half in a crowd region do not count. [10] float64, NaN where there is nothing that counts.

    Args:
        iou: [N, M], 0 where it is not above 0.5; the best score first.
        scores: [N] falling.
        in_region, hidden: [N] and [M] bool, more than half in a crowd region.
    """
    from scipy.optimize import linear_sum_assignment

    above = scores > JI_THRESHOLDS[:, None]  # [10, N]
    count_det, count_target = above & ~in_region, np.tile(~hidden, (len(above), 1))
    near = np.flatnonzero(iou.any(axis=1))
    weights = iou[near]
    found = [linear_sum_assignment(weights[:n], maximize=True) for n in above[:, near].sum(axis=1)]
    step = np.repeat(np.arange(len(above)), [len(rows) for rows, _ in found])
    rows, columns = np.concatenate(found, axis=1)
    real = weights[rows, columns] > 0
    step, rows, columns = step[real], rows[real], columns[real]
    count_det[step, near[rows]] = True
    count_target[step, columns] = True
    matched = np.bincount(step, minlength=len(above))
    union = count_det.sum(axis=1) + count_target.sum(axis=1) - matched
    return np.divide(matched, union, out=np.full(len(above), np.nan), where=union > 0)


def best_jaccard(ratios: Sequence[np.ndarray]) -> float:
    """JI of one class from jaccard() of every image: the mean over those that count, at the best score; 0 if none."""
    counted = ~np.isnan(ratios)
    return float((np.where(counted, ratios, 0).sum(0) / np.maximum(counted.sum(0), 1)).max())
