"""Draw one person and say where: `draw_person(canvas, rng, foot, metre, number)`, for data_prep.street."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_prep.canvas import SCALE, Canvas

SKIN = np.array([(236, 200, 172), (222, 178, 140), (188, 138, 100), (140, 96, 66), (92, 62, 44)], float)
HAIR = np.array([(28, 24, 22), (58, 40, 28), (104, 70, 40), (176, 140, 84), (120, 118, 116), (70, 30, 22)], float)


class Drawn(NamedTuple):
    """A person as drawn, before anybody stepped in front: boxes in image pixels, areas in canvas pixels."""

    body_xyxy: list[float]
    head_xyxy: list[float]
    body_area: int
    head_area: int


def draw_person(canvas: Canvas, rng: np.random.Generator, foot: np.ndarray, metre: float, number: int) -> Drawn:
    """Draw a person who stands at `foot` (x, y in pixels), where a metre is `metre` pixels long."""
    child = rng.random() < 0.12
    tall = metre * (rng.uniform(1.05, 1.4) if child else rng.normal(1.71, 0.09))
    head = tall * (0.082 if child else rng.uniform(0.064, 0.072))  # half the head's height
    wide = rng.uniform(0.9, 1.25)
    turn = rng.choice([0.0, 0.0, 0.5, -0.5, 1.0, -1.0])  # 0 to us or away, 1 to the right
    away = bool(rng.random() < 0.5)
    stride = rng.uniform(0.02, 0.13) * (0.4 + 0.6 * abs(turn))
    shirt = _cloth(rng)
    trousers = _cloth(rng) * 0.7
    skin, hair = SKIN[rng.integers(len(SKIN))], HAIR[rng.integers(len(HAIR))]
    light = 1 if rng.random() < 0.5 else -1

    def at(x: float, up: float) -> np.ndarray:  # shares of the height, from the foot
        return foot + np.array([x * tall, -up * tall])

    slim = wide * (1 - 0.3 * abs(turn))
    canvas.who = 0
    clear, canvas.clear = canvas.clear, canvas.clear * 0.9
    canvas.ellipse(at(0.03 * light, 0.0), np.array([0.17, 0.03]) * tall, np.array([48.0, 48, 52]))
    canvas.clear = clear
    canvas.who = 2 * number - 1

    dress = rng.random() < 0.18
    sway = stride * (1 if turn >= 0 else -1)
    leg = skin * 0.95 if dress else trousers
    shoe = rng.uniform(15, 90) * np.ones(3) if rng.random() < 0.8 else np.array([225.0, 225, 225])
    for side, shade in ((-1, 0.78), (1, 1.0)):
        hip, step = side * 0.042 * slim, side * (0.045 * (1 - abs(turn)) + sway)
        lift = 0.03 if side < 0 and stride > 0.06 else 0.0
        ankle = at(step, 0.045 + lift)
        knee = at((hip + step) / 2 + 0.02 * turn, 0.27)
        canvas.limb(np.array([at(hip, 0.49), knee, ankle]), np.array([0.055 * slim, 0.042, 0.027]) * tall, leg * shade)
        toe = ankle + np.array([0.05 * turn + 0.01 * side, 0.03]) * tall
        canvas.limb(np.array([ankle + np.array([0, 0.018 * tall]), toe]), np.array([0.022, 0.02]) * tall, shoe)

    shoulder, waist, hips = 0.125 * slim, 0.088 * slim, 0.098 * slim
    sleeve = skin if rng.random() < 0.3 else shirt
    swing = stride * 1.2

    def arm(side: int) -> None:
        start = at(side * (shoulder - 0.01), 0.805)
        elbow = at(side * (shoulder + 0.018) - swing * side * 0.5, 0.63)
        hand = at(side * (shoulder + 0.01) - swing * side + 0.02 * turn, 0.48 + swing * 0.5)
        shade = 1.05 if side == light else 0.8
        canvas.limb(np.array([start, elbow, hand]), np.array([0.034, 0.027, 0.02]) * tall, sleeve * shade)
        canvas.limb(np.array([start, (start + elbow) / 2]), np.array([0.037, 0.034]) * tall, shirt * shade)
        canvas.ellipse(hand, np.array([0.02, 0.024]) * tall, skin * shade)

    arm(-1 if turn >= 0 else 1)
    hem = rng.uniform(0.28, 0.36) if dress else rng.uniform(0.42, 0.5)
    flare = hips * (1.5 if dress else 1.05)
    outline = [(-0.035, 0.855), (0.035, 0.855), (shoulder, 0.82), (shoulder * 0.97, 0.72), (waist, 0.6), (flare, hem)]
    torso = [at(x, up) for x, up in outline] + [at(-x, up) for x, up in reversed(outline[2:])]
    canvas.polygon(np.array(torso), shirt)
    shadow = [
        (-0.3 * shoulder, 0.85),
        (-shoulder, 0.82),
        (-shoulder * 0.97, 0.72),
        (-waist, 0.6),
        (-flare, hem),
        (-0.4 * waist, hem),
    ]
    canvas.polygon(np.array([at(light * x, up) for x, up in shadow]), shirt * 0.78)
    if rng.random() < 0.3 and not dress:
        stripe = [(-shoulder * 0.95, 0.72), (shoulder * 0.95, 0.72), (waist * 1.02, 0.64), (-waist * 1.02, 0.64)]
        canvas.polygon(np.array([at(x, up) for x, up in stripe]), _cloth(rng))
    if away and rng.random() < 0.35:
        canvas.ellipse(at(0, 0.68), np.array([0.085 * slim, 0.115]) * tall, _cloth(rng) * 0.7)
    arm(1 if turn >= 0 else -1)

    centre = foot - [-0.015 * turn * tall, tall - head]
    canvas.limb(
        np.array([at(0, 0.84), centre + np.array([0, 0.5 * head])]), np.array([0.03, 0.028]) * tall, skin * 0.82
    )
    canvas.who = 2 * number
    _draw_head(canvas, rng, centre, head, turn, away, light, skin, hair)
    return _measure(canvas, foot, tall, number)


def _cloth(rng: np.random.Generator) -> np.ndarray:
    grey = rng.uniform(25, 235)
    return np.clip(grey + rng.normal(0, rng.choice([8.0, 60.0]), 3), 12, 245)


def _draw_head(
    canvas: Canvas,
    rng: np.random.Generator,
    centre: np.ndarray,
    head: float,
    turn: float,
    away: bool,
    light: int,
    skin: np.ndarray,
    hair: np.ndarray,
) -> None:
    """A head of half height `head`: seen from behind, from the front or from the side, with hair or a hat."""
    radii = np.array([0.74, 1.0]) * head
    if rng.random() < 0.3:  # long hair, behind the face
        canvas.ellipse(centre + np.array([0, 0.35 * head]), radii * [1.12, 1.0], hair * 0.9)
    canvas.ellipse(centre, radii, skin)
    canvas.ellipse(centre, radii, skin * 0.85, *((90, 270) if light > 0 else (-90, 90)))
    canvas.ellipse(centre + np.array([0.08 * light * head, 0]), radii * [0.8, 0.98], skin)
    if away and abs(turn) < 1:
        canvas.ellipse(centre - np.array([0, 0.12 * head]), radii * [1.05, 0.95], hair)
    else:
        back = -turn * 0.35 * head
        canvas.ellipse(centre + np.array([back * 0.5, -0.1 * head]), radii * 1.03, hair, 185, 355)
        if turn:
            canvas.ellipse(centre + np.array([back, -0.15 * head]), radii * [0.75, 0.8], hair)
        if head > 5:  # eyes and mouth, where they can be seen
            for side in (-1, 1):
                eye = centre + np.array([side * 0.28 + turn * 0.4, 0.08]) * head
                canvas.ellipse(eye, np.array([0.09, 0.06]) * head, np.array([40.0, 32, 30]))
            canvas.ellipse(centre + np.array([turn * 0.35, 0.55]) * head, np.array([0.22, 0.06]) * head, skin * 0.6)
    if rng.random() < 0.18:
        hat = rng.uniform(20, 230, 3)
        canvas.ellipse(centre - np.array([0, 0.3 * head]), radii * [1.1, 0.8], hat, 180, 360)
        canvas.ellipse(centre + np.array([turn * 0.3, -0.32]) * head, radii * [1.25, 0.14], hat * 0.8)


def _measure(canvas: Canvas, foot: np.ndarray, tall: float, number: int) -> Drawn:
    """Boxes and areas of what was just drawn, read from the canvas."""
    x1, y1 = np.maximum(((foot - np.array([0.6, 1.2]) * tall) * SCALE).astype(int), 0)
    x2, y2 = np.maximum(((foot + np.array([0.6, 0.2]) * tall) * SCALE).astype(int), 0)
    owner = canvas.owner[y1:y2, x1:x2]
    head = owner == 2 * number
    body = head | (owner == 2 * number - 1)
    boxes = []
    for mask in (body, head):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            boxes.append([0.0] * 4)
            continue
        xyxy = np.array([x1 + columns[0], y1 + rows[0], x1 + columns[-1] + 1, y1 + rows[-1] + 1]) / SCALE
        boxes.append(xyxy.tolist())
    return Drawn(boxes[0], boxes[1], int(body.sum()), int(head.sum()))
