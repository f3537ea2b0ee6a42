"""Files of folders that people made by hand: opened so that none hangs a run, named so that any screen can show it.

data = read_file("photos/a.jpg", limit=2**29)
print(printable("photos/a\\n.jpg"))
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


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
