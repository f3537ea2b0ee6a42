"""Boxes on images, for the dashboard, the report and `recipe predict`.

    picture = draw_boxes(pixels, boxes_xyxy, labels, scores)

Every picture is uint8 [h, w, 3] RGB. The colours are told apart with any kind of colour vision (after Okabe and Ito).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from recipe.schema import CLASS_NAMES

Color = tuple[int, int, int]  # RGB

COLORS: tuple[Color, ...] = ((45, 140, 240), (255, 150, 20), (0, 160, 110), (200, 110, 170))  # by label, then again
INK: Color = (34, 38, 46)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def hex_color(rgb: Color) -> str:
    """(45, 140, 240) as matplotlib writes it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def draw_boxes(
    pixels: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """A copy of `pixels` with boxes [n, 4] in pixels, coloured by class.

    With scores [n], class and score stand at the foot of each box that has room for them, where no other's words are.
    """
    canvas = pixels.copy()
    thickness = max(1, round(max(canvas.shape[:2]) / 640))
    corners = np.asarray(boxes_xyxy).round().astype(int).reshape(-1, 4).tolist()
    colors = [COLORS[int(label) % len(COLORS)] for label in labels]
    for (x0, y0, x1, y1), color in zip(corners, colors, strict=True):
        cv2.rectangle(canvas, (x0, y0), (x1, y1), color, thickness)
    taken = np.zeros(canvas.shape[:2], bool)  # by words
    size = 0.4 * max(1.0, thickness * 0.8)
    for i in np.argsort(-np.asarray(scores if scores is not None else [])).tolist():  # the best score's words first
        text = f"{CLASS_NAMES[int(labels[i])]} {scores[i]:.2f}"  # type: ignore[index]
        (width, height), below = cv2.getTextSize(text, FONT, size, 1)
        x, y = max(corners[i][0], 0), min(corners[i][3], canvas.shape[0])  # at the foot: the head stays visible
        place = slice(y - height - below, y), slice(x, x + width)
        room = min(corners[i][2], canvas.shape[1]) - x >= width and y - max(corners[i][1], 0) >= 2 * height
        if room and not taken[place].any():
            taken[place] = True
            canvas[place] = colors[i]
            cv2.putText(canvas, text, (x, y - below // 2 - 1), FONT, size, INK, 1, cv2.LINE_AA)
    return canvas


def side_by_side(left: np.ndarray, right: np.ndarray, captions: tuple[str, str], width: int = 1600) -> np.ndarray:
    """Two pictures of one size next to each other under a line of text each."""
    scale = width / 2 / left.shape[1]
    picture = cv2.resize(np.hstack([left, right]), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    bar = np.full((26, picture.shape[1], 3), 255, np.uint8)
    for place, text in enumerate(captions):
        corner = (6 + place * picture.shape[1] // 2, 19)
        cv2.putText(bar, text, corner, FONT, 0.5, INK, 1, cv2.LINE_AA)
    return np.vstack([bar, picture])
