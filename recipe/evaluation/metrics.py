"""Streaming detection metrics: all COCO numbers, COCO beyond 100 detections, MR-2 and JI.

    metrics = DetectionMetrics()
    metrics.update(image_id, size=(height, width), pred_xyxy=..., scores=..., labels=..., target_xyxy=..., ...)
    metrics.compute()   # {"map": ..., "map_50": ..., ...}: what the Trainer logs as eval_*
    metrics.details()   # curves, bins, operating points, error kinds: what the report draws
    metrics.intervals() # how far to trust the numbers

update() matches the image; of 300 detections and 80 boxes about 16 KB stay in memory. The numbers equal pycocotools'
(tests/evaluation/test_metrics.py); `python benchmarks/metrics.py` times them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recipe.evaluation import breakdown
from recipe.evaluation.crowd import best_jaccard, log_average_miss_rate, match_crowd
from recipe.evaluation.matching import AREA_RANGES, ImageBoxes, match_in_ranges, xywh
from recipe.evaluation.ranking import Ranked
from recipe.schema import CLASS_NAMES, UserError


class DetectionMetrics:
    """Collects images one by one and computes every number of the project; `num_queries` is for details() only."""

    def __init__(self, class_names: Sequence[str] = CLASS_NAMES, num_queries: int = 300) -> None:
        self.class_names = tuple(class_names)
        self.num_queries = num_queries
        self.reset()

    def reset(self) -> None:
        """Forget all images, before the next evaluation."""
        self.step = -1  # the training step that the numbers are of, set by the trainer
        self._images: dict[int, ImageBoxes] = {}
        self._numbers: dict[str, float] = {}
        self._details: dict[str, Any] = {}

    def update(
        self,
        image_id: int,
        *,
        size: tuple[int, int],
        pred_xyxy: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        target_xyxy: np.ndarray,
        target_labels: np.ndarray,
        target_area: np.ndarray | None = None,
        iscrowd: np.ndarray | None = None,
        labelled: np.ndarray | None = None,
    ) -> None:
        """Add one image; an image_id seen before is left out, so samplers may repeat images.

        All boxes in pixels of the original image, whose size is (height, width). Detections: pred_xyxy [N, 4], scores
        [N], labels [N], all of them: no threshold, no cap. Targets: target_xyxy [M, 4], target_labels [M], target_area
        [M] (width x height when None), iscrowd [M] for regions where detections do not count. labelled [classes]:
        False for classes that nobody annotated in this image; nothing of them counts here. Raises UserError on a
        label that has no name.
        """
        if image_id in self._images:
            return
        classes = len(self.class_names)
        scores, labels = np.asarray(scores, np.float32), np.asarray(labels, np.int64)
        targets = np.asarray(target_xyxy, np.float64).reshape(-1, 4)
        target_labels = np.asarray(target_labels, np.int64)
        both = np.append(labels, target_labels)
        unknown = both[(both < 0) | (both >= classes)]
        if len(unknown):
            raise UserError(
                f"image {image_id} has the label {unknown[0]}, allowed are 0 to {classes - 1} "
                f"({', '.join(self.class_names)}); check id2label and the dataset."
            )
        annotated = np.ones(classes, bool) if labelled is None else np.array(labelled, bool)
        area = xywh(targets)[:, 2:].prod(axis=1) if target_area is None else np.asarray(target_area, np.float64)
        crowd = np.zeros(len(targets), bool) if iscrowd is None else np.asarray(iscrowd, bool)
        order = np.lexsort((-scores, labels))
        order, kept = order[annotated[labels[order]]], annotated[target_labels]
        image = ImageBoxes(
            image_id=int(image_id),
            size=(int(size[0]), int(size[1])),
            labelled=annotated,
            boxes=np.asarray(pred_xyxy, np.float32).reshape(-1, 4)[order],
            scores=scores[order],
            labels=labels[order].astype(np.uint8),
            targets=targets[kept],
            target_labels=target_labels[kept].astype(np.uint8),
            target_area=area[kept],
            crowd=crowd[kept],
        )
        coco, (crowds, image.jaccard) = match_in_ranges(image, AREA_RANGES), match_crowd(image, classes)
        image.matches = np.concatenate([coco, crowds], axis=1)
        self._images[image_id] = image
        self._numbers, self._details = {}, {}

    def state(self) -> list[ImageBoxes]:
        """Everything seen so far, to be sent to another process (`torch.distributed.all_gather_object`)."""
        return list(self._images.values())

    def merge(self, states: Iterable[list[ImageBoxes]]) -> None:
        """Take in other processes' states; an image that several have counts once."""
        for state in states:
            for image in state:
                self._images.setdefault(image.image_id, image)
        self._numbers, self._details = {}, {}

    def images(self) -> dict[int, ImageBoxes]:
        """All images by id, lowest first; UserError when there is none."""
        if not self._images:
            raise UserError("no image was evaluated: the split is empty; name another with --split or --data.")
        return dict(sorted(self._images.items()))

    def ranked(self, label: int) -> Ranked:
        """One class's detections of all images, best score first."""
        images = list(self.images().values())
        return Ranked.of(images, [image.matches for image in images], label, AREA_RANGES)

    def compute(self) -> dict[str, float]:
        """All numbers; higher is better except for mr2; -1 where there is nothing to find, as in COCO.

        COCO's, with at most 100 detections per class and image: map, map_50, map_75, mar_1, mar_10, mar_100, map_small
        and the like, map_<class>, mar_100_<class>. map_max300 and mar_300 allow 300; map_50_<class> has no cap, as in
        the crowd papers. mr2_<class> and ji_<class> are the CrowdHuman benchmark's (crowd.py).
        """
        if self._numbers:
            return self._numbers
        images = self.images().values()
        numbers: list[dict[str, float]] = []
        by_class: dict[str, float] = {}
        for label, name in enumerate(self.class_names):
            own = self.ranked(label)
            numbers.append(coco_numbers(own))
            by_class |= {f"{key}_{name}": numbers[-1][key] for key in ("map", "mar_100")}
            by_class[f"map_50_{name}"] = own.average_precision([0])
            by_class[f"mr2_{name}"] = log_average_miss_rate(own)
            ratios = [image.jaccard[label] for image in images]
            by_class[f"ji_{name}"] = best_jaccard(ratios) if own.count_targets() else -1.0
            del own  # before the next class is gathered
        self._numbers = {key: mean_of_defined(own[key] for own in numbers) for key in numbers[0]} | by_class
        return self._numbers

    def details(self) -> dict[str, Any]:
        """What the report draws, ready for JSON (None where a number is missing; breakdown.py says how each is made).

        images; recall_ceiling, the share of boxes that num_queries detections can find at all; {class: ...} of boxes,
        operating_points, thresholds (the best F1's, 0.5 where there is none; what follows is for them), pr_curves,
        threshold_curves, by_density, by_size and errors; worst_images, most misses first.
        """
        if self._details:
            return self._details
        images = list(self.images().values())
        boxes = np.array([np.sum(~image.crowd) for image in images])
        sizes = [match_in_ranges(image, breakdown.SIZE_RANGES) for image in images]
        by_class: dict[str, dict[str, Any]] = {}
        for label, name in enumerate(self.class_names):
            own = self.ranked(label)
            points = breakdown.operating_points(own)
            limit = points["best_f1"]["threshold"] if points["best_f1"] else 0.5
            by_class[name] = {
                "boxes": own.count_targets(),
                "operating_points": points,
                "thresholds": limit,
                "pr_curves": {"0.5": breakdown.precision_recall(own, 0), "0.75": breakdown.precision_recall(own, 5)},
                "threshold_curves": breakdown.threshold_curve(own),
                "by_density": breakdown.bins(breakdown.DENSITY_NAMES, breakdown.by_density(own, boxes), limit),
            }
            del own  # before more is gathered
            own = Ranked.of(images, sizes, label, breakdown.SIZE_RANGES)  # other sizes only count as hits
            parts = [(own, a) for a in range(len(breakdown.SIZE_NAMES))]
            by_class[name]["by_size"] = breakdown.bins(breakdown.SIZE_NAMES, parts, limit)
            del own, parts
        found: dict[str, Any] = {key: {name: own[key] for name, own in by_class.items()} for key in by_class[name]}
        found["images"] = len(images)
        found["recall_ceiling"] = float(np.minimum(boxes, self.num_queries).sum() / boxes.sum()) if any(boxes) else 1.0
        found["errors"], found["worst_images"] = breakdown.count_errors(images, found["thresholds"])
        self._details = found
        return found

    def intervals(self, resamples: int = 100, seed: int = 0) -> dict[str, list[float] | None]:
        """[low, high], 95 % intervals by bootstrap over images (Efron 1979); None where there is nothing to find.

        Of map, map_50_<class> and mr2_<class>. Nothing is matched again: a resample is one weight per image over the
        sorted detections. The same seed draws the same images for any detector.
        """
        count = len(self.images())
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples).astype(np.int32)
        maps, found = [], {}
        for label, name in enumerate(self.class_names):
            own = self.ranked(label)
            capped, weights = own.first(100), draws * own.times  # [R, I]
            maps.append([replace(capped, times=times).average_precision() for times in weights])
            found[f"map_50_{name}"] = [replace(own, times=times).average_precision([0]) for times in weights]
            found[f"mr2_{name}"] = [log_average_miss_rate(replace(own, times=times)) for times in weights]
            del own, capped  # before the next class is gathered
        found["map"] = [mean_of_defined(of_classes) for of_classes in zip(*maps, strict=True)]
        defined = {key: [value for value in values if value >= 0] for key, values in found.items()}
        return {key: np.quantile(kept, [0.025, 0.975]).tolist() if kept else None for key, kept in defined.items()}


def coco_numbers(ranked: Ranked) -> dict[str, float]:
    """One class's COCO numbers: mean precision (map) and mean final recall (mar)."""
    numbers: dict[str, np.ndarray] = {}
    for cap in (1, 10, 300, 100):
        capped = ranked.first(cap)
        numbers["map"], _, numbers[f"mar_{cap}"] = capped.curves()
        if cap == 300:
            numbers["map_max300"] = numbers["map"]
    numbers |= {"map_50": numbers["map"][0], "map_75": numbers["map"][5]}
    for a, area in enumerate(("small", "medium", "large"), start=1):
        numbers[f"map_{area}"], _, numbers[f"mar_{area}"] = capped.curves(a)
    return {key: float(own.mean()) for key, own in numbers.items()}


def mean_of_defined(numbers: Iterable[float]) -> float:
    """The mean over classes, of those that have targets; -1 where none has."""
    defined = [number for number in numbers if number >= 0]
    return float(np.mean(defined)) if defined else -1.0
