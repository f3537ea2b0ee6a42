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
from collections import Counter
from typing import NamedTuple

import numpy as np

TOLERANCE = 0.01  # px; rounding to six digits oversteps the border by less, and nothing thinner is a box
SHOWN = 30  # refused lines and images on the screen
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


def label_lines(data: bytes) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers. Any byte order mark and any line ending will do."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what PowerShell's `>` writes
    text = data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read_labels(data: bytes, file: str, classes: dict[int, int], width: int, height: int) -> Labels:
    """Boxes in pixels, cut at the border of an image of width x height (after its EXIF orientation)."""
    lines = label_lines(data)
    rows: dict[tuple[float, ...], int] = {}  # class, cx, cy, w, h -> line
    problems: list[Problem] = []
    for number, line in lines:
        try:
            row = parse_line(line, classes)
        except ValueError as refusal:
            problems.append(Problem(file, number, refusal.args[0], "refused", refusal.args[1]))
            continue
        if row in rows:
            problems.append(Problem(file, number, "duplicate", "dropped", f"as on an earlier line: {line.strip()}"))
        rows.setdefault(row, number)
    numbers = list(rows.values())
    values = np.array(list(rows), dtype=np.float64).reshape(-1, 5)
    size = np.array([width, height])
    half = values[:, 3:] / 2
    xyxy = np.concatenate([(values[:, 1:3] - half) * size, (values[:, 1:3] + half) * size], axis=1)  # [n, 4] pixels
    inside_xyxy = np.clip(xyxy, 0, np.tile(size, 2))
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
        problems.append(Problem(file, numbers[k], rule, action, detail))
    dropped = Counter(problem.rule for problem in problems if problem.action != "clipped")
    bbox_xywh = np.concatenate([inside_xyxy[:, :2], inside_wh], axis=1)[kept]
    return Labels(bbox_xywh, values[kept, 0].astype(np.int64), len(lines), dropped, sorted(problems))


def parse_line(line: str, classes: dict[int, int]) -> tuple[float, ...]:
    """`class cx cy w h` as our class index and shares of the image.

    Raises:
        ValueError: with two arguments, the rule that was broken and what was found.
    """
    words = line.split()
    try:
        number, cx, cy, w, h = map(float, words)
    except ValueError:
        if len(words) > 6:
            raise ValueError("polygon", f"{len(words)} values: a polygon, not a box `class cx cy w h`") from None
        raise ValueError("malformed", f"not five numbers `class cx cy w h`: {line.strip()[:80]}") from None
    if not math.isfinite(number + cx + cy + w + h):
        raise ValueError("not_finite", line.strip()[:80])
    if number not in classes:
        raise ValueError("class", f"class {words[0]}, allowed are {', '.join(map(str, classes))}")
    if w < 0 or h < 0:
        raise ValueError("negative_size", line.strip()[:80])
    if max(abs(cx), abs(cy), w, h) > NORMALISED:
        raise ValueError("not_normalised", f"shares of the image are expected, not pixels: {line.strip()[:80]}")
    return classes[int(number)], cx, cy, w, h


def listing(problems: list[Problem]) -> list[str]:
    """The first refused lines and images, to be shown one below the other."""
    refused = [problem for problem in problems if problem.action == "refused"]
    lines = [f"  {p.file}{f':{p.line}' if p.line else ''}  {p.rule}: {p.detail}" for p in refused[:SHOWN]]
    if len(refused) > SHOWN:
        lines.append(
            f"  and {len(refused) - SHOWN:,} more: `python -m data_prep inspect YOLO_DIR --json FILE` lists all"
        )
    return lines
