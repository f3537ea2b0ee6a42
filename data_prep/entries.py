"""What a folder of photographs holds, before any of them is read: splits of entries, and what their classes mean."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_prep.files import printable
from data_prep.labels import Classes, PixelBox, Problem
from recipe.schema import CLASS_NAMES, UserError


@dataclass(frozen=True)
class ReadOptions:
    """How a folder is to be read, beyond what it says itself."""

    rename: Sequence[tuple[str, str]] = ()  # ("pedestrian", "person")
    drop: Sequence[str] = ()  # names of classes, * for all others
    labelled: Sequence[tuple[str, str]] = ()  # ("MOT*", "person"): there only persons were annotated
    val_fraction: float = 0.0
    seed: int = 0
    polygons: Literal["refuse", "boxes"] = "refuse"


AS_WRITTEN = ReadOptions()


class Entry(NamedTuple):
    """An image and where its boxes are; paths are relative to the dataset's root."""

    name: str  # relative to the split's folder of images
    image: str
    label: str | None
    size: int  # of the image file, bytes
    boxes: tuple[PixelBox, ...] | None = None  # where one label file describes many images
    line: int = 0  # of that file


@dataclass
class Split:
    """One split: its images in sorted order, and files that belong to no image."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)  # boxes that belong to no image, by rule


@dataclass
class Folder:
    """A dataset on disk. `classes` maps the ids in its label files to ours; `splits` has the Hub's names."""

    root: Path
    classes: Classes
    splits: dict[str, Split]
    options: ReadOptions = AS_WRITTEN

    def labelled_classes(self, entry: Entry) -> list[int]:
        """The classes that were annotated in an image: those that `--labelled` names for it, else all."""
        named = {name for glob, name in self.options.labelled if fnmatchcase(entry.name, glob)}
        return [number for number, name in enumerate(CLASS_NAMES) if name in named or not named]


def entry_at(
    root: Path, image: str, label: str | None, boxes: tuple[PixelBox, ...] | None = None, line: int = 0
) -> Entry:
    """The entry of an image that a list names; a missing file is noticed when it is read."""
    size = os.path.getsize(root / image) if os.path.isfile(root / image) else 0
    name = os.path.normpath(os.path.join("/", image))[1:]  # never above a folder that somebody unpacks it to
    return Entry(name, image, label, size, boxes, line)


def class_ids(names: Any, path: Path, options: ReadOptions) -> Classes:
    """Class id -> our index, or None where --drop names the class. Capitals do not matter.

    Raises:
        UserError: no names, a class that is neither ours nor mapped nor dropped, or a flag that names none of them.
    """
    pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else ()
    try:
        found = {int(number): name.lower() for number, name in pairs}
    except (AttributeError, ValueError):
        found = {}
    if not found:
        raise UserError(f"{path} needs `names: [{', '.join(CLASS_NAMES)}]`, a list or one name for each class id")
    known: dict[str, int | None] = {name: number for number, name in enumerate(CLASS_NAMES)}
    known |= {name.lower(): CLASS_NAMES.index(ours) for name, ours in options.rename}
    known |= {name: None for name in found.values() if name in map(str.lower, options.drop)}
    if "*" in options.drop:
        known = dict.fromkeys(found.values()) | known
    there = printable(", ".join(found.values()))[:200]
    if len(set(found.values())) < len(found) or set(found.values()) - set(known):
        raise UserError(
            f"{path} names the classes {there}; allowed are {' and '.join(CLASS_NAMES)}, each once, in any order: "
            "for others, `--map NAME=person`, `--drop NAME`, or `--drop '*'` for all of them"
        )
    for name in (*dict(options.rename), *options.drop):
        if name != "*" and name.lower() not in found.values():
            raise UserError(f"--map or --drop {name}: {path} names only {there}")
    return {number: known[name] for number, name in found.items()}
