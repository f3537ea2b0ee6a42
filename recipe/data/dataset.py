"""The splits of a packed dataset, and their images resized, augmented and with their boxes.

    source, annotations, info = load_split("DIR_OR_REPO", "train")
    dataset = CrowdDataset(source, annotations, Geometry(), build_augmentation(config), seed=42)

`recipe.data.batches` makes batches of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import Dataset

from recipe.data.annotations import Annotations, read_annotations
from recipe.data.augment import Augmentation
from recipe.data.geometry import Geometry
from recipe.data.images import BadImage, decode, resize
from recipe.hub import as_user_errors, first_line, is_repo_id
from recipe.schema import UserError, check_dataset

PACK_AGAIN = "pack it again with `python -m data_prep pack YOLO_DIR --out DIR`"


class Shards:
    """The photographs of a split, read where they lie: no second copy on disk (datasets' own cache was 23 GB).

    Parquet reads a row group up to the row asked for: 2 ms with `pack`'s groups of 16 MB, beside 10 ms of decoding.
    Nothing is kept open, so that forked workers and thousands of shards are no trouble.

    Args:
        rows: int64 [n], which rows of the split are the items.
    """

    def __init__(self, paths: Sequence[str], rows: np.ndarray) -> None:
        metadata = [pq.read_metadata(path) for path in paths]
        self._groups = [(path, g) for path, m in zip(paths, metadata, strict=True) for g in range(m.num_row_groups)]
        self._ends = np.cumsum([m.row_group(g).num_rows for m in metadata for g in range(m.num_row_groups)])
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": {"bytes", "path"}}: the file as it was packed, and its name."""
        row = self._rows[index]
        place = int(np.searchsorted(self._ends, row, side="right"))
        path, group = self._groups[place]
        first = self._ends[place - 1] if place else 0  # row of the group
        with _undamaged(path):
            file = pq.ParquetFile(path, memory_map=True)
            batches = file.iter_batches(1, row_groups=[group], columns=["image"], use_threads=False)
            return next(itertools.islice(batches, int(row - first), None)).to_pylist()[0]


def load_split(
    data: str, split: str, *, revision: str | None = None, limit: int | None = None, seed: int = 0
) -> tuple[Shards, Annotations, dict[str, Any]]:
    """Open a split of a packed folder or of a Hub dataset repo (downloaded first: one path for both).

    Args:
        limit: only so many images, drawn by `seed`, in the split's order.

    Returns:
        source: rows of {"image": {"bytes", "path"}}, undecoded.
        annotations: every other column, for the same images in the same order.
        info: data, split, revision (commit of a Hub repo), manifest (sha256 of manifest.json, where there is one).

    Raises:
        UserError: no such folder or repo, not packed, no such split, shards missing or damaged, other columns, or
            bad values.
    """
    folder, commit = (Path(data), None) if Path(data).is_dir() else _download(data, split, revision)
    paths = _find_shards(folder, data, split, commit)
    for path in paths:
        with _undamaged(path):
            columns = datasets.Features.from_arrow_schema(pq.read_schema(path))
        check_dataset(columns, path)
    where = f"{split} of {data}"
    with _undamaged(where):
        annotations = read_annotations(paths, where)
    rows = np.arange(len(annotations))
    if limit is not None and limit < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
        annotations = annotations.select(rows)
    manifest = folder / "manifest.json"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None
    return Shards(paths, rows), annotations, {"data": data, "split": split, "revision": commit, "manifest": digest}


def _download(data: str, split: str, revision: str | None) -> tuple[Path, str]:
    choices = "give a packed folder (`python -m data_prep pack YOLO_DIR --out DIR`) or a dataset repo USER/NAME"
    if not is_repo_id(data):
        raise UserError(f"--data {data}: there is no such folder; {choices}.")
    patterns = [f"data/{split}-*.parquet", "manifest.json", "README.md"]
    with as_user_errors(f"--data {data}: neither a folder here nor a dataset that the Hub hands out; {choices}"):
        path = huggingface_hub.snapshot_download(data, repo_type="dataset", revision=revision, allow_patterns=patterns)
    return Path(path), Path(path).name  # a snapshot's folder is named after its commit


def _find_shards(folder: Path, data: str, split: str, commit: str | None) -> list[str]:
    """The split's files, by their names all of them: a copy in part would train on part of the images."""
    paths = sorted(folder.glob(f"data/{split}-*.parquet"))
    names = [path.name for path in paths]
    counts = {found[1] for name in names if (found := re.match(rf"{split}-\d{{5}}-of-(\d{{5}})", name))}
    complete = [f"{split}-{number:05d}-of-{count}" for count in counts for number in range(int(count))]
    if missing := [name for name in complete if not any(there.startswith(name) for there in names)]:
        download = f"`hf download {data} --repo-type dataset --revision {commit}`" if commit else "copy it again"
        raise UserError(
            f"--data {data} lacks {len(missing)} of {len(complete)} shards of {split} ({', '.join(missing[:3])} ...): "
            f"a copy or download that did not end. {download}, or {PACK_AGAIN}."
        )
    if not paths:
        there = sorted({path.name.split("-")[0] for path in folder.glob("data/*-*.parquet")})
        raise UserError(
            f"--data {data} is not packed, or has no split {split!r} (it has: {', '.join(there) or 'none'}): "
            "`python -m data_prep pack YOLO_DIR --out DIR` makes both from a YOLO folder with train and val."
        )
    return [str(path) for path in paths]


@contextlib.contextmanager
def _undamaged(where: str) -> Iterator[None]:
    """What Arrow raises in here at damaged bytes becomes a UserError; the machine's own errors have a number."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise UserError(
            f"{where} is damaged ({first_line(error)}): cut short on its way, or a git-lfs pointer. "
            f"Fetch it again (`hf download --force-download`, `git lfs pull`), or {PACK_AGAIN}."
        ) from error


class CrowdDataset(Dataset):
    """Images of a split, resized and augmented, with their boxes.

    A key is an index, or (epoch, index) as the batch sampler gives it: a persistent worker's own copy of this object
    never learns of a new epoch, and the augmentation depends on (seed, epoch, index) alone.

    An item is a dict: pixels uint8 [h, w, 3] RGB; boxes float32 [n, 4] cxcywh, normalised by the image's own resized
    size; class_labels int64 [n]; image_id; size (h, w); orig_size (height, width); labelled bool [classes]; ignored
    float32 [k, 4] cxcywh, the crowd regions. An image that cannot be trained on is {"error": why, in one line}: an
    exception would reach the main process as a worker's traceback.
    """

    def __init__(
        self,
        source: Sequence[dict[str, Any]] | Shards,
        annotations: Annotations,
        geometry: Geometry,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= seed < 2**32:
            raise UserError(f"--seed {seed}: must be from 0 to {2**32 - 1}")
        self.source = source
        self.annotations = annotations.people()
        self.annotations_with_crowds = annotations
        self.geometry = geometry
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.annotations)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loaders, however often they are wrapped; the batch sampler reads it here."""
        self.epoch = epoch

    def file_name(self, index: int) -> str:
        """The name of the image's file, as it was packed."""
        return self.source[index]["image"]["path"] or f"image_id {self.annotations.image_id[index]}"

    def photograph(self, index: int) -> np.ndarray:
        """The image as it was packed, upright: uint8 [height, width, 3] RGB.

        Raises:
            BadImage: it cannot be decoded, or has another size than its columns say.
        """
        notes, image = self.annotations, self.source[index]["image"]
        name = f"{image['path']} (image_id {notes.image_id[index]})"
        again = "pack again, with every image decoded: `python -m data_prep pack YOLO_DIR --out DIR --verify full`"
        try:
            pixels = decode(image["bytes"])
        except Exception as error:  # a decoder's errors share no base
            raise BadImage(f"{name} cannot be decoded: {first_line(error)}; {again}") from error
        if pixels.shape[:2] != (notes.height[index], notes.width[index]):
            found, said = f"{pixels.shape[1]}x{pixels.shape[0]}", f"{notes.width[index]}x{notes.height[index]}"
            raise BadImage(f"{name} is {found}, but its columns say {said}; {again}")
        return pixels

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (self.epoch, key)
        try:
            return self._sample(epoch, index)
        except (UserError, OSError) as error:
            return {"error": str(error)}

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        notes = self.annotations_with_crowds
        height, width = int(notes.height[index]), int(notes.width[index])
        size = self.geometry.resized(height, width)
        pixels = resize(self.photograph(index), size)
        found = notes.targets(index)
        boxes_xyxy = (found["target_xyxy"] / np.array([width, height] * 2, np.float64)).clip(0, 1)  # [n, 4]
        labels, crowd = found["target_labels"].astype(np.int64), found["iscrowd"] == 1
        if self.augmentation is not None:
            pixels, boxes_xyxy, rows = self.augmentation(pixels, boxes_xyxy, (self.seed, epoch, index))
            labels, crowd = labels[rows], crowd[rows]
        start, end = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
        boxes = np.concatenate([(start + end) / 2, end - start], axis=1).astype(np.float32)  # cxcywh
        return {
            "pixels": pixels,
            "boxes": boxes[~crowd],
            "class_labels": labels[~crowd],
            "image_id": int(notes.image_id[index]),
            "size": size,
            "orig_size": (height, width),
            "labelled": found["labelled"],
            "ignored": boxes[crowd],
        }
