"""The preflight: what would stop a training is found, named, and told by the exit code."""

from __future__ import annotations

import re
import time

import httpx2
import pytest

from recipe import doctor as room
from recipe.cli import main
from recipe.doctor import MIN_DISK, driver
from recipe.train import say_driver


@pytest.mark.parametrize(
    ("cuda", "installed", "fine", "words"),
    [
        ("13.2", "580.95.05", True, "R580"),
        ("13.2", "570.11", False, "R580"),
        ("12.8", "570.11", True, "R525"),
        ("13.2", None, None, "no NVIDIA driver"),
        (None, "580.95.05", None, "without CUDA"),
    ],
)
def test_the_driver_is_compared_with_the_cuda_of_the_locked_torch(cuda, installed, fine, words):
    found, text = driver(cuda, installed)
    assert found is fine
    assert words in text


def test_a_training_says_in_one_line_that_the_driver_is_too_old(monkeypatch, caplog):
    monkeypatch.setattr("recipe.train.installed_driver", lambda: "470.1")
    monkeypatch.setattr("torch.version.cuda", "13.2")
    say_driver()
    assert [record.message for record in caplog.records] == ["driver 470.1; CUDA 13.2 needs R580 or newer"]


def test_a_packed_dataset_is_found_and_a_missing_backbone_is_told(packed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2 * MIN_DISK}))
    place = ["--output_dir", str(tmp_path)]
    assert main(["doctor", "--data", str(packed), "--backbone", "tiny", *place]) == 0
    said = capsys.readouterr().out
    assert "8 images, 40 boxes" in said
    assert "FAILS" not in said
    assert main(["doctor", "--backbone", str(tmp_path), *place]) == 1
    assert "holds no safetensors file" in " ".join(capsys.readouterr().out.split())


def test_each_row_is_shown_as_it_is_found_under_the_one_before(tmp_path, capsys, monkeypatch):
    """The table came at the end, after a minute of nothing where the Hub is away."""
    shown = []

    def slow(name):
        shown.append(capsys.readouterr().out)
        return f"{name} can be fetched [soon]"

    monkeypatch.setattr("recipe.doctor.check_read_access", slow)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2 * MIN_DISK}))
    options = ["--backbone", "USER/DINO", "--output_dir", str(tmp_path)]
    assert main(["doctor", *options]) == 0
    *rows, verdict = capsys.readouterr().out.splitlines()
    assert rows[0].index("USER/DINO can be fetched [soon]") == re.match(" ok +torch +", shown[0]).end()
    assert verdict == f"ready: recipe train --preset pilot {' '.join(options)}"


def test_a_backbone_that_is_no_repo_is_refused_without_asking_the_hub(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", refuse)
    assert main(["doctor", "--backbone", "./dino", "--output_dir", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "./dino: neither a folder nor the USER/NAME of a Hub repo; give `--backbone DIR`" in said


def test_a_place_that_cannot_be_written_is_no_full_disk(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--output_dir", str(tmp_path / "file" / "run")]) == 1
    said = capsys.readouterr().out
    assert "/file/run:cannotbewritten(Notadirectory)" in "".join(said.split())
    assert "GiB free" not in said
    assert said.endswith("\n1 to mend\n")


def test_a_hub_out_of_reach_is_one_line(tmp_path, capsys, monkeypatch):
    """Fails where only OSError is caught: the client's ConnectError is none."""
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2 * MIN_DISK}))
    monkeypatch.setattr("recipe.hub.PATIENCE", 0)
    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", refuse)
    assert main(["doctor", "--backbone", "USER/DINO", "--output_dir", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "USER/DINO: the Hub cannot be reached (no route); or give `--backbone DIR`" in said


def test_a_question_to_a_hub_out_of_reach_costs_seconds(tmp_path, capsys, monkeypatch):
    """Each of them was asked for three minutes."""
    monkeypatch.setattr("recipe.hub.PREFLIGHT", 1.0)
    monkeypatch.setattr("recipe.hub.PATIENCE", 10.0)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    for name in ("auth_check", "whoami"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", refuse)
    repos = ["--backbone", "USER/DINO", "--hub_model_id", "USER/DETECTOR", "--trackio_space_id", "USER/SPACE"]
    began = time.monotonic()
    assert main(["doctor", *repos, "--output_dir", str(tmp_path)]) == 1
    assert time.monotonic() - began < 10  # seconds of it for the imports
    assert " ".join(capsys.readouterr().out.split()).count("the Hub cannot be reached (no route)") == 3


def refuse(*_: object, **__: object) -> None:
    raise httpx2.ConnectError("no route")


def test_a_full_disk_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": MIN_DISK - 1}))
    assert main(["doctor", "--output_dir", str(tmp_path)]) == 1
    assert "FAILS" in capsys.readouterr().out
