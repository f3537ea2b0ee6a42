"""What went in, what came out, and what a trainer needs to know about it: for `inspect` and every dataset card."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from data_prep.entries import Problem
from data_prep.example import Example
from recipe.config import Config
from recipe.data.geometry import Geometry
from recipe.schema import CLASS_NAMES

QUERIES = Config.num_queries
SIDES = (8, 16, 32)  # px, bounds for sqrt(area) after the training resize


class Seen(NamedTuple):
    """What is kept of an image that is packed; its boxes without the ignored regions."""

    name: str
    digest: bytes  # of the file's bytes
    category: np.ndarray  # [n] int8
    side: np.ndarray  # [n] int16 px, sqrt(area) after the training resize
    ignored: int = 0  # boxes with iscrowd 1
    portrait: bool = False


def see(example: Example) -> Seen:
    labels, height, width = example.labels, example.height, example.width
    people = labels.iscrowd == 0
    resized_height, resized_width = Geometry().resized(height, width)
    area = labels.bbox_xywh[people, 2:].prod(axis=1) * (resized_height * resized_width / (height * width))
    category, side = labels.category[people].astype(np.int8), np.sqrt(area).astype(np.int16)
    digest = hashlib.sha256(example.data).digest()
    return Seen(example.entry.name, digest, category, side, int((~people).sum()), height > width)


@dataclass
class Survey:
    """What became of some images of a split; surveys add up."""

    images_in: int = 0
    boxes_in: int = 0
    problems: list[Problem] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)  # as in manifest.json: name, images, bytes, sha256

    def __add__(self, other: Survey) -> Survey:
        return Survey(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def refused(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.action == "refused"]

    def boxes_per_image(self) -> np.ndarray:  # [images]
        return np.array([len(image.category) for image in self.seen], int)

    def sides(self, category: int) -> np.ndarray:  # [boxes of this class] px
        return np.concatenate([image.side[image.category == category] for image in self.seen] or [np.zeros(0)])

    def counts(self) -> dict[str, Any]:
        """In and out, and what a trainer needs to know, as plain numbers; shares between 0 and 1."""
        boxes = self.boxes_per_image()
        found: dict[str, Any] = {
            "images_in": self.images_in,
            "images_left_out": self.images_in - len(self.seen),
            "images": len(self.seen),
            "portrait": sum(image.portrait for image in self.seen),
            "boxes_in": self.boxes_in,
            "boxes_dropped": sum(problem.boxes for problem in self.problems),
            "ignored_regions": sum(image.ignored for image in self.seen),
            "boxes": int(boxes.sum()),
            "boxes_per_image": round(float(boxes.mean()), 2) if len(boxes) else 0.0,
            "most_boxes": int(boxes.max(initial=0)),
            f"images_beyond_{QUERIES}_queries": int((boxes > QUERIES).sum()),
        }
        for category, name in enumerate(CLASS_NAMES):
            side = self.sides(category)
            found[f"{name}_boxes"] = len(side)
            for bound in SIDES:
                found[f"{name}_share_below_{bound}_px"] = round(float((side < bound).sum()) / max(len(side), 1), 4)
        rules = Counter(f"{problem.action}: {problem.rule}" for problem in self.problems)
        return found | {"problems": dict(sorted(rules.items()))}


def counts_table(splits: dict[str, dict[str, Any]]) -> str:
    """One column per split."""
    numbers = [key for key, value in next(iter(splits.values())).items() if isinstance(value, int | float)]
    rows = [(key.replace("_", " "), *(f"{counts[key]:,}" for counts in splits.values())) for key in numbers]
    return table([("", *splits), *rows])


def table(rows: list[tuple[str, ...]]) -> str:
    """A header and rows as Markdown."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]])
