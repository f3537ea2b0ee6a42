"""One Parquet shard: which images go in (`plan_shards`), and its bytes (`write_shard`).

The bytes depend on the input alone: the same settings, one writer, row groups cut by the sizes of the image files.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.entries import Entry, Folder
from data_prep.example import Example, read_example
from data_prep.labels import SHOWN, Problem
from data_prep.statistics import Tally
from recipe.schema import arrow_schema

GROUP_ROWS, GROUP_BYTES = 100, 16 * 2**20  # a row group: a page of the Hub's viewer, and what the writer holds
BOX_IDS = 1_000_000  # per image, so that a changed label file leaves the ids of all other images as they are


@dataclass(frozen=True)
class Shard:
    """Some consecutive images of a split."""

    split: str
    name: str
    first_id: int  # image_id of the first entry
    entries: list[Entry]

    def __len__(self) -> int:
        return len(self.entries)


class WrittenShard(NamedTuple):
    """What became of a shard's images. Its problems lie beside it, as DIR/NAME.csv."""

    file: dict[str, Any]  # its line in manifest.json: name, images, bytes, sha256
    tally: Tally
    refused: list[Problem]  # the first of them


def plan_shards(folder: Folder, shard_size: int) -> list[Shard]:
    """Deal the images into shards of about `shard_size` bytes."""
    shards: list[Shard] = []
    first_id = 0
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
            shards.append(Shard(split, f"{split}-{index:05d}-of-{len(groups):05d}.parquet", first_id, group))
            first_id += len(group)
    return shards


def write_shard(shard: Shard, folder: Folder, out: Path) -> WrittenShard:
    """Read and check the images of a shard, and write DIR/NAME and DIR/NAME.csv."""
    path, schema = out / shard.name, arrow_schema(bool(folder.options.labelled))
    tally = Tally()
    refused: list[Problem] = []
    options = {
        "compression": "none",  # JPEG gains 0.3 %, and the boxes are a hundredth of the file
        "use_dictionary": False,  # a dictionary of image bytes is only ever thrown away
        "write_statistics": ["image_id", "width", "height"],
        "write_page_index": True,
    }
    problems_file = path.with_name(f"{shard.name}.csv").open("w", newline="", encoding="utf-8")
    with problems_file, pq.ParquetWriter(path, schema, **options) as writer:
        problem_rows = csv.writer(problems_file, lineterminator="\n")
        rows: list[dict[str, Any]] = []
        held = 0
        for image_id, entry in enumerate(shard.entries, shard.first_id):
            example = read_example(folder, entry)
            tally.add(example)
            for problem in example.labels.problems:
                is_refused = problem.action == "refused"
                problem_rows.writerow(problem._replace(action="left out") if is_refused else problem)
                refused += [problem] if is_refused and len(refused) < SHOWN else []
            if rows and (len(rows) == GROUP_ROWS or held + len(example.data) > GROUP_BYTES):
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, held = [], 0
            if example.data:
                rows.append(_row(image_id, example) | {"labelled": folder.labelled_classes(entry)})
                held += len(example.data)
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    images, size = pq.read_metadata(path).num_rows, path.stat().st_size
    return WrittenShard({"name": shard.name, "images": images, "bytes": size, "sha256": digest}, tally, refused)


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
