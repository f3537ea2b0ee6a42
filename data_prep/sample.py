"""A synthetic crowd dataset in the YOLO layout: `make_sample(...)`, or `python -m data_prep sample OUT`.

It holds what real datasets hold, so that everything after it is exercised: landscape, portrait, square and rotated
(EXIF) photographs, streets without people and with or without a label file, a box over the border, and an image with
more boxes than DETR has queries.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.street import draw_street
from recipe.schema import CLASS_NAMES, UserError

SIZES = ((1280, 720), (1024, 768), (720, 1280), (1280, 853), (768, 1024), (960, 640))  # width, height
ROLES = {1: "no label file", 2: "empty label file", 3: "over the border", 4: "rotated", 5: "square", 6: "dense"}
ROLES_FROM = 8  # images; a smaller split is plain
DENSE = 200  # people drawn so that more than 300 boxes are seen


def make_sample(out: Path, train: int, val: int, seed: int = 0) -> None:
    """Write `train` + `val` pictures, their label files and data.yaml. The same arguments give the same bytes.

    An image depends on the seed, its split and its number alone, so a larger sample holds the smaller one
    (from `ROLES_FROM` images on).

    Raises:
        UserError: `out` is not a new or empty folder, or cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: give a new folder, or delete it with `rm -r {out}`")
    try:
        for number, (split, images) in enumerate((("train", train), ("val", val))):
            for folder in ("images", "labels"):
                (out / folder / split).mkdir(parents=True, exist_ok=True)
            for index in range(images):
                rng = np.random.default_rng([seed, number, index])
                size, role = SIZES[index % len(SIZES)], _role(split, images, index)
                _write_example(out, split, f"{split}_{index:05d}", rng, size, role)
        names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASS_NAMES))
        (out / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error.strerror or error}; give a folder on a disk with room"
        ) from error


def _role(split: str, images: int, index: int) -> str:
    if images < ROLES_FROM or (split == "val" and ROLES.get(index) == "dense"):
        return ""
    return ROLES[1] if index % 24 == 1 else ROLES.get(index, "")


def _write_example(
    out: Path, split: str, stem: str, rng: np.random.Generator, size: tuple[int, int], role: str
) -> None:
    width, height = (900, 900) if role == "square" else size
    people = {"no label file": 0, "empty label file": 0, "dense": DENSE}.get(role, int(rng.integers(6, 70)))
    picture, boxes = draw_street(rng, width, height, people)
    exif = Image.Exif()
    if role == "rotated":  # a camera held upright stores the picture lying and notes that it must be turned
        exif[0x0112] = 6
        picture = np.ascontiguousarray(np.rot90(picture))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90, exif=exif)
    (out / "images" / split / f"{stem}.jpg").write_bytes(buffer.getvalue())
    if role != "no label file":
        if role == "over the border" and len(boxes):
            boxes[boxes[:, 4].argmax(), 4] = 1.1 * height  # as annotators do who draw the part outside too
        (out / "labels" / split / f"{stem}.txt").write_text(_label_text(boxes, width, height))


def _label_text(boxes: np.ndarray, width: int, height: int) -> str:
    lines = []
    for category, x1, y1, x2, y2 in boxes:
        shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        lines.append(f"{int(category)} " + " ".join(f"{share:.6f}" for share in shares) + "\n")
    return "".join(lines)
