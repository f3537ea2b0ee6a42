"""Read a YOLO folder: `folder = open_folder(DIR)` lists it, `scan(folder, entries, workers)` reads it.

Accepts DIR/images/train + DIR/labels/train and DIR/train/images + DIR/train/labels, as data.yaml says.
The rules for label lines are in data_prep.labels, those for images in data_prep.image.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data_prep.image import Verify, image_size
from data_prep.labels import Labels, Problem, label_lines, read_labels
from recipe.schema import CLASS_NAMES, SPLITS, UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".mpo")
AT_ONCE = 8  # images that a thread reads before it hands them over: one by one costs a third of the speed
PAUSE = 2.0  # seconds between two lines of progress, but before the last
NOT_LABELS = ("classes.txt", "labels.txt")  # annotation tools leave these beside the label files


class Entry(NamedTuple):
    """An image and its label file, both relative to the dataset's root, with the stamps that show a change."""

    name: str  # relative to the split's folder of images
    image: str
    label: str | None
    stamp: tuple[int, ...]  # image size in bytes and mtime in ns, then the label file's


@dataclass
class Split:
    """One split: the pairs in sorted order, and files that belong to no image."""

    images: Path
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    orphan_boxes: int = 0


@dataclass
class YoloFolder:
    """A YOLO dataset. `classes` maps the ids in its label files to ours; `splits` has the Hub's names."""

    root: Path
    classes: dict[int, int]
    splits: dict[str, Split]


class Example(NamedTuple):
    """One image as read. A refused image has no `data` and no boxes; all its lines count as dropped."""

    entry: Entry
    data: bytes  # untouched
    width: int
    height: int
    labels: Labels


def open_folder(yolo_dir: Path) -> YoloFolder:
    """List the splits and pair images with label files. Reads data.yaml and folder listings, no image and no label.

    Raises:
        UserError: no such folder, no data.yaml, other class names than `CLASS_NAMES`, a split without images, images
            that two splits share or that share a label file.
    """
    if not yolo_dir.is_dir():
        raise UserError(f"there is no folder {yolo_dir}: give the folder that holds data.yaml")
    path = yolo_dir / "data.yaml"
    if not path.is_file():
        raise UserError(f"{yolo_dir} holds no data.yaml: `python -m data_prep sample OUT` writes an example")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold the keys `train`, `val` and `names`")
    classes = _class_ids(config.get("names"), path)
    root = yolo_dir / str(config.get("path") or "")
    root = root if root.is_dir() else yolo_dir  # `path` often names the machine on which the dataset was made
    try:
        splits = {name: _list_split(root, config.get(key), key) for key, name in SPLITS.items()}
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; get the right to read it") from error
    train, val = (split.images.resolve() for split in splits.values())
    if train == val or train in val.parents or val in train.parents:
        raise UserError(f"`train:` and `val:` of {path} share images in {val}: give each a folder of its own")
    return YoloFolder(root, classes, splits)


def _class_ids(names: Any, path: Path) -> dict[int, int]:
    try:
        found = {int(k): str(v) for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
    except (TypeError, ValueError):
        raise UserError(f"{path} needs `names: [{', '.join(CLASS_NAMES)}]`, found {names!r}") from None
    values = list(found.values())
    if not values or set(values) - set(CLASS_NAMES) or len(set(values)) < len(values):
        allowed = f"allowed are {' and '.join(CLASS_NAMES)}, each once, in any order"
        raise UserError(
            f"{path} names the classes {', '.join(values) or 'nothing'}; {allowed}: rename or remove others"
        )
    return {number: CLASS_NAMES.index(name) for number, name in found.items()}


def _list_split(root: Path, where: Any, key: str) -> Split:
    if not isinstance(where, str) or not where:
        raise UserError(f"data.yaml must name one folder of images as `{key}:`, found {where!r}")
    images = root / where
    if not images.is_dir() and where.startswith("../"):  # Roboflow exports count from a folder of their own
        images = root / where.removeprefix("../")
    if not images.is_dir():
        raise UserError(f"the `{key}` images should be in {images}: correct `{key}:` in data.yaml")
    if images.name != "images" and (images / "images").is_dir():
        images = images / "images"
    parts = list(Path(os.path.relpath(images, root)).parts)
    if "images" in parts:  # the last one: images/train -> labels/train, train/images -> train/labels
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    labels = root.joinpath(*parts)
    if not labels.is_dir():
        raise UserError(f"the `{key}` label files should be in {labels}: make this folder, it may be empty")
    split = _pair(root, images, labels)
    if not split.entries:
        raise UserError(f"the `{key}` split has no images: {images} holds no {' '.join(IMAGE_SUFFIXES)} file")
    return split


def _pair(root: Path, images: Path, labels: Path) -> Split:
    split = Split(images)
    label_of = {}
    images_in, labels_in = (os.path.relpath(folder, root) for folder in (images, labels))
    for name, stamp in _files(labels):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() == ".txt" and os.path.basename(name) not in NOT_LABELS:
            label_of[stem] = (os.path.normpath(os.path.join(labels_in, name)), stamp)
    stems: dict[str, str] = {}
    for name, stamp in _files(images):
        stem, suffix = os.path.splitext(name)
        file = os.path.normpath(os.path.join(images_in, name))
        if suffix.lower() in IMAGE_SUFFIXES:
            if stems.setdefault(stem, name) != name:
                raise UserError(f"{stems[stem]} and {name} in {images} share the label {stem}.txt: rename one of them")
            label, label_stamp = label_of.pop(stem, (None, ()))
            split.entries.append(Entry(name, file, label, stamp + label_stamp))
        elif labels != images or suffix.lower() != ".txt":
            detail = f"suffix {readable(suffix) or 'missing'}"
            split.problems.append(Problem(readable(file), 0, "not_an_image", "ignored", detail))
    for file, _ in label_of.values():
        lines = len(label_lines((root / file).read_bytes()))
        split.orphan_boxes += lines
        split.problems.append(Problem(readable(file), 0, "label_without_image", "ignored", f"{lines} boxes"))
    return split


def _files(folder: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Every visible file below a folder, linked folders too, sorted, as (relative name, (size, mtime in ns))."""
    ways: dict[str, tuple[Path, ...]] = {os.fspath(folder): (folder.resolve(),)}  # folder -> real folders on the way
    found: list[tuple[str, tuple[int, ...]]] = []

    def unreadable(error: OSError) -> None:  # os.walk would pass over the folder in silence
        raise error

    for base, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        way = ways.pop(base)
        for name in folders[:]:
            path, real = os.path.join(base, name), Path(base, name).resolve()
            if name.startswith(".") or any(passed.is_relative_to(real) for passed in way):  # a link leads back
                folders.remove(name)
            else:
                ways[path] = (*way, real)
        for path in (os.path.join(base, name) for name in names if not name.startswith(".")):
            status = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a dead link is unreadable
            found.append((path.removeprefix(os.path.join(folder, "")), (status.st_size, status.st_mtime_ns)))
    return sorted(found)


def readable(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8, as old archives hold them, become \\xe9."""
    return os.fsencode(name).decode(errors="backslashreplace")


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """`advance(images)`: a bar where somebody watches; in a log plain lines, ten at most and `PAUSE` apart."""
    done = said = 0
    since = time.monotonic()

    def advance(images: int) -> None:
        nonlocal done, said, since
        done += images
        due = done * 10 // total > said * 10 // total and time.monotonic() >= since + PAUSE
        if due or done == total > said:
            print(f"{what}: {done:,} of {total:,} images", file=sys.stderr, flush=True)
            said, since = done, time.monotonic()

    if not sys.stderr.isatty():
        yield advance
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda images: bar.advance(task, images)


def scan(folder: YoloFolder, entries: Sequence[Entry], workers: int, verify: Verify = "full") -> Iterator[Example]:
    """Read and judge images in the order given, with `workers` threads and a bounded number of images in memory.

    Threads suffice: the decoders, file reads and hashes let go of Python's lock.
    """

    def read(first: int) -> list[Example]:
        return [read_example(folder, entry, verify) for entry in entries[first : first + AT_ONCE]]

    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[Example]]] = deque()
        try:
            for first in range(0, len(entries), AT_ONCE):
                ahead.append(pool.submit(read, first))
                if len(ahead) > 3 * workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_example(folder: YoloFolder, entry: Entry, verify: Verify = "full") -> Example:
    """Read one image and its label file. What is wrong with them is in `labels.problems`, never raised."""
    lines, label = b"", readable(entry.label or "")
    rule = "unreadable_label"
    try:
        lines = (folder.root / entry.label).read_bytes() if entry.label else b""
        rule = "file_name"
        if readable(entry.name) != entry.name:
            raise ValueError("its name is not UTF-8: rename it, and its label file")
        rule = "unreadable_image"
        data = (folder.root / entry.image).read_bytes()
        width, height = image_size(data, verify)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        labels = read_labels(lines, label, folder.classes, 1, 1)
        problems = [Problem(readable(entry.image), 0, rule, "refused", reason)]
        problems += [problem for problem in labels.problems if problem.action == "refused"]
        dropped = Counter({rule: labels.boxes_in} if labels.boxes_in else {})
        none = labels._replace(bbox_xywh=labels.bbox_xywh[:0], category=labels.category[:0])
        return Example(entry, b"", 0, 0, none._replace(dropped=dropped, problems=problems))
    return Example(entry, data, width, height, read_labels(lines, label, folder.classes, width, height))
