"""All boxes of a split in a few flat NumPy arrays, checked once at the border.

    annotations = read_annotations(["DIR/data/train-00000-of-00001.parquet"], "train of DIR")

55,442 images with 85 boxes each take 109 MB, once: NumPy memory holds no Python objects, so that forked workers read
the parent's pages and never copy them. As Python dicts the same boxes take 2 GB, and 1.4 GB more in each worker.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recipe.data.geometry import Geometry
from recipe.hub import first_line
from recipe.schema import CLASS_NAMES, UserError, check_dataset

BORDER = 1.0  # pixels that a box may stand over the border: float32 rounding; `pack` clips the rest
PACK = "`python -m data_prep pack YOLO_DIR --out DIR`"
FETCH_AGAIN = f"Fetch it again (`hf download NAME --repo-type dataset --force-download`), or use {PACK}"
IMAGES_AT_ONCE = 4096
_LISTS = ("bbox", "category", "area", "iscrowd")


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

    @property
    def counts(self) -> np.ndarray:  # int64 [n]
        """Boxes per image."""
        return np.diff(self.offsets)

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

    def sizes(self, geometry: Geometry) -> np.ndarray:  # int64 [n, 2]
        """The (height, width) that each image is resized to."""
        return np.array([geometry.resized(*size) for size in np.stack([self.height, self.width], axis=1).tolist()])

    def people(self) -> Annotations:
        """Without crowd regions (iscrowd 1): nobody to learn, and nothing to miss."""
        keep = self.iscrowd == 0
        if keep.all():
            return self
        boxes = {name: getattr(self, name)[keep] for name in ("boxes_xywh", "labels", "area", "iscrowd")}
        return replace(self, **boxes, offsets=np.append(0, keep.cumsum())[self.offsets])

    def class_prior(self, num_queries: int) -> list[float]:
        """Expected share of each class, and of "no object", among the queries."""
        boxes = np.bincount(self.labels, minlength=len(CLASS_NAMES)) / max(len(self), 1)
        shares = (boxes / num_queries).clip(max=0.9 / len(CLASS_NAMES)).tolist()
        return [*shares, 1 - sum(shares)]


def read_annotations(paths: Sequence[str], where: str, rows: np.ndarray | None = None) -> Annotations:
    """Read every column but the image from Parquet shards, or only these rows of them, rising; check the values.

    A few thousand images at a time: the peak of memory is that of the result, not of all that Arrow makes of it.

    Raises:
        UserError: a damaged shard or other columns; no images, or values that would train wrong, with the image ids.
    """
    parts, start = [], 0
    for batch in itertools.chain.from_iterable(map(_read_shard, paths)):
        end = start + len(batch)
        if rows is not None:
            batch = batch.take(rows[(rows >= start) & (rows < end)] - start)
        parts.append(_read_batch(batch, where))
        start = end
    if not sum(map(len, parts)):
        raise UserError(f"{where} holds no images: pack a folder that has some, or name another split.")
    arrays = {
        name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0]) if name != "offsets"
    }
    ids, times = np.unique(arrays["image_id"], return_counts=True)
    _refuse(where, ids[times > 1], "stands there more than once")
    return Annotations(**arrays, offsets=np.append(0, np.concatenate([part.counts for part in parts]).cumsum()))


def _read_shard(path: str) -> Iterator[pa.Table]:
    with damage_as_user_error(path):
        file = pq.ParquetFile(path)
        check_dataset(datasets.Features.from_arrow_schema(file.schema_arrow), path)
        columns = ["image_id", "width", "height", "labelled", *(f"objects.{name}" for name in _LISTS)]
        for batch in file.iter_batches(IMAGES_AT_ONCE, columns=columns):
            yield pa.Table.from_batches([batch]).flatten().combine_chunks()


def _read_batch(batch: pa.Table, where: str) -> Annotations:
    image_id = batch["image_id"].to_numpy()
    lengths = [_lengths(batch[f"objects.{name}"]) for name in _LISTS]
    _refuse(where, image_id[np.ptp(lengths, axis=0) > 0], f"has lists of unequal length in objects: {_LISTS}")
    bbox, labels, area, iscrowd = (pc.list_flatten(batch[f"objects.{name}"]) for name in _LISTS)
    labelled = np.ones((len(image_id), len(CLASS_NAMES)), bool)
    if "labelled" in batch.column_names:
        labelled[batch["labelled"].is_valid().to_numpy()] = False
        owner = np.repeat(np.arange(len(image_id)), _lengths(batch["labelled"]))
        labelled[owner, pc.list_flatten(batch["labelled"]).to_numpy()] = True
    found = Annotations(
        boxes_xywh=pc.list_flatten(bbox).to_numpy().reshape(-1, 4),
        labels=labels.to_numpy(),
        area=area.to_numpy(),
        iscrowd=iscrowd.to_numpy(),
        offsets=np.append(0, lengths[0].cumsum()),
        image_id=image_id,
        width=batch["width"].to_numpy(),
        height=batch["height"].to_numpy(),
        labelled=labelled,
    )
    _check(found, where)
    return replace(found, labels=found.labels.astype(np.int8))


@contextlib.contextmanager
def damage_as_user_error(path: str) -> Iterator[None]:
    """What Arrow raises in here at a shard becomes a UserError of one line."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}). {FETCH_AGAIN}.") from error


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:  # int64 [n]
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)


def _check(found: Annotations, where: str) -> None:
    owner = np.repeat(np.arange(len(found)), found.counts)  # [T] the image of each box
    x, y, w, h = found.boxes_xywh.T
    # NaN compares false: written so that it is refused.
    known = (found.labels >= 0) & (found.labels < len(CLASS_NAMES))
    classes = dict(enumerate(CLASS_NAMES))
    inside = (x >= -BORDER) & (y >= -BORDER)
    inside &= (x + w <= found.width[owner] + BORDER) & (y + h <= found.height[owner] + BORDER)
    for image_ids, what in (
        (found.image_id[(found.width < 1) | (found.height < 1)], "has a width or height below 1"),
        (found.image_id[owner[~known]], f"has class id {found.labels[~known][:1]} (allowed: {classes})"),
        (found.image_id[owner[~((w > 0) & (h > 0))]], "has a box of zero, negative or NaN size"),
        (found.image_id[owner[~inside]], "has a box outside the image"),
    ):
        _refuse(where, image_ids, what)


def _refuse(where: str, image_ids: np.ndarray, what: str) -> None:
    ids = np.unique(image_ids).tolist()
    if ids:
        shown = ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise UserError(f"{where}: image_id {shown} {what}. {PACK} clips, drops or refuses such boxes and lists them.")


def split_statistics(annotations: Annotations, geometry: Geometry, num_queries: int) -> dict[str, int]:
    """Counts of a split; `sizes`: how many different ones its images are resized to."""
    people = annotations.people()
    beyond = (people.counts - num_queries).clip(0)
    classes = np.bincount(people.labels, minlength=len(CLASS_NAMES)).tolist()
    return {
        "images": len(people),
        "portrait_images": int((people.height > people.width).sum()),
        "sizes": len(np.unique(people.sizes(geometry), axis=0)),
        "boxes": len(people.labels),
        **{f"{name}_boxes": boxes for name, boxes in zip(CLASS_NAMES, classes, strict=True)},
        "max_boxes": int(people.counts.max()),
        "images_beyond_queries": int((beyond > 0).sum()),
        "boxes_beyond_queries": int(beyond.sum()),
    }


def statistics_in_words(found: dict[str, int], split: str, num_queries: int) -> str:
    """The statistics in one line, for the log."""
    text = f"{split}: " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in found.items())
    if beyond := found["boxes_beyond_queries"]:
        text += f". {beyond / found['boxes']:.2%} of the boxes cannot be learned: raise --num_queries {num_queries}"
    missing = [name for name in CLASS_NAMES if split == "train" and not found[f"{name}_boxes"]]
    return text + "".join(f". No {name} box: this class cannot be learned" for name in missing)
