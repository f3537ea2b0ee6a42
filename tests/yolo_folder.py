"""A small YOLO folder for the tests of data_prep, made on the spot."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(width: int = 64, height: int = 48, *, form: str = "JPEG", orientation: int = 0, seed: int = 0) -> bytes:
    """An image file of noise, with an EXIF orientation if one is given."""
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(buffer, form, exif=exif)
    return buffer.getvalue()


def write_folder(
    root: Path,
    train: dict[str, tuple[bytes, str | bytes | None]],
    val: dict[str, tuple[bytes, str | bytes | None]] | None = None,
    *,
    names: str = "[person, head]",
    layout: str = "images/{split}",
) -> Path:
    """`train` and `val` map an image's file name to its bytes and its label text (None: no label file)."""
    val = {"v.jpg": (picture(seed=99), "0 0.5 0.5 0.5 0.5\n")} if val is None else val
    for split, examples in (("train", train), ("val", val)):
        images = root / layout.format(split=split)
        labels = root / layout.format(split=split).replace("images", "labels")
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for name, (data, text) in examples.items():
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            (images / name).write_bytes(data)
            if text is not None:
                label = (labels / name).with_suffix(".txt")
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_bytes(text if isinstance(text, bytes) else text.encode())
    where = [f"{split}: {layout.format(split=split)}\n" for split in ("train", "val")]
    (root / "data.yaml").write_text("".join(where) + f"names: {names}\n")
    return root
