"""COCO's matching and average precision, vectorised over images, IoU thresholds and area ranges.

pycocotools walks detection by detection, best score first, and each takes the free target with the highest IoU. That
is the stable matching in which every target prefers the better score, so deferred acceptance finds it (Gale and
Shapley, 1962): all detections ask at once, a target keeps the best score, and who is turned away asks the next one.
A few rounds over flat arrays replace millions of Python steps; the result is the same one, ties included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
# Square pixels, both ends included, as in pycocotools.
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}

CHUNK = 32  # images matched at once: arrays long enough for NumPy, short enough for the cache


@dataclass(slots=True)
class ImageBoxes:
    """One image's detections and targets, as compact as exact numbers allow (about 15 KB at 300 x 80 boxes).

    Detections lie sorted by label, then by falling score (ties in the order given), so that each class is one slice.
    """

    image_id: int
    size: tuple[int, int]  # height, width in pixels
    boxes: np.ndarray  # [N, 4] float32 xyxy pixels
    scores: np.ndarray  # [N] float32
    labels: np.ndarray  # [N] uint8
    targets: np.ndarray  # [M, 4] float64 xyxy pixels
    target_labels: np.ndarray  # [M] uint8
    target_area: np.ndarray  # [M] float64 square pixels
    crowd: np.ndarray  # [M] bool
    # Filled by the matching: [2, bytes, N] bits (see mark() and crowd.py) and [classes, 10] ratios (see jaccard()).
    marks: np.ndarray = field(default_factory=lambda: np.zeros((2, 0, 0), np.uint8))
    jaccard: np.ndarray = field(default_factory=lambda: np.zeros((0, 10)))


class Pairs(NamedTuple):
    """Every (detection, target) of the same image and class that overlap enough; indices run through all images."""

    det: np.ndarray  # [P]
    target: np.ndarray  # [P]
    iou: np.ndarray  # [P] float64; intersection over the detection's own area where the target is a crowd region


def xywh(xyxy: np.ndarray) -> np.ndarray:
    """[N, 4] corners to COCO's [x, y, w, h] in float64."""
    boxes = xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def clip(image: ImageBoxes, xyxy: np.ndarray) -> np.ndarray:
    """[N, 4] corners moved into the image."""
    return np.clip(xyxy, 0, (*image.size[::-1], *image.size[::-1]))


def overlapping(images: Sequence[ImageBoxes]) -> tuple[np.ndarray, np.ndarray]:
    """[P] detection and [P] target of all pairs of one image and class that overlap; the IoU of all is slower."""
    dets, targets, first_det, first_target = [], [], 0, 0
    for image in images:
        box, target = image.boxes.astype(np.float64).T[..., None], image.targets.T  # [4, N, 1], [4, M]
        pair = image.labels[:, None] == image.target_labels
        for side in (0, 1):
            pair &= box[side] < target[side + 2]
            pair &= box[side + 2] > target[side]
        d, g = np.nonzero(pair)
        dets.append(d + first_det)
        targets.append(g + first_target)
        first_det, first_target = first_det + len(image.scores), first_target + len(image.targets)
    return np.concatenate(dets), np.concatenate(targets)


def close_pairs(
    boxes: np.ndarray, targets: np.ndarray, crowd: np.ndarray, overlap: tuple[np.ndarray, np.ndarray], floor: float
) -> Pairs:
    """The overlapping pairs with IoU >= floor; boxes [D, 4], targets [G, 4] xywh float64, pycocotools' arithmetic."""
    det, target = overlap
    a, b = boxes[det].T, targets[target].T  # [4, P]
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    inter = np.prod(np.maximum(high - low, 0), axis=0)
    own = a[2] * a[3]
    union = np.where(crowd[target], own, own + b[2] * b[3] - inter)
    iou = np.divide(inter, union, out=np.zeros_like(inter), where=inter > 0)
    close = np.flatnonzero(iou >= floor)
    return Pairs(det[close], target[close], iou[close])


def match(pairs: Pairs, n_det: int, crowd: np.ndarray, ignored: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Greedy COCO matching in every lane (area range x IoU threshold) at once: [A, T, n_det], the target or -1.

    Args:
        pairs: a smaller detection index is a better score within its image and class.
        crowd: [G] bool, targets that any number of detections may match.
        ignored: [A, G] bool, targets that do not count in an area range; taken only when nothing else is free.
        thresholds: [T] smallest IoU of a match.
    """
    lanes, n_target = len(ignored) * len(thresholds), len(crowd)
    det_keys, target_keys = [], []
    for a, ignore in enumerate(ignored):
        # What a detection prefers: targets that count, then IoU; pycocotools lets the later of two equals win.
        order = np.lexsort((-pairs.target, -pairs.iou, ignore[pairs.target], pairs.det))
        t, p = np.nonzero(pairs.iou[order] >= thresholds[:, None])
        lane = a * len(thresholds) + t
        det_keys.append(lane * n_det + pairs.det[order[p]])
        target_keys.append(lane * n_target + pairs.target[order[p]])
    det_key, target_key = np.concatenate(det_keys), np.concatenate(target_keys)
    nobody = len(det_key)
    first = np.diff(det_key, prepend=-1) != 0
    has_next = np.append(~first[1:], False)
    shared = crowd[target_key % n_target] if nobody else first
    holder = np.full(lanes * n_target, nobody)  # the pair that holds each target so far
    accepted = np.zeros(nobody, bool)
    asking = np.flatnonzero(first)
    while asking.size:
        accepted[asking[shared[asking]]] = True
        asking = asking[~shared[asking]]
        wanted = target_key[asking]
        before = holder[wanted]
        np.minimum.at(holder, wanted, asking)
        won = holder[wanted] == asking
        turned_away = np.concatenate([asking[~won], before[won & (before < nobody)]])
        asking = turned_away[has_next[turned_away]] + 1
    accepted[holder[holder < nobody]] = True
    matched = np.full(lanes * n_det, -1)
    matched[det_key[accepted]] = target_key[accepted] % max(n_target, 1)
    return matched.reshape(len(ignored), len(thresholds), n_det)


def mark(images: Sequence[ImageBoxes], overlap: tuple[np.ndarray, np.ndarray], ranges: np.ndarray) -> np.ndarray:
    """Hits and ignored detections of a few dozen images at every COCO IoU threshold in every area range.

    `ranges` is [A, 2], smallest and largest area in square pixels, both included. Returns [2, ceil(A * 10 / 8), D]
    uint8: bits of hit and of ignored, lane a * 10 + t; read by Ranked.lane().
    """
    crowd = np.concatenate([image.crowd for image in images])
    area = np.concatenate([image.target_area for image in images])
    boxes = xywh(np.concatenate([image.boxes for image in images]))
    targets = xywh(np.concatenate([image.targets for image in images]))
    det_area = boxes[:, 2] * boxes[:, 3]
    low, high = ranges.T[:, :, None]
    ignored = crowd | (area < low) | (area > high)  # [A, G]
    pairs = close_pairs(boxes, targets, crowd, overlap, IOU_THRESHOLDS[0])
    matched = match(pairs, len(boxes), crowd, ignored, IOU_THRESHOLDS)
    counts_not = np.column_stack([ignored, np.zeros(len(ranges), bool)])  # [A, G + 1]: -1 reads the last column
    outside = (det_area < low) | (det_area > high)  # [A, D]
    on_ignored = np.stack([row[m] for row, m in zip(counts_not, matched, strict=True)])  # [A, T, D]
    hit = (matched >= 0) & ~on_ignored
    left_out = on_ignored | ((matched < 0) & outside[:, None])
    lanes = len(ranges) * len(IOU_THRESHOLDS)
    return np.stack([np.packbits(flag.reshape(lanes, -1), axis=0) for flag in (hit, left_out)])


class Curve(NamedTuple):
    precision: np.ndarray  # [101] float64 at RECALL_POINTS, 0 where that recall is not reached
    score: np.ndarray  # [101] the lowest score needed there, NaN where it is not reached
    recall: float  # what all detections together reach


@dataclass(slots=True)
class Ranked:
    """One class's detections of all images, best score first (ties: lower image_id first, as pycocotools sorts)."""

    scores: np.ndarray  # [D] float32
    place: np.ndarray  # [D] int32, 0 for the image's best score in this class
    image: np.ndarray  # [D] int32, index in the images
    marks: np.ndarray  # [2, bytes, D] uint8
    positives: np.ndarray  # [A] targets that count in each area range
    kept: np.ndarray | bool = True  # [D] bool, the others are no hits and do not count

    @classmethod
    def of(cls, images: Sequence[ImageBoxes], marks: Sequence[np.ndarray], label: int, ranges: np.ndarray) -> Ranked:
        """Gather one class from images in the order of their ids and their marks."""
        slices = [slice(*np.searchsorted(image.labels, (label, label + 1))) for image in images]
        order = np.argsort(np.concatenate([-i.scores[s] for i, s in zip(images, slices, strict=True)]), kind="stable")

        def ranked(parts: Iterable[np.ndarray]) -> np.ndarray:
            return np.concatenate(list(parts))[order]

        rows = np.concatenate([m[..., s] for m, s in zip(marks, slices, strict=True)], axis=2)
        for row in np.ndindex(rows.shape[:2]):  # one after the other: a sorted copy of all would be the peak of memory
            rows[row] = rows[row][order]
        area = np.concatenate([i.target_area[(i.target_labels == label) & ~i.crowd] for i in images])
        return cls(
            scores=ranked(image.scores[s] for image, s in zip(images, slices, strict=True)),
            place=ranked(np.arange(s.stop - s.start, dtype=np.int32) for s in slices),
            image=ranked(np.full(s.stop - s.start, index, np.int32) for index, s in enumerate(slices)),
            marks=rows,
            positives=((area >= ranges[:, :1]) & (area <= ranges[:, 1:])).sum(1),
        )

    def lane(self, a: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """[D] hit and [D] counted (neither on an ignored target nor outside the area range a) at IoU threshold t."""
        byte, bit = divmod(a * len(IOU_THRESHOLDS) + t, 8)
        hit, ignored = (self.marks[:, byte] >> (7 - bit)) & 1
        return hit.astype(bool) & self.kept, (ignored == 0) & self.kept

    def top(self, max_dets: int) -> Ranked:
        """The same with at most `max_dets` detections per image."""
        return replace(self, kept=self.place < max_dets)

    def curve(self, a: int, t: int) -> Curve:
        """Precision at COCO's 101 recall points; all -1 when no target counts."""
        n = int(self.positives[a])
        if not n:
            return Curve(np.full(101, -1.0), np.full(101, np.nan), -1.0)
        hit, counted = self.lane(a, t)
        at = np.flatnonzero(hit)
        hits = np.arange(1, len(at) + 1, dtype=np.float64)
        precision = hits / (np.cumsum(counted)[at] + np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]  # never worse than at a higher recall
        index = np.searchsorted(hits / n, RECALL_POINTS)
        reached = index < len(at)
        out = Curve(np.zeros(101), np.full(101, np.nan), len(at) / n)
        out.precision[reached] = envelope[index[reached]]
        out.score[reached] = self.scores[at[index[reached]]]
        return out

    def curves(self, a: int) -> list[Curve]:
        """One curve per IoU threshold."""
        return [self.curve(a, t) for t in range(len(IOU_THRESHOLDS))]
