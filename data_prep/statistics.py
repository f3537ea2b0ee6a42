"""What went in, what came out, and what a trainer needs to know about it: for `inspect` and every dataset card."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.entries import Split
from data_prep.example import Example
from recipe.config import Config
from recipe.data.geometry import Geometry
from recipe.schema import CLASS_NAMES

QUERIES = Config.num_queries
MAX_DETECTIONS = (100, 300)  # COCO's cap per class and image, and the wider one that is reported beside it
SIDES = (8, 16, 32)  # px, bounds for sqrt(area) after the training resize


@dataclass
class Tally:
    """Counts of some images; tallies add up."""

    images_in: int = 0
    images_left_out: int = 0
    portrait: int = 0
    boxes_in: int = 0
    ignored_regions: int = 0  # boxes with iscrowd 1, which are no targets
    dropped: Counter[str] = field(default_factory=Counter)  # boxes by rule
    problems: Counter[str] = field(default_factory=Counter)  # by "action: rule"
    crowds: Counter[tuple[int, ...]] = field(default_factory=Counter)  # (12, 9): images with 12 persons and 9 heads
    sides: Counter[tuple[int, int]] = field(default_factory=Counter)  # (1, 8): heads of 8 px, rounded down

    @classmethod
    def of_split(cls, split: Split) -> Tally:
        """What is known before an image is read: the files that belong to none."""
        tally = cls(boxes_in=split.dropped.total(), dropped=+split.dropped)
        tally.problems.update(f"{problem.action}: {problem.rule}" for problem in split.problems)
        return tally

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def add(self, example: Example) -> None:
        labels, height, width = example.labels, example.height, example.width
        self.images_in += 1
        self.boxes_in += labels.boxes_in
        self.dropped += labels.dropped
        self.problems.update(f"{problem.action}: {problem.rule}" for problem in labels.problems)
        if not example.data:
            self.images_left_out += 1
            return
        self.portrait += height > width
        people = labels.iscrowd == 0
        category = labels.category[people]
        self.ignored_regions += len(people) - len(category)
        self.crowds[tuple(np.bincount(category, minlength=len(CLASS_NAMES)).tolist())] += 1
        resized_height, resized_width = Geometry().resized(height, width)
        area = labels.bbox_xywh[people, 2:].prod(axis=1) * (resized_height * resized_width / (height * width))
        self.sides.update(zip(category.tolist(), np.sqrt(area).astype(int).tolist(), strict=True))

    def split_counts(self) -> dict[str, Any]:
        """In and out by rule, and what a trainer needs to know, as plain numbers; shares between 0 and 1."""
        rows = np.array(list(self.crowds), np.int64).reshape(-1, len(CLASS_NAMES))
        found = crowding(np.repeat(rows, list(self.crowds.values()), axis=0))
        return {
            "images_in": self.images_in,
            "images_left_out": self.images_left_out,
            "portrait": self.portrait,
            "boxes_in": self.boxes_in,
            "ignored_regions": self.ignored_regions,
            "boxes_dropped": dict(sorted(self.dropped.items())),
            "problems": dict(sorted(self.problems.items())),
            **found,
            "box_sizes": {
                name: {f"below_{bound}_px": _share(self._boxes_below(number, bound), boxes) for bound in SIDES}
                for number, (name, boxes) in enumerate(found["boxes_per_class"].items())
            },
        }

    def _boxes_below(self, number: int, bound: int) -> int:
        return sum(boxes for (category, side), boxes in self.sides.items() if category == number and side < bound)


def crowding(counts: np.ndarray) -> dict[str, Any]:
    """How crowded the images are, and what the query count and maxDets cost. `counts`: boxes, [images, classes]."""
    total = counts.sum(axis=1)  # [images]
    beyond = {"queries": _beyond(total[:, None], QUERIES)}
    return {
        "images": len(total),
        "boxes": int(total.sum()),
        "boxes_per_class": {name: int(counts[:, i].sum()) for i, name in enumerate(CLASS_NAMES)},
        "images_without_boxes": int((total == 0).sum()),
        "boxes_per_image": {
            "mean": round(float(total.mean()), 2) if len(total) else 0.0,
            "p95": float(np.percentile(total, 95)) if len(total) else 0.0,
            "max": int(total.max(initial=0)),
        },
        "beyond": beyond | {f"max_detections_{cap}": _beyond(counts, cap) for cap in MAX_DETECTIONS},
        "recall_ceiling": _share(np.minimum(total, QUERIES).sum(), total.sum(), empty=1.0),
    }


def _beyond(counts: np.ndarray, cap: int) -> dict[str, int]:
    return {"images": int((counts > cap).any(axis=1).sum()), "boxes": int(np.maximum(counts - cap, 0).sum())}


def _share(part: int, total: int, empty: float = 0.0) -> float:
    return round(float(part / total), 4) if total else empty


def counts_table(splits: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The header and rows of a table for people: one column per split, one row per thing that a trainer needs."""
    columns = [_column(counts) for counts in splits.values()]
    return [("", *splits), *((label, *(column[label] for column in columns)) for label in columns[0])]


def _column(s: dict[str, Any]) -> dict[str, str]:
    per_image, queries = s["boxes_per_image"], s["beyond"]["queries"]
    lines = {
        "images": f"{s['images']:,}",
        "landscape or square / portrait": f"{s['images'] - s['portrait']:,} / {s['portrait']:,}",
        "images without any box": f"{s['images_without_boxes']:,}",
        "boxes": f"{s['boxes']:,}",
        " / ".join(s["boxes_per_class"]): " / ".join(f"{count:,}" for count in s["boxes_per_class"].values()),
        "boxes per image: mean, 95 %, max": f"{per_image['mean']:.1f}, {per_image['p95']:.0f}, {per_image['max']:,}",
        "ignored regions": f"{s['ignored_regions']:,}",
    }
    for name, shares in s["box_sizes"].items():
        lines[f"{name} boxes below {', '.join(map(str, SIDES))} px"] = ", ".join(f"{x:.1%}" for x in shares.values())
    lines[f"images with more boxes than {QUERIES} queries"] = f"{queries['images']:,}"
    lines["boxes that no query is left for"] = f"{queries['boxes']:,}"
    lines["so recall can reach at most"] = f"{s['recall_ceiling']:.2%}"
    for cap in MAX_DETECTIONS:
        found = s["beyond"][f"max_detections_{cap}"]
        lines[f"images, boxes beyond COCO's maxDets {cap} per class"] = f"{found['images']:,}, {found['boxes']:,}"
    return lines
