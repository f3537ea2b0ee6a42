"""What the machine lacks, in one line: `in_words(error, argv)`; and a reader that leaves: `outlive_readers()`.

Standard library only, so that the command answers at once.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

# What libraries say of a full disk, of one (or a `ulimit -f`) that takes no larger file, and of a loader's worker.
MENDABLE = {
    "No space left on device|Disk quota exceeded|File too large|unexpected pos": "a disk is full ({}; free: {room}); "
    "free some of it",
    r"DataLoader worker.* (killed by|exited)": "a loader worker died ({}): most often the machine had no memory left; "
    "free some of it or give fewer --dataloader_num_workers (--workers)",
    "DataLoader timed out": "no batch came from the loader workers ({}): see whether the disk that holds the data "
    "answers",
    "Read-only file system": "a disk takes no files ({}): see --output_dir, TMPDIR, HF_HOME, /dev/shm; mend it",
    "No usable temporary directory": "no folder takes temporary files ({}): set TMPDIR to one that does",
}


class Output(io.FileIO):
    """A standard stream whose reader may leave, as `| head` does: the work is done all the same, and unread."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def outlive_readers() -> None:
    """No print ends a training: neither a pipe that nobody reads, nor a letter that the terminal's encoding lacks."""
    for name, file in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # None where it was closed by `>&-`
            output = Output(os.devnull, "w") if stream is None else Output(file, "w", closefd=False)
            encoding = getattr(stream, "encoding", None)
            words = io.TextIOWrapper(io.BufferedWriter(output), encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, words)


def in_words(error: Exception, argv: Sequence[str]) -> str | None:
    """What an error, or one that led to it, means and what to do; None for one that only a traceback explains."""
    from recipe.hub import causes

    for cause in causes(error):
        for said, means in MENDABLE.items():
            if re.search(said, str(cause)):
                words = means.format(" ".join(str(cause).split())[:200], room=free_room(argv))
                return f"error: {words} and give the same command again"
    return None


def free_room(argv: Sequence[str]) -> str:
    """What is free on the disks of the folders on a command line, and where libraries write beside."""
    folders = [*(word.rpartition("=")[2] for word in argv), os.environ.get("TMPDIR", "/tmp"), "/dev/shm"]
    return ", ".join(
        f"{shutil.disk_usage(each).free / 1e6:,.0f} MB in {each}" for each in folders if os.path.isdir(each)
    )
