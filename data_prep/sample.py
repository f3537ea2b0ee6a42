"""A synthetic crowd dataset in the YOLO layout: `make_sample(out, 64, 16)`, or `python -m data_prep sample OUT`.

It holds what real datasets hold: perspective, occlusion, things that are nobody, and the cases of `ROLES`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from recipe.schema import CLASS_NAMES, UserError

SIZES = ((1280, 720), (1024, 768), (720, 1280), (1280, 853), (768, 1024), (960, 640))  # width, height
# Of the first images, where there are eight; only train has the dense one, with more boxes than DETR has queries.
ROLES = ("", "no label file", "empty label file", "over the border", "rotated", "square", "dense")
PEOPLE = {"no label file": 0, "empty label file": 0, "dense": 240}
THINGS = 6  # crates in a picture


def make_sample(out: Path, train: int, val: int, seed: int = 0) -> None:
    """Write `train` + `val` pictures, their label files and data.yaml. The same arguments give the same bytes."""
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: give a new folder, or delete it with `rm -r {out}`")
    for number, (split, images, roles) in enumerate((("train", train, ROLES), ("val", val, ROLES[:-1]))):
        for folder in ("images", "labels"):
            (out / folder / split).mkdir(parents=True)
        for index in range(images):
            role = roles[index] if images >= 8 and index < len(roles) else ""
            size = (900, 900) if role == "square" else SIZES[index % len(SIZES)]
            rng = np.random.default_rng([seed, number, index])
            pixels, boxes = draw_crowd(rng, *size, PEOPLE.get(role, int(rng.integers(6, 70))))
            exif = Image.Exif()
            if role == "rotated":  # a camera held upright stores the picture lying and notes that it must be turned
                exif[0x0112] = 6
                pixels = np.rot90(pixels)
            name = f"{split}/{split}_{index:05d}"
            Image.fromarray(pixels).save(out / f"images/{name}.jpg", quality=90, exif=exif)
            if role == "over the border":
                boxes[boxes[:, 4].argmax(), 4] = 1.1 * size[1]  # as annotators do who draw the part outside too
            if role != "no label file":
                category, corner, opposite = boxes[:, :1], boxes[:, 1:3], boxes[:, 3:]
                rows = np.hstack([category, (corner + opposite) / 2 / size, (opposite - corner) / size])
                np.savetxt(out / f"labels/{name}.txt", rows, fmt="%d" + 4 * " %.6f")
    (out / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(CLASS_NAMES)}]\n")


def draw_crowd(rng: np.random.Generator, width: int, height: int, people: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture [height, width, 3] RGB and its boxes [n, 5]: class (0 person, 1 head), x1, y1, x2, y2 in pixels.

    Who is nearer is larger, stands lower and hides others; of whom less than a quarter is seen has no box.
    """
    horizon = height * rng.uniform(0.15, 0.3)
    picture = Image.new("RGB", (width, height), (150, 185, 225))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, horizon, width, height), (120, 118, 115))
    steep = rng.uniform(0.3, 0.5) if people < 150 else 0.16  # a person's height over the rows from horizon to foot
    tallest = min((1.1 * height - horizon) * steep, 0.3 * height)
    talls = np.sort(np.exp(rng.uniform(np.log(28), np.log(tallest), people + THINGS)))  # the far ones first
    things = rng.choice(len(talls), THINGS, replace=False)
    drawn = [
        _draw_upright(draw, rng, rng.uniform(0, width), horizon + tall / steep, tall, number not in things)
        for number, tall in enumerate(talls)
    ]
    boxes, hidden = [], np.zeros((height, width), bool)
    for number, two in reversed(list(enumerate(drawn))):  # the near ones first; all of it and its upper part
        two = np.clip(two, 0, [width, height, width, height])
        areas = [np.s_[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] for x1, y1, x2, y2 in two]
        seen = [1 - hidden[area].mean() for area in areas]
        if number not in things:
            boxes += [[category, *two[category]] for category in (0, 1) if max(seen[category:]) > 0.25]
        hidden[areas[0]] = True
    noise = rng.normal(0, rng.uniform(2, 6), (height, width, 1))
    pixels = np.clip(np.asarray(picture) * rng.uniform(0.85, 1.1) + noise, 0, 255).astype(np.uint8)
    return pixels, np.array(boxes, float).reshape(-1, 5)


def _draw_upright(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, foot: float, tall: float, is_person: bool
) -> np.ndarray:
    """A person, or a crate of the same size and colours. Returns person and head [2, 4] xyxy."""
    shirt, trousers, skin = (tuple(rng.integers(low, low + 100, 3).tolist()) for low in (30, 20, 140))
    half, top, hip, neck = rng.uniform(0.13, 0.2) * tall, foot - tall, foot - 0.47 * tall, foot - 0.85 * tall
    head = (x - 0.06 * tall, top, x + 0.06 * tall, neck)
    if is_person:
        for side in (-0.7, 0.3):
            draw.rectangle((x + side * half, hip, x + (side + 0.4) * half, foot), trousers)
        draw.rounded_rectangle((x - half, neck, x + half, hip), 0.1 * tall, shirt)
        draw.ellipse(head, skin)
    else:
        draw.rectangle((x - half, top, x + half, foot), trousers)
        draw.rectangle((x - half, neck, x + half, hip), shirt)
    return np.array([(x - half, top, x + half, foot), head])
