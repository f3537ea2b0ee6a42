"""What a folder of photographs holds, before any of them is read: splits of entries, and what their classes mean.

What is wrong in the input becomes a `Problem` with one of these actions:

    clipped   a box reached over the image's border and was cut there
    dropped   a box without any area inside the image, the same line once more, or a class that `--drop` names
    ignored   a file that belongs to no image
    refused   a line or an image that cannot be trusted; `pack` stops, or leaves it out with `--on-bad skip`
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

from recipe.files import printable
from recipe.schema import CLASS_NAMES, UserError

Classes = Mapping[int, int | None]  # a class id of the input -> ours, or None where it is dropped
PixelBox = tuple[float, ...]  # class, x1, y1, x2, y2, iscrowd


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


class Problem(NamedTuple):
    """One row of problems.csv, and how many boxes it cost. `line` counts from 1; 0 means the complete file."""

    file: str
    line: int
    rule: str
    action: str
    detail: str
    boxes: int = 0

    def __str__(self) -> str:
        return f"  {self.file}{f':{self.line}' if self.line else ''}  {self.rule}: {self.detail}"


class Entry(NamedTuple):
    """An image and where its boxes are; paths are relative to the dataset's root."""

    name: str  # as packed; relative to the split's folder of images
    image: str
    label: str | None
    boxes: tuple[PixelBox, ...] | None = None  # of the input's classes, where one file describes many images
    line: int = 0  # of that file
    size: tuple[int, int] | None = None  # the width and height that it tells


def name_of(image: str) -> str:
    """A relative name that never leads above a folder that somebody unpacks it to."""
    return os.path.normpath(os.path.join("/", image))[1:]


@dataclass
class Split:
    """One split: its images in sorted order, and files that belong to no image."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


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
    known: dict[str, int | None] = dict.fromkeys(found.values()) if "*" in options.drop else {}
    known |= {name: number for number, name in enumerate(CLASS_NAMES)}
    known |= {name.lower(): CLASS_NAMES.index(ours) for name, ours in options.rename}
    known |= {name.lower(): None for name in options.drop}
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
