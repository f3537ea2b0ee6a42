"""Whatever befalls the files of a checkpoint, the run resumes from the newest good one and ends as if undisturbed."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from recipe.cli import main
from recipe.model.checkpoint import BACKBONE_FILE, DETECTOR_FILE
from recipe.training.checkpoints import SEAL, checkpoints, damage, last_checkpoint, seal, sha256
from recipe.training.trainer import CrowdTrainer


@pytest.fixture(scope="module")
def finished(packed, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run of two epochs, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    flags = ["train", "--data", str(packed), *TINY]
    assert main([*flags, "--output_dir", str(folder)]) == 0
    return folder, flags


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def removed(path: Path) -> None:
    path.unlink()


FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", DETECTOR_FILE,
         "model.safetensors.index.json", "config.json", SEAL)  # fmt: skip


def copy_of(run: Path, folder: Path, harm: Callable[[Path], None], name: str) -> Path:
    """A copy of a run whose last checkpoint was harmed; linked files are parted first, as another disk's are."""
    shutil.copytree(run, folder)
    harm(checkpoints(folder)[-1] / name)
    return folder


@pytest.mark.parametrize("harm", [cut, emptied, zeroed, removed])
@pytest.mark.parametrize("name", [*FILES, BACKBONE_FILE])
def test_a_damaged_checkpoint_is_passed_over_in_one_line_and_left_where_it_is(finished, tmp_path, caplog, name, harm):
    folder = copy_of(finished[0], tmp_path / "run", harm, name)
    before, last = checkpoints(folder)
    assert damage(last)
    assert "\n" not in damage(last)
    assert damage(before) is None
    assert last_checkpoint(folder) == before
    assert [record.message for record in caplog.records if "passed over" in record.message] == [
        f"{last} is passed over: {damage(last)}"
    ]
    assert last.exists()


@pytest.mark.parametrize(("harm", "name"), [(zeroed, "optimizer.pt"), (emptied, SEAL)])
def test_the_same_command_ends_with_the_weights_of_a_run_that_nothing_befell(finished, tmp_path, harm, name):
    run, flags = finished
    folder = copy_of(run, tmp_path / "run", harm, name)
    assert main([*flags, "--output_dir", str(folder)]) == 0
    for place in (folder, checkpoints(folder)[-1]):
        ours, theirs = (load_file(root / place.relative_to(folder) / DETECTOR_FILE) for root in (folder, run))
        assert all(torch.equal(ours[tensor], value) for tensor, value in theirs.items())
    assert damage(checkpoints(folder)[-1]) is None


def test_a_checkpoint_that_the_library_restores_in_part_ends_the_run(finished, tmp_path, monkeypatch):
    """Its own loader of optimizer and scheduler says nothing where it finds no files for them."""
    run, flags = finished
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    monkeypatch.setattr(CrowdTrainer, "_load_optimizer_and_scheduler", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"checkpoint-4 was restored in part: step and scheduler are at \{0, 4\}"):
        main([*flags, "--output_dir", str(tmp_path / "run")])


class Hostile:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_pickle_of_a_checkpoint_is_executed(finished, tmp_path, name):
    """One from another's Hub repo, sealed and all."""
    run, flags = finished
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    torch.save(Hostile(tmp_path / "was-run"), tmp_path / "run" / "checkpoint-4" / name)
    seal(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(pickle.UnpicklingError):
        main([*flags, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "was-run").exists()


def test_a_file_under_many_names_is_read_once(tmp_path, monkeypatch):
    """The frozen backbone is 1.2 GB in each checkpoint, as one file."""
    (tmp_path / "one").write_bytes(b"weights")
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    found = sha256(tmp_path / "one")
    monkeypatch.setattr("recipe.training.checkpoints.hashlib", None)
    assert sha256(tmp_path / "two") == found


# `recipe train` on a disk that takes no file of more than so many bytes once checkpoint-4 is there.
FULL = """
import resource, signal, sys
from recipe.cli import main
from recipe.training.trainer import CrowdTrainer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def save(self, *args, original=CrowdTrainer._save_checkpoint):
    if self.state.global_step == 8:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    original(self, *args)
CrowdTrainer._save_checkpoint = save
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_is_full_at_a_save_leaves_the_last_good_checkpoint(finished, tmp_path):
    run, flags = finished
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", FULL, *flags, "--output_dir", str(folder)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: a disk is full (")
    assert f" MB in {folder}, " in last
    assert last_checkpoint(folder).name == "checkpoint-4"
    assert main([*flags, "--output_dir", str(folder)]) == 0
    assert (folder / DETECTOR_FILE).read_bytes() == (run / DETECTOR_FILE).read_bytes()
