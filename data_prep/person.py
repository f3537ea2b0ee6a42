"""Draw one person: `draw_person(canvas, rng, foot, metre, number)`, for data_prep.street."""

from __future__ import annotations

import numpy as np

from data_prep.canvas import Canvas

SKIN = np.array([(236, 200, 172), (222, 178, 140), (188, 138, 100), (140, 96, 66), (92, 62, 44)], float)
HAIR = np.array([(28, 24, 22), (58, 40, 28), (104, 70, 40), (176, 140, 84), (120, 118, 116), (70, 30, 22)], float)
DARK = np.array([44.0, 42, 44])


def draw_person(canvas: Canvas, rng: np.random.Generator, foot: np.ndarray, metre: float, number: int) -> None:
    """Draw a person who stands at `foot` (x, y in pixels), where a metre is `metre` pixels long.

    The body's pixels and outlines are owned by 2 x number - 1, the head's by 2 x number.
    """
    child = rng.random() < 0.12
    tall = metre * (rng.uniform(1.05, 1.4) if child else rng.normal(1.71, 0.09))
    turn = float(rng.choice([0, 0, 0.5, -0.5, 1, -1]))  # 0 to us or away, 1 to the right
    slim = rng.uniform(0.9, 1.25) * (1 - 0.3 * abs(turn))
    stride = rng.uniform(0.02, 0.13) * (0.4 + 0.6 * abs(turn)) * (1 if turn >= 0 else -1)
    shirt, trousers, skin = _cloth(rng), _cloth(rng) * 0.7, rng.choice(SKIN)
    dress, sleeve = rng.random() < 0.18, shirt if rng.random() < 0.7 else skin

    def at(*points: tuple[float, float]) -> np.ndarray:  # shares of the height: x, and up from the foot
        return foot + np.array(points) * [tall, -tall]

    def arm(side: int, shade: float) -> None:
        start, hand = (side * (shoulder - 0.01), 0.8), (side * (shoulder + 0.01 - stride), 0.48)
        elbow = (side * (shoulder + 0.02 - stride / 2), 0.63)
        canvas.limb(at(start, elbow, hand), 0.026 * tall, sleeve * shade)
        canvas.ellipse(at(hand), 0.022 * tall, skin * shade)

    canvas.ellipse(at((0.03, 0)), np.array([0.17, 0.03]) * tall, DARK * 1.2)  # the shadow is the street's
    canvas.who = 2 * number - 1
    for side, shade in ((-1, 0.78), (1, 1.0)):
        ankle = side * (0.045 * (1 - abs(turn)) + stride)
        leg = at((side * 0.042 * slim, 0.49), (ankle / 2 + 0.02 * turn, 0.27), (ankle, 0.04))
        canvas.limb(leg, 0.037 * tall, (skin if dress else trousers) * shade)
        canvas.limb(at((ankle, 0.02), (ankle + 0.05 * turn + 0.01 * side, 0.015)), 0.02 * tall, DARK)

    shoulder, waist = 0.125 * slim, 0.088 * slim
    hem, flare = (rng.uniform(0.28, 0.36), 0.15 * slim) if dress else (rng.uniform(0.42, 0.5), 0.103 * slim)
    near = 1 if turn >= 0 else -1
    arm(-near, 0.8)
    right = [(0.035, 0.855), (shoulder, 0.82), (shoulder, 0.72), (waist, 0.6), (flare, hem)]
    canvas.polygon(at(*right, *((-x, up) for x, up in reversed(right))), shirt)
    canvas.polygon(
        at(*((-x, up) for x, up in right), (-0.3 * waist, hem)), shirt * 0.8
    )  # the side away from the light
    arm(near, 1.05)
    half = tall * (0.082 if child else rng.uniform(0.064, 0.072))  # of the head's height
    centre = at((0.015 * turn, 1))[0] + [0, half]
    canvas.limb(np.array([at((0, 0.84))[0], centre]), 0.029 * tall, skin * 0.82)
    canvas.who = 2 * number
    _draw_head(canvas, rng, centre, half, turn, skin)
    canvas.who = 0


def _cloth(rng: np.random.Generator) -> np.ndarray:
    return np.clip(rng.uniform(25, 235) + rng.normal(0, rng.choice([8.0, 60.0]), 3), 12, 245)


def _draw_head(
    canvas: Canvas, rng: np.random.Generator, centre: np.ndarray, half: float, turn: float, skin: np.ndarray
) -> None:
    """A head of the half height `half`: from behind, from the front or from the side, with hair or a hat."""

    def part(x: float, y: float, wide: float, high: float, colour: np.ndarray) -> None:
        canvas.ellipse(centre + np.array([x, y]) * half, np.array([wide, high]) * half, colour)

    hair = rng.choice(HAIR)
    if rng.random() < 0.3:  # long hair
        part(0, 0.35, 0.83, 1, hair * 0.9)
    part(0, 0, 0.74, 1, hair)
    if abs(turn) == 1 or rng.random() < 0.5:  # the face
        part(0.3 * turn, 0.22, 0.64, 0.8, skin)
        part(0.45 * turn - 0.26, 0.1, 0.08, 0.08, DARK)
        part(0.45 * turn + 0.26, 0.1, 0.08, 0.08, DARK)
    if rng.random() < 0.18:
        part(0, -0.5, 0.74, 0.55, _cloth(rng))
