"""COCO's matching in one image: which detection finds which target, and which detections do not count.

pycocotools walks through the detections once for every IoU threshold and area range. Here one walk serves all of
them: what is free and what is found are the bits of one integer (0.2 ms an image of 300 detections and 80 boxes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# All, small, medium, large in square pixels; both ends included, as in pycocotools.
AREA_RANGES = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])


class Pairs(NamedTuple):
    """Detections and targets that overlap, each pair once."""

    detection: np.ndarray  # [P] int64
    target: np.ndarray  # [P] int64
    iou: np.ndarray  # [P] float64; intersection over the detection's own area where the target is a crowd region

    def where(self, kept: np.ndarray) -> Pairs:
        """Some of the pairs, by a mask [P]."""
        return Pairs(*(column[kept] for column in self))


@dataclass(slots=True)
class ImageBoxes:
    """One image's detections and targets; each class is one slice of the detections, best score first."""

    image_id: int
    size: tuple[int, int]  # height, width in pixels
    labelled: np.ndarray  # [classes] bool, the classes annotated here; nothing of the others is kept
    boxes: np.ndarray  # [N, 4] float32 xyxy pixels
    scores: np.ndarray  # [N] float32
    labels: np.ndarray  # [N] uint8
    targets: np.ndarray  # [M, 4] float64 xyxy pixels
    target_labels: np.ndarray  # [M] uint8
    target_area: np.ndarray  # [M] float64 square pixels
    crowd: np.ndarray  # [M] bool
    # Filled by DetectionMetrics.update():
    matches: np.ndarray = field(init=False)  # [2, A + 1, N] of match() in AREA_RANGES; the last row is MR-2's own
    jaccard: np.ndarray = field(init=False)  # [classes, 10], see crowd.jaccard()

    def same_class(self, pairs: Pairs) -> np.ndarray:  # [P] bool
        return self.labels[pairs.detection] == self.target_labels[pairs.target]


def xywh(xyxy: np.ndarray) -> np.ndarray:
    """[N, 4] corners to COCO's [x, y, w, h] in float64."""
    boxes = xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def overlapping(boxes: np.ndarray, targets: np.ndarray, crowd: np.ndarray) -> Pairs:
    """The pairs of xyxy boxes [N, 4] and targets [M, 4] that overlap, with pycocotools' IoU, bit for bit."""
    x1, y1, x2, y2 = boxes.T.astype(np.float64, order="C")[:, :, None]  # [N, 1]
    left, top, right, bottom = targets.T.astype(np.float64, order="C")  # [M]
    near = (x1 < right) & (x2 > left) & (y1 < bottom) & (y2 > top)
    detection, target = np.divmod(np.flatnonzero(near), max(len(targets), 1))  # nonzero() takes 5x as long
    (x, y, w, h), (target_x, target_y, target_w, target_h) = xywh(boxes[detection]).T, xywh(targets[target]).T
    width = np.minimum(x + w, target_x + target_w) - np.maximum(x, target_x)
    height = np.minimum(y + h, target_y + target_h) - np.maximum(y, target_y)
    inside = width * height
    return Pairs(detection, target, inside / np.where(crowd[target], w * h, w * h + target_w * target_h - inside))


def match(
    pairs: Pairs, detections: int, crowd: np.ndarray, counts: np.ndarray, thresholds: np.ndarray = IOU_THRESHOLDS
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy rule at every IoU threshold and in every area range: what became of each detection.

    Best score first, each detection takes the free target of the highest IoU, the later one of equals; one that does
    not count only where none that counts is left. Crowd regions [M] are free for any number of detections. Given the
    pairs of one class, detections by falling score; counts [A, M], the targets that count in each area range;
    thresholds [T]. Returns [2, A, N] uint16, bit t for threshold t: it found a target that counts; it is neither right
    nor wrong. And [N] the target that each took, -1 for none (of use with one range and threshold).
    """
    shifts = len(thresholds) * np.arange(len(counts))  # one integer holds the thresholds of all ranges
    det, target, iou = pairs.where(pairs.iou >= thresholds[0])
    reached = 2 ** np.searchsorted(thresholds, iou, side="right") - 1
    bits = np.concatenate([reached * (2**shifts @ counts)[target], reached * (2**shifts @ ~counts)[target]])
    pair = np.flatnonzero(bits)
    second, bits, pair = pair >= len(det), bits[pair], pair % max(len(det), 1)  # second: the target does not count
    order = np.lexsort((-target[pair], -iou[pair], second, det[pair]))

    found = [[0] * detections, [0] * detections]
    taken, taker = [0] * len(crowd), [-1] * detections
    shared = crowd.tolist()
    for d, g, kind, wanted in np.stack([det[pair], target[pair], second, bits])[:, order].T.tolist():
        won = wanted & ~(found[0][d] | found[1][d] | taken[g])
        if won:
            found[kind][d] |= won
            taker[d] = g
            if not shared[g]:
                taken[g] |= won
    rows = np.array(found, np.int64)[:, None] >> shifts[:, None] & 2 ** len(thresholds) - 1  # [2, A, N]
    return rows.astype(np.uint16), np.array(taker, np.int64)


def match_in_ranges(image: ImageBoxes, ranges: np.ndarray) -> np.ndarray:  # [2, A, N]
    """match() in area `ranges` [A, 2]: neither do targets of other sizes count, nor detections that found nothing."""
    low, high = ranges.T[:, :, None]
    counts = (image.target_area >= low) & (image.target_area <= high) & ~image.crowd  # [A, M]
    pairs = overlapping(image.boxes, image.targets, image.crowd)
    matches, _ = match(pairs.where(image.same_class(pairs)), len(image.boxes), image.crowd, counts)
    area = xywh(image.boxes)[:, 2:].prod(axis=1)
    outside = ((area < low) | (area > high)) * np.uint16(2 ** len(IOU_THRESHOLDS) - 1)  # [A, N]
    matches[1] |= outside & ~matches[0]
    return matches
