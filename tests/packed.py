"""Tiny packed folders for the tests: images drawn on the spot, written as `data_prep pack` writes them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from recipe.schema import arrow_schema


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 95} | options if kind == "JPEG" else options))
    return file.getvalue()


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:  # uint8 [H, W, 3]
    """Smooth noise over several scales: as compressible as a photograph, and no two places alike."""
    import cv2

    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120, np.float32)
    for cells, strength in ((6, 50), (24, 30), (96, 15)):
        noise = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        image += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).astype(np.uint8)


def row(
    image_id: int, height: int, width: int, boxes_xywh: Any = (), labels: Any = None, data: bytes | None = None
) -> dict[str, Any]:
    """One row of a shard."""
    boxes = [[float(value) for value in box] for box in boxes_xywh]
    data = data if data is not None else encoded(photograph(height, width, seed=image_id))
    return {
        "image": {"bytes": data, "path": f"{image_id}.jpg"},
        "image_id": image_id,
        "width": width,
        "height": height,
        "objects": {
            "id": list(range(len(boxes))),
            "bbox": boxes,
            "area": [w * h for _, _, w, h in boxes],
            "category": list(labels) if labels is not None else [0] * len(boxes),
            "iscrowd": [0] * len(boxes),
        },
    }


def write(folder: Path, rows: list[dict[str, Any]], split: str = "train", shards: int = 1) -> Path:
    """Write rows as DIR/data/SPLIT-0000i-of-0000n.parquet and return DIR."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    size = -(-max(len(rows), 1) // shards)
    for shard in range(shards):
        schema = arrow_schema(labelled=any("labelled" in row for row in rows))
        table = pa.Table.from_pylist(rows[shard * size : (shard + 1) * size], schema=schema)
        pq.write_table(table, folder / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet", row_group_size=4)
    return folder


def crowd(count: int, *, portrait_every: int = 3, size: tuple[int, int] = (120, 180), boxes: int = 4) -> list[Any]:
    """Rows of small landscape images, each third one portrait, with random boxes of both classes."""
    rng = np.random.default_rng(7)
    rows = []
    for image_id in range(count):
        height, width = size[::-1] if image_id % portrait_every == 0 else size
        corner = rng.uniform(0, [width * 0.7, height * 0.7], (boxes, 2))
        extent = rng.uniform(5, [width * 0.3, height * 0.3], (boxes, 2))
        rows.append(row(image_id, height, width, np.hstack([corner, extent]), rng.integers(0, 2, boxes).tolist()))
    return rows
