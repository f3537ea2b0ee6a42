"""What a trainer needs to know about a dataset: `python -m data_prep inspect YOLO_DIR`, and every dataset card."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from recipe.schema import CLASS_NAMES

SHORTEST, LONGEST = 960, 1536  # px, the training resize
QUERIES = 300
MAX_DETECTIONS = (100, 300)  # COCO's cap per class and image, and the wider one that is reported beside it
SIDES = (8, 16, 32)  # px, bounds for sqrt(area) after the resize


class Statistics:
    """Counts of one split, one image after the other; holds a few bytes per image."""

    def __init__(self) -> None:
        self.images = self.boxes = self.portrait = 0
        self._counts: list[np.ndarray] = []  # [classes] int32 each
        self.sides = np.zeros((len(CLASS_NAMES), len(SIDES) + 1), np.int64)  # [classes, below 8 | 16 | 32 | the rest]

    def add(self, width: int, height: int, bbox_xywh: np.ndarray, category: np.ndarray) -> None:
        """One image: its size in pixels, boxes [n, 4] in pixels, classes [n]."""
        self.images += 1
        self.boxes += len(category)
        self.portrait += height > width
        self._counts.append(np.bincount(category, minlength=len(CLASS_NAMES)).astype(np.int32))
        side = np.sqrt(bbox_xywh[:, 2] * bbox_xywh[:, 3]) * resize_scale(width, height)
        np.add.at(self.sides, (category, np.digitize(side, SIDES)), 1)

    def summary(self) -> dict[str, Any]:
        """Everything as plain numbers, shares between 0 and 1."""
        counts = np.array(self._counts, np.int64).reshape(-1, len(CLASS_NAMES))
        below = np.cumsum(self.sides, axis=1)[:, :-1]  # [classes, sides]
        totals = self.sides.sum(axis=1)
        shares = {
            name: {f"below_{side}_px": _share(below[i, k], totals[i]) for k, side in enumerate(SIDES)}
            for i, name in enumerate(CLASS_NAMES)
        }
        return {
            "images": self.images,
            "landscape": self.images - self.portrait,
            "portrait": self.portrait,
            "box_sizes": shares,
            **crowding(counts),
        }


def crowding(counts: np.ndarray) -> dict[str, Any]:
    """How crowded the images are, and what the query count and maxDets cost. `counts`: boxes, [images, classes]."""
    total = counts.sum(axis=1)  # [images]
    boxes = int(total.sum())
    beyond = {
        f"max_detections_{cap}": {
            "images": int((counts > cap).any(axis=1).sum()),
            "boxes": int(np.maximum(counts - cap, 0).sum()),
        }
        for cap in MAX_DETECTIONS
    }
    return {
        "boxes": boxes,
        "boxes_per_class": {name: int(counts[:, i].sum()) for i, name in enumerate(CLASS_NAMES)},
        "images_without_boxes": int((total == 0).sum()),
        "boxes_per_image": {
            "mean": round(float(total.mean()), 2) if len(total) else 0.0,
            "p95": float(np.percentile(total, 95)) if len(total) else 0.0,
            "max": int(total.max(initial=0)),
        },
        "beyond": {
            "queries": {
                "images": int((total > QUERIES).sum()),
                "boxes": int(np.maximum(total - QUERIES, 0).sum()),
            },
            **beyond,
        },
        "recall_ceiling": _share(np.minimum(total, QUERIES).sum(), boxes, empty=1.0),
    }


def resize_scale(width: int, height: int) -> float:
    """The training resize: shortest side 960, unless the longest would pass 1536."""
    return min(SHORTEST / min(width, height), LONGEST / max(width, height))


def statistics_of_shards(paths: Iterable[Path]) -> Statistics:
    """Read packed shards back, without their images."""
    import pyarrow.parquet as pq

    statistics = Statistics()
    columns = ["width", "height", "objects.bbox", "objects.category"]
    for path in paths:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns).combine_chunks()
                objects = table["objects"].combine_chunks()
                bbox = objects.field("bbox").values.flatten().to_numpy().reshape(-1, 4)
                category = objects.field("category")
                classes = category.values.to_numpy()
                ends = category.offsets.to_numpy()
                sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
                for (width, height), start, end in zip(sizes, ends[:-1], ends[1:], strict=True):
                    statistics.add(width, height, bbox[start:end], classes[start:end])
    return statistics


def _share(part: int, whole: int, empty: float = 0.0) -> float:
    return round(float(part / whole), 4) if whole else empty
