"""What the sample's streets are drawn on: polygons, limbs and ellipses, and for each pixel whose it is."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

SCALE = 2  # supersampling
SUBPIXEL = 4  # cv2 draws with 1/16 px


class Canvas:
    """Pixels, and whose each is: `owner` is 0 for the street, 2 k - 1 for the k-th body, 2 k for its head."""

    def __init__(self, width: int, height: int, haze: np.ndarray) -> None:
        self.pixels = np.zeros((height * SCALE, width * SCALE, 3), np.uint8)
        self.owner = np.zeros((height * SCALE, width * SCALE), np.uint16)
        self.haze = haze
        self.clear = 1.0  # how much of a colour comes through at the distance of what is drawn
        self.who = 0
        self.peopled = False  # before anybody is there, all belongs to the street

    def polygon(self, points: np.ndarray, colour: np.ndarray) -> None:
        """Fill a polygon [n, 2] in pixels."""
        fixed = [np.rint(points * (SCALE << SUBPIXEL)).astype(np.int32)]
        mixed = (colour * self.clear + self.haze * (1 - self.clear)).tolist()
        cv2.fillPoly(self.pixels, fixed, mixed, cv2.LINE_AA, SUBPIXEL)
        if self.peopled:
            cv2.fillPoly(self.owner, fixed, (self.who,), cv2.LINE_8, SUBPIXEL)

    def limb(self, points: np.ndarray, thick: np.ndarray, colour: np.ndarray) -> None:
        """A polyline [n, 2] with its half width [n] at each point, rounded at both ends."""
        step = np.empty_like(points)
        step[0], step[-1] = points[1] - points[0], points[-1] - points[-2]
        step[1:-1] = points[2:] - points[:-2]
        side = step[:, ::-1] * np.array([-1.0, 1.0]) * (thick / (np.hypot(step[:, 0], step[:, 1]) + 1e-9))[:, None]
        self.polygon(np.concatenate([points + side, (points - side)[::-1]]), colour)
        for end in (0, -1):
            if thick[end] > 0.7:
                self.ellipse(points[end], thick[end], colour)

    def ellipse(
        self, centre: np.ndarray, radii: np.ndarray | float, colour: np.ndarray, start: float = 0, stop: float = 360
    ) -> None:
        """An ellipse, or the part of it between two angles in degrees (0 right, 90 down)."""
        self.polygon(centre + radii * _arc(start, stop), colour)


@lru_cache
def _arc(start: float, stop: float) -> np.ndarray:
    angle = np.deg2rad(np.linspace(start, stop, 20))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)  # [20, 2]
