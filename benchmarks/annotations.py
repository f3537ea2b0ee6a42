"""Boxes of a whole training set as flat arrays: `python benchmarks/annotations.py [--images 55442]`.

Reads 1/16, 1/4 and all of a set with 85 boxes an image from Parquet, each in a process of its own.
Goals: arrays below 150 MB, time linear in the number of images (exponent below 1.05).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipe.data.annotations import read_annotations
from recipe.schema import arrow_schema

BOXES = 85


def compare(images: int) -> None:
    """Time and memory at three sizes."""
    print("| images | boxes | arrays, MB | read, s | peak RSS above the imports, MB |\n|---|---|---|---|---|")
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in (16, 4, 1):
            path = Path(folder) / f"train-{part}.parquet"
            write_boxes(path, images // part)
            out = subprocess.run(
                [sys.executable, __file__, "--read", str(path)], capture_output=True, text=True, check=True
            )
            count, boxes, size, seconds, peak = (float(value) for value in out.stdout.split())
            times.append(seconds)
            print(f"| {count:,.0f} | {boxes:,.0f} | {size / 1e6:.1f} | {seconds:.2f} | {peak / 1e6:.0f} |")
    print(f"growth exponent over 16x: {np.log(times[2] / times[0]) / np.log(16):.2f} (goal below 1.05)")


def write_boxes(path: Path, count: int) -> None:
    """A shard with `BOXES` boxes an image and hardly any image."""
    rng = np.random.default_rng(0)
    total, schema = count * BOXES, arrow_schema()
    corners = rng.uniform(0, 900, (total, 2))
    flat = pa.array(np.hstack([corners, np.full((total, 2), 50.0)]).astype(np.float32).ravel())
    offsets = pa.array((np.arange(count + 1) * BOXES).astype(np.int32))
    values = {
        "id": pa.array(np.arange(total)),
        "bbox": pa.ListArray.from_arrays(pa.array((np.arange(total + 1) * 4).astype(np.int32)), flat),
        "area": pa.array(np.full(total, 2500, np.float32)),
        "category": pa.array(rng.integers(0, 2, total)),
        "iscrowd": pa.array(np.zeros(total, np.int8)),
    }
    fields = schema.field("objects").type
    lists = [pa.ListArray.from_arrays(offsets, values[field.name].cast(field.type.value_type)) for field in fields]
    image = pa.array([{"bytes": b"-", "path": None}] * count, schema.field("image").type)
    sides = [pa.array(np.full(count, side, np.int32)) for side in (1920, 1080)]
    columns = [image, pa.array(np.arange(count)), *sides, pa.StructArray.from_arrays(lists, fields=list(fields))]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path, row_group_size=1000)


def read_one(path: str) -> None:
    """The child of `compare`."""
    before = peak_rss()
    start = time.perf_counter()
    notes = read_annotations([path], path)
    size = sum(array.nbytes for array in vars(notes).values())
    print(len(notes), len(notes.labels), size, time.perf_counter() - start, peak_rss() - before)


def peak_rss() -> int:
    """Of this program alone: getrusage would tell the parent's peak, too."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=55_442)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read_one(args.read)
    else:
        compare(args.images)


if __name__ == "__main__":
    main()
