"""The files of a folder that people made by hand, listed and opened so that none of them hangs or stops a run.

list_files(folder)         everything below it, hidden files and dead links too
read_file(path, limit)     the bytes of a regular file, never of a pipe or a device
printable(name)            a name as it may be shown
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

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
    """`.jpg` of `deep/A.JPG`."""
    return os.path.splitext(name)[1].lower()


def read_file(path: str | Path, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than `limit` bytes.
    """
    status = os.stat(path)  # before it is opened: opening a pipe waits for its other end
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{status.st_size:,} bytes, at most {limit:,} are read")
    with open(path, "rb") as file:
        return file.read(limit)


def printable(text: str) -> str:
    """Text in one line for any screen: control characters and bytes that are not UTF-8 become \\n, \\x1b, \\xe9."""
    text = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
