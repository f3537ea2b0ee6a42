"""One Parquet shard: which images go in (`plan`), its bytes (`write`), and whether it is there already (`finished`).

The bytes depend on the input alone: the same settings, one writer, row groups cut by the sizes of the image files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import __version__
from data_prep.image import Verify
from data_prep.labels import Problem
from data_prep.statistics import Tally
from data_prep.yolo import Entry, Example, YoloFolder, scan
from recipe.schema import arrow_schema

GROUP_ROWS, GROUP_BYTES = 100, 16 * 2**20  # a row group: a page of the Hub's viewer, and what the writer holds
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
            if groups[-1] and entry.stamp[0] > room:
                groups.append([])
                room = shard_size
            groups[-1].append(entry)
            room -= entry.stamp[0]
        for index, group in enumerate(groups):
            key = repr((__version__, pa.__version__, salt, sorted(folder.classes.items()), next_id, group))
            digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
            shards.append(Shard(split, index, len(groups), next_id, tuple(group), digest))
            next_id += len(group)
    return shards


def record(shard: Shard, work: Path) -> Any:
    """What was noted when the shard was written: {fingerprint, sha256, tally, problems}."""
    return json.loads((work / f"{shard.stem}.json").read_text())


def finished(shard: Shard, work: Path, data: Path) -> Path | None:
    """The shard's file, if an earlier run wrote it from the same input and it is still whole."""
    try:
        found = record(shard, work)
    except (OSError, ValueError):
        return None
    for path in (work / f"{shard.stem}.parquet", data / shard.name):
        if found["fingerprint"] == shard.fingerprint and path.is_file() and _sha256(path) == found["sha256"]:
            return path
    return None


def write(
    shard: Shard, folder: YoloFolder, work: Path, threads: int, verify: Verify, advance: Callable[[int], None]
) -> None:
    """Read, judge and write one shard, then its record."""
    path, part = work / f"{shard.stem}.parquet", work / f"{shard.stem}.part"
    schema = arrow_schema()
    tally = Tally()
    problems: list[Problem] = []
    with pq.ParquetWriter(
        part,
        schema,
        compression="none",  # JPEG gains 0.3 %, and the boxes are a hundredth of the file
        use_dictionary=False,  # a dictionary of image bytes is only ever thrown away
        write_statistics=["image_id", "width", "height"],
        write_page_index=True,
    ) as writer:
        rows: list[tuple[int, Example]] = []
        held = 0
        for image_id, example in enumerate(scan(folder, shard.entries, threads, verify), shard.first_id):
            advance(1)
            tally.add(example)
            problems += example.labels.problems
            if rows and (len(rows) == GROUP_ROWS or held + len(example.data) > GROUP_BYTES):
                writer.write_table(_table(rows, schema))
                rows, held = [], 0
            if example.data:
                rows.append((image_id, example))
                held += len(example.data)
        if rows:
            writer.write_table(_table(rows, schema))
    found = {"fingerprint": shard.fingerprint, "sha256": _sha256(part), "tally": vars(tally), "problems": problems}
    part.replace(path)
    part.write_text(json.dumps(found))
    part.replace(work / f"{shard.stem}.json")  # last: a shard counts once its record is there


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _table(rows: list[tuple[int, Example]], schema: pa.Schema) -> pa.Table:
    """A row group."""
    return pa.Table.from_pylist([_row(image_id, example) for image_id, example in rows], schema)


def _row(image_id: int, example: Example) -> dict[str, Any]:
    bbox_xywh, category = example.labels.bbox_xywh, example.labels.category
    first = image_id * BOX_IDS + 1  # from 1: pycocotools takes an annotation with id 0 for unmatched
    return {
        "image": {"bytes": example.data, "path": example.entry.name},
        "image_id": image_id,
        "width": example.width,
        "height": example.height,
        "objects": {
            "id": range(first, first + len(category)),
            "bbox": bbox_xywh.tolist(),
            "area": bbox_xywh[:, 2:].prod(axis=1).tolist(),
            "category": category.tolist(),
            "iscrowd": [0] * len(category),
        },
    }
