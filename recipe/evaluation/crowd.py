"""The crowd benchmarks' metrics: MR-2 (log-average miss rate) and JI (Jaccard index).

Both follow the CrowdHuman benchmark (Shao et al. 2018, arXiv:1805.00123; JI: Chu et al., CVPR 2020,
arXiv:2003.09163) as the toolkit published with CrowdDet computes them: boxes clipped to the image, IoU above 0.5,
crowd regions ignored by intersection over the detection's own area.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recipe.evaluation.matching import ImageBoxes, Pairs, clip, close_pairs, match, xywh

ABOVE_HALF = np.nextafter(0.5, 1)
FPPI_POINTS = (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000)  # the toolkit's rounding
JI_THRESHOLDS = np.arange(10) * 0.1


def caltech_and_jaccard(
    images: Sequence[ImageBoxes], overlap: tuple[np.ndarray, np.ndarray], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per image what MR-2 and JI need: [2, 1, D] uint8 (top bit: hit, ignored) and [I, classes, 10] ratios."""
    boxes = xywh(np.concatenate([clip(image, image.boxes) for image in images]))
    targets = xywh(np.concatenate([clip(image, image.targets) for image in images]))
    crowd = np.concatenate([image.crowd for image in images])
    pairs = close_pairs(boxes, targets, crowd, overlap, ABOVE_HALF)
    matched = match(pairs, len(boxes), crowd, crowd[None], np.array([ABOVE_HALF]))[0, 0]
    ignored = (matched >= 0) & np.append(crowd, False)[matched]
    marks = np.stack([(matched >= 0) & ~ignored, ignored]).astype(np.uint8)[:, None] << 7
    return marks, jaccard(images, pairs, num_classes)


def log_average_miss_rate(hit: np.ndarray, counted: np.ndarray, targets: int, images: int) -> float:
    """MR-2: the geometric mean of the miss rate at nine counts of false positives per image from 0.01 to 1.

    Dollar et al., "Pedestrian Detection: An Evaluation of the State of the Art", PAMI 2012, with CrowdHuman's reading
    of the curve: the first point at or beyond each count, the last point where the curve ends before. As in Dollar's
    code a miss rate is at least 1e-10, so that one perfect point does not make the mean zero. Lower is better.
    `hit` and `counted` are [D] bool, best score first; `images` counts empty ones too; -1 without targets.
    """
    if not targets:
        return -1.0
    if not counted.any():
        return 1.0
    hits = np.cumsum(hit[counted])
    per_image = (np.arange(1, len(hits) + 1) - hits) / images
    index = np.minimum(np.searchsorted(per_image, FPPI_POINTS), len(hits) - 1)
    return float(np.exp(np.log(np.maximum(1 - hits[index] / targets, 1e-10)).mean()))


def jaccard(images: Sequence[ImageBoxes], pairs: Pairs, num_classes: int) -> np.ndarray:
    """JI's ratio per image: matched / (detections + targets - matched) above each score 0.0, 0.1, ... 0.9.

    The matching is the bipartite one of largest total IoU over pairs above 0.5. Detections and targets that stay
    unmatched and lie by more than half in a crowd region do not count. [I, classes, 10] float64, NaN where an image
    has neither detections nor targets of the class.
    """
    n_cell, lanes = len(images) * num_classes, len(JI_THRESHOLDS)
    cells = [
        np.concatenate([labels.astype(np.int64) + i * num_classes for i, labels in enumerate(many)])
        for many in ([image.labels for image in images], [image.target_labels for image in images])
    ]
    crowd = np.concatenate([image.crowd for image in images])
    kept = np.concatenate([image.scores for image in images]) > JI_THRESHOLDS[:, None]  # [10, D]
    real = ~crowd[pairs.target]
    over_det = np.zeros(kept.shape[1], bool)
    over_det[pairs.det[~real]] = True
    det, target, iou = (column[real] for column in pairs)
    lane, edge = np.nonzero(kept[:, det])
    nodes = Pairs(lane * kept.shape[1] + det[edge], lane * len(crowd) + target[edge], iou[edge])
    has_crowd = np.isin(cells[1], cells[1][crowd])[target[edge]]
    first_edge, matches, taken_det, taken_target = largest_matching(nodes, has_crowd)
    where = lane[first_edge] * n_cell + cells[1][target[edge[first_edge]]]
    k = np.bincount(where, weights=matches, minlength=lanes * n_cell)

    free_det, free_target = np.ones(kept.shape, bool), np.ones((lanes, len(crowd)), bool)
    free_det.flat[taken_det] = False
    free_target.flat[taken_target] = False
    count_det = kept & ~(over_det & free_det)
    count_target = ~crowd & ~(inside_crowd(images) & free_target)
    n, m = (
        np.concatenate([np.bincount(cell[row], minlength=n_cell) for row in counts])
        for cell, counts in ((cells[0], count_det), (cells[1], count_target))
    )
    ratio = np.where(n + m > 0, k / np.maximum(n + m - k, 1), np.nan)
    return ratio.reshape(lanes, len(images), num_classes).transpose(1, 2, 0)


def best_jaccard(ratios: np.ndarray) -> float:
    """JI of one class from jaccard()'s [I, 10]: the mean over images that count, at the best threshold; 0 if none."""
    counted = ~np.isnan(ratios)
    return float((np.where(counted, ratios, 0).sum(0) / np.maximum(counted.sum(0), 1)).max())


def largest_matching(edges: Pairs, solve: np.ndarray) -> tuple[np.ndarray, ...]:
    """How many pairs the matching of largest total IoU has in each connected component.

    All weights lie above 0.5, so a second pair always outweighs any single one: a component with one or two nodes on
    its smaller side has as many matches as that. Only larger ones, and those with `solve` (crowd regions ask who is
    matched, not only how many), go to the assignment solver. Returns each component's first edge and number of
    matches, and the matched (det, target) nodes of the solved ones.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    dets, row = np.unique(edges.det, return_inverse=True)
    targets, column = np.unique(edges.target, return_inverse=True)
    size = len(dets) + len(targets)
    graph = coo_array((np.ones(len(row), np.int8), (row, column + len(dets))), shape=(size, size))
    total, component = connected_components(graph, directed=False)
    sides = [np.bincount(part, minlength=total) for part in (component[: len(dets)], component[len(dets) :])]
    matches = np.minimum(*sides)
    of_edge = component[row]
    _, first_edge = np.unique(of_edge, return_index=True)
    order = np.argsort(of_edge, kind="stable")
    bounds = np.append(np.searchsorted(of_edge[order], np.arange(total)), len(order))
    taken: list[np.ndarray] = [np.zeros((2, 0), np.int64)]
    for c in np.flatnonzero((matches > 2) | solve[first_edge]):
        own = order[bounds[c] : bounds[c + 1]]
        (left, i), (right, j) = (np.unique(part[own], return_inverse=True) for part in (row, column))
        weight = np.zeros((len(left), len(right)))
        weight[i, j] = edges.iou[own]
        i, j = linear_sum_assignment(weight, maximize=True)
        i, j = i[weight[i, j] > 0], j[weight[i, j] > 0]
        matches[c] = len(i)
        taken.append(np.stack([dets[left[i]], targets[right[j]]]))
    return first_edge, matches, *np.concatenate(taken, axis=1)


def inside_crowd(images: Sequence[ImageBoxes]) -> np.ndarray:
    """[G] targets that lie by more than half of their area in a crowd region of their class."""
    from pycocotools import mask

    inside = []
    for image in images:
        hidden = np.zeros(len(image.targets), bool)
        boxes = xywh(clip(image, image.targets))
        for label in np.unique(image.target_labels[image.crowd]):
            own = image.target_labels == label
            plain, region = np.flatnonzero(own & ~image.crowd), np.flatnonzero(own & image.crowd)
            if len(plain):
                share = mask.iou(boxes[plain], boxes[region], np.ones(len(region)))
                hidden[plain] = (share > 0.5).any(1)
        inside.append(hidden)
    return np.concatenate(inside)
