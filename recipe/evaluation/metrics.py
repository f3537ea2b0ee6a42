"""Streaming detection metrics: all COCO numbers, COCO beyond 100 detections, MR-2 and JI.

    metrics = DetectionMetrics()
    metrics.update(image_id, size=(height, width), pred_xyxy=..., scores=..., labels=..., target_xyxy=..., ...)
    metrics.compute()   # {"map": ..., "map_50": ..., ...}: what the Trainer logs as eval_*
    metrics.details()   # curves, bins, operating points, error kinds: what the report draws

The matching is done in update(), a few dozen images at a time; about 15 KB per image of 300 detections and 80 boxes
stay in memory. The numbers equal pycocotools' (tests/test_metrics.py); `python benchmarks/metrics.py` times them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from recipe.evaluation import breakdown
from recipe.evaluation.crowd import best_jaccard, caltech_and_jaccard, log_average_miss_rate
from recipe.evaluation.matching import AREA_RANGES, CHUNK, ImageBoxes, Ranked, mark, overlapping
from recipe.schema import CLASS_NAMES, UserError

RANGES = np.array(list(AREA_RANGES.values()))
CALTECH = (len(RANGES), 0)  # the lane after COCO's: MR-2's own matching


class DetectionMetrics:
    """Collects images one by one and computes every number of the project; `num_queries` is for details() only."""

    def __init__(self, class_names: Sequence[str] = CLASS_NAMES, num_queries: int = 300) -> None:
        self.class_names = tuple(class_names)
        self.num_queries = num_queries
        self._images: dict[int, ImageBoxes] = {}
        self._waiting: list[ImageBoxes] = []
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
    ) -> None:
        """Add one image; an image_id seen before is left out, so samplers may repeat images.

        Args:
            image_id: any integer; equal scores are ranked in the order of the ids.
            size: (height, width) of the original image, in whose pixels all boxes are.
            pred_xyxy, scores, labels: [N, 4], [N], [N]. Give all detections; no threshold, no cap.
            target_xyxy, target_labels: [M, 4], [M].
            target_area: [M] square pixels; width x height when None.
            iscrowd: [M] 1 for regions where detections do not count.

        Raises:
            UserError: on a label that has no name.
        """
        if image_id in self._images:
            return
        scores, labels = np.asarray(scores, np.float32), np.asarray(labels, np.int64)
        target_labels = np.asarray(target_labels, np.int64)
        for found in (labels, target_labels):
            if found.size and not 0 <= found.min() <= found.max() < len(self.class_names):
                raise UserError(
                    f"image {image_id} has labels {found.min()} to {found.max()}, allowed are 0 to "
                    f"{len(self.class_names) - 1} ({', '.join(self.class_names)}); check id2label and the dataset."
                )
        order = np.lexsort((-scores, labels))
        targets = np.array(target_xyxy, np.float64).reshape(-1, 4)
        extents = targets[:, 2:] - targets[:, :2]
        image = self._images[image_id] = ImageBoxes(
            image_id=int(image_id),
            size=(int(size[0]), int(size[1])),
            boxes=np.asarray(pred_xyxy, np.float32).reshape(-1, 4)[order],
            scores=scores[order],
            labels=labels[order].astype(np.uint8),
            targets=targets,
            target_labels=target_labels.astype(np.uint8),
            target_area=extents.prod(axis=1) if target_area is None else np.array(target_area, np.float64),
            crowd=np.zeros(len(targets), bool) if iscrowd is None else np.array(iscrowd, bool),
        )
        self._waiting.append(image)
        if len(self._waiting) >= CHUNK:
            self._match_waiting()

    def _match_waiting(self) -> None:
        if not self._waiting:
            return
        overlap = overlapping(self._waiting)
        caltech, jaccard = caltech_and_jaccard(self._waiting, overlap, len(self.class_names))
        marks = np.concatenate([mark(self._waiting, overlap, RANGES), caltech], axis=1)
        ends = np.cumsum([len(image.scores) for image in self._waiting])[:-1]
        for image, own, ratios in zip(self._waiting, np.split(marks, ends, axis=2), jaccard, strict=True):
            image.marks, image.jaccard = own.copy(), ratios
        self._waiting = []

    def state(self) -> list[ImageBoxes]:
        """Everything seen so far, to be sent to another process (`torch.distributed.all_gather_object`)."""
        self._match_waiting()
        return list(self._images.values())

    def merge(self, states: Iterable[list[ImageBoxes]]) -> None:
        """Take in other processes' states; an image that several have counts once."""
        for state in states:
            for image in state:
                self._images.setdefault(image.image_id, image)

    def _in_order(self) -> list[ImageBoxes]:
        self._match_waiting()
        if not self._images:
            raise UserError("no image was evaluated: the split is empty; name another with --split or --data.")
        return [self._images[image_id] for image_id in sorted(self._images)]

    def compute(self) -> dict[str, float]:
        """All numbers; higher is better except for mr2; -1 where there is nothing to find, as in COCO.

        map, map_50, map_75, map_small, ..., mar_1, mar_10, mar_100, mar_small, ... and map_<class>, mar_100_<class>
        are COCO's: at most 100 detections per class and image. map_max300 and mar_300 allow 300. mr2_<class> and
        ji_<class> are the CrowdHuman benchmark's (crowd.py). Raises UserError when no image was seen.
        """
        images = self._in_order()
        numbers: list[dict[str, float]] = []
        by_class = {}
        for label, name in enumerate(self.class_names):
            own = Ranked.of(images, [image.marks for image in images], label, RANGES)
            numbers.append(_coco_numbers(own))
            targets = int(own.positives[0])
            ratios = np.array([image.jaccard[label] for image in images])  # [I, 10]
            by_class[f"map_{name}"], by_class[f"mar_100_{name}"] = numbers[-1]["map"], numbers[-1]["mar_100"]
            by_class[f"mr2_{name}"] = log_average_miss_rate(*own.lane(*CALTECH), targets, len(images))
            by_class[f"ji_{name}"] = best_jaccard(ratios) if targets else -1.0
            del own  # before the next is gathered
        out = {}
        for key in numbers[0]:
            defined = [own[key] for own in numbers if own[key] >= 0]
            out[key] = float(np.mean(defined)) if defined else -1.0
        return out | by_class

    def details(self) -> dict[str, Any]:
        """What the report draws, ready for JSON: worked out once, and again when images have come in.

        A missing value is None (AP and recall without targets: -1). Keys: images; boxes {class: n}; pr_curves {class:
        {"0.5", "0.75": {recall, precision, score}}}; threshold_curves {class: {threshold, precision, recall, f1}};
        operating_points {class: {best_f1, precision_90: {threshold, precision, recall, f1}}}; thresholds {class: best
        F1's, 0.5 where there is none}, at which the rest is judged; by_size and by_density {class: [{bin, boxes, ap,
        ap_50, recall, recall_best_f1}]} (by_density with images); recall_ceiling; errors {class: {hits, missed,
        duplicate, wrong_class, badly_placed, background}}; worst_images [{image_id, boxes, hits, misses, duplicates,
        false_positives}], most misses first.
        """
        images = self._in_order()
        if self._details.get("images") == len(images):  # images only ever come in: as many are the same ones
            return self._details
        size_marks = breakdown.mark_by_size(images)
        found: dict[str, Any] = {
            "images": len(images),
            "recall_ceiling": breakdown.recall_ceiling(images, self.num_queries),
        }
        for label, name in enumerate(self.class_names):
            own = Ranked.of(images, [image.marks for image in images], label, RANGES)
            points = breakdown.operating_points(own)
            limit = (points["best_f1"] or {"threshold": 0.5})["threshold"]
            by_class = {
                "operating_points": points,
                "thresholds": limit,
                "boxes": int(own.positives[0]),
                "pr_curves": {"0.5": breakdown.precision_recall(own, 0), "0.75": breakdown.precision_recall(own, 5)},
                "threshold_curves": breakdown.threshold_curve(own),
                "by_density": breakdown.by_density(own, images, label, limit),
            }
            del own  # before the next is gathered
            by_class["by_size"] = breakdown.by_size(Ranked.of(images, size_marks, label, breakdown.SIZE_RANGES), limit)
            for key, value in by_class.items():
                found.setdefault(key, {})[name] = value
        found["errors"], found["worst_images"] = breakdown.count_errors(images, found["thresholds"])
        self._details = found
        return found


def _coco_numbers(ranked: Ranked) -> dict[str, float]:
    """One class's COCO numbers; a key's number is the mean of its curves' precision (map) or final recall (mar)."""
    standard = ranked.top(100)
    curves = {"map": standard.curves(0)}
    curves |= {"map_50": curves["map"][:1], "map_75": curves["map"][5:6], "mar_100": curves["map"]}
    curves |= {"mar_1": ranked.top(1).curves(0), "mar_10": ranked.top(10).curves(0)}
    curves["map_max300"] = curves["mar_300"] = ranked.top(300).curves(0)
    for a, name in list(enumerate(AREA_RANGES))[1:]:
        curves[f"map_{name}"] = curves[f"mar_{name}"] = standard.curves(a)
    return {
        key: float(np.mean([c.precision.mean() if key.startswith("map") else c.recall for c in own]))
        for key, own in curves.items()
    }
