"""Folders in which one file describes many images (COCO, CrowdHuman): `folder = open_annotated(root, options)`.

DIR/annotations/instances_train.json, instances_val.json     images in DIR/train, DIR/images/train, DIR/images or DIR
DIR/train/_annotations.coco.json, DIR/valid/...              images beside it, as Roboflow writes
DIR/annotation_train.odgt, annotation_val.odgt               images in DIR/Images (Shao et al., arXiv:1805.00123)
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.entries import Entry, Folder, ReadOptions, Split, class_ids, name_of
from recipe.files import printable, read_file
from recipe.schema import CLASS_NAMES, SPLITS, UserError

FILE_BYTES = 2**32
PATTERNS = ("annotation_*.odgt", "*/_annotations.coco.json", "annotations/instances_*.json", "annotations/*.json")
# An image's name, its (width, height) where told, its boxes (class name, [x, y, w, h] in pixels, ignored), its line.
Row = tuple[str, tuple[int, int] | None, list[tuple[str, list[float], bool]], int]


def open_annotated(root: Path, options: ReadOptions) -> Folder | None:
    """The folder as its annotation files describe it; None where there are none.

    Raises:
        UserError: a file that is not what its name says, two of one split, or classes that are not ours.
    """
    files = next(filter(None, (sorted(root.glob(pattern)) for pattern in PATTERNS)), [])
    splits: dict[str, Split] = {}
    numbers: dict[str, int] = {}  # class name -> class id, of those that a box has
    for path in files:
        file = os.path.relpath(path, root)
        word = re.search("train|val|test", file)
        split = SPLITS[word[0] if word else "train"]
        if split in splits:
            raise UserError(f"{root} holds two files for {split}, {files[0].name} and {path.name}: remove one")
        try:
            data = read_file(path, FILE_BYTES)
            rows = list(_crowdhuman_rows(data) if path.suffix == ".odgt" else _coco_rows(json.loads(data)))
            images = _folder_of_images(root, path, rows)
            splits[split] = Split(sorted(_entry(images, file, row, numbers) for row in rows))
            if len({row[0] for row in rows}) < len(rows):
                raise ValueError("an image is listed twice")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            kind = "CrowdHuman" if path.suffix == ".odgt" else "COCO"
            reason = printable(f"{type(error).__name__}: {error}")[:200]
            raise UserError(f"{path} is not as {kind} writes it ({reason}): fetch or export it again") from error
    classes = class_ids(list(numbers or CLASS_NAMES), files[0], options) if files else {}
    return Folder(root, classes, splits, options) if files else None


def _entry(images: str, file: str, row: Row, numbers: dict[str, int]) -> Entry:
    name, size, found, line = row
    boxes = []
    for category, xywh, ignored in found:
        x, y, w, h = map(float, xywh)
        if not math.isfinite(x + y + w + h):
            raise ValueError(f"{name} has the box {xywh}")
        boxes.append((numbers.setdefault(category, len(numbers)), x, y, x + w, y + h, int(ignored)))
    image = os.path.normpath(os.path.join(images, name))
    return Entry(name_of(name), image, file if line else image, tuple(boxes), line, size)


def _folder_of_images(root: Path, path: Path, rows: list[Row]) -> str:
    """Where the first images of an annotation file lie, relative to the root."""
    part = path.stem.removeprefix("instances_")
    places = (os.path.relpath(path.parent, root), part, f"images/{part}", "images")
    there = (place for place in places for row in rows[:100] if os.path.isfile(root / place / row[0]))
    return next(there, ".")


def _coco_rows(found: dict[str, Any]) -> Iterator[Row]:
    """An annotation whose image is not listed makes a row too, of an image that nobody has: refused and counted."""
    names = {category["id"]: category["name"] for category in found["categories"]}
    boxes = defaultdict(list)
    for box in found["annotations"]:
        boxes[box["image_id"]].append((names[box["category_id"]], box["bbox"], bool(box.get("iscrowd"))))
    for image in found["images"]:
        yield image["file_name"], (image["width"], image["height"]), boxes.pop(image["id"], []), 0
    for image_id, lost in boxes.items():
        yield f"image_id {image_id}", None, lost, 0


def _crowdhuman_rows(data: bytes) -> Iterator[Row]:
    """`fbox` is a person, `hbox` a head. Ignored boxes and masks are ignored regions of their class."""
    for number, line in enumerate(data.splitlines(), 1):
        row, boxes = json.loads(line), []
        for box in row["gtboxes"]:
            for name, key, attributes in (("person", "fbox", "extra"), ("head", "hbox", "head_attr")):
                if name == "person" or key in box:
                    ignored = box["tag"] != "person" or box.get(attributes, {}).get("ignore", 0)
                    boxes.append((name, box[key], bool(ignored)))
        yield f"Images/{row['ID']}.jpg", None, boxes, number
