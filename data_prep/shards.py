"""Pack a YOLO folder into Parquet shards: `pack(yolo_dir, out)`, or `python -m data_prep pack YOLO_DIR --out DIR`.

Everything is written to OUT/.pack and moved to OUT at the end; a pack that was interrupted is begun again.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data_prep import __version__
from data_prep.entries import AS_WRITTEN, Folder, Problem, ReadOptions
from data_prep.folder import open_folder
from data_prep.parquet import read_folder
from data_prep.publish import write_dataset_card
from recipe.schema import CLASS_NAMES, UserError

log = logging.getLogger(__name__)

SHARD_SIZE = 256 * 10**6
SHOWN = 30  # refused lines and images in an error
PARTS = ("data", "README.md", "problems.csv", "manifest.json")  # what OUT holds; the manifest is moved there last


def pack(
    yolo_dir: Path,
    out: Path,
    options: ReadOptions = AS_WRITTEN,
    *,
    on_bad: Literal["fail", "skip"] = "fail",
    workers: int = 2,
    shard_size: int = SHARD_SIZE,
    repo_id: str | None = None,
) -> dict[str, Any]:
    """Write DIR/data/*.parquet, README.md, problems.csv and manifest.json, and return the manifest.

    With `on_bad="skip"` a refused line costs that line and a refused image all its boxes, both listed in problems.csv.
    Then, as always, images in = images packed + images left out, and boxes in = boxes packed + boxes dropped.
    `repo_id` is the Hub repo that the card names.

    Raises:
        UserError: what `open_folder` refuses; an output folder that holds something else; with `on_bad="fail"` any
            refused line or image, and then nothing is written.
    """
    folder = open_folder(yolo_dir, options)
    with _new_dataset(out) as new:
        splits = _write(folder, new, on_bad, workers, shard_size)
        labelled = ["=".join(flag) for flag in options.labelled]
        manifest = {"data_prep": __version__, "classes": list(CLASS_NAMES), "labelled": labelled, "splits": splits}
        write_dataset_card(new, manifest, repo_id)
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if (out / "manifest.json").exists():
            log.info("the dataset that was packed to %s before is replaced", out)
            (out / "manifest.json").unlink()  # first: a folder with a manifest is complete
        shutil.rmtree(out / "data", ignore_errors=True)
        for part in PARTS:
            (new / part).replace(out / part)
    return manifest


def _write(folder: Folder, new: Path, on_bad: str, workers: int, shard_size: int) -> dict[str, dict[str, Any]]:
    """Write the shards and problems.csv, and check that nothing was lost on the way; returns the splits' counts."""
    (new / "data").mkdir()
    surveys = read_folder(folder, workers, shard_size, new / "data")
    refused = [problem for survey in surveys.values() for problem in survey.refused()]
    if refused and on_bad == "fail":
        lines = [str(problem) for problem in refused[:SHOWN]]
        if len(refused) > SHOWN:
            lines.append(f"  and {len(refused) - SHOWN:,} more: `python -m data_prep inspect YOLO_DIR` lists all")
        what = f"{len(refused)} lines or images of {folder.root} cannot be packed; nothing was written"
        raise UserError("\n".join([f"{what}. Correct them, or use `--on-bad skip`:", *lines]))
    with (new / "problems.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Problem._fields[:5])
        for survey in surveys.values():
            for problem in survey.problems:
                action = "left out" if problem.action == "refused" else problem.action
                rows.writerow(problem._replace(action=action)[:5])
    splits = {name: survey.counts() | {"files": survey.files} for name, survey in surveys.items()}
    for name, counts in splits.items():
        packed = sum(file["images"] for file in counts["files"])
        if counts["images_in"] != len(folder.splits[name].entries) or counts["images"] != packed:
            raise RuntimeError(f"images were lost in {name}: {counts}")
        if counts["boxes_in"] != counts["boxes"] + counts["ignored_regions"] + counts["boxes_dropped"]:
            raise RuntimeError(f"boxes were lost in {name}: {counts}")
        if not packed:
            raise UserError(f"every image of the {name} split was left out: nothing to pack")
    return splits


@contextlib.contextmanager
def _new_dataset(out: Path) -> Iterator[Path]:
    """OUT/.pack/new, empty and ours alone; OUT is as it was where the dataset is not accepted."""
    work = out / ".pack"
    out.mkdir(parents=True, exist_ok=True)
    there = set(os.listdir(out))
    if there - {*PARTS, ".pack"} or (there and not there & {".pack", "manifest.json"}):
        raise UserError(f"{out} holds something else than a packed dataset: give another --out")
    work.mkdir(exist_ok=True)
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
            if not os.listdir(out):
                out.rmdir()
