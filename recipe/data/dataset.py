"""The splits of a packed dataset, and their images resized, augmented and with their boxes.

    source, annotations, info = load_split("DIR_OR_REPO", "train")
    dataset = CrowdDataset(source, annotations, Geometry(), build_augmentation(config), seed=42)

`recipe.data.batches` makes batches of them.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
from torch.utils.data import ConcatDataset, Dataset, Subset

from recipe.data.annotations import FETCH_AGAIN, PACK, Annotations, damage_as_user_error, read_annotations
from recipe.data.augment import Augmentation
from recipe.data.geometry import Geometry
from recipe.data.images import decode, resize
from recipe.hub import as_user_errors, first_line
from recipe.schema import UserError


@dataclass
class RowGroup(Dataset):
    """The photographs of one row group of a shard, read where they lie (datasets' own copy of them was 23 GB).

    Parquet reads the group up to the row asked for: 2 ms with `pack`'s 16 MB, beside 10 ms of decoding. Nothing stays
    open, so that workers can be forked.
    """

    path: str
    group: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> dict[str, Any]:
        with damage_as_user_error(self.path):
            file = pq.ParquetFile(self.path, memory_map=True)
            batches = file.iter_batches(1, row_groups=[self.group], columns=["image"], use_threads=False)
            return next(itertools.islice(batches, row, None)).to_pylist()[0]


def load_split(
    data: str, split: str, *, revision: str | None = None, limit: int | None = None, seed: int = 0
) -> tuple[Dataset, Annotations, dict[str, Any]]:
    """Open a split of a packed folder or of a Hub dataset repo, or only `limit` images of it, drawn by `seed`.

    Returns:
        source: rows of {"image": {"bytes", "path"}}: the file as it was packed, undecoded, and its name.
        annotations: every other column, for the same images in the same order.
        info: revision (commit of a Hub repo), manifest (sha256 of manifest.json, where there is one).

    Raises:
        UserError: no such folder, repo or split, shards missing or damaged, other columns, or bad values.
    """
    folder, commit = Path(data), None
    if not folder.is_dir():
        files = [f"data/{split}-*.parquet", "manifest.json", "README.md"]
        with as_user_errors(f"--data {data}: neither a folder here ({PACK} makes one) nor a dataset repo of the Hub"):
            folder = Path(
                huggingface_hub.snapshot_download(data, repo_type="dataset", revision=revision, allow_patterns=files)
            )
        commit = folder.name
    paths = _find_shards(folder, data, split)
    groups: list[RowGroup] = []
    for path in paths:
        with damage_as_user_error(path):
            metadata = pq.read_metadata(path)
        groups += [RowGroup(path, g, metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups)]
    images = sum(map(len, groups))
    wanted = min(limit or images, images)
    bounds = np.arange(wanted + 1) * images // max(wanted, 1)  # one of each stretch of names: sources keep their share
    rows = np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])
    annotations = read_annotations(paths, f"{split} of {data}", rows if len(rows) < images else None)
    manifest = folder / "manifest.json"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None
    return Subset(ConcatDataset(groups), rows.tolist()), annotations, {"revision": commit, "manifest": digest}


def _find_shards(folder: Path, data: str, split: str) -> list[str]:
    """The split's files, by their names all of them: a copy in part would train on part of the images."""
    paths = sorted(folder.glob(f"data/{split}-*.parquet"))
    told = {int(found[1]) for path in paths if (found := re.search(r"-of-(\d{5})", path.name))} or {len(paths) or 1}
    if told != {len(paths)}:
        splits = sorted({path.name.split("-")[0] for path in folder.glob("data/*-*.parquet")})
        names = [f"{split}-{number:05d}" for number in range(max(told))]
        missing = [name for name in names if not any(path.name.startswith(name) for path in paths)]
        raise UserError(
            f"--data {data} holds {len(paths)} of {max(told)} shards of {split} (missing: {', '.join(missing[:3])}; "
            f"splits: {', '.join(splits) or 'none'}): it is not packed, has no such split, or is a copy or download "
            f"that did not end. {FETCH_AGAIN}."
        )
    return [str(path) for path in paths]


@dataclass(eq=False)
class CrowdDataset(Dataset):
    """Images of a split, resized and augmented, with their boxes.

    A key is an index, or (epoch, index) as the batch sampler gives it: a persistent worker's copy of this object never
    learns of a new epoch. An item is what `collate` takes, with pixels uint8 [h, w, 3] RGB, boxes normalised by the
    resized size (h, w), crowd regions as `ignored`; or {"error": why, in one line}: an exception would reach the main
    process as a worker's traceback.
    """

    source: Dataset
    annotations_with_crowds: Annotations
    geometry: Geometry
    augmentation: Augmentation | None = None
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        self.annotations = self.annotations_with_crowds.people()

    def __len__(self) -> int:
        return len(self.annotations)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loaders; the batch sampler reads it here."""
        self.epoch = epoch

    def file_name(self, index: int) -> str:
        """The name of the image's file, as it was packed."""
        return self.source[index]["image"]["path"] or f"image_id {self.annotations.image_id[index]}"

    def photograph(self, index: int) -> np.ndarray:
        """The image, upright: uint8 [height, width, 3] RGB. UserError: undecodable, or not as large as annotated."""
        data, (height, width) = self.source[index]["image"]["bytes"], self.annotations.targets(index)["size"]
        try:
            pixels = decode(data)
            if pixels.shape[:2] != (height, width):
                raise ValueError(f"{pixels.shape[1]}x{pixels.shape[0]}, but its columns say {width}x{height}")
        except Exception as error:  # a decoder's errors share no base
            raise UserError(
                f"{self.file_name(index)} (image_id {self.annotations.image_id[index]}) is a bad image: "
                f"{first_line(error)}; `python -m data_prep inspect YOLO_DIR` finds them all"
            ) from error
        return pixels

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (self.epoch, key)
        found = self.annotations_with_crowds.targets(index)
        height, width = found["size"]
        size = self.geometry.resized(height, width)
        boxes_xyxy = (found["target_xyxy"] / np.array([width, height] * 2, np.float64)).clip(0, 1)  # [n, 4]
        rows = np.arange(len(boxes_xyxy))
        try:
            pixels = resize(self.photograph(index), size)
            if self.augmentation is not None:
                pixels, boxes_xyxy, rows = self.augmentation(pixels, boxes_xyxy, (self.seed, epoch, index))
        except UserError as error:
            return {"error": str(error)}
        start, end = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
        boxes = np.concatenate([(start + end) / 2, end - start], axis=1).astype(np.float32)  # cxcywh
        crowd = found["iscrowd"][rows] == 1
        return {
            "pixels": pixels,
            "boxes": boxes[~crowd],
            "class_labels": found["target_labels"][rows][~crowd].astype(np.int64),
            "image_id": int(self.annotations.image_id[index]),
            "size": size,
            "orig_size": (height, width),
            "labelled": found["labelled"],
            "ignored": boxes[crowd],
        }
