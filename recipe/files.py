"""Folders that people made by hand: their files listed and opened so that none hangs a run, named for any screen.

names = list_files("photos")
data = read_file("photos/a.jpg", limit=2**29)
print(printable("photos/a\\n.jpg"))
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from recipe.schema import IMAGE_SUFFIXES


def list_files(folder: Path) -> list[str]:
    """Relative names of what lies below a folder, sorted; linked folders are read once.

    A folder that is not read is listed instead: hidden ones, links that lead back, and those named like a file.

    Raises:
        OSError: a folder cannot be read.
    """
    found: list[str] = []
    start = os.path.realpath(folder)
    entered, todo = {start}, [""]
    while todo:
        base = todo.pop()
        for name in sorted(os.listdir(os.path.join(folder, base))):
            path = os.path.join(folder, base, name)
            like_a_file = name.startswith(".") or suffix(name) in (*IMAGE_SUFFIXES, ".txt")
            real = "" if like_a_file or not os.path.isdir(path) else os.path.realpath(path)
            if not real or real in entered or start.startswith(os.path.join(real, "")):
                found.append(os.path.join(base, name))
            else:
                entered.add(real)
                todo.append(os.path.join(base, name))
    return sorted(found)


def suffix(name: str) -> str:
    """`.jpg` of `deep/A.JPG`; none of a hidden file."""
    return "" if os.path.basename(name).startswith(".") else os.path.splitext(name)[1].lower()


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, open for reading. OSError: it cannot be; ValueError: a folder, pipe, or device without end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    return open(path, "rb")


def read_file(path: str | Path, limit: int) -> bytes:
    """The bytes of a regular file. OSError, ValueError: as `open_file`, or it is larger than `limit` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{size:,} bytes, at most {limit:,} are read")
        return file.read(limit)


def printable(text: str | Path) -> str:
    """Text in one line for any screen: control characters and bytes that are not UTF-8 become \\n, \\x1b, \\xe9."""
    text = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
