"""Streaming detection metrics: all COCO numbers, COCO beyond 100 detections, MR-2 and JI.

    metrics = DetectionMetrics()
    metrics.update(image_id, size=(height, width), pred_xyxy=..., scores=..., labels=..., target_xyxy=..., ...)
    metrics.compute()   # {"map": ..., "map_50": ..., ...}: what the Trainer logs as eval_*
    metrics.details()   # curves, bins, operating points, error kinds: what the report draws

Each image is matched in update(); about 16 KB per image of 300 detections and 80 boxes stay in memory. The numbers
equal pycocotools' (tests/evaluation/test_metrics.py); `python benchmarks/metrics.py` times them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from recipe.evaluation import breakdown
from recipe.evaluation.crowd import best_jaccard, log_average_miss_rate, match_crowd
from recipe.evaluation.matching import AREA_RANGES, ImageBoxes, match_in_ranges
from recipe.evaluation.ranking import Ranked
from recipe.schema import CLASS_NAMES, UserError

RANGES = np.array(list(AREA_RANGES.values()))


class DetectionMetrics:
    """Collects images one by one and computes every number of the project; `num_queries` is for details() only."""

    step: int  # the training step that the numbers are of, set by the trainer; -1 before

    def __init__(self, class_names: Sequence[str] = CLASS_NAMES, num_queries: int = 300) -> None:
        self.class_names = tuple(class_names)
        self.num_queries = num_queries
        self.reset()

    def reset(self) -> None:
        """Forget all images, before the next evaluation."""
        self.step = -1
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

        Args:
            image_id: any integer; equal scores are ranked in the order of the ids.
            size: (height, width) of the original image, in whose pixels all boxes are.
            pred_xyxy, scores, labels: [N, 4], [N], [N]. Give all detections; no threshold, no cap.
            target_xyxy, target_labels: [M, 4], [M].
            target_area: [M] square pixels; width x height when None.
            iscrowd: [M] 1 for regions where detections do not count.
            labelled: [classes] False for classes that nobody annotated in this image, which are left out of it; all
                are annotated when None.

        Raises:
            UserError: on a label that has no name.
        """
        if image_id in self._images:
            return
        scores, labels = np.asarray(scores, np.float32), np.asarray(labels, np.int64)
        targets, target_labels = (
            np.asarray(target_xyxy, np.float64).reshape(-1, 4),
            np.asarray(target_labels, np.int64),
        )
        for found in (labels, target_labels):
            if found.size and not 0 <= found.min() <= found.max() < len(self.class_names):
                raise UserError(
                    f"image {image_id} has labels {found.min()} to {found.max()}, allowed are 0 to "
                    f"{len(self.class_names) - 1} ({', '.join(self.class_names)}); check id2label and the dataset."
                )
        annotated = np.ones(len(self.class_names), bool) if labelled is None else np.array(labelled, bool)
        order = np.lexsort((-scores, labels))
        order, kept = order[annotated[labels[order]]], annotated[target_labels]
        area = (
            (targets[:, 2:] - targets[:, :2]).prod(axis=1) if target_area is None else np.asarray(target_area, float)
        )
        crowd = np.zeros(len(targets), bool) if iscrowd is None else np.asarray(iscrowd, bool)
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
        coco, (crowds, image.jaccard) = match_in_ranges(image, RANGES), match_crowd(image, len(self.class_names))
        image.hit, image.ignored = np.vstack([coco.hit, crowds.hit]), np.vstack([coco.ignored, crowds.ignored])
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
        return Ranked.of(images, [(image.hit, image.ignored) for image in images], label, RANGES)

    def compute(self) -> dict[str, float]:
        """All numbers; higher is better except for mr2; -1 where there is nothing to find, as in COCO.

        map, map_50, map_75, map_small, ..., mar_1, mar_10, mar_100, mar_small, ... and map_<class>, mar_100_<class>
        are COCO's: at most 100 detections per class and image. map_max300 and mar_300 allow 300; map_50_<class> has
        no cap, as in the crowd papers. mr2_<class> and ji_<class> are the CrowdHuman benchmark's (crowd.py). Raises
        UserError when no image was seen.
        """
        if self._numbers:
            return self._numbers
        images = self.images().values()
        numbers: list[dict[str, float]] = []
        by_class = {}
        for label, name in enumerate(self.class_names):
            own = self.ranked(label)
            numbers.append(coco_numbers(own))
            by_class[f"map_{name}"], by_class[f"mar_100_{name}"] = numbers[-1]["map"], numbers[-1]["mar_100"]
            by_class[f"map_50_{name}"], by_class[f"mr2_{name}"] = (
                own.average_precision([0]),
                log_average_miss_rate(own),
            )
            ratios = [image.jaccard[label] for image in images]
            by_class[f"ji_{name}"] = best_jaccard(ratios) if own.count_targets() else -1.0
            del own  # before the next class is gathered
        self._numbers = {key: mean_of_defined([own[key] for own in numbers]) for key in numbers[0]} | by_class
        return self._numbers

    def details(self) -> dict[str, Any]:
        """What the report draws, ready for JSON; worked out once until images come in.

        A missing value is None (AP and recall without targets: -1). Keys: images; boxes {class: n}; pr_curves {class:
        {"0.5", "0.75": {recall, precision, score}}}; threshold_curves {class: {threshold, precision, recall, f1}};
        operating_points {class: {best_f1, precision_90: {threshold, precision, recall, f1}}}; thresholds {class: best
        F1's, 0.5 where there is none}, which the rest is for; by_size and by_density {class: [{bin, boxes, ap,
        ap_50, recall, recall_best_f1}]} (by_density with images); recall_ceiling; errors {class: {hits, missed,
        duplicate, wrong_class, badly_placed, background}}; worst_images [{image_id, boxes, hits, misses, duplicates,
        false_positives}], most misses first.
        """
        if self._details:
            return self._details
        images = list(self.images().values())
        found: dict[str, Any] = {
            "images": len(images),
            "recall_ceiling": breakdown.recall_ceiling(images, self.num_queries),
        }
        for label, name in enumerate(self.class_names):
            own = self.ranked(label)
            points = breakdown.operating_points(own)
            limit = (points["best_f1"] or {"threshold": 0.5})["threshold"]
            by_class = {
                "operating_points": points,
                "thresholds": limit,
                "boxes": own.count_targets(),
                "pr_curves": {"0.5": breakdown.precision_recall(own, 0), "0.75": breakdown.precision_recall(own, 5)},
                "threshold_curves": breakdown.threshold_curve(own),
                "by_density": breakdown.by_density(own, images, limit),
            }
            for key, value in by_class.items():
                found.setdefault(key, {})[name] = value
            del own  # before the next class is gathered
        sizes = [match_in_ranges(image, breakdown.SIZE_RANGES)[:2] for image in images]
        found["by_size"] = {
            name: breakdown.by_size(Ranked.of(images, sizes, label, breakdown.SIZE_RANGES), found["thresholds"][name])
            for label, name in enumerate(self.class_names)
        }
        found["errors"], found["worst_images"] = breakdown.count_errors(images, found["thresholds"])
        self._details = found
        return found


def coco_numbers(ranked: Ranked) -> dict[str, float]:
    """One class's COCO numbers; a key's number is the mean of its curves' precision (map) or final recall (mar)."""
    curves = {"map_max300": ranked.first(300).curves()}
    curves |= {"mar_300": curves["map_max300"], "mar_1": ranked.first(1).curves(), "mar_10": ranked.first(10).curves()}
    ranked = ranked.first(100)
    curves["map"] = curves["mar_100"] = ranked.curves()
    curves |= {"map_50": curves["map"][:1], "map_75": curves["map"][5:6]}
    for a, name in list(enumerate(AREA_RANGES))[1:]:
        curves[f"map_{name}"] = curves[f"mar_{name}"] = ranked.curves(a)
    return {
        key: float(np.mean([c.precision.mean() if key.startswith("map") else c.recall for c in own]))
        for key, own in curves.items()
    }


def mean_of_defined(numbers: Iterable[float]) -> float:
    """The mean over classes, of those that have targets; -1 where none has."""
    defined = [number for number in numbers if number >= 0]
    return float(np.mean(defined)) if defined else -1.0
