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

    def boxes_per_image(self) -> np.ndarray:  # [images]
        return np.repeat([sum(counts) for counts in self.crowds], list(self.crowds.values())).astype(int)

    def split_counts(self) -> dict[str, Any]:
        """In and out by rule, and what a trainer needs to know, as plain numbers; shares between 0 and 1."""
        boxes = self.boxes_per_image()
        per_class = [sum(counts[k] * n for counts, n in self.crowds.items()) for k in range(len(CLASS_NAMES))]
        return {
            "images_in": self.images_in,
            "images_left_out": self.images_left_out,
            "images": len(boxes),
            "portrait": self.portrait,
            "images_without_boxes": int((boxes == 0).sum()),
            "images_beyond_queries": int((boxes > QUERIES).sum()),
            "boxes_in": self.boxes_in,
            "boxes_dropped": dict(sorted(self.dropped.items())),
            "ignored_regions": self.ignored_regions,
            "boxes": int(boxes.sum()),
            "boxes_beyond_queries": int(np.maximum(boxes - QUERIES, 0).sum()),
            "boxes_per_class": dict(zip(CLASS_NAMES, per_class, strict=True)),
            "boxes_per_image": {
                "mean": round(float(boxes.mean()), 2) if len(boxes) else 0.0,
                "p95": float(np.percentile(boxes, 95)) if len(boxes) else 0.0,
                "max": int(boxes.max(initial=0)),
            },
            "box_sizes": {
                name: {f"below_{bound}_px": self._share_below(k, bound, max(per_class[k], 1)) for bound in SIDES}
                for k, name in enumerate(CLASS_NAMES)
            },
            "problems": dict(sorted(self.problems.items())),
        }

    def _share_below(self, category: int, bound: int, boxes: int) -> float:
        return round(sum(n for (k, side), n in self.sides.items() if k == category and side < bound) / boxes, 4)


def counts_table(splits: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The header and rows of a table for people: one column per split, one row per thing that a trainer needs."""
    columns = [_column(counts) for counts in splits.values()]
    return [("", *splits), *((label, *(column[label] for column in columns)) for label in columns[0])]


def _column(counts: dict[str, Any]) -> dict[str, str]:
    per_image, per_class = counts["boxes_per_image"], counts["boxes_per_class"]
    lines = {
        "images": f"{counts['images']:,}",
        "landscape or square / portrait": f"{counts['images'] - counts['portrait']:,} / {counts['portrait']:,}",
        "images without any box": f"{counts['images_without_boxes']:,}",
        "boxes": f"{counts['boxes']:,}",
        " / ".join(per_class): " / ".join(f"{count:,}" for count in per_class.values()),
        "ignored regions": f"{counts['ignored_regions']:,}",
        "boxes per image: mean, 95 %, max": f"{per_image['mean']:.1f}, {per_image['p95']:.0f}, {per_image['max']:,}",
        f"images with more boxes than {QUERIES} queries": f"{counts['images_beyond_queries']:,}",
        "boxes that no query is left for": f"{counts['boxes_beyond_queries']:,}",
    }
    for name, shares in counts["box_sizes"].items():
        lines[f"{name} boxes below {', '.join(map(str, SIDES))} px"] = ", ".join(f"{x:.1%}" for x in shares.values())
    return lines
