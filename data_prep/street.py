"""Draw a street with a crowd, seen by a pinhole camera above the heads: `draw_street(rng, width, height, people)`.

Not photographs, but with what makes crowds hard: perspective from 200 px down to 20 px, occlusion, varied clothes and
poses, things that are no people (trees, windows), haze, noise. Everything follows from the generator given.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from data_prep.canvas import SCALE, Canvas
from data_prep.person import draw_person

SKIES = np.array(
    [(120, 165, 215, 215, 228, 238), (168, 176, 186, 214, 216, 218), (96, 100, 150, 238, 190, 150)], float
)


def draw_street(rng: np.random.Generator, width: int, height: int, people: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture [height, width, 3] RGB and its boxes [n, 5]: class (0 person, 1 head), x1, y1, x2, y2 in pixels.

    Persons that are almost wholly hidden get no box, nor do heads that are.
    """
    packed = people >= 150  # then we look from higher up, onto a wider street
    focal = rng.uniform(0.85, 1.15) * (0.75 * height + 0.25 * width) * (1.0 if width >= height else 0.85)
    centre = np.array([width * rng.uniform(0.4, 0.6), height * rng.uniform(0.2, 0.34)])
    canvas = Canvas(width, height, focal, centre, rng.uniform(7.0, 8.0) if packed else rng.uniform(3.0, 5.0))
    half = 11.0 if packed else rng.uniform(6.0, 10.0)  # m, from the middle of the street to the walls
    _draw_surroundings(canvas, rng, half)
    nearest = focal * canvas.above / (1.12 * height - centre[1])
    farthest = focal * 1.7 / 20  # where a grown person is 20 px tall
    ahead = np.exp(rng.uniform(np.log(nearest), np.log(farthest), people))
    left, right = ((edge - centre[0]) * ahead / focal for edge in (0, width))
    aside = rng.uniform(np.maximum(left, 0.4 - half), np.minimum(right, half - 0.4))
    things = [(z, x, True) for z, x in zip(ahead, aside, strict=True)]
    things += [(z, half * rng.choice([-0.72, 0.72]), False) for z in rng.uniform(1.5 * nearest, farthest, 5)]
    drawn = 0
    for z, x, is_person in sorted(things, reverse=True):  # the far ones first
        canvas.clear = float(np.exp(-z / 110))
        foot = canvas.project((x, 0, z))[0]
        if is_person:
            drawn += 1
            draw_person(canvas, rng, foot, focal / z, drawn)
        else:
            _draw_tree(canvas, rng, foot, focal / z)
    return _develop(canvas, rng), _boxes(canvas, drawn)


def _boxes(canvas: Canvas, people: int) -> np.ndarray:
    """Class and xyxy of whom enough is seen. A body fills about half of its box, a head three quarters."""
    size = np.array(canvas.owner.shape[::-1]) / SCALE
    seen = np.bincount(canvas.owner.ravel(), minlength=2 * people + 1) / SCALE**2
    boxes = []
    for body in range(1, 2 * people, 2):
        head_points = np.concatenate(canvas.outlines[body + 1])
        points = np.concatenate([*canvas.outlines[body], head_points])
        xyxy, head_xyxy = (np.clip([p.min(axis=0), p.max(axis=0)], 0, size).ravel() for p in (points, head_points))
        area, head_area = ((box[2] - box[0]) * (box[3] - box[1]) + 1e-9 for box in (xyxy, head_xyxy))
        head_seen = seen[body + 1] / head_area
        if head_seen > 0.35 or (seen[body] + seen[body + 1]) / area > 0.15:
            boxes += [[0, *xyxy]] + ([[1, *head_xyxy]] if head_seen > 0.3 else [])
    return np.array(boxes, float).reshape(-1, 5)


def _develop(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """What a camera adds: softness, light, noise."""
    picture = cv2.resize(canvas.pixels, None, fx=1 / SCALE, fy=1 / SCALE, interpolation=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.35, 0.7))
    light = rng.uniform(0.85, 1.1) * rng.uniform(0.95, 1.05, 3)
    noise = rng.uniform(2.0, 5.0) * rng.standard_normal((*picture.shape[:2], 1), np.float32)
    return np.clip(picture * light.astype(np.float32) + noise, 0, 255).astype(np.uint8)


def _draw_surroundings(canvas: Canvas, rng: np.random.Generator, half: float) -> None:
    """Sky, road and pavements, and along both sides a row of houses, the far ones first."""
    sky = rng.choice(SKIES).reshape(2, 3)  # above, and at the horizon
    canvas.haze = sky[1]
    horizon = int(canvas.centre[1] * SCALE)
    down = np.linspace(0, 1, horizon)[:, None]
    near = np.linspace(0, 1, len(canvas.pixels) - horizon)[:, None] ** 0.5
    road = np.array([92.0, 92, 96]) * rng.uniform(0.8, 1.4)
    column = np.concatenate([sky[0] * (1 - down) + sky[1] * down, sky[1] * 0.7 * (1 - near) + road * near])
    canvas.pixels[:] = column[:, None]
    kerb = half * rng.uniform(0.5, 0.7)
    for z in np.arange(54.0, 1.0, -6.0):  # the broken line
        canvas.slab((-0.08, 0, z), (0.08, 0, z + 2), road * 2)
    for side in (-1, 1):
        canvas.slab((side * kerb, 0, 1), (side * half, 0, 150), road * 1.25)
        canvas.slab((side * kerb, 0, 1), (side * (kerb + 0.25), 0, 150), road * 1.6)
        ends = np.cumsum(rng.uniform(7, 15, 14)) + 1.0
        for start, stop in reversed(list(pairwise(ends))):
            canvas.clear = float(np.exp(-start / 70))
            _draw_house(canvas, rng, side * half, start, stop)


def _draw_house(canvas: Canvas, rng: np.random.Generator, x: float, start: float, stop: float) -> None:
    """A front from `start` to `stop` metres ahead, with rows of windows and a shop below."""
    tall, out = rng.uniform(7, 20), x * 2.2
    front = rng.uniform(90, 205) * np.array([1.0, rng.uniform(0.82, 1.0), rng.uniform(0.68, 0.98)])
    glass = np.array([62.0, 74, 92]) * rng.uniform(0.7, 1.5)
    canvas.slab((x, 0, start), (x, tall, stop), front)
    # the wall that faces us is seen where the next house is lower
    canvas.polygon(canvas.project((x, 0, start), (out, 0, start), (out, tall, start), (x, tall, start)), front * 0.8)
    for storey in np.arange(3.6, tall - 1.6, 3.0):
        for z in np.arange(start + 0.8, stop - 1.4, 2.2):
            canvas.slab((x, storey, z), (x, storey + 1.6, z + 1.2), glass * rng.uniform(0.7, 1.5))
    canvas.slab((x, 0.3, start + 0.5), (x, 2.6, stop - 0.5), glass * 0.8)
    canvas.slab((x, 2.6, start + 0.4), (x, 3.1, stop - 0.4), rng.uniform(30, 210, 3))


def _draw_tree(canvas: Canvas, rng: np.random.Generator, foot: np.ndarray, metre: float) -> None:
    """A tall thin thing that is nobody, and hides some."""
    top = foot - [0, rng.uniform(4.5, 6.0) * metre]
    canvas.limb(np.array([foot, top]), 0.11 * metre, np.array([78.0, 62, 48]))
    for _ in range(9):
        leaf = np.array([58.0, 96, 46]) * rng.uniform(0.7, 1.3)
        canvas.ellipse(top + rng.normal(0, 0.5, 2) * metre, rng.uniform(0.5, 0.9, 2) * metre, leaf)
