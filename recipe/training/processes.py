"""One process per GPU: `recipe train` starts itself once for each that is visible (never DataParallel).

CUDA_VISIBLE_DEVICES=0,1 recipe train ...
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def run_on_all(count: int, argv: Sequence[str]) -> int:
    """Run `recipe ARGV` in `count` processes of this machine. Returns the exit code of the first that failed, or 0."""
    # SIGTERM is not for torchrun, which kills its workers 30 s later: theirs is a checkpoint and a push of minutes.
    signal.signal(signal.SIGTERM, to_workers)
    signals = "--signals-to-handle=SIGINT,SIGHUP,SIGQUIT"
    try:
        torchrun(["--standalone", f"--nproc-per-node={count}", signals, "--module", "recipe.cli", *argv])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return int(failure.exitcode)
    except SignalException as error:
        return 128 + error.sigval
    return 0


def to_workers(signum: int, _: Any) -> None:
    """Pass a signal on; the workers stop at the same step, and their exit code becomes ours."""
    for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        os.kill(int(pid), signum)
