"""Draw a street with a crowd, seen by a pinhole camera above the heads: `draw_street(rng, width, height, people)`.

Not photographs, but with what makes crowds hard: perspective from 200 px down to 20 px, occlusion, varied clothes and
poses, things that are no people (trees, lamps, windows), haze, noise. Everything follows from the generator given.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from data_prep.canvas import SCALE, Canvas
from data_prep.person import Drawn, draw_person

SKIES = np.array(
    [[(120, 165, 215), (215, 228, 238)], [(168, 176, 186), (214, 216, 218)], [(96, 100, 150), (238, 190, 150)]], float
)


@dataclass(frozen=True)
class Camera:
    """World: x right, y up, z ahead, in metres; the street's surface is y = 0."""

    focal: float  # px
    height: float  # m above the street
    centre_x: float  # px
    horizon: float  # px

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points [n, 3] in metres to pixels [n, 2]."""
        x, y, z = points.T
        return np.stack(
            [self.centre_x + self.focal * x / z, self.horizon + self.focal * (self.height - y) / z], axis=1
        )


def draw_street(rng: np.random.Generator, width: int, height: int, people: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture [height, width, 3] RGB and its boxes [n, 5]: class (0 person, 1 head), x1, y1, x2, y2 in pixels.

    Persons that are almost wholly hidden get no box, nor do heads that are.
    """
    sky = SKIES[rng.integers(len(SKIES))]
    camera = Camera(
        focal=rng.uniform(0.85, 1.15) * (0.75 * height + 0.25 * width) * (1.0 if width >= height else 0.85),
        height=rng.uniform(3.0, 5.0) if people < 150 else rng.uniform(7.0, 8.0),
        centre_x=width * rng.uniform(0.4, 0.6),
        horizon=height * rng.uniform(0.2, 0.34),
    )
    canvas = Canvas(width, height, haze=sky[1])
    half = rng.uniform(6.0, 10.0) if people < 150 else 11.0  # m, from the middle of the street to the walls
    _draw_background(canvas, rng, camera, sky, half)
    boxes = _draw_crowd(canvas, rng, camera, half, width, height, people)
    return _develop(canvas, rng, width, height), boxes


def _develop(canvas: Canvas, rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """From the supersampled canvas to something that looks taken by a camera: softness, light, noise."""
    picture = cv2.resize(canvas.pixels, (width, height), interpolation=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.35, 0.7)).astype(np.float32)
    light = rng.uniform(0.85, 1.1) * rng.uniform(0.95, 1.05, 3)
    coarse = cv2.resize(rng.normal(0, 1, (height // 8, width // 8)).astype(np.float32), (width, height))
    fine = rng.standard_normal((height, width), np.float32)
    noise = rng.uniform(2.0, 5.0) * fine + 2.5 * coarse
    return np.clip(picture * light.astype(np.float32) + noise[..., None], 0, 255).astype(np.uint8)


def _draw_background(canvas: Canvas, rng: np.random.Generator, camera: Camera, sky: np.ndarray, half: float) -> None:
    rows = len(canvas.owner)
    horizon = int(camera.horizon * SCALE)
    down = np.linspace(0, 1, max(horizon, 1))[:, None]
    near = np.linspace(0, 1, rows - horizon)[:, None] ** 0.5
    road = np.array([92.0, 92, 96]) * rng.uniform(0.8, 1.4)
    columns = np.concatenate([sky[0] * (1 - down) + sky[1] * down, sky[1] * 0.7 * (1 - near) + road * near])
    canvas.pixels[:] = cv2.resize(columns[:, None].astype(np.uint8), canvas.owner.shape[::-1])
    kerb = half * rng.uniform(0.5, 0.7)
    for side in (-1, 1):
        _slab(canvas, camera, (side * kerb, side * half), (1.0, 150.0), road * 1.25)
        _slab(canvas, camera, (side * kerb, side * (kerb + 0.25)), (1.0, 150.0), road * 1.6)
    for z in np.arange(2.0, 60.0, 2.0)[::-1]:
        canvas.clear = float(np.exp(-z / 60))
        for side in (-1, 1):  # joints of the pavement, and a broken line along the road
            _slab(canvas, camera, (side * kerb, side * half), (z, z + 0.06), road * 1.05)
        if z % 6 < 3:
            _slab(canvas, camera, (-0.08, 0.08), (z, z + 2.0), np.array([215.0, 212, 200]))
    for side in (-1, 1):
        _draw_row_of_houses(canvas, rng, camera, side * half)
    canvas.clear = 1.0


def _slab(canvas: Canvas, camera: Camera, x: tuple[float, float], z: tuple[float, float], colour: np.ndarray) -> None:
    corners = np.array([(x[0], 0, z[0]), (x[1], 0, z[0]), (x[1], 0, z[1]), (x[0], 0, z[1])])
    canvas.polygon(camera.project(corners), colour)


def _draw_row_of_houses(canvas: Canvas, rng: np.random.Generator, camera: Camera, x: float) -> None:
    """House fronts along one side, the far ones first, each with rows of windows and a shop below."""
    ends = np.cumsum(rng.uniform(7, 15, 14)) + 1.0
    for start, stop in reversed(list(pairwise(ends))):
        tall = rng.uniform(7, 20)
        front = rng.uniform(90, 205) * np.array([1.0, rng.uniform(0.82, 1.0), rng.uniform(0.68, 0.98)])
        canvas.clear = float(np.exp(-start / 70))

        def wall(z: tuple[float, float], y: tuple[float, float], colour: np.ndarray) -> None:
            corners = [(x, y[0], z[0]), (x, y[0], z[1]), (x, y[1], z[1]), (x, y[1], z[0])]
            canvas.polygon(camera.project(np.array(corners)), colour)

        wall((start, stop), (0, tall), front)
        # the wall that faces us, seen where the next house is lower
        gable = np.array([(x, 0, start), (x * 2.2, 0, start), (x * 2.2, tall, start), (x, tall, start)])
        canvas.polygon(camera.project(gable), front * 0.8)
        glass = np.array([62.0, 74, 92]) * rng.uniform(0.7, 1.5)
        for storey in np.arange(3.6, tall - 1.6, 3.0):
            for z in np.arange(start + 0.8, stop - 1.4, 2.2):
                wall((z - 0.1, z + 1.3), (storey - 0.1, storey + 1.7), front * 1.15)
                wall((z, z + 1.2), (storey, storey + 1.6), glass * rng.uniform(0.7, 1.5))
        wall((start + 0.5, stop - 0.5), (0.3, 2.6), glass * 0.8)
        wall((start + 0.4, stop - 0.4), (2.6, 3.1), rng.uniform(30, 210, 3))


def _draw_crowd(
    canvas: Canvas, rng: np.random.Generator, camera: Camera, half: float, width: int, height: int, people: int
) -> np.ndarray:
    nearest = camera.focal * camera.height / (1.12 * height - camera.horizon)
    farthest = camera.focal * 1.7 / 20  # where a grown person is 20 px tall
    spots = _spots(rng, camera, half, width, people, nearest, farthest)
    things = [(z, x, True) for x, z in spots]
    for z in rng.uniform(nearest * 1.5, farthest, rng.integers(3, 8)):
        things.append((z, half * float(rng.choice([-0.72, 0.72])), False))
    found: list[Drawn] = []
    canvas.peopled = True
    for z, x, is_person in sorted(things, reverse=True):
        foot = camera.project(np.array([(x, 0.0, z)]))[0]
        canvas.clear = float(np.exp(-z / 110))
        if is_person:
            found.append(draw_person(canvas, rng, foot, camera.focal / z, len(found) + 1))
        else:
            canvas.who = 0
            _draw_post(canvas, rng, foot, camera.focal / z)
    seen = np.bincount(canvas.owner.ravel(), minlength=2 * len(found) + 1)
    boxes = []
    for k, drawn in enumerate(found, 1):
        head_seen = seen[2 * k] / max(drawn.head_area, 1)
        body_seen = (seen[2 * k - 1] + seen[2 * k]) / max(drawn.body_area, 1)
        if not drawn.body_area or (head_seen < 0.5 and body_seen < 0.3):
            continue
        boxes.append([0, *drawn.body_xyxy])
        if drawn.head_area and head_seen >= 0.4:
            boxes.append([1, *drawn.head_xyxy])
    return np.array(boxes, float).reshape(-1, 5)


def _spots(
    rng: np.random.Generator, camera: Camera, half: float, width: int, people: int, nearest: float, farthest: float
) -> list[tuple[float, float]]:
    """Where people stand, in metres (x, z): anywhere in view, often in pairs, nobody inside somebody else."""
    spots: list[tuple[float, float]] = []
    for _ in range(40 * people):
        if len(spots) >= people:
            break
        if spots and rng.random() < 0.35:
            x, z = spots[-1][0] + rng.uniform(-0.9, 0.9), spots[-1][1] + rng.uniform(-0.6, 0.6)
        else:
            z = float(np.exp(rng.uniform(np.log(nearest), np.log(farthest))))
            left, right = (np.array([0.0, width]) - camera.centre_x) * z / camera.focal
            x = rng.uniform(max(left, 0.4 - half), min(right, half - 0.4))
        free = all(np.hypot(x - other_x, (z - other_z) * 0.7) > 0.45 for other_x, other_z in spots)
        if free and nearest <= z <= farthest and abs(x) < half - 0.3:
            spots.append((float(x), float(z)))
    return spots


def _draw_post(canvas: Canvas, rng: np.random.Generator, foot: np.ndarray, metre: float) -> None:
    """A tree or a street lamp: tall thin things that are no people, and hide some."""
    tall = rng.uniform(4.5, 6.0) * metre
    top = foot - [0, tall]
    if rng.random() < 0.5:
        canvas.limb(np.array([foot, top]), np.array([0.14, 0.09]) * metre, np.array([78.0, 62, 48]))
        for _ in range(9):
            centre = top + rng.normal(0, 0.5, 2) * metre
            leaf = np.array([58.0, 96, 46]) * rng.uniform(0.7, 1.3)
            canvas.ellipse(centre, rng.uniform(0.5, 0.9, 2) * metre, leaf)
    else:
        grey = np.array([58.0, 60, 64])
        canvas.limb(np.array([foot, top]), np.array([0.07, 0.05]) * metre, grey)
        canvas.limb(np.array([top, top + np.array([0.8 * metre, 0])]), np.array([0.05, 0.05]) * metre, grey)
        canvas.ellipse(
            top + np.array([0.8 * metre, 0.05 * metre]), np.array([0.25, 0.1]) * metre, np.array([232.0, 228, 200])
        )
