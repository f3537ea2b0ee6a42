"""What the sample's streets are drawn on: polygons, limbs and ellipses, and for each pixel whose it is."""

from __future__ import annotations

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

    def _colour(self, colour: np.ndarray) -> tuple[float, ...]:
        mixed = np.clip(colour, 0, 255) * self.clear + self.haze * (1 - self.clear)
        return tuple(mixed.tolist())

    def polygon(self, points: np.ndarray, colour: np.ndarray) -> None:
        """Fill a polygon [n, 2] in pixels."""
        fixed = np.round(np.clip(points, -20000, 20000) * SCALE * 2**SUBPIXEL).astype(np.int32)
        cv2.fillPoly(self.pixels, [fixed], self._colour(colour), cv2.LINE_AA, SUBPIXEL)
        cv2.fillPoly(self.owner, [fixed], (self.who,), cv2.LINE_8, SUBPIXEL)

    def limb(self, points: np.ndarray, thick: np.ndarray, colour: np.ndarray) -> None:
        """A polyline [n, 2] with its half width [n] at each point, rounded at both ends."""
        step = np.gradient(points, axis=0)
        normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / (np.linalg.norm(step, axis=1, keepdims=True) + 1e-9)
        side = normal * thick[:, None]
        self.polygon(np.concatenate([points + side, (points - side)[::-1]]), colour)
        for end in (0, -1):
            self.ellipse(points[end], np.array([thick[end], thick[end]]), colour)

    def ellipse(
        self, centre: np.ndarray, radii: np.ndarray, colour: np.ndarray, start: float = 0.0, stop: float = 360.0
    ) -> None:
        """An ellipse, or the part of it between two angles in degrees (0 right, 90 down)."""
        angle = np.deg2rad(np.linspace(start, stop, 24))
        self.polygon(centre + radii * np.stack([np.cos(angle), np.sin(angle)], axis=1), colour)
