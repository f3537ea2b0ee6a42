"""A long training, to see whether anything grows while it runs or is left when it ends: `make soak` prints a table.

    python tests/soak.py [--steps 2000]

It evaluates, saves and pushes every 20 steps, to a Hub on this machine, with two loader workers and a dashboard.
Exits 1 if something grew from the second fifth of the run to the last, or was left.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from getpass import getuser
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
from conftest import TINY, make_yolo
from loopback.hub import LoopbackHub

from data_prep.shards import pack
from recipe.record import read_log
from recipe.training.checkpoints import checkpoints, is_complete

EVERY, KEPT = 20, 3  # steps from one evaluation, save and push to the next; checkpoints that stay
MEMORY = 1.02  # how much more may be held at the end
# What a run may write into its HOME: caches of the Hub and of matplotlib, the dashboard's rows. torch makes an empty
# folder for its compiler when it is imported, the same for all runs.
OWN = {"hf", ".cache", ".config", "trackio", "run", "log", "tmp", "torchinductor_" + getuser()}


class Sample(NamedTuple):
    """What the processes of a run held at a step, all together."""

    step: int
    memory: float  # MB, what they share counted once; of their own, as other processes too map the libraries' files
    descriptors: int
    sockets: int
    threads: int
    processes: int


def group(pid: int) -> list[Path]:
    """/proc folders of the processes in the group of `pid` that have not ended."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (each / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        found += [each] if int(of_group) == pid and state != "Z" else []
    return found


def look(pid: int, folder: Path) -> Sample | None:
    """One look at the run, or None where a process ended meanwhile."""
    try:
        step, found = max([row["step"] for row in read_log(folder)], default=0), group(pid)
        memory = [(each / "smaps_rollup").read_text().split("Pss_Anon:")[1].split()[0] for each in found]
        links = [os.readlink(link) for each in found for link in (each / "fd").iterdir()]
        threads = sum(len(list((each / "task").iterdir())) for each in found)
    except (OSError, IndexError):
        return None
    sockets = sum(link.startswith("socket:") for link in links)
    return Sample(step, sum(map(int, memory)) / 1e3, len(links), sockets, threads, len(found))


def grown(samples: Sequence[Sample]) -> list[str]:
    """What was more in the last fifth of the steps than in the second, by the median: a push has more for a while."""
    last = samples[-1].step
    early, late = ([s for s in samples if last * part < s.step < last * (part + 0.2)] for part in (0.2, 0.8))
    words = []
    for name in Sample._fields[1:]:
        before, after = (median(getattr(s, name) for s in part) for part in (early, late))
        print(f"{name} | {before:.0f} | {after:.0f} | {after / before - 1:+.1%}")
        more = {"memory": before * (MEMORY - 1), "threads": 2}.get(name, 0)  # a library's pool grows when it is busy
        if after > before + more:
            words.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return words


def left(pid: int, home: Path, hub: LoopbackHub) -> list[str]:
    """What is still there after the end: processes, connections to the Hub, files where none belongs."""
    ends = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    open_ends = [end for end in ends if end[0].endswith(f":{hub.port:04X}") and end[2] == "01"]  # ESTABLISHED
    words = [f"process {each.name}" for each in group(pid)] + [f"connection {end[1]}" for end in open_ends]
    words += [f"file {path}" for path in [*home.iterdir(), *(home / "tmp").iterdir()] if path.name not in OWN]
    words += [str(path) for path in (home / "run").rglob("*.partial*")]
    words += [str(path) for path in (home / "run").glob(".*") if path.name != ".lock"]
    words += [f"damaged {path}" for path in checkpoints(home / "run") if not is_complete(path)]
    if (kept := len(checkpoints(home / "run"))) != KEPT:
        words.append(f"{kept} checkpoints instead of {KEPT}")
    return words


def soak(steps: int, root: Path) -> tuple[list[Sample], list[str]]:
    """Train for so many steps; returns what was seen meanwhile, and what was left, in words."""
    pack(make_yolo(root / "yolo"), root / "packed", workers=1)
    home = root / "home"
    (home / "tmp").mkdir(parents=True)
    with LoopbackHub(root / "hub", {"hf_alice": {"name": "alice"}}) as hub:
        env = hub.env("hf_alice", home) | {"TMPDIR": str(home / "tmp"), "TRACKIO_DIR": str(home / "trackio")}
        flags = [f"--{name}_strategy=steps" for name in ("eval", "save")]
        flags += [f"--{name}_steps={EVERY}" for name in ("eval", "save")]
        flags += [f"--max_steps={steps}", f"--save_total_limit={KEPT}", "--hub_model_id=alice/soak"]
        flags += ["--report_to=trackio", "--dataloader_num_workers=2", f"--output_dir={home / 'run'}"]
        command = [sys.executable, "-m", "recipe.cli", "train", "--data", str(root / "packed"), *TINY, *flags]
        samples = []
        with (home / "log").open("w") as log:
            run = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            while run.poll() is None:
                samples += [found] if (found := look(run.pid, home / "run")) else []
                time.sleep(0.5)
        finally:
            run.kill()
        if run.returncode:
            return samples, [f"exit code {run.returncode}\n{(home / 'log').read_text()[-2000:]}"]
        time.sleep(1)
        pushed = [commit for commit in hub.repo("alice/soak").history("main") if commit["title"].count(", step ")]
        evaluated = [row for row in read_log(home / "run") if "eval_map" in row]
        words = left(run.pid, home, hub)
        if (len(evaluated), len(pushed)) != (steps // EVERY, steps // EVERY):
            words.append(f"{len(evaluated)} evaluations and {len(pushed)} pushes instead of {steps // EVERY}")
    return samples, words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    steps, began = parser.parse_args().steps, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as root:
        samples, harms = soak(steps, Path(root))
    print("what | second fifth | last fifth | change")
    harms += grown(samples)
    print(f"{steps} steps, {steps // EVERY} evaluations, saves and pushes, {time.monotonic() - began:.0f} s")
    print("\n".join(harms) or "nothing grew, nothing was left")
    return int(bool(harms))


if __name__ == "__main__":
    sys.exit(main())
