"""Work over many images in several processes: `for result in in_processes(work, jobs, workers, "packing"): ...`"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from recipe.schema import UserError

PAUSE = 2.0  # seconds between two lines of progress, but before the last
Job = TypeVar("Job", bound=Sized)
Result = TypeVar("Result")


def in_processes(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, what: str) -> Iterator[Result]:
    """`work(job)` for each job, in the order of the jobs; the length of a job counts as its images.

    Raises:
        UserError: a process was killed.
    """
    done, total, said = 0, sum(map(len, jobs)), time.monotonic()
    with ProcessPoolExecutor(min(workers, len(jobs)), initializer=_start) as pool:
        try:
            for job, result in zip(jobs, pool.map(work, jobs), strict=True):
                yield result
                done += len(job)
                if done == total or time.monotonic() > said + PAUSE:
                    said = time.monotonic()
                    print(f"{what}: {done:,} of {total:,} images", file=sys.stderr, flush=True)
        except BrokenProcessPool as error:
            raise UserError(
                "a process was killed (out of memory?): run the same command again, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start() -> None:
    """In each process: end at Ctrl-C, and when the parent is gone, however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # Pillow's, about EXIF data that nobody needs
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # type: ignore[union-attr]
