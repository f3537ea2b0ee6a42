"""Boxes on images: ground truth beside predictions, for Trackio, the report and `recipe predict`."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

COLORS = {0: (64, 160, 255), 1: (255, 176, 32)}  # person blue, head orange; RGB


def draw_boxes(
    pixels: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    color: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """A copy of `pixels`, uint8 [h, w, 3] RGB, with boxes [n, 4] in pixels; coloured by class, or all in `color`."""
    canvas = np.ascontiguousarray(pixels).copy()
    thickness = max(1, round(max(canvas.shape[:2]) / 640))
    for (x0, y0, x1, y1), label in zip(np.asarray(boxes_xyxy).round().astype(int), labels, strict=True):
        cv2.rectangle(canvas, (x0, y0), (x1, y1), color or COLORS[int(label)], thickness, cv2.LINE_AA)
    return canvas


def side_by_side(left: np.ndarray, right: np.ndarray, captions: tuple[str, str], width: int = 1600) -> np.ndarray:
    """Two pictures of one size next to each other under a line of text each."""
    panels = []
    for panel, caption in zip((left, right), captions, strict=True):
        scale = width / 2 / panel.shape[1]
        panel = cv2.resize(panel, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        title = np.full((36, panel.shape[1], 3), 24, np.uint8)
        cv2.putText(title, caption, (10, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (235, 235, 235), 1, cv2.LINE_AA)
        panels.append(np.vstack([title, panel]))
    return np.hstack(panels)
