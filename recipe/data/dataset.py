"""The splits of a packed dataset, and their images resized, augmented and with their boxes.

    source, annotations, info = load_split("DIR_OR_REPO", "train")
    dataset = CrowdDataset(source, annotations, Geometry(), config, seed=42)

`recipe.data.batches` makes batches of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import Dataset

from recipe.config import Config
from recipe.data.annotations import Annotations, read
from recipe.data.augment import Transform, draw, generator, move_boxes
from recipe.data.geometry import Geometry
from recipe.data.images import decode, render
from recipe.hub import in_a_line, is_repo_id
from recipe.schema import UserError, check_dataset

logger = logging.getLogger(__name__)

ANEW = "pack it anew with `python -m data_prep pack YOLO_DIR --out DIR`"


def load_split(
    data: str, split: str, *, revision: str | None = None, limit: int | None = None
) -> tuple[datasets.Dataset, Annotations, dict[str, Any]]:
    """Open a split of a packed folder or of a Hub dataset repo (downloaded first: one path for both).

    The images go through the Arrow cache of `datasets` (HF_DATASETS_CACHE): a second copy on disk, made once, from
    which any image is read in microseconds; Parquet itself would decode a whole row group for one image.

    Args:
        limit: only the first so many images.

    Returns:
        source: rows of {"image": {"bytes"}, "image_id"}, undecoded.
        annotations: every other column, for the same images in the same order.
        info: data, split, revision (commit of a Hub repo), manifest (sha256 of manifest.json, where there is one).

    Raises:
        UserError: no such folder or repo, not packed, no such split, shards missing or damaged, other columns, or
            bad values.
    """
    folder, commit = (Path(data), None) if Path(data).is_dir() else _download(data, split, revision)
    paths = [str(path) for path in sorted(folder.glob(f"data/{split}-*.parquet"))]
    where = f"{split} of {data}"
    names = [Path(path).name for path in paths]
    listed = _listed(folder, split, names)
    if missing := [name for name in listed if not any(there.startswith(name) for there in names)]:
        raise UserError(_shards_missing(data, split, commit, missing, len(listed)))
    if not paths:
        raise UserError(_no_shards(folder, data, split))
    for path in paths:
        with _whole(path):
            found = datasets.Features.from_arrow_schema(pq.read_schema(path))
        check_dataset(found, path)
    with _whole(where):
        annotations = read(paths, where)
        source = datasets.Dataset.from_parquet(paths, split=split, columns=["image", "image_id"])
    source = source.cast_column("image", datasets.Image(decode=False))
    if not np.array_equal(source.data.column("image_id").to_numpy(), annotations.image_id):
        raise UserError(
            f"{where}: its copy in the cache is stale; delete {Path(source.cache_files[0]['filename']).parent}"
        )
    if limit is not None and limit < len(annotations):
        source, annotations = source.select(range(limit)), annotations.first(limit)
    manifest = folder / "manifest.json"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None
    return source, annotations, {"data": data, "split": split, "revision": commit, "manifest": digest}


def _download(data: str, split: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    choices = "give a packed folder (`python -m data_prep pack YOLO_DIR --out DIR`) or a dataset repo USER/NAME"
    if not is_repo_id(data):
        raise UserError(f"--data {data}: there is no such folder; {choices}.")
    patterns = [f"data/{split}-*.parquet", "manifest.json", "README.md"]
    try:
        path = snapshot_download(data, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except Exception as error:  # the client's errors share no base: no such repo, gated, offline, no connection
        reason = in_a_line(error)
        raise UserError(
            f"--data {data}: neither a folder here nor a dataset that the Hub hands out ({reason}); {choices}."
        ) from error
    return Path(path), Path(path).name  # a snapshot's folder is named after its commit


def _listed(folder: Path, split: str, names: list[str]) -> list[str]:
    """How the names of the split's shards should begin: as manifest.json lists them, else by their own -of-N."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):  # no manifest, or none that `pack` wrote
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return [str(file["name"]) for file in manifest["splits"][split]["files"]]
    counts = {found[1] for name in names if (found := re.match(rf"{split}-\d{{5}}-of-(\d{{5}})", name))}
    return [f"{split}-{index:05d}-of-{count}" for count in counts for index in range(int(count))]


def _shards_missing(data: str, split: str, commit: str | None, missing: list[str], of: int) -> str:
    download = f"`hf download {data} --repo-type dataset --revision {commit}`"
    fetch = download if commit else "copy the whole folder again"
    more = ", ..." if len(missing) > 3 else ""
    return (
        f"--data {data} lacks {len(missing)} of {of} shards of {split}: {', '.join(missing[:3])}{more}. A copy or "
        f"download that did not end: {fetch}, or {ANEW}."
    )


@contextlib.contextmanager
def _whole(where: str) -> Iterator[None]:
    """What Arrow raises in here at damaged bytes becomes a UserError; the machine's own errors have a number."""
    try:
        yield
    except (pa.ArrowException, OSError, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        if getattr(cause, "errno", None):
            raise
        raise UserError(
            f"{where} is damaged ({in_a_line(cause)}): cut short on its way, or a git-lfs pointer. "
            f"Fetch it again (`hf download`, `git lfs pull`), or {ANEW}."
        ) from error


def _no_shards(folder: Path, data: str, split: str) -> str:
    there = sorted({path.name.split("-")[0] for path in folder.glob("data/*-*.parquet")})
    if there:
        return f"--data {data} has no split {split!r}, only {', '.join(there)}: pack a folder with both train and val."
    return (
        f"--data {data} is not packed, it has no data/{split}-*.parquet: "
        f"run `python -m data_prep pack {data} --out DIR` and give that DIR."
    )


class BadImage(UserError):
    """An image that cannot be trained on, in one line also where torch has raised it again for a DataLoader's worker,
    with the worker's traceback for a message."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())
        if os.environ.get("RANK", "0") != "0":  # the command line leaves the word to rank 0, which has other images
            logger.error("error: %s", self)


class CrowdDataset(Dataset):
    """Images of a split, resized and augmented, with their boxes.

    A key is an index, or (epoch, index) as the batch sampler gives it: a persistent worker's own copy of this object
    never learns of a new epoch, and the augmentation depends on (seed, epoch, index) alone.

    An item is a dict: pixels uint8 [h, w, 3] RGB; boxes float32 [n, 4] cxcywh, normalised by the image's own resized
    size; class_labels int64 [n]; image_id; size (h, w); orig_size (height, width); canvas (H, W).
    """

    def __init__(
        self,
        source: datasets.Dataset,
        annotations: Annotations,
        geometry: Geometry,
        augmentation: Config | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= seed < 2**32:
            raise UserError(f"--seed {seed}: must be from 0 to {2**32 - 1}")
        self.source = source
        self.annotations = annotations.people()
        self.truth = annotations  # with crowd regions, for the metrics
        self.geometry = geometry
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.annotations)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loaders, however often they are wrapped; the batch sampler reads it here."""
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (self.epoch, key)
        notes = self.annotations
        orig_size = int(notes.height[index]), int(notes.width[index])
        size = self.geometry.resized(*orig_size)
        transform = Transform()
        if self.augmentation is not None:
            transform = draw(self.augmentation, generator(self.seed, epoch, index), *size)
        boxes, labels = self._boxes(index, size, transform)
        return {
            "pixels": self._pixels(index, orig_size, size, transform),
            "boxes": boxes,
            "class_labels": labels,
            "image_id": int(notes.image_id[index]),
            "size": size,
            "orig_size": orig_size,
            "canvas": self.geometry.canvas(*orig_size),
        }

    def photograph(self, index: int) -> np.ndarray:
        """The image as it was packed, upright: uint8 [height, width, 3] RGB."""
        return decode(self.source[index]["image"]["bytes"])

    def _pixels(
        self, index: int, orig_size: tuple[int, int], size: tuple[int, int], transform: Transform
    ) -> np.ndarray:
        image = self.source[index]["image"]
        name = f"{image['path']} (image_id {self.annotations.image_id[index]})"
        again = "pack again, with every image decoded: `python -m data_prep pack YOLO_DIR --out DIR --verify full`"
        try:
            pixels = decode(image["bytes"], spare=True)
        except Exception as error:  # a decoder's errors share no base
            raise BadImage(f"{name} cannot be decoded: {in_a_line(error)}; {again}") from error
        if (pixels.shape[0] > pixels.shape[1]) != (orig_size[0] > orig_size[1]):
            found, said = (f"{width}x{height}" for height, width in (pixels.shape[:2], orig_size))
            raise BadImage(f"{name} is {found}, but its columns say {said}; {again}")
        return render(pixels, size, transform)

    def _boxes(self, index: int, size: tuple[int, int], transform: Transform) -> tuple[np.ndarray, np.ndarray]:
        notes, rows = self.annotations, self.annotations.rows(index)
        height, width = size
        orig = np.array([notes.width[index], notes.height[index]] * 2, dtype=np.float64)
        frame = np.array([width, height] * 2, dtype=np.float64)
        xyxy = notes.boxes_xywh[rows].astype(np.float64)
        xyxy[:, 2:] += xyxy[:, :2]
        xyxy, keep = move_boxes((xyxy / orig).clip(0, 1) * frame, transform, height, width)
        cxcywh = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1) / frame
        return cxcywh.astype(np.float32), notes.labels[rows][keep].astype(np.int64)
