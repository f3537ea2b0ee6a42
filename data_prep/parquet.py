"""One Parquet shard: which images go in (`plan`), its bytes (`write`), and whether it is there already (`finished`).

The bytes depend on the input alone: the same settings, one writer, row groups cut by the sizes of the image files.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import __version__
from data_prep.labels import Problem
from data_prep.yolo import Entry, Example, YoloFolder

SHARD_SIZE = 256 * 10**6
GROUP_ROWS, GROUP_BYTES = 100, 32 * 2**20  # a row group: a page of the Hub's viewer, and what the writer holds
BOX_IDS = 1_000_000  # per image, so that a changed label file leaves the ids of all other images as they are


@dataclass(frozen=True)
class Shard:
    """Some consecutive images of a split."""

    split: str
    index: int
    of: int
    first_id: int  # image_id of the first entry
    entries: tuple[Entry, ...]
    fingerprint: str

    @property
    def stem(self) -> str:
        return f"{self.split}-{self.index:05d}"

    @property
    def name(self) -> str:
        return f"{self.stem}-of-{self.of:05d}.parquet"


def plan(folder: YoloFolder, shard_size: int, salt: str) -> list[Shard]:
    """Deal the images into shards of about `shard_size` bytes. `salt` names the options that change their content."""
    shards: list[Shard] = []
    next_id = 0
    for split, listing in folder.splits.items():
        groups: list[list[Entry]] = [[]]
        room = shard_size
        for entry in listing.entries:
            if groups[-1] and entry.size > room:
                groups.append([])
                room = shard_size
            groups[-1].append(entry)
            room -= entry.size
        for index, group in enumerate(groups):
            key = repr((__version__, pa.__version__, salt, sorted(folder.classes.items()), next_id, group))
            digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
            shards.append(Shard(split, index, len(groups), next_id, tuple(group), digest))
            next_id += len(group)
    return shards


def finished(shard: Shard, work: Path, data: Path) -> tuple[Path, dict[str, Any]] | None:
    """The shard's file and its record, if an earlier run wrote it from the same input and it is still whole."""
    try:
        record = json.loads((work / f"{shard.stem}.json").read_text())
    except (OSError, ValueError):
        return None
    if record["fingerprint"] != shard.fingerprint:
        return None
    for path in (work / f"{shard.stem}.parquet", data / shard.name):
        if path.is_file() and path.stat().st_size == record["bytes"] and sha256(path) == record["sha256"]:
            return path, record
    return None


def write(shard: Shard, examples: Iterator[Example], schema: pa.Schema, work: Path) -> tuple[Path, dict[str, Any]]:
    """Write one shard from the next `len(shard.entries)` examples, then its problems, then its record."""
    path, part = work / f"{shard.stem}.parquet", work / f"{shard.stem}.part"
    tally = Tally()
    writer = pq.ParquetWriter(
        part,
        schema,
        compression="none",  # JPEG gains 0.3 %, and the boxes are a hundredth of the file
        use_dictionary=False,  # a dictionary of image bytes is only ever thrown away
        write_statistics=["image_id", "width", "height"],
        write_page_index=True,
    )
    with writer, (work / f"{shard.stem}.csv").open("w", newline="", encoding="utf-8") as problems:
        rows: list[tuple[int, Example]] = []
        held = 0
        for image_id, example in enumerate(islice(examples, len(shard.entries)), shard.first_id):
            tally.add(example)
            write_problems(problems, example.labels.problems)
            if not example.data:
                continue
            if rows and (len(rows) == GROUP_ROWS or held + len(example.data) > GROUP_BYTES):
                writer.write_table(_table(rows, schema))
                rows, held = [], 0
            rows.append((image_id, example))
            held += len(example.data)
        if rows:
            writer.write_table(_table(rows, schema))
    record = {"fingerprint": shard.fingerprint, "sha256": sha256(part), "bytes": part.stat().st_size, **tally.counts()}
    part.replace(path)
    json_part = work / f"{shard.stem}.json.part"
    json_part.write_text(json.dumps(record))
    json_part.replace(work / f"{shard.stem}.json")  # last: a shard counts once its record is there
    return path, record


class Tally:
    """What went in and what came out, by rule."""

    def __init__(self) -> None:
        self.images = self.left_out = self.without_boxes = self.boxes_in = self.boxes = 0
        self.dropped: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()

    def add(self, example: Example) -> None:
        self.images += 1
        self.left_out += not example.data
        self.boxes_in += example.labels.boxes_in
        self.boxes += len(example.labels.category)
        self.without_boxes += bool(example.data) and not len(example.labels.category)
        self.dropped += example.labels.dropped
        self.rules.update(f"{problem.action}: {problem.rule}" for problem in example.labels.problems)

    def counts(self) -> dict[str, Any]:
        return {
            "images_in": self.images,
            "images": self.images - self.left_out,
            "images_left_out": self.left_out,
            "images_without_boxes": self.without_boxes,
            "boxes_in": self.boxes_in,
            "boxes": self.boxes,
            "boxes_dropped": dict(sorted(self.dropped.items())),
            "problems": dict(sorted(self.rules.items())),
        }


def write_problems(file: Any, problems: Iterable[Problem]) -> None:
    """Append rows of problems.csv, where what was refused has been left out. The file is opened with newline=""."""
    rows = (p._replace(action="left out") if p.action == "refused" else p for p in problems)
    csv.writer(file, lineterminator="\n").writerows(rows)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _table(rows: list[tuple[int, Example]], schema: pa.Schema) -> pa.Table:
    """A row group. Arrays are built from flat buffers: per-box Python objects would cost more than the images."""
    labels = [example.labels for _, example in rows]
    bbox = np.concatenate([label.bbox_xywh for label in labels])  # [boxes, 4] xywh
    ids = [image_id * BOX_IDS + 1 + k for image_id, example in rows for k in range(len(example.labels.category))]
    offsets = pa.array(np.cumsum([0] + [len(label.category) for label in labels]), pa.int32())
    flat = {
        "id": pa.array(ids, pa.int64()),  # from 1: pycocotools takes an annotation with id 0 for unmatched
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(bbox.astype(np.float32).ravel()), 4),
        "area": pa.array((bbox[:, 2] * bbox[:, 3]).astype(np.float32)),
        "category": pa.array(np.concatenate([label.category for label in labels])),
        "iscrowd": pa.array(np.zeros(len(bbox), np.int8)),
    }
    objects_type, image_type = schema.field("objects").type, schema.field("image").type
    lists = [pa.ListArray.from_arrays(offsets, flat[field.name], type=field.type) for field in objects_type]
    data = pa.array([example.data for _, example in rows], pa.binary())
    names = pa.array([example.entry.name for _, example in rows], pa.string())
    columns = {
        "image": pa.StructArray.from_arrays([data, names], fields=list(image_type)),
        "image_id": pa.array([image_id for image_id, _ in rows], pa.int64()),
        "width": pa.array([example.width for _, example in rows], pa.int32()),
        "height": pa.array([example.height for _, example in rows], pa.int32()),
        "objects": pa.StructArray.from_arrays(lists, fields=list(objects_type)),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)
