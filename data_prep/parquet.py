"""Read and check the images of a folder in several processes: `surveys = read_folder(folder, 2, 256 * 10**6)`

With `out` each process writes complete Parquet shards there. Their bytes depend on the input alone: which image goes
into which shard follows from the sizes of the files, as do the row groups, and one process writes a shard.
"""

from __future__ import annotations

import collections
import ctypes
import hashlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.entries import Entry, Folder
from data_prep.example import Example, read_example
from data_prep.statistics import Survey, see
from recipe.schema import UserError, arrow_schema

GROUP_ROWS, GROUP_BYTES = 100, 16 * 2**20  # a row group: a page of the Hub's viewer, and what the writer holds
BOX_IDS = 1_000_000  # per image, so that a changed label file leaves the ids of all other images as they are
PAUSE = 2.0  # seconds between two lines of progress, but before the last
WRITER = {
    "compression": "none",  # JPEG gains 0.3 %, and the boxes are a hundredth of the file
    "use_dictionary": False,  # a dictionary of image bytes is only ever thrown away
    "write_statistics": ["image_id", "width", "height"],
    "write_page_index": True,
}
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Shard(NamedTuple):
    """Some consecutive images of a split."""

    split: str
    name: str
    first_id: int  # image_id of the first entry
    entries: list[Entry]


def plan_shards(folder: Folder, shard_size: int) -> list[Shard]:
    """Deal the images into shards of about `shard_size` bytes."""
    shards: list[Shard] = []
    first_id = 0
    for split, listing in folder.splits.items():
        groups: list[list[Entry]] = [[]]
        room = shard_size
        for entry in listing.entries:
            path = folder.root / entry.image
            size = os.path.getsize(path) if os.path.isfile(path) else 0
            if groups[-1] and size > room:
                groups.append([])
                room = shard_size
            groups[-1].append(entry)
            room -= size
        for index, group in enumerate(groups):
            shards.append(Shard(split, f"{split}-{index:05d}-of-{len(groups):05d}.parquet", first_id, group))
            first_id += len(group)
    return shards


def read_folder(folder: Folder, workers: int, shard_size: int, out: Path | None = None) -> dict[str, Survey]:
    """What became of the images of each split, and of the files that belong to none.

    Raises:
        UserError: a process was killed.
    """
    surveys = {}
    for name, split in folder.splits.items():
        surveys[name] = Survey(0, sum(problem.boxes for problem in split.problems), split.problems)
    shards = plan_shards(folder, shard_size)
    done, total, said = 0, sum(len(shard.entries) for shard in shards), time.monotonic()
    work = partial(read_shard, folder=replace(folder, splits={}), out=out)
    with ProcessPoolExecutor(min(workers, len(shards)), initializer=_start) as pool:
        try:
            for shard, survey in zip(shards, pool.map(work, shards), strict=True):
                surveys[shard.split] += survey
                done += len(shard.entries)
                if done == total or time.monotonic() > said + PAUSE:
                    said = time.monotonic()
                    print(f"read: {done:,} of {total:,} images", file=sys.stderr, flush=True)
        except BrokenProcessPool as error:
            again = "run the same command again, with fewer --workers"
            raise UserError(f"a process was killed (out of memory?): {again}") from error
        finally:
            pool.shutdown(cancel_futures=True)
    return surveys


def _start() -> None:
    """In each process: end at Ctrl-C, and when the parent ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    warnings.simplefilter("ignore")  # Pillow's, about EXIF data that nobody needs


def read_shard(shard: Shard, folder: Folder, out: Path | None) -> Survey:
    """Read and check the images of a shard; with `out`, write them to OUT/NAME."""
    survey = Survey(images_in=len(shard.entries))

    def rows() -> Iterator[dict[str, Any]]:
        for image_id, entry in enumerate(shard.entries, shard.first_id):
            example = read_example(folder, entry)
            survey.boxes_in += example.labels.boxes_in
            survey.problems += example.labels.problems
            if example.data:
                survey.seen.append(see(example))
                yield _row(image_id, example) | {"labelled": folder.labelled_classes(entry)}

    if out:
        survey.files.append(_write(out / shard.name, rows(), arrow_schema(bool(folder.options.labelled))))
    else:
        collections.deque(rows(), maxlen=0)
    return survey


def _write(path: Path, rows: Iterator[dict[str, Any]], schema: pa.Schema) -> dict[str, Any]:
    with pq.ParquetWriter(path, schema, **WRITER) as writer:
        group: list[dict[str, Any]] = []
        held = 0
        for row in rows:
            size = len(row["image"]["bytes"])
            if group and (len(group) == GROUP_ROWS or held + size > GROUP_BYTES):
                writer.write_table(pa.Table.from_pylist(group, schema))
                group, held = [], 0
            group.append(row)
            held += size
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    images = pq.read_metadata(path).num_rows
    return {"name": path.name, "images": images, "bytes": path.stat().st_size, "sha256": digest}


def _row(image_id: int, example: Example) -> dict[str, Any]:
    labels = example.labels
    first = image_id * BOX_IDS + 1  # from 1: pycocotools takes an annotation with id 0 for unmatched
    return {
        "image": {"bytes": example.data, "path": example.entry.name},
        "image_id": image_id,
        "width": example.width,
        "height": example.height,
        "objects": {
            "id": range(first, first + len(labels.category)),
            "bbox": labels.bbox_xywh.tolist(),
            "area": labels.bbox_xywh[:, 2:].prod(axis=1).tolist(),
            "category": labels.category.tolist(),
            "iscrowd": labels.iscrowd.tolist(),
        },
    }
