"""COCO's matching in one image: which detection finds which target, and which detections do not count.

    matches = match(iou, crowd, counts)   # called by DetectionMetrics.update(), image by image

pycocotools walks through the detections once for every IoU threshold and area range. Here one walk serves all of
them: what is free and what is found are the bits of one integer (0.2 ms an image of 300 detections and 80 boxes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Square pixels, both ends included, as in pycocotools.
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


class Matches(NamedTuple):
    """What became of one image's detections; row a and bit t stand for area range a and IoU threshold t."""

    hit: np.ndarray  # [A, N] uint16, where it found a target that counts
    ignored: np.ndarray  # [A, N] uint16, where it is neither right nor wrong
    target: np.ndarray  # [N] int64, the target it took, -1 for none; with one range and one threshold only


@dataclass(slots=True)
class ImageBoxes:
    """One image's detections and targets, as compact as exact numbers allow (about 16 KB at 300 x 80 boxes).

    Detections lie sorted by label, then by falling score (ties in the order given), so that each class is one slice.
    """

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
    hit: np.ndarray = field(init=False)  # [A + 1, N] as in Matches; the last row is MR-2's own
    ignored: np.ndarray = field(init=False)  # [A + 1, N]
    jaccard: np.ndarray = field(init=False)  # [classes, 10], see crowd.jaccard()


def xywh(xyxy: np.ndarray) -> np.ndarray:
    """[N, 4] corners to COCO's [x, y, w, h] in float64."""
    boxes = xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def pairwise_iou(boxes: np.ndarray, targets: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[N, M] pycocotools' IoU of xyxy boxes; intersection over the detection's own area for crowd regions."""
    from pycocotools import mask

    if not len(boxes) or not len(targets):
        return np.zeros((len(boxes), len(targets)))
    return np.asarray(mask.iou(xywh(boxes), xywh(targets), crowd))


def match(iou: np.ndarray, crowd: np.ndarray, counts: np.ndarray, thresholds: np.ndarray = IOU_THRESHOLDS) -> Matches:
    """COCO's greedy rule at every IoU threshold and in every area range.

    Best score first, each detection takes the free target of the highest IoU, the later one of equals; one that does
    not count only where none that counts is left. Crowd regions are free for any number of detections.

    Args:
        iou: [N, M] float64, best score first; 0 between two classes.
        crowd: [M] bool.
        counts: [A, M] bool, the targets that count in each area range.
        thresholds: [T] smallest IoU of a match.
    """
    shifts = len(thresholds) * np.arange(len(counts))  # one integer holds the thresholds of all ranges
    det, target = np.divmod(np.flatnonzero(iou >= thresholds[0]), max(iou.shape[1], 1))  # nonzero() takes 5x as long
    overlap = iou[det, target]
    reached = 2 ** np.searchsorted(thresholds, overlap, side="right") - 1
    bits = np.concatenate([reached * (2**shifts @ counts)[target], reached * (2**shifts @ ~counts)[target]])
    pair = np.flatnonzero(bits)
    second, bits, pair = pair >= len(det), bits[pair], pair % max(len(det), 1)  # second: the target does not count
    order = np.lexsort((-target[pair], -overlap[pair], second, det[pair]))

    found = [[0] * len(iou), [0] * len(iou)]
    taken, taker = [0] * len(crowd), [-1] * len(iou)
    shared = crowd.tolist()
    for d, g, kind, wanted in np.stack([det[pair], target[pair], second, bits])[:, order].T.tolist():
        won = wanted & ~(found[0][d] | found[1][d] | taken[g])
        if won:
            found[kind][d] |= won
            taker[d] = g
            if not shared[g]:
                taken[g] |= won
    hit, ignored = np.array(found, np.int64)[:, None] >> shifts[:, None] & 2 ** len(thresholds) - 1  # [2, A, N]
    return Matches(hit.astype(np.uint16), ignored.astype(np.uint16), np.array(taker, np.int64))


def match_in_ranges(image: ImageBoxes, ranges: np.ndarray) -> Matches:
    """match() at COCO's thresholds; `ranges` [A, 2] are the smallest and largest areas in square pixels.

    Targets of other sizes do not count, nor do detections of other sizes that found nothing.
    """
    low, high = ranges.T[:, :, None]
    counts = (image.target_area >= low) & (image.target_area <= high) & ~image.crowd  # [A, M]
    same = image.labels[:, None] == image.target_labels
    iou = pairwise_iou(image.boxes, image.targets, image.crowd) * same
    matches = match(iou, image.crowd, counts)
    area = xywh(image.boxes)[:, 2:].prod(axis=1)
    outside = ((area < low) | (area > high)) * np.uint16(2 ** len(IOU_THRESHOLDS) - 1)  # [A, N]
    return matches._replace(ignored=matches.ignored | outside & ~matches.hit)
