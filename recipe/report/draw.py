"""Boxes on images, for the dashboard, the report and `recipe predict`; every picture is uint8 [h, w, 3] RGB.

    picture = draw_boxes(pixels, boxes_xyxy, labels, scores)

The colours of the classes are told apart with any kind of colour vision (after Okabe and Ito).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from recipe.schema import CLASS_NAMES

Color = tuple[int, int, int]  # RGB

COLORS: tuple[Color, ...] = ((45, 140, 240), (255, 150, 20), (0, 160, 110), (200, 110, 170))  # by label, then again
INK: Color = (34, 38, 46)
FONT = cv2.FONT_HERSHEY_SIMPLEX
LINE = 22  # pixels of a line of text


def draw_boxes(
    pixels: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray | None = None,
    colors: Sequence[Color] = COLORS,
) -> np.ndarray:
    """A copy of `pixels` with boxes [n, 4] in pixels, coloured by label.

    With scores [n], class and score stand at the foot of each box that has room for them, where no other's words are.
    """
    canvas = pixels.copy()
    thickness = max(1, round(max(canvas.shape[:2]) / 640))
    corners = np.asarray(boxes_xyxy).round().astype(int).reshape(-1, 4).tolist()
    for box, label in zip(corners, labels, strict=True):
        cv2.rectangle(canvas, box[:2], box[2:], colors[int(label) % len(colors)], thickness)
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
            canvas[place] = colors[int(labels[i]) % len(colors)]
            cv2.putText(canvas, text, (x, y - below // 2 - 1), FONT, size, INK, 1, cv2.LINE_AA)
    return canvas


def fit(pixels: np.ndarray, width: int, height: int) -> tuple[np.ndarray, float]:
    """An image as large as the panel that it is shown in, and by how much its boxes are scaled."""
    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), scale


def grid(panels: Sequence[tuple[np.ndarray, str]], columns: int, legend: Mapping[str, Color]) -> np.ndarray:
    """Pictures in rows, each under the two lines of its caption, and a legend above all."""
    height, width = (max(picture.shape[axis] for picture, _ in panels) for axis in (0, 1))
    cells = np.full((-(-len(panels) // columns) * columns, 2 * LINE + height + 8, width + 8, 3), 255, np.uint8)
    for cell, (picture, caption) in zip(cells, panels, strict=False):
        for line, text in enumerate(caption.split("\n")):
            cv2.putText(cell, text, (8, (line + 1) * LINE - 7), FONT, 0.45, INK, 1, cv2.LINE_AA)
        cell[2 * LINE :][: picture.shape[0], 8 : 8 + picture.shape[1]] = picture
    beside = max(1, columns * (width + 8) // 180)  # words of the legend in a row
    bar = np.full((LINE * -(-len(legend) // beside) + 8, columns * (width + 8), 3), 255, np.uint8)
    for place, (text, color) in enumerate(legend.items()):
        x, y = 8 + 180 * (place % beside), LINE * (place // beside)
        cv2.rectangle(bar, (x, y + 6), (x + 14, y + 20), color, -1)
        cv2.putText(bar, text, (x + 22, y + 18), FONT, 0.5, INK, 1, cv2.LINE_AA)
    return np.vstack([bar, *(np.hstack(list(cells[i : i + columns])) for i in range(0, len(cells), columns))])
