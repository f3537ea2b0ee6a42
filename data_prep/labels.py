"""Read and judge one YOLO label file: `read_labels(bytes, file, classes, width, height)`.

What is wrong in the input becomes a `Problem` with one of these actions:

    clipped   a box reached over the image's border and was cut there
    dropped   a box without any area inside the image, or the same line once more
    ignored   a file that belongs to no image
    refused   a line or an image that cannot be trusted; `pack` stops, or leaves it out with `--on-bad skip`

A refused line costs this line alone, a refused image all its boxes.
"""

from __future__ import annotations

import codecs
import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

TOLERANCE = 0.01  # px; rounding to six digits oversteps the border by less, and nothing thinner is a box
NORMALISED = 10.0  # beyond this a value is no share of the image: pixels were written


class Problem(NamedTuple):
    """One row of problems.csv. `line` counts from 1; 0 means the whole file."""

    file: str
    line: int
    rule: str
    action: str
    detail: str


class Labels(NamedTuple):
    """The boxes of one label file and what became of its other lines: boxes_in == len(category) + dropped.total()."""

    bbox_xywh: np.ndarray  # [n, 4] float64, COCO, pixels
    category: np.ndarray  # [n] int64
    boxes_in: int
    dropped: Counter[str]  # by rule, the refused lines too
    problems: list[Problem]


class Refusal(ValueError):
    """A line that cannot be trusted. `args` are the rule and what was found."""


def label_lines(data: bytes) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers. Any byte order mark and any line ending will do."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what PowerShell's `>` writes
    text = data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    return [(number, line) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()]


def read_labels(data: bytes, file: str, classes: dict[int, int], width: int, height: int) -> Labels:
    """Boxes in pixels, cut at the border of an image of width x height (after its EXIF orientation)."""
    rows: list[tuple[float, float, float, float]] = []
    category: list[int] = []
    dropped: Counter[str] = Counter()
    problems: list[Problem] = []
    seen = set()
    lines = label_lines(data)
    for number, line in lines:

        def note(rule: str, action: str, detail: str, number: int = number) -> None:
            problems.append(Problem(file, number, rule, action, detail))
            if action != "clipped":
                dropped[rule] += 1

        try:
            values = parse_line(line, classes)
        except Refusal as refusal:
            note(refusal.args[0], "refused", refusal.args[1])
            continue
        if values in seen:
            note("duplicate", "dropped", f"the same as an earlier line: {line.strip()}")
            continue
        seen.add(values)
        x1, y1, x2, y2 = xyxy = _corners_xyxy(values, width, height)
        left, top, right, bottom = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
        if min(right - left, bottom - top) <= TOLERANCE:
            rule = "zero_size" if min(x2 - x1, y2 - y1) <= TOLERANCE else "outside"
            note(rule, "dropped", f"no area inside the image: {line.strip()}")
            continue
        over = max(-x1, -y1, x2 - width, y2 - height)
        if over > TOLERANCE:
            note(
                "over_border", "clipped", f"by up to {over:.2f} px: {' '.join(f'{value:.2f}' for value in xyxy)} xyxy"
            )
        rows.append((left, top, right - left, bottom - top))
        category.append(values[0])
    boxes_xywh = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return Labels(boxes_xywh, np.array(category, dtype=np.int64), len(lines), dropped, problems)


def parse_line(line: str, classes: dict[int, int]) -> tuple[int, float, float, float, float]:
    """`class cx cy w h` as our class index and shares of the image.

    Raises:
        Refusal: with the rule that was broken and what was found.
    """
    words = line.split()
    if len(words) > 6:
        raise Refusal("polygon", f"{len(words)} values: a segmentation polygon, not a box `class cx cy w h`")
    try:
        number, cx, cy, w, h = values = [float(word) for word in words]
    except ValueError:
        raise Refusal("malformed", f"not five numbers `class cx cy w h`: {line.strip()[:80]}") from None
    if not all(map(math.isfinite, values)):
        raise Refusal("not_finite", line.strip())
    if number not in classes:
        raise Refusal("class", f"class {words[0]}, allowed are {', '.join(map(str, classes))}")
    if w < 0 or h < 0:
        raise Refusal("negative_size", line.strip())
    if max(abs(cx), abs(cy), w, h) > NORMALISED:
        raise Refusal("not_normalised", f"shares of the image are expected, not pixels: {line.strip()}")
    return classes[int(number)], cx, cy, w, h


def _corners_xyxy(
    values: tuple[int, float, float, float, float], width: int, height: int
) -> tuple[float, float, float, float]:
    _, cx, cy, w, h = values
    return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
