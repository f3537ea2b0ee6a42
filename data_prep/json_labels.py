"""One file with the boxes of many images: CrowdHuman's annotation_train.odgt, COCO's instances_train*.json."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.entries import Folder, ReadOptions, Split, class_ids, entry_at
from data_prep.files import printable, read_file
from data_prep.labels import PixelBox, Problem
from recipe.schema import CLASS_NAMES, SPLITS, UserError

JSON_BYTES = 2**31  # COCO's largest has 450 MB


def open_crowdhuman(root: Path, options: ReadOptions) -> Folder:
    """DIR/annotation_train.odgt, annotation_val.odgt and DIR/Images: `fbox` is a person, `hbox` a head.

    Source: Shao et al., CrowdHuman, arXiv:1805.00123. Ignored boxes and masks become iscrowd 1 of their class.

    Raises:
        UserError: a line that is not as CrowdHuman writes it.
    """
    splits = {}
    for key, name in SPLITS.items():
        file = f"annotation_{key}.odgt"
        if not (root / file).exists():
            continue
        splits[name] = Split()
        with _one_line_error(root / file, "CrowdHuman"):
            for number, line in enumerate(read_file(root / file, JSON_BYTES).splitlines(), 1):
                row = json.loads(line)
                boxes = tuple(_crowdhuman_boxes(row["gtboxes"]))
                splits[name].entries.append(entry_at(root, f"Images/{row['ID']}.jpg", file, boxes, number))
        splits[name].entries.sort()
    return Folder(root, dict(enumerate(range(len(CLASS_NAMES)))), splits, options)


def _crowdhuman_boxes(found: list[dict[str, Any]]) -> Iterator[PixelBox]:
    for box in found:
        mask = box["tag"] != "person"
        yield _pixel_box(0, box["fbox"], mask or box.get("extra", {}).get("ignore", 0))
        if "hbox" in box:
            yield _pixel_box(1, box["hbox"], mask or box.get("head_attr", {}).get("ignore", 0))


def open_coco(root: Path, options: ReadOptions) -> Folder:
    """DIR/annotations/instances_train*.json, instances_val*.json and the images in DIR/train*, DIR/images or DIR.

    Raises:
        UserError: a file that is not as COCO writes it, a category that is neither ours nor mapped nor dropped.
    """
    splits = {}
    for key, name in SPLITS.items():
        for path in sorted((root / "annotations").glob(f"instances_{key}*.json"))[:1]:
            splits[name] = split = Split()
            with _one_line_error(path, "COCO"):
                document = json.loads(read_file(path, JSON_BYTES))
                names = {str(category["id"]): category["name"] for category in document["categories"]}
                classes = class_ids(names, path, options)
                boxes, dropped = defaultdict(list), Counter[str]()
                for box in document["annotations"]:
                    category = classes[box["category_id"]]
                    if category is None:
                        dropped[names[str(box["category_id"])]] += 1
                    else:
                        boxes[box["image_id"]].append(_pixel_box(category, box["bbox"], box.get("iscrowd", 0)))
                stem = path.stem.removeprefix("instances_")
                folders = [folder for folder in (f"images/{stem}", stem, "images", ".") if (root / folder).is_dir()]
                for image in document["images"]:
                    file = os.path.normpath(os.path.join(folders[0], image["file_name"]))
                    label = os.path.relpath(path, root)
                    split.entries.append(entry_at(root, file, label, tuple(boxes.pop(image["id"], ()))))
                if boxes:
                    raise KeyError(f"boxes of image_id {next(iter(boxes))}, which is not in `images`")
            for category_name, count in dropped.items():
                detail = f"{count} boxes of {printable(category_name)}"
                split.problems.append(Problem(os.path.relpath(path, root), 0, "class_dropped", "dropped", detail))
                split.dropped["class_dropped"] += count
            split.entries.sort()
    return Folder(root, {}, splits, options)


def _pixel_box(category: int, xywh: Any, ignored: Any) -> PixelBox:
    x, y, w, h = map(float, xywh)
    if not math.isfinite(x + y + w + h):
        raise ValueError(f"box {xywh}")
    return category, x, y, x + w, y + h, int(bool(ignored))


@contextlib.contextmanager
def _one_line_error(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(f"{type(error).__name__}: {error}")[:200]
        raise UserError(f"{path} is not as {kind} writes it ({reason}): correct or fetch it again") from error
