"""The files of a folder that people made by hand, listed so that none of them hangs or stops a run.

list_files(folder)         everything below it, hidden files and dead links too
"""

from __future__ import annotations

import os
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
