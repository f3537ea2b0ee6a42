"""A synthetic crowd dataset in the YOLO layout: `make_sample(out, 64, 16)`, or `python -m data_prep sample OUT`.

It holds what real datasets hold, so that everything after it is exercised: perspective, occlusion, things that are
nobody, landscape, portrait, square and rotated (EXIF) photographs, no people, no label file, a box over the border,
and an image with more boxes than DETR has queries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from recipe.schema import CLASS_NAMES, UserError

SIZES = ((1280, 720), (1024, 768), (720, 1280), (1280, 853), (768, 1024), (960, 640))  # width, height
ROLES = {1: "no label file", 2: "empty label file", 3: "over the border", 4: "rotated", 5: "square", 6: "dense"}
ROLES_FROM = 8  # images; a smaller split is plain
PEOPLE = {"no label file": 0, "empty label file": 0, "dense": 240}
SKIN = ((236, 200, 172), (222, 178, 140), (188, 138, 100), (140, 96, 66), (92, 62, 44))
THINGS = 6  # trees and lamps in a picture
FINE = 2  # drawn at twice the size, for smooth edges


def make_sample(out: Path, train: int, val: int, seed: int = 0) -> None:
    """Write `train` + `val` pictures, their label files and data.yaml. The same arguments give the same bytes.

    Raises:
        UserError: `out` is not a new or empty folder, or cannot be written.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is not empty: give a new folder, or delete it with `rm -r {out}`")
        for number, (split, images) in enumerate((("train", train), ("val", val))):
            for folder in ("images", "labels"):
                (out / folder / split).mkdir(parents=True)
            for index in range(images):
                role = ROLES.get(index, "") if images >= ROLES_FROM else ""
                role = "" if role == "dense" and split == "val" else role  # one such image, in train
                rng = np.random.default_rng([seed, number, index])
                _write_example(out, f"{split}/{split}_{index:05d}", rng, SIZES[index % len(SIZES)], role)
        names = ", ".join(CLASS_NAMES)
        (out / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [{names}]\n")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; give a folder on a disk with room") from error


def _write_example(out: Path, name: str, rng: np.random.Generator, size: tuple[int, int], role: str) -> None:
    width, height = (900, 900) if role == "square" else size
    pixels, boxes = draw_crowd(rng, width, height, PEOPLE.get(role, int(rng.integers(6, 70))))
    exif = Image.Exif()
    if role == "rotated":  # a camera held upright stores the picture lying and notes that it must be turned
        exif[0x0112] = 6
        pixels = np.rot90(pixels)
    Image.fromarray(pixels).save(out / "images" / f"{name}.jpg", quality=90, exif=exif)
    if role == "over the border":
        boxes[boxes[:, 4].argmax(), 4] = 1.1 * height  # as annotators do who draw the part outside too
    if role != "no label file":
        category, corner, opposite = boxes[:, :1], boxes[:, 1:3], boxes[:, 3:]
        rows = np.hstack([category, (corner + opposite) / 2 / [width, height], (opposite - corner) / [width, height]])
        np.savetxt(out / "labels" / f"{name}.txt", rows, fmt=["%d"] + ["%.6f"] * 4)


def draw_crowd(rng: np.random.Generator, width: int, height: int, people: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture [height, width, 3] RGB and its boxes [n, 5]: class (0 person, 1 head), x1, y1, x2, y2 in pixels.

    Who is nearer is larger, stands lower and hides others; of whom less than a quarter is seen has no box.
    """
    size = np.array([width, height]) * FINE
    horizon = size[1] * rng.uniform(0.15, 0.3)
    picture = Image.new("RGB", tuple(size.tolist()), (150, 185, 225))
    draw = ImageDraw.Draw(picture)
    _draw_square(draw, rng, size[0], size[1], horizon)
    steep = rng.uniform(0.3, 0.5) if people < 150 else 0.16  # a person's height over the rows from horizon to foot
    tallest = min((1.1 * size[1] - horizon) * steep, 0.3 * size[1])
    talls = np.sort(np.exp(rng.uniform(np.log(28 * FINE), np.log(tallest), people + THINGS)))  # the far ones first
    things = rng.choice(len(talls), THINGS, replace=False)
    drawn = []
    for number, tall in enumerate(talls):
        foot = rng.uniform(0, size[0]), horizon + tall / steep
        drawn.append((_draw_thing if number in things else _draw_person)(draw, rng, *foot, tall))
    boxes, hidden = [], np.zeros(size[::-1], bool)
    for number, two in reversed(list(enumerate(drawn))):  # the near ones first; person and head, or crown and post
        two = np.clip(two, 0, np.tile(size, 2))
        areas = [np.s_[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] for x1, y1, x2, y2 in two]
        seen = [1 - hidden[area].mean() for area in areas]
        if number not in things:
            boxes += [[category, *two[category]] for category in (0, 1) if max(seen[category:]) > 0.25]
        for area in areas:
            hidden[area] = True
    noise = rng.normal(0, rng.uniform(2, 6), (height, width, 1))
    pixels = np.clip(np.asarray(picture.reduce(FINE)) * rng.uniform(0.85, 1.1) + noise, 0, 255).astype(np.uint8)
    return pixels, np.array(boxes, float).reshape(-1, 5) / [1, FINE, FINE, FINE, FINE]


def _draw_square(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: float, height: float, horizon: float
) -> None:
    """Houses with windows, and paving stones that run to the horizon."""
    draw.rectangle((0, horizon, width, height), _colour(rng, 95, 150, grey=True))
    for end in np.linspace(-2, 3, 40) * width:
        draw.line((width / 2, horizon, end, height), _colour(rng, 90, 110, grey=True), FINE)
    left, foot = 0.0, horizon + 0.03 * height
    while left < width:
        wide, high = rng.uniform(0.06, 0.2) * width, rng.uniform(0.5, 1.2) * horizon
        draw.rectangle((left, foot - high, left + wide, foot), _colour(rng, 110, 200))
        for x in left + wide * np.linspace(0.1, 0.75, 4):
            for y in foot - high * np.linspace(0.9, 0.2, 5):
                draw.rectangle((x, y, x + 0.1 * wide, y + 0.1 * high), _colour(rng, 30, 100, grey=True))
        left += wide


def _draw_thing(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, tall: float) -> np.ndarray:
    """A tree or a lamp: it is nobody, though it has something round on top, and it hides some. Covers [2, 4] xyxy."""
    is_tree = rng.random() < 0.6
    top, radius = y - (2.2 if is_tree else 1.5) * tall, (0.5 if is_tree else 0.12) * tall
    post, crown = (x - 0.04 * tall, top, x + 0.04 * tall, y), (x - radius, top - radius, x + radius, top + radius)
    draw.rectangle(post, (78, 64, 50))
    draw.ellipse(crown, (60, int(rng.integers(80, 120)), 48) if is_tree else (200, 190, 150))
    return np.array([crown, post])


def _draw_person(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, tall: float) -> np.ndarray:
    """A person who stands at x, y. Returns person and head [2, 4] xyxy."""

    def at(*points: float) -> list[float]:  # x, y, x, y ... as shares of the height, up from the foot
        return (np.array([x, y] * (len(points) // 2)) + np.resize([tall, -tall], len(points)) * points).tolist()

    shirt, trousers, skin = _colour(rng, 25, 235), _colour(rng, 20, 150), SKIN[rng.integers(len(SKIN))]
    stride, reach, wide = rng.uniform(0.02, 0.11), rng.uniform(0.13, 0.2), rng.uniform(0.09, 0.13)
    draw.ellipse(at(-0.2, 0.02, 0.2, -0.02), (70, 68, 66))  # the shadow
    for side in (-1, 1):
        draw.line(at(side * 0.045, 0.5, side * stride, 0), trousers, round(0.075 * tall))
        draw.line(at(side * wide, 0.8, side * reach, 0.47), shirt, round(0.055 * tall))
        draw.ellipse(at(side * reach - 0.025, 0.5, side * reach + 0.025, 0.45), skin)
    draw.polygon(at(-wide, 0.82, wide, 0.82, 0.85 * wide, 0.46, -0.85 * wide, 0.46), shirt)
    draw.ellipse(at(-0.06, 1, 0.06, 0.85), skin)
    hair = (180, 360) if rng.random() < 0.6 else (0, 360)  # degrees: from the front, or from behind
    draw.chord(at(-0.06, 1, 0.06, 0.86), *hair, _colour(rng, 20, 90, grey=True))
    return np.array([at(-reach - 0.025, 1, reach + 0.025, 0), at(-0.06, 1, 0.06, 0.85)])


def _colour(rng: np.random.Generator, low: int, high: int, grey: bool = False) -> tuple[int, ...]:
    return tuple(np.resize(rng.integers(low, high, 1 if grey else 3), 3).tolist())
