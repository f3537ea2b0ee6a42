"""Augmentation of crowds: a flip, a mild affine transformation, a light change of colour; never a crop.

    transform = draw(config, generator(seed, epoch, index), height, width)

Everything is drawn from (seed, epoch, index) alone, so an image's augmentation is another in each epoch and the same
whatever the number of workers and after a resume. The geometry is one matrix, by which pixels and boxes both go.
Coordinates are continuous: pixel i covers [i, i + 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recipe.config import Config

COLOR_RANGE = 0.1  # light: brightness and contrast by a tenth to either side
MIN_BOX = 1.0  # pixels of the resized image that must remain of a box


@dataclass(frozen=True)
class Transform:
    """What happens to one image after its resize.

    `matrix` maps [x, y, 1] of the resized image to its place in the same frame, a flip included, or is None when no
    affine was drawn: then `flip` says it all. `gain` and `bias` change the colour: v * gain + bias.
    """

    flip: bool = False
    matrix: np.ndarray | None = None  # float64 [2, 3]
    gain: float = 1.0
    bias: float = 0.0


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch: counter-based, so neighbouring seeds share nothing."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, index))))


def draw(config: Config, rng: np.random.Generator, height: int, width: int) -> Transform:
    """Draw the augmentation of one image whose resized size is (height, width).

    The same count of numbers is drawn whatever is chosen, so that one probability changes nothing else.
    """
    chance = rng.random(3)
    rotate, shear_x, shear_y, shift_x, shift_y, zoom, contrast, brightness = rng.uniform(-1, 1, 8)
    flip = bool(chance[0] < config.hflip)
    matrix = None
    if chance[1] < config.affine:
        middle, spread = (config.scale_max + config.scale_min) / 2, (config.scale_max - config.scale_min) / 2
        linear = _linear(
            config.rotate * rotate, config.shear * shear_x, config.shear * shear_y, middle + spread * zoom
        )
        if flip:
            linear = linear @ np.diag([-1.0, 1.0])
        center = np.array([width / 2, height / 2])
        shift = config.translate * np.array([shift_x * width, shift_y * height])
        matrix = np.column_stack([linear, center + shift - linear @ center])
    if chance[2] < config.color:
        gain = 1 + COLOR_RANGE * contrast
        return Transform(flip, matrix, gain, 128 * (1 - gain) + 255 * COLOR_RANGE * brightness)
    return Transform(flip, matrix)


def _linear(rotate: float, shear_x: float, shear_y: float, scale: float) -> np.ndarray:  # degrees -> [2, 2]
    angle = math.radians(rotate)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1, math.tan(math.radians(shear_x))], [math.tan(math.radians(shear_y)), 1]])
    return scale * rotation @ shear


def move_boxes(boxes_xyxy: np.ndarray, transform: Transform, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Take boxes along with the pixels.

    A box becomes the box of its inscribed ellipse after the transformation: a person fills an ellipse better than a
    rectangle, and the box of the rectangle's turned corners grows by a sixth at 5 degrees. In closed form, a
    half-axis of the new box is the norm of the matrix row weighted by the old half-axes.

    Args:
        boxes_xyxy: float [n, 4] in pixels of the resized image.

    Returns:
        The boxes that remain, clipped to the frame, and the mask [n] of which those are. Where no affine was drawn
        all boxes remain.
    """
    keep = np.ones(len(boxes_xyxy), dtype=bool)
    if transform.matrix is None:
        if transform.flip:
            boxes_xyxy = np.stack(
                [width - boxes_xyxy[:, 2], boxes_xyxy[:, 1], width - boxes_xyxy[:, 0], boxes_xyxy[:, 3]], axis=1
            )
        return boxes_xyxy, keep
    linear, shift = transform.matrix[:, :2], transform.matrix[:, 2]
    center = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2 @ linear.T + shift  # [n, 2]
    half = np.sqrt(((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / 2) ** 2 @ (linear**2).T)  # [n, 2]
    moved = np.concatenate([center - half, center + half], axis=1).clip(0, [width, height, width, height])
    keep = ((moved[:, 2:] - moved[:, :2]) >= MIN_BOX).all(axis=1)
    return moved[keep], keep
