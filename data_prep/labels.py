"""The boxes of one image and what was wrong with them: `read_labels(bytes, file, classes, width, height)`.

What is wrong in the input becomes a `Problem` with one of these actions:

    clipped   a box reached over the image's border and was cut there
    dropped   a box without any area inside the image, the same line once more, or a class that `--drop` names
    ignored   a file that belongs to no image
    refused   a line or an image that cannot be trusted; `pack` stops, or leaves it out with `--on-bad skip`

A refused line costs this line alone, a refused image all its boxes.
"""

from __future__ import annotations

import codecs
import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from data_prep.files import printable

TOLERANCE = 0.01  # px; rounding to six digits oversteps the border by less, and nothing thinner is a box
SHOWN = 30  # refused lines and images on the screen
NORMALISED = 10.0  # beyond this a value is no share of the image: pixels were written

Classes = Mapping[int, int | None]  # a class id of the input -> ours, or None where it is dropped
PixelBox = tuple[int, float, float, float, float, int]  # our class, x1, y1, x2, y2, iscrowd


class Problem(NamedTuple):
    """One row of problems.csv. `line` counts from 1; 0 means the complete file."""

    file: str
    line: int
    rule: str
    action: str
    detail: str


class Labels(NamedTuple):
    """The boxes of one image and what became of the others: boxes_in == len(category) + dropped.total()."""

    bbox_xywh: np.ndarray  # [n, 4] float64, COCO, pixels
    category: np.ndarray  # [n] int64
    iscrowd: np.ndarray  # [n] int64
    boxes_in: int
    dropped: Counter[str]  # by rule, the refused lines too
    problems: list[Problem]


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
    rows: dict[tuple[float, ...], int] = {}  # our class, x1, y1, x2, y2 as shares of the image -> line
    problems: list[Problem] = []
    for number, line in lines:
        try:
            row = parse_line(line, classes, polygons)
        except ValueError as refusal:
            problems.append(Problem(file, number, refusal.args[0], "refused", printable(refusal.args[1])))
            continue
        if row is None or row in rows:
            rule = "duplicate" if row else "class_dropped"
            problems.append(Problem(file, number, rule, "dropped", printable(line.strip()[:80])))
        else:
            rows[row] = number
    boxes = np.array([(*row, 0) for row in rows], np.float64).reshape(-1, 6) * [1, width, height, width, height, 1]
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
            rule, action, detail = "over_border", "clipped", f"by up to {over[k]:.2f} px: {corners} xyxy"
        else:
            rule = "zero_size" if (xyxy[k, 2:] - xyxy[k, :2]).min() <= TOLERANCE else "outside"
            action, detail = "dropped", f"no area inside {width} x {height} px: {corners} xyxy"
        problems.append(Problem(file, lines[k], rule, action, detail))
    dropped = Counter(problem.rule for problem in problems if problem.action != "clipped")
    bbox_xywh = np.concatenate([inside_xyxy[:, :2], inside_wh], axis=1)[kept]
    category, iscrowd = boxes[kept][:, [0, 5]].astype(np.int64).T
    return Labels(bbox_xywh, category, iscrowd, boxes_in, dropped, sorted(problems))


def parse_line(line: str, classes: Classes, polygons: bool) -> tuple[float, ...] | None:
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
        found = f"{len(words)} values: a polygon, not a box `class cx cy w h`"
        raise ValueError("polygon", f"{found}; `--polygons boxes` packs the box around it")
    if len(values) != 4 and not (is_polygon and values):
        raise ValueError("malformed", f"not five numbers `class cx cy w h`: {shown}")
    if not math.isfinite(number + sum(values)):
        raise ValueError("not_finite", shown)
    if number not in classes:
        raise ValueError("class", f"class {words[0]}, allowed are {', '.join(map(str, classes))}")
    if max(map(abs, values)) > NORMALISED:
        raise ValueError("not_normalised", f"shares of the image are expected, not pixels: {shown}")
    if is_polygon:
        box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        cx, cy, w, h = values
        if w < 0 or h < 0:
            raise ValueError("negative_size", shown)
        box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    category = classes[int(number)]
    return None if category is None else (category, *box)


def refused_lines(refused: list[Problem], total: int) -> list[str]:
    """The first refused lines and images, to be shown one below the other."""
    lines = [f"  {p.file}{f':{p.line}' if p.line else ''}  {p.rule}: {p.detail}" for p in refused[:SHOWN]]
    more = f"  and {total - SHOWN:,} more: `python -m data_prep inspect YOLO_DIR --json FILE` lists all"
    return lines + ([more] if total > SHOWN else [])
