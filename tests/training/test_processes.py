"""Two processes are one training: every sample once, one checkpoint, one log, one report, the same metrics.

Two machines are two launchers on this one, each with one process; they meet on the loopback.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY
from safetensors.torch import load_file

from recipe.cli import main
from recipe.config import DEADLINE_EXIT
from recipe.model.checkpoint import DETECTOR_FILE
from recipe.record import RunRecord, read_log
from recipe.training.checkpoints import checkpoints, is_complete
from recipe.training.processes import run_on_all

# Writes down which images each process trains on; torchrun starts it in place of `recipe`.
WITNESS = """
import os, sys
import recipe.training.trainer
from recipe.cli import main
out = os.environ["WITNESS"] + os.environ["RANK"]
def training_step(self, model, inputs, *rest, original=recipe.training.trainer.CrowdTrainer.training_step):
    with open(out, "a") as file:
        print(int(self.state.epoch or 0), *(int(label["image_id"]) for label in inputs["labels"]), file=file)
    return original(self, model, inputs, *rest)
recipe.training.trainer.CrowdTrainer.training_step = training_step
sys.exit(main(sys.argv[1:]))
"""


def start(launcher: list[str], folder: Path, packed: Path, output_dir: str = "run") -> subprocess.Popen[str]:
    """`recipe train` by `launcher`, a module of Python with its flags; without a GPU the processes meet by gloo."""
    (folder / "witness.py").write_text(WITNESS)
    flags = ["train", "--data", str(packed), *TINY, "--dropout", "0", "--output_dir", str(folder / output_dir)]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, str(folder / "witness.py"), *flags],
        env=os.environ | {"PYTHONPATH": os.getcwd(), "WITNESS": str(folder / "seen-")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def two_machines(folder: Path, packed: Path, *output_dirs: str) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = ["--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1])]
    each = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meet, "--node-rank"]
    runs = [start([*each, str(rank)], folder, packed, place) for rank, place in enumerate(output_dirs)]
    said = [run.communicate(timeout=300) for run in runs]
    return [(run.returncode, *words) for run, words in zip(runs, said, strict=True)]


@pytest.fixture(scope="module")
def two(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    first, second = two_machines(folder, packed, "run", "run")
    assert (first[0], second[0]) == (0, 0), first[2][-3000:]
    return folder, first[1] + second[1]


def seen(folder: Path) -> dict[int, list[int]]:
    """The images of each epoch, over both processes."""
    found: dict[int, list[int]] = {}
    for rank in range(2):
        lines = (folder / f"seen-{rank}").read_text().splitlines()
        assert len(lines) == 4  # two batches in each of two epochs
        for line in lines:
            epoch, *images = map(int, line.split())
            found.setdefault(epoch, []).extend(images)
    return {epoch: sorted(images) for epoch, images in found.items()}


def test_two_machines_see_every_sample_exactly_once_an_epoch(two):
    folder, _ = two
    assert seen(folder) == {0: list(range(8)), 1: list(range(8))}
    assert RunRecord.load(folder / "run" / "run.json").processes == 2


def test_accelerate_launch_is_the_same_two_processes(packed, tmp_path):
    """run.json said 1 process, and each of two trained on everything."""
    run = start(["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"], tmp_path, packed)
    said = run.communicate(timeout=300)
    assert run.returncode == 0, said[1][-3000:]
    assert seen(tmp_path) == {0: list(range(8)), 1: list(range(8))}
    assert RunRecord.load(tmp_path / "run" / "run.json").processes == 2


def test_machines_without_a_common_disk_are_told_at_the_start(packed, tmp_path):
    """Fails where each trusts its own folder: the second would miss the best model, after all epochs."""
    first, second = two_machines(tmp_path, packed, "here", "there")
    assert f"error: --output_dir {tmp_path / 'here'}: is another folder on each machine" in first[2]
    assert "exitcode  : 2" in first[2]
    assert "exitcode  : 2" in second[2]
    assert not (tmp_path / "here" / "run.json").exists()


def test_they_write_one_checkpoint_an_epoch_one_log_and_one_report(two):
    folder, said = two
    found = checkpoints(folder / "run")
    assert [path.name for path in found] == ["checkpoint-2", "checkpoint-4"]
    assert all(is_complete(path) for path in found)
    assert {path.name for path in found[-1].glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    rows = read_log(folder / "run")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert len([row for row in rows if "eval_map" in row]) == 2
    assert (folder / "run" / "report" / "report.md").exists()
    assert said.count("dashboard") == 1


def test_they_learn_what_one_process_learns_from_the_joint_batch(two, packed, tmp_path):
    """Fails where each process divides by its own boxes: 1 x 2 x 2 batches and 2 x 2 are then not the same step."""
    folder, _ = two
    flags = ["train", "--data", str(packed), *TINY, "--dropout", "0", "--gradient_accumulation_steps", "2"]
    assert main([*flags, "--output_dir", str(tmp_path / "run")]) == 0
    one, both = (load_file(run / "checkpoint-4" / DETECTOR_FILE) for run in (tmp_path / "run", folder / "run"))
    start = load_file(folder / "run" / "checkpoint-2" / DETECTOR_FILE)
    moved = max(float((both[name] - value).abs().max()) for name, value in start.items())
    apart = max(float((both[name] - value).abs().max()) for name, value in one.items())
    assert apart < 0.02 * moved
    losses = [[row["loss"] for row in read_log(run) if "loss" in row] for run in (tmp_path / "run", folder / "run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_they_report_the_metrics_that_one_process_computes_from_the_same_weights(two, packed, tmp_path):
    """Fails if each process reports its own half, or if samples repeated to even out the halves count twice."""
    folder, _ = two
    found = checkpoints(folder / "run")[-1]
    assert main(["evaluate", str(found), "--data", str(packed), "--out", str(tmp_path), "--workers", "0"]) == 0
    one = json.loads((tmp_path / "report" / "metrics.json").read_text())
    logged = [row for row in read_log(folder / "run") if "eval_map" in row][-1]
    for key in ("map", "map_50", "mar_100", "mar_300", "mr2_person", "ji_head"):
        assert logged[f"eval_{key}"] == pytest.approx(one[key], abs=1e-6), key


def test_sigterm_leaves_a_checkpoint_and_the_exit_code_75(packed, tmp_path):
    """Fails where torchrun takes the signal: it exits 1, and its workers have 30 s for checkpoint and push."""
    start = "import sys; from recipe.training.processes import run_on_all; sys.exit(run_on_all(2, sys.argv[1:]))"
    flags = ["--data", str(packed), *TINY, "--use_cpu", "true", "--ddp_backend", "gloo", "--num_train_epochs", "500"]
    run = subprocess.Popen(
        [sys.executable, "-c", start, "train", *flags, "--output_dir", str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    try:
        while run.poll() is None and not read_log(tmp_path / "run"):
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == DEADLINE_EXIT
    finally:
        run.kill()
    assert is_complete(checkpoints(tmp_path / "run")[-1])


# Process 1 alone has no time.
HASTY = """
import os, sys
from recipe.cli import main
sys.exit(main([*sys.argv[1:], "--max_hours", "1e-9" if os.environ["RANK"] == "1" else "1"]))
"""


def test_one_process_over_its_time_stops_all_at_the_same_step(packed, tmp_path):
    """Fails where each asks its own clock: process 0 then waits for the gradients of one that has gone."""
    (tmp_path / "hasty.py").write_text(HASTY)
    start = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
    flags = ["train", "--data", str(packed), *TINY, "--use_cpu", "true", "--ddp_backend", "gloo"]
    command = ["--standalone", "--nproc-per-node=2", str(tmp_path / "hasty.py"), *flags]
    done = subprocess.run(
        [sys.executable, "-c", start, *command, "--output_dir", str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"exitcode  : {DEADLINE_EXIT} " in done.stderr, done.stderr[-3000:]
    assert done.stderr.count("Traceback") == 1, done.stderr[-3000:]  # torchrun's own, of an exit code that is not 0
    (checkpoint,) = checkpoints(tmp_path / "run")
    assert checkpoint.name == "checkpoint-1"
    assert len([*checkpoint.glob("rng_state*")]) == 2


def test_the_exit_code_is_that_of_the_process_that_failed(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers of this process stay as they are
    assert run_on_all(1, ["predict", "nowhere", "nothing", "--out", os.devnull]) == 2
