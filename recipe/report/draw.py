"""Boxes on images, for Trackio, the report and `recipe predict`.

    picture = draw_boxes(pixels, boxes_xyxy, labels)

Every picture is uint8 [h, w, 3] RGB. The colours are told apart with any kind of colour vision (after Okabe and Ito).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

Color = tuple[int, int, int]  # RGB

COLORS: dict[int, Color] = {0: (45, 140, 240), 1: (255, 150, 20)}  # person blue, head orange
VERDICT_COLORS: dict[str, Color] = {
    "hit": (0, 190, 140),
    "missed": (235, 75, 10),
    "duplicate": (245, 225, 50),
    "false positive": (110, 190, 255),
}


def hex_color(rgb: Color) -> str:
    """(45, 140, 240) as matplotlib writes it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def draw_boxes(pixels: np.ndarray, boxes_xyxy: np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """A copy of `pixels` with boxes [n, 4] in pixels, coloured by class."""
    canvas = pixels.copy()
    thickness = max(1, round(max(canvas.shape[:2]) / 640))
    for (x0, y0, x1, y1), label in zip(np.asarray(boxes_xyxy).round().astype(int).tolist(), labels, strict=True):
        cv2.rectangle(canvas, (x0, y0), (x1, y1), COLORS[int(label)], thickness)
    return canvas


def side_by_side(left: np.ndarray, right: np.ndarray, captions: tuple[str, str], width: int = 1600) -> np.ndarray:
    """Two pictures of one size next to each other under a line of text each."""
    scale = width / 2 / left.shape[1]
    picture = cv2.resize(np.hstack([left, right]), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    bar = np.full((26, picture.shape[1], 3), 255, np.uint8)
    for place, text in enumerate(captions):
        corner = (6 + place * picture.shape[1] // 2, 19)
        cv2.putText(bar, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (34, 38, 46), 1, cv2.LINE_AA)
    return np.vstack([bar, picture])
