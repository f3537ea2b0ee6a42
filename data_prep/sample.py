"""A synthetic crowd dataset in the YOLO layout: `make_sample(...)`, or `python -m data_prep sample OUT`.

It holds what real datasets hold, so that everything after it is exercised: landscape, portrait, square and rotated
(EXIF) photographs, streets without people and with or without a label file, a box over the border, and an image with
more boxes than DETR has queries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from data_prep.street import draw_street
from recipe.schema import CLASS_NAMES, SPLITS, UserError

SIZES = ((1280, 720), (1024, 768), (720, 1280), (1280, 853), (768, 1024), (960, 640))  # width, height
ROLES = {1: "no label file", 2: "empty label file", 3: "over the border", 4: "rotated", 5: "square", 6: "dense"}
ROLES_FROM = 8  # images; a smaller split is plain
PEOPLE = {"no label file": 0, "empty label file": 0, "dense": 200}  # 200: more than 300 boxes are seen


def make_sample(out: Path, train: int, val: int, seed: int = 0) -> None:
    """Write `train` + `val` pictures, their label files and data.yaml. The same arguments give the same bytes.

    Raises:
        UserError: `out` is not a new or empty folder, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: give a new folder, or delete it with `rm -r {out}`")
    try:
        for number, (split, images) in enumerate(zip(SPLITS, (train, val), strict=True)):
            for folder in ("images", "labels"):
                (out / folder / split).mkdir(parents=True)
            for index in range(images):
                role = ROLES.get(index, "") if images >= ROLES_FROM else ""
                role = "" if role == "dense" and split == "val" else role  # one such image, in train
                rng = np.random.default_rng([seed, number, index])
                _write_example(out, f"{split}/{split}_{index:05d}", rng, SIZES[index % len(SIZES)], role)
        config = {split: f"images/{split}" for split in SPLITS} | {"names": list(CLASS_NAMES)}
        (out / "data.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; give a folder on a disk with room") from error


def _write_example(out: Path, name: str, rng: np.random.Generator, size: tuple[int, int], role: str) -> None:
    width, height = (900, 900) if role == "square" else size
    picture, boxes = draw_street(rng, width, height, PEOPLE.get(role, int(rng.integers(6, 70))))
    exif = Image.Exif()
    if role == "rotated":  # a camera held upright stores the picture lying and notes that it must be turned
        exif[0x0112] = 6
        picture = np.rot90(picture)
    Image.fromarray(picture).save(out / "images" / f"{name}.jpg", quality=90, exif=exif)
    if role == "over the border":
        boxes[boxes[:, 4].argmax(), 4] = 1.1 * height  # as annotators do who draw the part outside too
    if role != "no label file":
        category, corner, opposite = boxes[:, :1], boxes[:, 1:3], boxes[:, 3:]
        rows = np.hstack([category, (corner + opposite) / 2 / [width, height], (opposite - corner) / [width, height]])
        np.savetxt(out / "labels" / f"{name}.txt", rows, fmt=["%d"] + ["%.6f"] * 4)
