"""What the sample's streets are drawn on: a picture, a pinhole camera before it, and for each pixel whose it is."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import cv2
import numpy as np

SCALE = 2  # supersampling
SUBPIXEL = 4  # cv2 draws with 1/16 px
CIRCLE = np.linspace(0, 2 * np.pi, 20)


class Canvas:
    """Colours, owners and outlines. The world is x right, y up, z ahead in metres; the street's surface is y = 0."""

    def __init__(self, width: int, height: int, focal: float, centre: np.ndarray, above: float) -> None:
        self.pixels = np.zeros((height * SCALE, width * SCALE, 3), np.uint8)
        self.owner = np.zeros((height * SCALE, width * SCALE), np.uint16)
        self.outlines: dict[int, list[np.ndarray]] = defaultdict(list)  # by owner: [n, 2] px
        self.who = 0  # who owns what is drawn next; 0 is the street
        self.focal, self.centre, self.above = focal, centre, above  # px, (x, horizon) px, m above the street
        self.haze, self.clear = np.zeros(3), 1.0  # the colour of far things, and how much of their own comes through

    def project(self, *points: tuple[float, float, float]) -> np.ndarray:
        """Points in metres as pixels [n, 2]."""
        x, y, z = np.array(points).T
        return self.centre + self.focal * np.stack([x, self.above - y], axis=1) / z[:, None]

    def slab(self, near: tuple[float, float, float], far: tuple[float, float, float], colour: np.ndarray) -> None:
        """An upright or lying rectangle along the street, between two opposite corners in metres."""
        self.polygon(self.project(near, (*near[:2], far[2]), far, (*far[:2], near[2])), colour)

    def polygon(self, points: np.ndarray, colour: np.ndarray) -> None:
        """Fill a polygon [n, 2] in pixels."""
        fixed = [np.rint(points * (SCALE << SUBPIXEL)).astype(np.int32)]
        mixed = (colour * self.clear + self.haze * (1 - self.clear)).tolist()
        cv2.fillPoly(self.pixels, fixed, mixed, cv2.LINE_AA, SUBPIXEL)
        cv2.fillPoly(self.owner, fixed, (self.who,), cv2.LINE_8, SUBPIXEL)
        self.outlines[self.who].append(points)

    def ellipse(self, centre: np.ndarray, radii: np.ndarray | float, colour: np.ndarray) -> None:
        self.polygon(centre + radii * np.stack([np.cos(CIRCLE), np.sin(CIRCLE)], axis=1), colour)

    def limb(self, points: np.ndarray, thick: float, colour: np.ndarray) -> None:
        """A polyline [n, 2] of the half width `thick`, with round joints."""
        for start, stop in pairwise(points):
            along = stop - start
            side = along[::-1] * np.array([-1, 1]) * thick / (np.hypot(*along) + 1e-9)
            self.polygon(np.array([start + side, stop + side, stop - side, start - side]), colour)
        for joint in points:
            self.ellipse(joint, thick, colour)
