"""One image with its boxes, as read from disk: `example = read_example(folder, entry)`."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from data_prep.entries import Entry, Folder
from data_prep.files import printable, read_file
from data_prep.image import image_size
from data_prep.labels import Labels, Problem, cut_boxes, read_labels
from data_prep.yolo import LABEL_BYTES

IMAGE_BYTES = 2**29  # MAX_PIXELS with two bytes a channel, not compressed


class Example(NamedTuple):
    """A refused image has no `data` and no boxes; all its lines count as dropped."""

    entry: Entry
    data: bytes  # the file's own
    width: int  # after the EXIF orientation
    height: int
    labels: Labels


def read_example(folder: Folder, entry: Entry) -> Example:
    """Read one image and its label file. What is wrong with them is in `labels.problems`, never raised."""
    text, data, width, height, label = b"", b"", 1, 1, printable(entry.label or "")
    refusal: Problem | None = None
    try:
        rule = "unreadable_label"
        if entry.label and entry.boxes is None:
            text = read_file(folder.root / entry.label, LABEL_BYTES)
        rule = "file_name"
        if printable(entry.name) != entry.name:
            raise ValueError("its name is not UTF-8 or not printable: rename it, and its label file")
        rule = "unreadable_image"
        data = read_file(folder.root / entry.image, IMAGE_BYTES)
        width, height = image_size(data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        refusal = Problem(printable(entry.image), 0, rule, "refused", printable(reason))
    if entry.boxes is None:
        labels = read_labels(text, label, folder.classes, width, height, polygons=folder.options.polygons == "boxes")
    else:
        boxes = np.array(entry.boxes, np.float64).reshape(-1, 6)
        labels = cut_boxes(boxes, [entry.line] * len(boxes), len(boxes), [], label, width, height)
    if not refusal:
        return Example(entry, data, width, height, labels)
    problems = [refusal, *(problem for problem in labels.problems if problem.action == "refused")]
    none = labels.bbox_xywh[:0], labels.category[:0], labels.iscrowd[:0]
    dropped = Counter({rule: labels.boxes_in} if labels.boxes_in else {})
    return Example(entry, b"", 0, 0, Labels(*none, labels.boxes_in, dropped, problems))
