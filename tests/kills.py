"""Commands that are killed at random moments and given again, for `make fuzz`: they must end as if never killed.

    many_kills(5, seed=0)     # five times pack, train, within a save, push, evaluate and predict

The commands run in processes of a fork server that has imported everything once: a run takes a second or two.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:  # every process of the fork server imports this file: nothing heavy, and no offline mode
    from loopback.hub import LoopbackHub

COMMAND_SECONDS = 120
KINDS = ("pack", "train", "save", "push", "evaluate", "predict")
HERE = (str(Path(__file__).parent.parent), str(Path(__file__).parent))
STEPS = ["--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1"]
Harm = tuple[str, str]
fork_server = multiprocessing.get_context("forkserver")


def run(argv: list[str], log: str) -> None:
    """One command, in a process and a group of its own, as from a shell."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of its workers; else that of the fork server is inherited
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from data_prep.__main__ import main as prepare
    from recipe.cli import main

    sys.exit(prepare(argv[1:]) if argv[0] == "data_prep" else main(argv))


@dataclass
class Work:
    """A command, by the folder that it writes to; its result; and whether now is the moment for a kill."""

    argv: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    ripe: Callable[[Path], bool] = lambda folder: True


def start(work: Work, folder: Path) -> Any:
    process = fork_server.Process(target=run, args=(work.argv(folder), f"{folder}.log"))
    process.start()
    return process


def kill_and_repeat(work: Work, folder: Path, longest: float, expected: Any, rng: random.Random) -> list[Harm]:
    """SIGKILL after up to `longest` seconds from the ripe moment, then the same command to its end."""
    log = Path(f"{folder}.log")
    process, began = start(work, folder), time.monotonic()
    while not work.ripe(folder) and process.is_alive() and time.monotonic() < began + COMMAND_SECONDS:
        time.sleep(0.001)
    process.join(rng.uniform(0, longest))
    process.kill()
    process.join()
    if not is_gone(process.pid):
        return [("hangs", "a process of the killed command lives on")]
    process = start(work, folder)
    process.join(COMMAND_SECONDS)
    if process.exitcode is None:
        process.kill()
        return [("hangs", f"the second command did not end\n{log.read_text()[-1500:]}")]
    if "Traceback" in log.read_text():
        return [("tracebacks", log.read_text()[-3000:])]
    if process.exitcode:
        return [("wrong results", f"exit code {process.exitcode}\n{log.read_text()[-1500:]}")]
    if (found := work.result(folder)) != expected:
        return [("wrong results", f"{folder}: {found} instead of {expected}"[:3000])]
    return []


def is_gone(group: int) -> bool:
    """Whether all processes of a group end within 20 s."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return False


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    found = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(found)}


def weights(folder: Path) -> dict[str, str]:
    return hashes(folder, "*.safetensors", "checkpoint-8/optimizer.pt", "checkpoint-8/*.safetensors")


def numbers(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "report" / "metrics.json").read_text())
    return {name: value for name, value in found.items() if isinstance(value, float)}


def undisturbed(work: Work, folder: Path) -> float:
    """A command that nobody kills; returns its seconds."""
    process, began = start(work, folder), time.monotonic()
    process.join(COMMAND_SECONDS)
    assert process.exitcode == 0, Path(f"{folder}.log").read_text()
    return time.monotonic() - began


def all_work(root: Path, hub: LoopbackHub) -> dict[str, Work]:
    """What is killed; ROOT/pack is a packed dataset then, and ROOT/train a finished run."""
    from conftest import TINY, make_yolo

    yolo, packed, finished = make_yolo(root / "yolo"), root / "pack", root / "train"
    flags = ["train", "--data", str(packed), *TINY, *STEPS, "--save_total_limit", "3", "--dataloader_num_workers", "1"]

    def copy_and_push(folder: Path) -> list[str]:
        if not folder.exists():
            shutil.copytree(finished, folder)
        return ["push", str(folder), "--hub_model_id", f"alice/{folder.name}"]

    def pushed(folder: Path) -> dict[str, str]:
        repo = hub.repo(f"alice/{folder.name}")
        return {name: repo.read("model-00002-of-00002.safetensors", name) for name in ("main", *repo.state["tags"])}

    def saves(folder: Path) -> bool:
        return any(not (each / "seal.json").exists() for each in folder.glob("checkpoint-[2-7]"))

    train = Work(lambda folder: [*flags, "--output_dir", str(folder)], weights)
    pack = Work(
        lambda folder: ["data_prep", "pack", str(yolo), "--out", str(folder), "--workers", "2"],
        lambda folder: hashes(folder, "**/*"),
    )
    photos = str(yolo / "val" / "images")
    evaluate = ["evaluate", str(finished), "--data", str(packed), "--workers", "1", "--out"]
    predict = ["predict", str(finished), photos, "--save", "coco,yolo,drawings", "--threshold", "0", "--out"]
    return {
        "pack": pack,
        "train": train,
        "save": Work(train.argv, weights, saves),
        "push": Work(copy_and_push, pushed),
        "evaluate": Work(lambda folder: [*evaluate, str(folder)], numbers),
        "predict": Work(
            lambda folder: [*predict, str(folder)], lambda folder: hashes(folder, "*.json*", "labels/*", "*.jpg")
        ),
    }


def many_kills(each: int, seed: int, only: Sequence[str] = KINDS) -> dict[str, tuple[int, list[tuple[int, Harm]]]]:
    """Kill every kind of work `each` times; a row of the table for each kind."""
    from loopback.hub import LoopbackHub

    rows: dict[str, tuple[int, list[tuple[int, Harm]]]] = {}
    rooms = ["recipe.train", "recipe.evaluate", "recipe.predict"] if set(only) != {"pack"} else []
    fork_server.set_forkserver_preload(["data_prep.shards", "datasets", *rooms])
    with tempfile.TemporaryDirectory(prefix="kills-") as name, contextlib.ExitStack() as stack:
        root = Path(name)
        hub = stack.enter_context(LoopbackHub(root / "hub", {"hf_alice": {"name": "alice"}}))
        environment = hub.env("hf_alice", root / "home") | {"PYTHONPATH": os.pathsep.join(HERE), "HF_HUB_OFFLINE": "0"}
        stack.enter_context(mock.patch.dict(os.environ, environment))  # of the fork server, started by the first run
        for what, work in all_work(root, hub).items():
            if what not in only:
                continue
            seconds = undisturbed(work, root / what)
            longest, expected, harms = 0.05 if what == "save" else seconds, work.result(root / what), []
            for number in range(each):
                rng = random.Random(f"{seed}/{what}/{number}")
                found = kill_and_repeat(work, root / f"{what}-{number}", longest, expected, rng)
                harms += [(number, harm) for harm in found]
            rows[f"kills in {what}"] = each, harms
    return rows
