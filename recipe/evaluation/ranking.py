"""One class's detections of all images, best score first, and COCO's precision curve over them.

    ranked = metrics.ranked(label)
    ranked.first(100).average_precision([5])   # AP at IoU 0.75 with at most 100 detections an image

An image may count several times or not at all (`times`): so density bins, images in which the class is not annotated
and the bootstrap's resamples need neither another matching nor another sorting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from recipe.evaluation.matching import IOU_THRESHOLDS, ImageBoxes

RECALL_POINTS = np.linspace(0.0, 1.0, 101)


class Curve(NamedTuple):
    precision: np.ndarray  # [101] float64 at RECALL_POINTS, 0 where that recall is not reached, -1 without targets
    score: np.ndarray  # [101] the lowest score needed there, NaN where it is not reached
    recall: float  # what all detections together reach, -1 without targets


@dataclass(slots=True)
class Ranked:
    """One class's detections, best score first; ties: lower image_id first, as pycocotools sorts."""

    scores: np.ndarray  # [D] float32
    image: np.ndarray  # [D] int32, index in the images
    place: np.ndarray  # [D] int32, 0 for the image's best score in this class
    hit: np.ndarray  # [A, D] uint16 as in matching.Matches
    ignored: np.ndarray  # [A, D] uint16
    targets: np.ndarray  # [A, I] targets that count in each area range and image
    times: np.ndarray  # [I] int32, how often each image counts: 0 where the class is not annotated

    @classmethod
    def of(
        cls,
        images: Sequence[ImageBoxes],
        matches: Sequence[tuple[np.ndarray, np.ndarray]],
        label: int,
        ranges: np.ndarray,
    ) -> Ranked:
        """Gather one class from images in the order of their ids; `matches` are each one's hit and ignored."""
        parts = [slice(*np.searchsorted(image.labels, (label, label + 1))) for image in images]
        counts = np.array([part.stop - part.start for part in parts])
        scores = np.concatenate([image.scores[part] for image, part in zip(images, parts, strict=True)])
        order = np.argsort(-scores, kind="stable")
        place = np.concatenate([np.arange(n, dtype=np.int32) for n in counts])
        hit, ignored = (
            np.concatenate([row[kind][:, part] for row, part in zip(matches, parts, strict=True)], axis=1)[:, order]
            for kind in (0, 1)
        )
        targets = [image.target_area[(image.target_labels == label) & ~image.crowd] for image in images]
        return cls(
            scores=scores[order],
            image=np.repeat(np.arange(len(images), dtype=np.int32), counts)[order],
            place=place[order],
            hit=hit,
            ignored=ignored,
            targets=np.array(
                [((area >= ranges[:, 0, None]) & (area <= ranges[:, 1, None])).sum(1) for area in targets]
            ).T,
            times=np.array([image.labelled[label] for image in images], np.int32),
        )

    def first(self, max_dets: int) -> Ranked:
        """At most `max_dets` detections of each image, as COCO caps them."""
        kept = self.place < max_dets
        if kept.all():
            return self  # a copy would be the peak of memory
        columns = {name: getattr(self, name)[..., kept] for name in ("scores", "image", "place", "hit", "ignored")}
        return replace(self, **columns)

    def hits_at(self, a: int, t: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """[D] hit and [D] counted (right or wrong) in area range a, -1 for MR-2's own, at IoU threshold t."""
        return self.hit[a] & 1 << t != 0, self.ignored[a] & 1 << t == 0

    def count_targets(self, a: int = 0) -> int:
        """Targets that count in area range a, in all images."""
        return int(self.targets[a] @ self.times)

    def curves(self, a: int = 0, thresholds: Iterable[int] = range(len(IOU_THRESHOLDS))) -> list[Curve]:
        """Precision over recall in area range a at each IoU threshold."""
        targets = self.count_targets(a)
        if not targets:
            return [Curve(np.full(101, -1.0), np.full(101, np.nan), -1.0) for _ in thresholds]
        hit, ignored, times = self.hit[a], self.ignored[a], self.times[self.image]
        near = np.flatnonzero(hit > 0)  # right at one threshold or another
        found, some_ignored = np.cumsum(times, dtype=np.int32)[near], ignored.any()
        hit, near_times, scores = hit[near], times[near], self.scores[near]
        out = []
        for t in thresholds:
            if some_ignored:
                found = np.cumsum(times * (ignored & 1 << t == 0), dtype=np.int32)[near]
            own = np.flatnonzero(hit & 1 << t != 0)
            hits = np.cumsum(near_times[own], dtype=np.int32)
            first = np.searchsorted(hits / targets, RECALL_POINTS)
            first = first[first < len(hits)]  # the hit that reaches each recall
            precision, score = np.zeros(101), np.full(101, np.nan)
            if len(first):
                best = np.maximum.reduceat(hits / (found[own] + np.spacing(1)), first)  # from each recall to the next
                precision[: len(first)] = np.maximum.accumulate(best[::-1])[::-1]  # never lower than at a higher one
                score[: len(first)] = scores[own[first]]
            out.append(Curve(precision, score, int(hits[-1]) / targets if len(hits) else 0.0))
        return out

    def average_precision(self, thresholds: Iterable[int] = range(len(IOU_THRESHOLDS))) -> float:
        """Mean precision over the recall points and the IoU thresholds, all areas; -1 without targets."""
        return float(np.mean([curve.precision for curve in self.curves(0, thresholds)]))
