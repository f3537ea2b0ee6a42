"""A progress bar on a terminal, a line every ten seconds in a log: `for item in watched(items, total, "packing")`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)
EVERY = 10.0  # s


def watched(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Hand the items through, saying how far it is. A run shorter than ten seconds leaves no line in a log."""
    return _bar(items, total, what) if sys.stderr.isatty() else _lines(items, total, what)


def _bar(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]} images/s")
    columns = (text, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, rate="")
        start = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            progress.update(task, completed=done, rate=f"{done / (time.monotonic() - start):.0f}")


def _lines(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said > EVERY:
            said = now
            rate = done / (now - start)
            log.info("%s: %d of %d images, %.0f images/s, %.0f s left", what, done, total, rate, (total - done) / rate)
