"""One process per GPU: `recipe train` starts itself once for each that is visible (never DataParallel).

CUDA_VISIBLE_DEVICES=0,1 recipe train ...
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def run_on_all(count: int, argv: Sequence[str]) -> int:
    """Run `recipe ARGV` in `count` processes of this machine. Returns the exit code of the first that failed, or 0."""
    try:
        torchrun(["--standalone", f"--nproc-per-node={count}", "--module", "recipe.cli", *argv])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return int(failure.exitcode)
    return 0
