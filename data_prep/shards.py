"""Pack a YOLO folder into Parquet shards: `pack(yolo_dir, out)`, or `python -m data_prep pack YOLO_DIR --out DIR`.

Which image goes into which shard follows from the file sizes alone, and one process reads, judges and writes a whole
shard, so the bytes do not depend on the number of workers. A shard is written under OUT/.pack and recorded there with
the fingerprint of its input; the same command, run again, takes recorded shards over. Nothing reaches OUT/data before
every shard is there.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow.parquet as pq

from data_prep import __version__, parquet, publish
from data_prep.image import Verify
from data_prep.labels import Problem, listing
from data_prep.parquet import Shard
from data_prep.statistics import Tally
from data_prep.yolo import YoloFolder, open_folder, progress
from recipe.schema import CLASS_NAMES, UserError

log = logging.getLogger(__name__)

OnBad = Literal["fail", "skip"]
SHARD_SIZE = 256 * 10**6
Written = dict[Shard, Path]

_counts: Any = None  # in each process: how many images of each shard have been read, for the parent to show


def pack(
    yolo_dir: Path,
    out: Path,
    *,
    on_bad: OnBad = "fail",
    workers: int = 2,
    shard_size: int = SHARD_SIZE,
    verify: Verify = "full",
) -> dict[str, Any]:
    """Write DIR/data/*.parquet, README.md, problems.csv and manifest.json, and return the manifest.

    With `on_bad="skip"` a refused line costs that line and a refused image all its boxes, both listed in problems.csv.
    Then, as always, images in = images packed + images left out, and boxes in = boxes packed + boxes dropped.

    Raises:
        UserError: what `open_folder` refuses; an output folder that holds something else or cannot be written;
            with `on_bad="fail"` any refused line or image, and then nothing is written.
    """
    folder = open_folder(yolo_dir)
    shards = parquet.plan(folder, shard_size, f"{on_bad} {verify}")
    with _claimed(out, folder.root) as work:
        found = {shard: parquet.finished(shard, work, out / "data") for shard in shards}
        written = {shard: path for shard, path in found.items() if path}
        if written:
            log.info("%d of %d shards are there from an earlier run", len(written), len(shards))
        written |= _write(folder, [shard for shard in shards if shard not in written], work, workers, verify)
        if on_bad == "fail":
            _refuse(folder, shards, work)
        manifest = _account(folder, written, work, verify)
        _finish(out, work, written)
        publish.write_card(out, manifest)
        publish.write_manifest(out, manifest)  # last: a folder with a manifest is complete
    return manifest


def _write(folder: YoloFolder, todo: list[Shard], work: Path, workers: int, verify: Verify) -> Written:
    """Write shards side by side, one process for each: threads alone would wait for each other at Python's lock."""
    if not todo:
        return {}
    processes = min(workers, len(todo))
    threads = workers // processes + 1  # its share of the cores, and one that reads on while the shard is written
    bare = replace(folder, splits={})  # what reading needs, without the list of all files
    counts, seen = multiprocessing.RawArray("q", len(todo)), 0  # no lock, which a process that is killed would keep
    with ProcessPoolExecutor(processes, initializer=_start, initargs=(counts,)) as pool:
        waiting = {pool.submit(_write_one, n, shard, bare, work, threads, verify) for n, shard in enumerate(todo)}
        try:
            with progress(sum(len(shard.entries) for shard in todo), "packing") as advance:
                while waiting:
                    done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    before, seen = seen, sum(counts)
                    advance(seen - before)
        finally:
            pool.shutdown(cancel_futures=True)
    return {shard: work / f"{shard.stem}.parquet" for shard in todo}


def _start(counts: Any) -> None:
    """In each process: end at Ctrl-C, and when the parent is killed, whose lock on the output folder it shares."""
    global _counts
    _counts = counts
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _write_one(number: int, shard: Shard, folder: YoloFolder, work: Path, threads: int, verify: Verify) -> None:
    def advance(images: int) -> None:
        _counts[number] += images

    parquet.write(shard, folder, work, threads, verify, advance)


def _exit_after_parent() -> None:
    if parent := multiprocessing.parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)


def _refuse(folder: YoloFolder, shards: list[Shard], work: Path) -> None:
    """Raise UserError when any shard, of this run or an earlier one, holds a refused line or image."""
    found = [Problem._make(problem) for shard in shards for problem in parquet.record(shard, work)["problems"]]
    refused = [problem for problem in found if problem.action == "refused"]
    if refused:
        rules = ", ".join(f"{n} {rule}" for rule, n in Counter(problem.rule for problem in refused).most_common())
        message = f"{len(refused)} lines or images of {folder.root} cannot be packed ({rules}); nothing was written. "
        raise UserError("\n".join([f"{message}Mend them, or leave them out with `--on-bad skip`:", *listing(refused)]))


@contextlib.contextmanager
def _claimed(out: Path, root: Path) -> Iterator[Path]:
    """OUT/.pack, ours alone. Whatever is not finished goes when the input is refused; it stays when we are killed."""
    work, source = out / ".pack", hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
    mark = work / "source"
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file: give --out a folder")
        occupied = out.exists() and set(os.listdir(out)) - {".pack"}
        if occupied and not (mark.is_file() and mark.read_text() == source):
            raise UserError(
                f"{out} already holds something else than the dataset packed from {root}: "
                f"give another --out, or delete it with `rm -r {out}`"
            )
        work.mkdir(parents=True, exist_ok=True)
        with (work / "lock").open("w") as lock:
            if not _locked(lock):
                raise UserError(f"another pack is writing to {out}: wait for it, or give another --out")
            mark.write_text(source)
            try:
                yield work
            except UserError:  # take away what this run made, and leave a dataset that was packed before as it was
                for path in [*work.glob("*.parquet"), *work.glob("*.part")]:
                    path.unlink()
                if not occupied:
                    shutil.rmtree(work)
                    with contextlib.suppress(OSError):  # a link or a mounted folder stays
                        out.rmdir()
                raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {out}: {reason}. Give --out a folder on a disk with room") from error
    except BrokenProcessPool as error:
        raise UserError(
            "a process that wrote a shard was killed (out of memory?): the same command goes on where it stopped, "
            "fewer --workers need less memory"
        ) from error


def _locked(lock: IO[str]) -> bool:
    """Take the lock; the processes of a pack that was killed hold it for a moment longer (`_start`)."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.1)
    return False


def _account(folder: YoloFolder, written: Written, work: Path, verify: Verify) -> dict[str, Any]:
    """Write problems.csv, sum the shards' records per split, and check that nothing was lost on the way."""
    splits: dict[str, dict[str, Any]] = {}
    with (work / "problems.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Problem._fields)
        for name, split in folder.splits.items():
            tally, files = Tally.of_split(split), []
            rows.writerows(split.problems)
            for shard, path in sorted(written.items(), key=lambda item: item[0].first_id):
                if shard.split != name:
                    continue
                record = parquet.record(shard, work)
                tally += Tally.load(record["tally"])
                images = pq.read_metadata(path).num_rows
                size = path.stat().st_size
                files.append({"name": shard.name, "images": images, "bytes": size, "sha256": record["sha256"]})
                problems = map(Problem._make, record["problems"])
                rows.writerows(p._replace(action="left out") if p.action == "refused" else p for p in problems)
            splits[name] = counts = tally.summary() | {"files": files}
            packed = sum(shard["images"] for shard in files)
            if not counts["images_in"] == len(split.entries) == packed + counts["images_left_out"]:
                raise RuntimeError(f"images were lost in {name}: {counts}")
            if counts["boxes_in"] != counts["boxes"] + tally.dropped.total():
                raise RuntimeError(f"boxes were lost in {name}: {counts}")
            if not packed:
                raise UserError(f"every image of the {name} split was left out: nothing to pack")
    return {"data_prep": __version__, "classes": list(CLASS_NAMES), "verify": verify, "splits": splits}


def _finish(out: Path, work: Path, written: Written) -> None:
    """Move the shards to OUT/data, and take away what other runs left."""
    data = out / "data"
    data.mkdir(exist_ok=True)
    for shard, path in written.items():
        path.replace(data / shard.name)
    (work / "problems.csv").replace(out / "problems.csv")
    names = {shard.name for shard in written} | {f"{shard.stem}.json" for shard in written}
    for path in [*data.glob("*.parquet"), *work.glob("*.*")]:
        if path.name not in names:
            path.unlink()
