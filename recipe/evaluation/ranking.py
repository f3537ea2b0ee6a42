"""One class's detections of all images, best score first, and COCO's precision curve over them.

    ranked = metrics.ranked(label)
    ranked.first(100).average_precision([5])   # AP at IoU 0.75 with at most 100 detections an image

An image may count several times or not at all (`times`): density bins, images in which the class is not annotated and
the bootstrap's resamples need neither another matching nor another sorting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recipe.evaluation.matching import IOU_THRESHOLDS, ImageBoxes

RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass(slots=True)
class Ranked:
    """One class's detections, best score first; ties: lower image_id first, as pycocotools sorts."""

    scores: np.ndarray  # [D] float32
    image: np.ndarray  # [D] int32, index in the images
    place: np.ndarray  # [D] int32, 0 for the image's best score in this class
    matches: np.ndarray  # [2, A, D] uint16, see matching.match()
    targets: np.ndarray  # [A, I] targets that count in each area range and image
    times: np.ndarray  # [I] int32, how often each image counts: 0 where the class is not annotated

    @classmethod
    def of(cls, images: Sequence[ImageBoxes], matches: Sequence[np.ndarray], label: int, ranges: np.ndarray) -> Ranked:
        """Gather one class from images in the order of their ids, each with its matches in area `ranges` [A, 2]."""
        parts = [slice(*np.searchsorted(image.labels, (label, label + 1))) for image in images]
        counts = [part.stop - part.start for part in parts]

        def joined(columns: Iterable[np.ndarray]) -> np.ndarray:
            """[..., D] from [..., N] of every image."""
            return np.concatenate([column[..., part] for column, part in zip(columns, parts, strict=True)], axis=-1)

        scores = joined(image.scores for image in images)
        order = np.argsort(-scores, kind="stable")
        areas = [image.target_area[(image.target_labels == label) & ~image.crowd] for image in images]
        low, high = ranges.T[:, :, None]
        return cls(
            scores=scores[order],
            image=np.repeat(np.arange(len(images), dtype=np.int32), counts)[order],
            place=np.concatenate([np.arange(n, dtype=np.int32) for n in counts])[order],
            matches=joined(matches)[..., order],
            targets=np.array([((area >= low) & (area <= high)).sum(axis=1) for area in areas]).T,
            times=np.array([image.labelled[label] for image in images], np.int32),
        )

    def first(self, max_dets: int) -> Ranked:
        """At most `max_dets` detections of each image, as COCO caps them."""
        kept = self.place < max_dets
        if kept.all():
            return self  # a copy would be the peak of memory
        columns = {name: getattr(self, name)[..., kept] for name in ("scores", "image", "place", "matches")}
        return replace(self, **columns)

    def hits_at(self, a: int, t: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """[D] hit and [D] counted (right or wrong) in area range a, -1 for MR-2's own, at IoU threshold t."""
        hit, ignored = self.matches[:, a] & 1 << t != 0
        return hit, ~ignored

    def count_targets(self, a: int = 0) -> int:
        """Targets that count in area range a, in all images."""
        return int(self.targets[a] @ self.times)

    def curves(
        self, a: int = 0, thresholds: Sequence[int] = range(len(IOU_THRESHOLDS))
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """COCO's precision [T, 101] at RECALL_POINTS, the lowest score needed there [T, 101], and final recall [T].

        In area range a. Where a recall is not reached, precision is 0 and score NaN. Without targets: -1, NaN, -1.
        """
        targets, times = self.count_targets(a), self.times[self.image]
        precision, recall = np.zeros((len(thresholds), len(RECALL_POINTS))), np.zeros(len(thresholds))
        score = np.full_like(precision, np.nan)
        if not targets:
            return precision - 1, score, recall - 1
        for row, t in enumerate(thresholds):
            hit, counted = self.hits_at(a, t)
            right = np.flatnonzero(hit)
            hits = np.cumsum(times[right], dtype=np.int32)
            found = np.cumsum(times * counted, dtype=np.int32)[right]
            first = np.searchsorted(hits / targets, RECALL_POINTS)
            first = first[first < len(hits)]  # the hit that reaches each recall
            best = np.maximum.accumulate((hits / (found + np.spacing(1)))[::-1])[::-1]  # here or at a higher recall
            precision[row, : len(first)] = best[first]
            score[row, : len(first)] = self.scores[right[first]]
            recall[row] = times[right].sum() / targets
        return precision, score, recall

    def average_precision(self, thresholds: Sequence[int] = range(len(IOU_THRESHOLDS))) -> float:
        """Mean precision over the recall points and the IoU thresholds, all areas; -1 without targets."""
        return float(self.curves(0, thresholds)[0].mean())
