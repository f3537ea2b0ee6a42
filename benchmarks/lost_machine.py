"""Ten machines lost at random moments, in the middle of a push too; then the weights of a run never stopped.

    python benchmarks/lost_machine.py [--kills 10] [--seed 0]

Trains a tiny detector against a loopback Hub (tests/loopback_hub.py). Each machine starts empty and runs the same
command; half of them die at a random request to the Hub, half after a random logged row. Prints a table.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import TINY, make_yolo  # noqa: E402
from loopback.hub import LoopbackHub  # noqa: E402

from data_prep.shards import pack  # noqa: E402
from recipe.model.checkpoint import DETECTOR_FILE  # noqa: E402
from recipe.record import read_log  # noqa: E402


class Machine:
    """One process with a home of its own, training into HOME/run."""

    def __init__(self, hub: LoopbackHub, home: Path, data: Path, repo: str) -> None:
        self.home, self.hub, self.since = home, hub, len(hub.requests)
        home.mkdir()
        flags = [*TINY, "--num_train_epochs", "4", "--data", str(data), "--hub_model_id", repo, "--output_dir", "run"]
        env = hub.env("hf_alice", home) | {"PYTHONPATH": str(ROOT)}
        with (home / "log").open("wb") as log:
            command = [sys.executable, "-m", "recipe.cli", "train", *flags]
            self.process = subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log)

    def requests(self) -> int:
        return len(self.hub.requests) - self.since

    def rows(self) -> int:
        return len(read_log(self.home / "run"))

    def lose_after(self, what: str, count: int) -> bool:
        """SIGKILL once so many requests or rows are there; False when the run ended before."""
        while (self.requests() if what == "request" else self.rows()) < count:
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return True


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        pack(make_yolo(root / "yolo"), root / "packed", workers=1)
        with LoopbackHub(root / "hub", {"hf_alice": {"name": "alice"}}) as hub:
            whole = Machine(hub, root / "whole", root / "packed", "alice/whole")
            if whole.process.wait() != 0:
                raise SystemExit((root / "whole" / "log").read_text())
            requests, rows = whole.requests(), whole.rows()
            print(f"never stopped: {requests} requests, {rows} rows\n")
            print("| machine | lost after | last request | epochs on the Hub |\n|---|---|---|---|")
            for number in range(args.kills):
                machine = Machine(hub, root / f"machine-{number}", root / "packed", "alice/lost")
                # Early enough that something is left for the next one.
                what, most = (("request", requests * 2 // 3), ("row", rows * 2 // 3))[number % 2]
                count = draw.randint(1, most)
                killed = machine.lose_after(what, count)
                last = hub.requests[-1]
                there = sorted(hub.repo("alice/lost").state["tags"]) if last.repo == "alice/lost" else []
                verb = f"{what} {count}" if killed else "the end"
                print(
                    f"| {number + 1} | {verb} | {last.method} {last.path[:70]} | {', '.join(there) or '-'} |",
                    flush=True,
                )
            final = Machine(hub, root / "final", root / "packed", "alice/lost")
            code = final.process.wait()
            ours, theirs = (hub.repo(f"alice/{name}") for name in ("lost", "whole"))
            revisions = [*sorted(theirs.state["tags"]), "main"]
            same = [ours.read(DETECTOR_FILE, name) == theirs.read(DETECTOR_FILE, name) for name in revisions]
            commits = [[commit["title"] for commit in repo.history("main")] for repo in (ours, theirs)]
            print(f"\nthe last machine ended with exit code {code}")
            print(f"same weights at {', '.join(revisions)}: {same}")
            print(f"same commits: {commits[0] == commits[1]} ({len(commits[0])})")
    return 0 if code == 0 and all(same) and commits[0] == commits[1] else 1


if __name__ == "__main__":
    sys.exit(main())
