"""Pack a YOLO folder into Parquet shards: `pack(yolo_dir, out)`, or `python -m data_prep pack YOLO_DIR --out DIR`.

One thread writes, the others read and verify (`data_prep.yolo.scan`), so the bytes do not depend on their number.
Which image goes into which shard follows from the file sizes alone. A shard is written under OUT/.pack and recorded
there with the fingerprint of its input; the same command, run again, takes recorded shards over. Nothing reaches
OUT/data before every shard is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data_prep import __version__, parquet, publish
from data_prep.image import Verify
from data_prep.labels import Problem
from data_prep.parquet import SHARD_SIZE, Shard
from data_prep.progress import watched
from data_prep.statistics import statistics_of_shards
from data_prep.yolo import Example, YoloFolder, open_folder, scan
from recipe.schema import CLASS_NAMES, UserError, arrow_schema

log = logging.getLogger(__name__)

OnBad = Literal["fail", "skip"]
SHOWN = 30  # problems listed in an error message
Written = dict[Shard, tuple[Path, dict[str, Any]]]  # a shard's file and its record


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
    folder = open_folder(Path(yolo_dir))
    shards = parquet.plan(folder, shard_size, f"verify={verify} on_bad={on_bad}")
    with _claimed(Path(out), folder.root) as work:
        written: Written = {}
        for shard in shards:
            if found := parquet.finished(shard, work, work.parent / "data"):
                written[shard] = found
        if written:
            log.info("%d of %d shards are there from an earlier run", len(written), len(shards))
        refused = _write_missing(folder, shards, written, work, on_bad, workers, verify)
        if refused:
            raise UserError(_refusal(yolo_dir, refused))
        manifest = _manifest(folder, shards, written)
        _finish(work, folder, shards, written, manifest)
    return manifest


def _write_missing(
    folder: YoloFolder, shards: list[Shard], written: Written, work: Path, on_bad: OnBad, workers: int, verify: Verify
) -> list[Problem]:
    """Write every shard that `written` lacks. Returns the refused lines and images when they forbid packing."""
    todo = [shard for shard in shards if shard not in written]
    total = sum(len(shard.entries) for shard in todo)
    refused: list[Problem] = []
    examples = watched(
        scan(folder, (entry for shard in todo for entry in shard.entries), workers, verify), total, "packing"
    )
    if on_bad == "fail":
        examples = _collecting(examples, refused)
    schema = arrow_schema()
    for shard in todo:
        if refused:
            break
        written[shard] = parquet.write(shard, examples, schema, work)
    for _ in examples:  # after a refusal: find the others too, so that all are listed at once
        pass
    return refused


def _collecting(examples: Iterator[Example], refused: list[Problem]) -> Iterator[Example]:
    for example in examples:
        refused.extend(problem for problem in example.labels.problems if problem.action == "refused")
        yield example


def _refusal(yolo_dir: Path, refused: list[Problem]) -> str:
    by_rule = ", ".join(
        f"{count} {rule}" for rule, count in Counter(problem.rule for problem in refused).most_common()
    )
    lines = [f"  {p.file}{f':{p.line}' if p.line else ''}  {p.rule}: {p.detail}" for p in refused[:SHOWN]]
    if len(refused) > SHOWN:
        lines.append(
            f"  and {len(refused) - SHOWN} more: `python -m data_prep inspect {yolo_dir} --json FILE` lists all"
        )
    return (
        f"{len(refused)} lines or images of {yolo_dir} cannot be packed ({by_rule}); nothing was written. "
        "Mend them, or leave them out with `--on-bad skip`:\n" + "\n".join(lines)
    )


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
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another pack is writing to {out}: wait for it, or give another --out") from None
            mark.write_text(source)
            try:
                yield work
            except UserError:
                _discard(work)
                raise
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error.strerror or error}. Give --out a folder on a disk with room"
        ) from error


def _discard(work: Path) -> None:
    """Nothing is written: take away what this run made, and leave a dataset that was packed before as it was."""
    out = work.parent
    if not (out / "manifest.json").exists():
        shutil.rmtree(work)
        shutil.rmtree(out / "data", ignore_errors=True)
        with contextlib.suppress(OSError):
            out.rmdir()
        return
    for path in work.iterdir():
        if path.suffix in (".parquet", ".part"):
            path.unlink()


def _manifest(folder: YoloFolder, shards: list[Shard], written: Written) -> dict[str, Any]:
    """Sum the shards' records per split, and check that nothing was lost on the way."""
    splits: dict[str, dict[str, Any]] = {}
    for name, split in folder.splits.items():
        records = [(shard, written[shard][1]) for shard in shards if shard.split == name]
        dropped = Counter({"label_without_image": split.orphan_boxes} if split.orphan_boxes else {})
        problems = Counter(f"{problem.action}: {problem.rule}" for problem in split.problems)
        for _, record in records:
            dropped.update(record["boxes_dropped"])
            problems.update(record["problems"])
        keys = ("images_in", "images", "images_left_out", "images_without_boxes", "boxes_in", "boxes")
        total = {key: sum(record[key] for _, record in records) for key in keys}
        total["boxes_in"] += split.orphan_boxes
        files = [
            {"name": s.name, "images": r["images"], "bytes": r["bytes"], "sha256": r["sha256"]} for s, r in records
        ]
        splits[name] = total | {
            "boxes_dropped": dict(sorted(dropped.items())),
            "problems": dict(sorted(problems.items())),
            "files": files,
        }
        if (
            total["images_in"] != len(split.entries)
            or total["images_in"] != total["images"] + total["images_left_out"]
        ):
            raise RuntimeError(f"images were lost in {name}: {total}")
        if total["boxes_in"] != total["boxes"] + dropped.total():
            raise RuntimeError(f"boxes were lost in {name}: {total}, dropped {dict(dropped)}")
        if not total["images"]:
            raise UserError(f"every image of the {name} split was left out: nothing to pack")
    return {"data_prep": __version__, "classes": list(CLASS_NAMES), "splits": splits}


def _finish(work: Path, folder: YoloFolder, shards: list[Shard], written: Written, manifest: dict[str, Any]) -> None:
    """Read the shards once more for their statistics, move them to OUT/data, and write the files beside it."""
    out, data = work.parent, work.parent / "data"
    found = {}
    for name, split in manifest["splits"].items():
        found[name] = statistics_of_shards([written[shard][0] for shard in shards if shard.split == name])
        if (found[name].images, found[name].boxes) != (split["images"], split["boxes"]):
            raise RuntimeError(f"{name}: the shards hold {found[name].images} images and {found[name].boxes} boxes")
    data.mkdir(exist_ok=True)
    for shard in shards:
        if written[shard][0].parent == work:
            written[shard][0].replace(data / shard.name)
    keep = {shard.name for shard in shards}
    for path in [*data.iterdir(), *work.iterdir()]:
        stale_record = path.suffix in (".json", ".csv") and path.stem not in {shard.stem for shard in shards}
        if stale_record or (path.suffix in (".parquet", ".part") and (path.parent == work or path.name not in keep)):
            path.unlink()
    with (out / "problems.csv.part").open("w", newline="", encoding="utf-8") as file:
        file.write("file,line,rule,action,detail\n")
        for split_ in folder.splits.values():
            parquet.write_problems(file, split_.problems)
        for shard in shards:
            with (work / f"{shard.stem}.csv").open(newline="", encoding="utf-8") as part:
                shutil.copyfileobj(part, file)
    (out / "problems.csv.part").replace(out / "problems.csv")
    publish.write_card(out, manifest, found)
    publish.write_manifest(out, manifest)  # last: a folder with a manifest is complete
