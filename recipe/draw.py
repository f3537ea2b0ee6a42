"""Boxes and words on images, for Trackio, the report and `recipe predict`.

    picture = draw_boxes(pixels, boxes_xyxy, labels)

Every picture is uint8 [h, w, 3] RGB. The colours are told apart with any kind of colour vision (after Okabe and Ito).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]  # RGB

COLORS: dict[int, Color] = {0: (45, 140, 240), 1: (255, 150, 20)}  # person blue, head orange
VERDICT_COLORS: dict[str, Color] = {
    "hit": (0, 190, 140),
    "missed": (235, 75, 10),
    "duplicate": (245, 225, 50),
    "false positive": (110, 190, 255),
}
PAPER, INK = (255, 255, 255), (34, 38, 46)
BAR = 26  # pixels of a line of text


def draw_boxes(
    pixels: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    color: Color | None = None,
    thickness: int | None = None,
) -> np.ndarray:
    """A copy of `pixels` with boxes [n, 4] in pixels; coloured by class, or all in `color`."""
    canvas = np.ascontiguousarray(pixels).copy()
    thickness = thickness or max(1, round(max(canvas.shape[:2]) / 640))
    for (x0, y0, x1, y1), label in zip(np.asarray(boxes_xyxy).round().astype(int).tolist(), labels, strict=True):
        cv2.rectangle(canvas, (x0, y0), (x1, y1), color or COLORS[int(label)], thickness)
    return canvas


def side_by_side(left: np.ndarray, right: np.ndarray, captions: tuple[str, str], width: int = 1600) -> np.ndarray:
    """Two pictures of one size next to each other under a line of text each."""
    panels = []
    for panel, caption in zip((left, right), captions, strict=True):
        scale = width / 2 / panel.shape[1]
        panel = cv2.resize(panel, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        panels.append(np.vstack([words(caption, panel.shape[1]), panel]))
    return np.hstack(panels)


def words(text: str, width: int, height: int = BAR) -> np.ndarray:
    """One line of dark text on white, `width` pixels wide; what is too long is cut off."""
    bar = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(bar).text((6, height / 2), text, fill=INK, font=ImageFont.load_default(size=15), anchor="lm")
    return np.asarray(bar)


def legend(entries: Mapping[str, Color], width: int, height: int = 40) -> np.ndarray:
    """A line of coloured boxes, each with its meaning."""
    bar = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(bar), ImageFont.load_default(size=18)
    x = 10.0
    for text, color in entries.items():
        pen.rectangle((x, height / 2 - 9, x + 26, height / 2 + 9), outline=color, width=4)
        pen.text((x + 34, height / 2), text, fill=INK, font=font, anchor="lm")
        x += 34 + pen.textlength(text, font=font) + 32
    return np.asarray(bar)


def grid(tiles: Sequence[np.ndarray], columns: int, gap: int = 8) -> np.ndarray:
    """Tiles of one size in rows of `columns`, with white between them."""
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * (height + gap), columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        canvas[y : y + height, x : x + width] = tile
    return canvas


def fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture scaled into (width, height) and centred on white."""
    width, height = size
    scale = min(width / picture.shape[1], height / picture.shape[0])
    shape = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    small = cv2.resize(picture, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    canvas = np.full((height, width, 3), 255, np.uint8)
    y, x = (height - shape[1]) // 2, (width - shape[0]) // 2
    canvas[y : y + shape[1], x : x + shape[0]] = small
    return canvas
