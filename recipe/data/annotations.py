"""All boxes of a split in a few flat NumPy arrays, checked once at the border.

    annotations = read_annotations(["DIR/data/train-00000-of-00001.parquet"], "train of DIR")

55,442 images with 85 boxes each take 109 MB, once: NumPy memory holds no Python objects, so that forked workers read
the parent's pages and never copy them. As Python dicts the same boxes take 2 GB, and 1.4 GB more in each worker.
"""

from __future__ import annotations

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
_BOXES = ("boxes_xywh", "labels", "area", "iscrowd")
_IMAGES = ("image_id", "width", "height", "labelled")


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
    labelled: np.ndarray  # bool [n, classes], whether a class was annotated in an image at all

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
            "labelled": self.labelled[index],
        }

    @property
    def counts(self) -> np.ndarray:  # int64 [n]
        """Boxes per image."""
        return np.diff(self.offsets)

    def sizes(self, geometry: Geometry) -> np.ndarray:  # int64 [n, 2]
        """The (height, width) that each image is resized to."""
        sides = np.stack([self.height, self.width], axis=1)
        different, place = np.unique(sides, axis=0, return_inverse=True)
        return np.array([geometry.resized(height, width) for height, width in different.tolist()])[place]

    def people(self) -> Annotations:
        """Without crowd regions (iscrowd 1): nobody to learn, and nothing to miss."""
        keep = self.iscrowd == 0
        if keep.all():
            return self
        boxes = {name: getattr(self, name)[keep] for name in _BOXES}
        return replace(self, **boxes, offsets=np.append(0, keep.cumsum())[self.offsets])

    def select(self, rows: np.ndarray) -> Annotations:
        """The images at these rows (integers), in this order."""
        offsets = np.append(0, self.counts[rows].cumsum())
        kept = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], np.diff(offsets))
        boxes = {name: getattr(self, name)[kept] for name in _BOXES}
        return Annotations(**boxes, **{name: getattr(self, name)[rows] for name in _IMAGES}, offsets=offsets)


def read_annotations(paths: Sequence[str], where: str) -> Annotations:
    """Read every column but the image from Parquet shards, in order, and check the values.

    4.7 million boxes take 2.5 s and 0.7 GB, most of it given back.

    Raises:
        UserError: unequal or empty lists of columns, a class id that is none, a box of no size, with NaN or outside
            its image, image ids that repeat, no images; each with the image ids concerned.
    """
    optional = ["labelled"] if "labelled" in pq.read_schema(paths[0]).names else []
    columns = ["image_id", "width", "height", "objects", *optional]
    table = pq.read_table(list(paths), columns=columns).flatten()  # of "objects" it makes "objects.bbox" and so on
    image_id, counts = table["image_id"].to_numpy(), _lengths(table["objects.bbox"])
    for name in ("objects.category", "objects.area", "objects.iscrowd"):
        _refuse(where, image_id[_lengths(table[name]) != counts], f"has not as many entries in {name} as boxes")
    labelled = np.ones((len(image_id), len(CLASS_NAMES)), bool)
    if optional:
        labelled[table["labelled"].is_valid().to_numpy()] = False
        owner = np.repeat(np.arange(len(image_id)), _lengths(table["labelled"]))
        labelled[owner, pc.list_flatten(table["labelled"]).to_numpy()] = True
    labels = pc.list_flatten(table["objects.category"]).to_numpy()
    found = Annotations(
        boxes_xywh=pc.list_flatten(pc.list_flatten(table["objects.bbox"])).to_numpy().reshape(-1, 4),
        labels=labels,
        area=pc.list_flatten(table["objects.area"]).to_numpy(),
        iscrowd=pc.list_flatten(table["objects.iscrowd"]).to_numpy(),
        offsets=np.append(0, counts.cumsum()),
        image_id=image_id,
        width=table["width"].to_numpy(),
        height=table["height"].to_numpy(),
        labelled=labelled,
    )
    _check(found, where)
    return replace(found, labels=labels.astype(np.int8))


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:  # int64 [n]
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)


def _check(found: Annotations, where: str) -> None:
    if len(found) == 0:
        raise UserError(f"{where} holds no images: pack a folder that has some, or name another split.")
    values, times = np.unique(found.image_id, return_counts=True)
    _refuse(where, values[times > 1], "stands there more than once")
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


def split_statistics(annotations: Annotations, geometry: Geometry, num_queries: int) -> dict[str, Any]:
    """What a trainer needs to know of a split before it starts.

    Returns:
        images, boxes, boxes_per_class, portrait_images; sizes: how many different ones the images are resized to;
        boxes_per_image (mean) and max_boxes; images_beyond_queries, boxes_beyond_queries, share_beyond_queries: what
        no set of `num_queries` predictions can hold.
    """
    people = annotations.people()
    counts, labels = people.counts, people.labels
    beyond = (counts - num_queries).clip(0)
    boxes = int(counts.sum())
    return {
        "images": len(annotations),
        "boxes": boxes,
        "boxes_per_class": {name: int((labels == number).sum()) for number, name in enumerate(CLASS_NAMES)},
        "portrait_images": int((annotations.height > annotations.width).sum()),
        "sizes": len(np.unique(annotations.sizes(geometry), axis=0)),
        "boxes_per_image": boxes / len(annotations),
        "max_boxes": int(counts.max()),
        "images_beyond_queries": int((beyond > 0).sum()),
        "boxes_beyond_queries": int(beyond.sum()),
        "share_beyond_queries": int(beyond.sum()) / max(boxes, 1),
    }


def statistics_in_words(found: dict[str, Any], split: str, num_queries: int) -> str:
    """The statistics in one line, for the log."""
    text = (
        f"{split}: {found['images']:,} images ({found['portrait_images']:,} portrait) in {found['sizes']} sizes, "
        f"{found['boxes']:,} boxes, {found['boxes_per_image']:.1f} an image, {found['max_boxes']:,} at most."
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
