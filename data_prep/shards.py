"""Pack a YOLO folder into Parquet shards: `pack(yolo_dir, out)`, or `python -m data_prep pack YOLO_DIR --out DIR`.

Which image goes into which shard follows from the file sizes alone, and one process reads, checks and writes a
complete shard, so the bytes do not depend on the number of workers. Everything is written to OUT/.pack and moved to
OUT at the end; a pack that was interrupted is begun again.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data_prep import __version__
from data_prep.dataset_card import write_dataset_card
from data_prep.entries import AS_WRITTEN, Folder, ReadOptions
from data_prep.folder import open_folder
from data_prep.labels import SHOWN, Problem, refused_lines
from data_prep.parquet import plan_shards, write_shard
from data_prep.processes import in_processes
from data_prep.statistics import Tally
from recipe.schema import CLASS_NAMES, UserError

log = logging.getLogger(__name__)

OnBad = Literal["fail", "skip"]
SHARD_SIZE = 256 * 10**6
PARTS = ("data", "README.md", "problems.csv", "manifest.json")  # what OUT holds; the manifest is moved there last


def pack(
    yolo_dir: Path,
    out: Path,
    options: ReadOptions = AS_WRITTEN,
    *,
    on_bad: OnBad = "fail",
    workers: int = 2,
    shard_size: int = SHARD_SIZE,
    repo_id: str | None = None,
) -> dict[str, Any]:
    """Write DIR/data/*.parquet, README.md, problems.csv and manifest.json, and return the manifest.

    With `on_bad="skip"` a refused line costs that line and a refused image all its boxes, both listed in problems.csv.
    Then, as always, images in = images packed + images left out, and boxes in = boxes packed + boxes dropped.
    `repo_id` is the Hub repo that the card names.

    Raises:
        UserError: what `open_folder` refuses; an output folder that holds something else or cannot be written;
            with `on_bad="fail"` any refused line or image, and then nothing is written.
    """
    folder = open_folder(yolo_dir, options)
    with _new_dataset(out) as new:
        manifest = _write(folder, new, on_bad, workers, shard_size)
        write_dataset_card(new, manifest, repo_id)
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if (out / "manifest.json").exists():
            log.info("the dataset that was packed to %s before is replaced", out)
            (out / "manifest.json").unlink()  # first: a folder with a manifest is complete
        shutil.rmtree(out / "data", ignore_errors=True)
        for part in PARTS:
            (new / part).replace(out / part)
    return manifest


def _write(folder: Folder, new: Path, on_bad: OnBad, workers: int, shard_size: int) -> dict[str, Any]:
    """Write the shards and problems.csv, and check that nothing was lost on the way; returns the manifest."""
    (new / "data").mkdir()
    shards = plan_shards(folder, shard_size)
    tallies = {name: Tally.of_split(split) for name, split in folder.splits.items()}
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in folder.splits}
    refused: list[Problem] = []
    work = partial(write_shard, folder=replace(folder, splits={}), out=new / "data")
    with (new / "problems.csv").open("w", newline="", encoding="utf-8") as problems_file:
        rows = csv.writer(problems_file, lineterminator="\n")
        rows.writerow(Problem._fields)
        for split in folder.splits.values():
            rows.writerows(split.problems)
        for shard, written in zip(shards, in_processes(work, shards, workers, "packing"), strict=True):
            tallies[shard.split] += written.tally
            files[shard.split].append(written.file)
            refused += written.refused[: SHOWN - len(refused)]
            problems = new / "data" / f"{shard.name}.csv"
            with problems.open(encoding="utf-8") as part:
                shutil.copyfileobj(part, problems_file)
            problems.unlink()
    if refused and on_bad == "fail":
        raise UserError(_refusal(folder, refused, tallies))
    splits = {name: tally.split_counts() | {"files": files[name]} for name, tally in tallies.items()}
    for name, counts in splits.items():
        _check_conservation(name, counts, len(folder.splits[name].entries))
    labelled = ["=".join(flag) for flag in folder.options.labelled]
    return {"data_prep": __version__, "classes": list(CLASS_NAMES), "labelled": labelled, "splits": splits}


def _refusal(folder: Folder, refused: list[Problem], tallies: dict[str, Tally]) -> str:
    problems = sum((tally.problems for tally in tallies.values()), Counter[str]())
    counts = {key.removeprefix("refused: "): n for key, n in problems.most_common() if key.startswith("refused: ")}
    rules, total = ", ".join(f"{n} {rule}" for rule, n in counts.items()), sum(counts.values())
    message = f"{total} lines or images of {folder.root} cannot be packed ({rules}); nothing was written. "
    return "\n".join([f"{message}Correct them, or use `--on-bad skip`:", *refused_lines(refused, total)])


def _check_conservation(name: str, counts: dict[str, Any], entries: int) -> None:
    packed = sum(file["images"] for file in counts["files"])
    if not counts["images_in"] == entries == packed + counts["images_left_out"]:
        raise RuntimeError(f"images were lost in {name}: {counts}")
    if counts["boxes_in"] != counts["boxes"] + counts["ignored_regions"] + sum(counts["boxes_dropped"].values()):
        raise RuntimeError(f"boxes were lost in {name}: {counts}")
    if not packed:
        raise UserError(f"every image of the {name} split was left out: nothing to pack")


@contextlib.contextmanager
def _new_dataset(out: Path) -> Iterator[Path]:
    """OUT/.pack/new, empty and ours alone; OUT is as it was where the dataset is not accepted."""
    work, existed = out / ".pack", out.exists()
    try:
        if existed and not out.is_dir():
            raise UserError(f"{out} is a file: give --out a folder")
        there = set(os.listdir(out)) if existed else set()
        if there - {*PARTS, ".pack"} or (there and not there & {".pack", "manifest.json"}):
            raise UserError(
                f"{out} already holds something else than a packed dataset: "
                f"give another --out, or delete it with `rm -r {out}`"
            )
        work.mkdir(parents=True, exist_ok=True)
        with (work / "lock").open("w") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another pack is writing to {out}: wait for it, or give another --out") from None
            shutil.rmtree(work / "new", ignore_errors=True)  # of a pack that was killed
            (work / "new").mkdir()
            try:
                yield work / "new"
            finally:
                shutil.rmtree(work / "new", ignore_errors=True)
                if os.listdir(out) == [".pack"] or (out / "manifest.json").exists():
                    shutil.rmtree(work, ignore_errors=True)  # else it tells that OUT is ours, without a manifest yet
                if not existed:
                    with contextlib.suppress(OSError):  # it holds the dataset
                        out.rmdir()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {out}: {reason}. Give --out a folder on a disk with room") from error
