"""Packing side by side, in one run: `python benchmarks/packing.py [--images 400] [--large 20000] [--workers 2]`.

Every side reads the same YOLO folder of 3-megapixel photographs (about 0.34 MB and 85 boxes each, crowds drawn
by data_prep.sample and hard-linked) and writes Parquet with the original bytes. Each runs in a process of its own and
is timed after its imports; the peak is that of it and its children together, shared pages counted once (PSS).
`--large` repeats our side with more images. Goals with 2 workers: 200 images/s; below 600 MB at any size.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

DISTINCT = 16  # photographs drawn; the others are links to them
OURS = {"data_prep, every image decoded": "pack(source, out, workers=workers)"}
PEERS = {
    "datasets from_generator, to_parquet (unchecked)": "by_generator(source, out)",
    "pyarrow, one thread (unchecked)": "by_pyarrow(source, out)",
}
CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from packing import by_generator, by_pyarrow, cpu_seconds
from data_prep.shards import pack
from recipe.schema import arrow_schema
arrow_schema()
source, out, workers = Path({source!r}), Path({out!r}), {workers}
start, cpu = time.perf_counter(), cpu_seconds()
{call}
print(time.perf_counter() - start, cpu_seconds() - cpu)
"""


def make_folder(root: Path, images: int) -> None:
    """A YOLO folder with as many images, all in `train` but one."""
    from PIL import Image

    from data_prep.sample import draw_crowd

    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
    for k in range(DISTINCT):
        rng = np.random.default_rng(k)
        picture, _ = draw_crowd(rng, 2000, 1500, 40)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=82)
        (root / f"{k}.jpg").write_bytes(buffer.getvalue())
        shares = rng.uniform(0.1, 0.2, (85, 4)) + np.array([0.3, 0.3, 0, 0])
        lines = [f"{row % 2} " + " ".join(f"{share:.6f}" for share in box) for row, box in enumerate(shares)]
        (root / f"{k}.txt").write_text("\n".join(lines) + "\n")
    for index in range(images):
        split = "val" if index == 0 else "train"
        os.link(root / f"{index % DISTINCT}.jpg", root / "images" / split / f"{index:06d}.jpg")
        os.link(root / f"{index % DISTINCT}.txt", root / "labels" / split / f"{index:06d}.txt")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [person, head]\n")


def examples(source: Path) -> Iterator[dict]:
    """What a short script would yield: nothing is checked, sizes come from the header."""
    from PIL import Image

    for path in sorted((source / "images/train").iterdir()):
        data = path.read_bytes()
        width, height = Image.open(io.BytesIO(data)).size
        rows = [line.split() for line in (source / "labels/train" / f"{path.stem}.txt").read_text().splitlines()]
        values = np.array(rows, float)
        bbox = np.concatenate([values[:, 1:3] - values[:, 3:] / 2, values[:, 3:]], 1) * np.tile([width, height], 2)
        number = len(rows)
        yield {
            "image": {"bytes": data, "path": path.name},
            "image_id": int(path.stem),
            "width": width,
            "height": height,
            "objects": {
                "id": list(range(number)),
                "bbox": bbox.tolist(),
                "area": (bbox[:, 2] * bbox[:, 3]).tolist(),
                "category": values[:, 0].astype(int).tolist(),
                "iscrowd": [0] * number,
            },
        }


def by_generator(source: Path, out: Path) -> None:
    from datasets import Dataset

    from recipe.schema import features

    data = Dataset.from_generator(examples, features=features(), gen_kwargs={"source": source}, cache_dir=str(out))
    data.to_parquet(str(out / "train.parquet"))


def by_pyarrow(source: Path, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recipe.schema import arrow_schema

    schema = arrow_schema()
    out.mkdir()
    rows: list[dict] = []
    with pq.ParquetWriter(out / "train.parquet", schema, compression="none", use_dictionary=False) as writer:
        for row in examples(source):
            rows.append(row)
            if len(rows) == 100:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def measure(call: str, source: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak MB of one side in a fresh process."""
    here = Path(__file__).resolve().parent
    code = CHILD.format(
        path=[str(here), str(here.parent)],
        source=str(source),
        out=str(out),
        workers=workers,
        call=call,
    )
    peak = 0.0
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.1)
        assert process.stdout
        assert process.returncode == 0
        seconds, cpu = map(float, process.stdout.read().split()[-2:])
    subprocess.run(["rm", "-rf", str(out)], check=True)
    return seconds, cpu, peak


def memory(pid: int, kind: str = "Pss") -> float:
    """MB of a process and its children; a page that several share counts in parts (PSS)."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (own := psutil.Process(pid), *own.children(recursive=True)):
            with contextlib.suppress(OSError):  # it has just ended
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
    return total / 1024


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--large", type=int, default=0, help="repeat our side with so many images")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    with tempfile.TemporaryDirectory() as scratch:
        sides = [(args.images, OURS | PEERS)] + ([(args.large, OURS)] if args.large else [])
        print(
            f"| images | side ({args.workers} workers for ours) | images/s | to datasets | CPU ms an image | peak MB |"
        )
        print("|---:|---|---:|---:|---:|---:|")
        reference = 0.0
        for images, group in sides:
            source = Path(scratch) / str(images)
            make_folder(source, images)
            found = {name: measure(call, source, Path(scratch) / "out", args.workers) for name, call in group.items()}
            reference = reference or images / found[next(iter(PEERS))][0]
            for name, (seconds, cpu, peak) in found.items():
                rate = images / seconds
                ratio, busy = rate / reference, 1000 * cpu / images
                print(f"| {images} | {name} | {rate:.0f} | {ratio:.2f}x | {busy:.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
