"""One image with its boxes, as read from disk and checked: `example = read_example(folder, entry)`.

The bytes are never changed. Every image is decoded: a JPEG strictly, in grey at an eighth of its size, which reads
every coefficient as a full decode would, and is more than twice as fast (benchmarks/packing.py).
"""

from __future__ import annotations

import codecs
import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from data_prep.entries import Classes, Entry, Folder, PixelBox, Problem
from recipe.files import printable, read_file
from recipe.schema import MAX_PIXELS, PIL_FORMATS

LABEL_BYTES = 2**24  # 400,000 boxes
TOLERANCE = 0.01  # px; rounding to six digits oversteps the border by less, and nothing thinner is a box
NORMALISED = 10.0  # beyond this a value is no share of the image: pixels were written
IMAGE_BYTES = 2**29  # MAX_PIXELS with two bytes a channel, not compressed
ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Labels(NamedTuple):
    """The boxes of one image and what became of the others: boxes_in == len(category) + those that problems cost."""

    bbox_xywh: np.ndarray  # [n, 4] float64, COCO, pixels
    category: np.ndarray  # [n] int64
    iscrowd: np.ndarray  # [n] int64
    boxes_in: int
    problems: list[Problem]


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
        rule = "other_size"
        if entry.size not in (None, (width, height)):  # boxes of a photograph before it was turned, or made smaller
            raise ValueError(f"{width} x {height} pixels upright, its boxes are for {entry.size}: export them again")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        refusal = Problem(printable(entry.image), 0, rule, "refused", printable(reason))
    if entry.boxes is None:
        labels = read_labels(text, label, folder.classes, width, height, polygons=folder.options.polygons == "boxes")
    else:
        boxes = [(folder.classes[int(box[0])], *box[1:]) for box in entry.boxes]
        kept = np.array([box for box in boxes if box[0] is not None], np.float64).reshape(-1, 6)
        dropped = Problem(label, entry.line, "class_dropped", "dropped", "a class that --drop names", 1)
        problems = [dropped] * (len(boxes) - len(kept))
        labels = cut_boxes(kept, [entry.line] * len(kept), len(boxes), problems, label, width, height)
    if not refusal:
        return Example(entry, data, width, height, labels)
    also = [problem._replace(boxes=0) for problem in labels.problems if problem.action == "refused"]
    problems = [refusal._replace(boxes=labels.boxes_in), *also]
    none = labels.bbox_xywh[:0], labels.category[:0], labels.iscrowd[:0]
    return Example(entry, b"", 0, 0, Labels(*none, labels.boxes_in, problems))


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels after the EXIF orientation.

    Raises:
        ValueError: a short reason why this is not an image that training could read.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=PIL_FORMATS) as image:
            width, height = image.size  # before load(), which turns a TIFF's pixels
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS:,} are read: make it smaller")
            turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED
            try:
                simplejpeg.decode_jpeg_header(data)
            except ValueError:  # no JPEG, or a rare subsampling that libjpeg-turbo refuses and Pillow reads
                image.load()
            else:  # strictly: libjpeg's warnings, which Pillow passes over, count as errors here
                simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except Exception as error:  # decoders raise what hostile bytes lead them to: SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        unknown = reason.startswith("cannot identify image file")
        raise ValueError(f"not an image in the formats {', '.join(PIL_FORMATS)}" if unknown else reason) from error
    return (height, width) if turned else (width, height)


def label_lines(data: bytes) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers. Any byte order mark and any line ending will do."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what PowerShell's `>` writes
    text = data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read_labels(
    data: bytes, file: str, classes: Classes, width: int, height: int, *, polygons: bool = False
) -> Labels:
    """The boxes of a YOLO label file, for an image of width x height after its EXIF orientation."""
    lines = label_lines(data)
    rows: dict[PixelBox, int] = {}  # corners as shares of the image -> line
    problems: list[Problem] = []
    for number, line in lines:
        try:
            row = parse_line(line, classes, polygons)
        except ValueError as refusal:
            problems.append(Problem(file, number, refusal.args[0], "refused", printable(refusal.args[1]), 1))
            continue
        if row is None or row in rows:
            rule = "duplicate" if row else "class_dropped"
            problems.append(Problem(file, number, rule, "dropped", printable(line.strip()[:80]), 1))
        else:
            rows[row] = number
    boxes = np.array(list(rows), np.float64).reshape(-1, 6) * [1, width, height, width, height, 1]
    return cut_boxes(boxes, list(rows.values()), len(lines), problems, file, width, height)


def cut_boxes(
    boxes: np.ndarray, lines: list[int], boxes_in: int, problems: list[Problem], file: str, width: int, height: int
) -> Labels:
    """Boxes [n, 6] as in `PixelBox`, cut at the image's border; those without area inside are dropped."""
    xyxy = boxes[:, 1:5]
    inside_xyxy = np.clip(xyxy, 0, [width, height, width, height])
    inside_wh = inside_xyxy[:, 2:] - inside_xyxy[:, :2]
    kept = (inside_wh > TOLERANCE).all(axis=1)  # [n]
    over = np.abs(xyxy - inside_xyxy).max(axis=1, initial=0)  # [n] pixels
    for k in np.flatnonzero(~kept | (over > TOLERANCE)):
        corners = " ".join(f"{value:.2f}" for value in xyxy[k])
        if kept[k]:
            problem = Problem(file, lines[k], "over_border", "clipped", f"by up to {over[k]:.2f} px: {corners} xyxy")
        else:
            rule = "zero_size" if (xyxy[k, 2:] - xyxy[k, :2]).min() <= TOLERANCE else "outside"
            detail = f"no area inside {width} x {height} px: {corners} xyxy"
            problem = Problem(file, lines[k], rule, "dropped", detail, 1)
        problems.append(problem)
    bbox_xywh = np.concatenate([inside_xyxy[:, :2], inside_wh], axis=1)[kept]
    category, iscrowd = boxes[kept][:, [0, 5]].astype(np.int64).T
    return Labels(bbox_xywh, category, iscrowd, boxes_in, sorted(problems))


def parse_line(line: str, classes: Classes, polygons: bool) -> PixelBox | None:
    """`class cx cy w h`, or `class x y x y x y ...` as the box around it; None for a class that is dropped.

    Raises:
        ValueError: with two arguments, the rule that was broken and what was found.
    """
    words, shown = line.split(), line.strip()[:80]
    is_polygon = len(words) > 6 and len(words) % 2 == 1
    try:
        number, *values = map(float, words)
    except ValueError:
        values = []
    if is_polygon and values and not polygons:
        raise ValueError("polygon", f"{len(words)} values; `--polygons boxes` packs the box around it")
    if len(values) != 4 and not (is_polygon and values):
        raise ValueError("malformed", f"not five numbers `class cx cy w h`: {shown}")
    if number not in classes:
        raise ValueError("class", f"class {words[0]}, allowed are {', '.join(map(str, classes))}")
    if not all(abs(value) <= NORMALISED for value in values):  # of a NaN too
        raise ValueError("not_normalised", f"shares of the image are expected, not pixels: {shown}")
    if is_polygon:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        cx, cy, w, h = values
        if w < 0 or h < 0:
            raise ValueError("negative_size", shown)
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    category = classes[int(number)]
    return None if category is None else (category, *corners, 0)
