"""All boxes of a split in a few flat NumPy arrays, checked once at the border.

    annotations = read(["DIR/data/train-00000-of-00001.parquet"], "train of DIR")

55,442 images with 85 boxes each take 109 MB, once: NumPy memory holds no Python objects, so that forked workers read
the parent's pages and never copy them. As Python dicts the same boxes take 2 GB, and 1.4 GB more in each worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recipe.data.geometry import Geometry
from recipe.schema import CLASS_NAMES, UserError

BORDER = 1.0  # pixels that a box may stand over the border: float32 rounding; `pack` clips the rest
_SHOWN = 5  # image ids named in an error
_IMAGES_AT_A_TIME = 2048
_COLUMNS = ["image_id", "width", "height", *(f"objects.{name}" for name in ("bbox", "category", "area", "iscrowd"))]


@dataclass(frozen=True)
class Annotations:
    """The boxes of n images, T in all; those of image i are rows offsets[i] to offsets[i + 1]."""

    boxes_xywh: np.ndarray  # float32 [T, 4], pixels of the original image after its EXIF orientation
    labels: np.ndarray  # int8 [T]
    area: np.ndarray  # float32 [T]
    iscrowd: np.ndarray  # int8 [T]
    offsets: np.ndarray  # int64 [n + 1]
    image_id: np.ndarray  # int64 [n]
    width: np.ndarray  # int32 [n]
    height: np.ndarray  # int32 [n]

    def __len__(self) -> int:
        return len(self.image_id)

    def rows(self, index: int) -> slice:
        """The rows of the box arrays that belong to image `index`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def targets(self, index: int) -> dict[str, Any]:
        """Ground truth of image `index` as `DetectionMetrics.update` takes it, target_xyxy in original pixels."""
        rows = self.rows(index)
        xyxy = self.boxes_xywh[rows].copy()  # [n, 4]
        xyxy[:, 2:] += xyxy[:, :2]
        return {
            "size": (int(self.height[index]), int(self.width[index])),
            "target_xyxy": xyxy,
            "target_labels": self.labels[rows],
            "target_area": self.area[rows],
            "iscrowd": self.iscrowd[rows],
        }

    @property
    def counts(self) -> np.ndarray:  # int64 [n]
        """Boxes per image."""
        return np.diff(self.offsets)

    @property
    def portrait(self) -> np.ndarray:  # bool [n]
        """Which images lie on the portrait canvas."""
        return self.height > self.width

    def people(self) -> Annotations:
        """Without crowd regions (iscrowd 1): nobody to learn, and nothing to miss."""
        keep = self.iscrowd == 0
        if keep.all():
            return self
        boxes = {name: getattr(self, name)[keep] for name in ("boxes_xywh", "labels", "area", "iscrowd")}
        return replace(self, **boxes, offsets=np.append(0, keep.cumsum())[self.offsets])

    def first(self, count: int) -> Annotations:
        """The first `count` images."""
        end = int(self.offsets[min(count, len(self))])
        boxes = {name: getattr(self, name)[:end] for name in ("boxes_xywh", "labels", "area", "iscrowd")}
        images = {name: getattr(self, name)[:count] for name in ("image_id", "width", "height")}
        return replace(self, **boxes, **images, offsets=self.offsets[: count + 1])


def read(paths: Sequence[str], where: str) -> Annotations:
    """Read every column but the image from Parquet shards, in order, and check the values.

    A few thousand images at a time: the peak is then that of the result, not of all that Arrow makes of it.

    Raises:
        UserError: unequal or empty lists of columns, a class id that is none, a box of no size, with NaN or outside
            its image, image ids that repeat, no images; each with the image ids concerned.
    """
    parts = [
        _part(batch, where)
        for path in paths
        for batch in pq.ParquetFile(path).iter_batches(_IMAGES_AT_A_TIME, columns=_COLUMNS)
    ]
    if not parts:
        raise UserError(f"{where} holds no images: pack a folder that has some, or name another split.")
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0]) if name != "offsets"
    }
    counts = np.concatenate([part.counts for part in parts])
    values, times = np.unique(arrays["image_id"], return_counts=True)
    _refuse(where, values[times > 1], "stands there more than once")
    return Annotations(**arrays, offsets=np.concatenate([[0], np.cumsum(counts)]))


def _part(batch: pa.RecordBatch, where: str) -> Annotations:
    objects = batch["objects"]
    bbox, category, area, iscrowd = (
        pc.struct_field(objects, name) for name in ("bbox", "category", "area", "iscrowd")
    )
    counts = _lengths(bbox)
    ids = _numpy(batch["image_id"])
    for name, column in (("category", category), ("area", area), ("iscrowd", iscrowd)):
        _refuse(where, ids[_lengths(column) != counts], f"has not as many entries in objects.{name} as boxes")
    found = Annotations(
        boxes_xywh=_numpy(pc.list_flatten(pc.list_flatten(bbox))).astype(np.float32, copy=False).reshape(-1, 4),
        labels=_numpy(pc.list_flatten(category)),
        area=_numpy(pc.list_flatten(area)).astype(np.float32, copy=False),
        iscrowd=_numpy(pc.list_flatten(iscrowd)).astype(np.int8, copy=False),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        image_id=ids,
        width=_numpy(batch["width"]),
        height=_numpy(batch["height"]),
    )
    _check(found, where)
    return replace(found, labels=found.labels.astype(np.int8))


def _numpy(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def _lengths(column: pa.Array) -> np.ndarray:  # int64 [n]
    return _numpy(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)


def _check(found: Annotations, where: str) -> None:
    _refuse(where, found.image_id[(found.width < 1) | (found.height < 1)], "has a width or height below 1")
    owner = np.repeat(np.arange(len(found)), found.counts)  # [T] the image of each box

    wrong = ~((found.labels >= 0) & (found.labels < len(CLASS_NAMES)))
    allowed = ", ".join(f"{number} {name}" for number, name in enumerate(CLASS_NAMES))
    bad = np.unique(found.labels[wrong])[:_SHOWN].tolist()
    _refuse(where, found.image_id[np.unique(owner[wrong])], f"has a class id {bad} (allowed: {allowed})")

    x, y, w, h = found.boxes_xywh.T
    with np.errstate(invalid="ignore"):  # NaN compares false: written so that it is refused
        sized = (w > 0) & (h > 0)
        inside = (x >= -BORDER) & (y >= -BORDER)
        inside &= (x + w <= found.width[owner] + BORDER) & (y + h <= found.height[owner] + BORDER)
    _refuse(where, found.image_id[np.unique(owner[~sized])], "has a box of zero, negative or NaN size")
    _refuse(where, found.image_id[np.unique(owner[~inside])], "has a box outside the image")


def _refuse(where: str, image_ids: np.ndarray, what: str) -> None:
    if len(image_ids) == 0:
        return
    shown = ", ".join(str(number) for number in image_ids[:_SHOWN].tolist())
    more = f" and {len(image_ids) - _SHOWN} more" if len(image_ids) > _SHOWN else ""
    raise UserError(
        f"{where}: image_id {shown}{more} {what}. `python -m data_prep pack YOLO_DIR --out DIR` clips, drops or "
        "refuses such boxes and lists them."
    )


def summary(annotations: Annotations, geometry: Geometry, num_queries: int) -> dict[str, Any]:
    """What a trainer needs to know of a split before it starts.

    Returns:
        images, boxes, boxes_per_class, portrait_images; boxes_per_image (mean) and max_boxes; images_beyond_queries,
        boxes_beyond_queries, share_beyond_queries: what no set of `num_queries` predictions can hold; and the share
        of `padding`.
    """
    people = annotations.people()
    counts, labels = people.counts, people.labels
    beyond = (counts - num_queries).clip(0)
    boxes = int(counts.sum())
    return {
        "images": len(annotations),
        "boxes": boxes,
        "boxes_per_class": {name: int((labels == number).sum()) for number, name in enumerate(CLASS_NAMES)},
        "portrait_images": int(annotations.portrait.sum()),
        "boxes_per_image": boxes / len(annotations),
        "max_boxes": int(counts.max()),
        "images_beyond_queries": int((beyond > 0).sum()),
        "boxes_beyond_queries": int(beyond.sum()),
        "share_beyond_queries": int(beyond.sum()) / max(boxes, 1),
        "padding": padding(annotations, geometry),
    }


def padding(annotations: Annotations, geometry: Geometry) -> float:
    """The share of canvas pixels that is padding; both canvases have the same area."""
    sizes, times = np.unique(np.stack([annotations.height, annotations.width], axis=1), axis=0, return_counts=True)
    areas = [math.prod(geometry.resized(height, width)) for height, width in sizes.tolist()]
    return 1 - float(np.average(areas, weights=times)) / math.prod(geometry.canvas(1, 1))


def describe(found: dict[str, Any], split: str, num_queries: int) -> str:
    """The summary in plain words, for the log."""
    text = (
        f"{split}: {found['images']:,} images ({found['portrait_images']:,} portrait), {found['boxes']:,} boxes, "
        f"{found['boxes_per_image']:.1f} an image, {found['max_boxes']:,} at most; padding is {found['padding']:.1%}."
    )
    if found["boxes_beyond_queries"]:
        text += (
            f" {found['images_beyond_queries']:,} images hold more boxes than the {num_queries} queries: "
            f"{found['boxes_beyond_queries']:,} boxes ({found['share_beyond_queries']:.2%} of all) cannot be learned; "
            "raise --num_queries to include them."
        )
    for name, boxes in found["boxes_per_class"].items():
        if split == "train" and not boxes:
            text += f" No {name} box: this class cannot be learned."
    return text
