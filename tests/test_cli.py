"""The command on odd machines: nobody reads on, no home, another locale; and nothing that comes with a file is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from small_detector import save, small_config

from recipe.cli import main
from recipe.machine import in_words
from recipe.model.detector import build_detector
from recipe.training.checkpoints import checkpoints, is_complete


def test_a_training_that_nobody_reads_on_a_machine_without_home_is_done_all_the_same(packed, tmp_path):
    """Fails with Python's own streams: transformers' print of the first log ends the training after hours."""
    (tmp_path / "größe").symlink_to(packed)
    flags = ["train", "--data", str(tmp_path / "größe"), *TINY, "--output_dir", str(tmp_path / "läuft")]
    odd = {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii", "HOME": "/proc/nobody", "TZ": "Pacific/Kiritimati"}
    for gone in ("HF_HOME", "HF_DATASETS_CACHE", "TRACKIO_DIR"):
        odd[gone] = "/proc/nobody/x"
    reader, writer = os.pipe()
    os.close(reader)
    with open(tmp_path / "log", "w") as log:
        code = subprocess.run(
            [sys.executable, "-m", "recipe.cli", *flags],
            env=os.environ | odd | {"PYTHONPATH": os.getcwd()},
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=log,
            timeout=240,
            check=False,
        ).returncode
    os.close(writer)
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert all(map(is_complete, checkpoints(tmp_path / "läuft")))
    assert (tmp_path / "läuft" / "report" / "report.md").exists()


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["predict", "nowhere", "x", "--out", "out"]])
def test_a_reader_that_leaves_changes_no_exit_code(command, tmp_path):
    expected = 2 if "predict" in command else 0
    reader, writer = os.pipe()
    os.close(reader)
    with open(tmp_path / "log", "w") as log:
        run = [sys.executable, "-m", "recipe.cli", *command]
        env = os.environ | {"PYTHONPATH": os.getcwd()}
        code = subprocess.run(run, env=env, cwd=tmp_path, stdout=writer, stderr=log, check=False).returncode
    os.close(writer)
    assert (code, "Traceback" in (tmp_path / "log").read_text()) == (expected, False)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), ["a disk is full", "free: ", "MB in {folder}", "MB in /dev/shm"]),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), ["worker died", "_num_workers"]),
        (RuntimeError("DataLoader timed out after 600 seconds"), ["no batch came", "disk that holds the data"]),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), ["set TMPDIR"]),
    ],
)
def test_what_a_machine_lacks_is_one_line_with_what_to_do(error, words, tmp_path):
    try:
        raise RuntimeError("wrapped by a library") from error
    except RuntimeError as found:
        said = in_words(found, ["train", f"--output_dir={tmp_path}"])
    assert "\n" not in said
    assert all(word.format(folder=tmp_path) in said for word in words)
    assert in_words(ValueError("a fault of ours"), []) is None


@pytest.mark.parametrize("flag", ["--trackio_space_id", "--data", "--run_name", "--backbone"])
def test_a_token_pasted_into_another_flag_is_refused_unsaid_and_unwritten(flag, tmp_path, monkeypatch, capsys, packed):
    """run.json, the card, the log and the dashboard would show it to others."""
    monkeypatch.chdir(tmp_path)
    token = "hf_" + "aB3" * 12
    assert main(["train", "--data", str(packed), *TINY, "--output_dir", "run", flag, token]) == 2
    said = capsys.readouterr()
    assert f"error: {flag}: is a token of the Hub" in said.err
    assert token not in said.err + said.out
    assert [*Path(tmp_path).iterdir()] == []


def test_no_code_that_comes_with_a_checkpoint_is_run(packed, tmp_path, capsys):
    checkpoint = save(build_detector(small_config()), tmp_path / "checkpoint")
    (checkpoint / "hostile.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\n")
    config = json.loads((checkpoint / "config.json").read_text())
    auto = {"AutoConfig": "hostile.Config", "AutoModelForObjectDetection": "hostile.Model"}
    config |= {"model_type": "hostile", "auto_map": auto}
    (checkpoint / "config.json").write_text(json.dumps(config))
    command = ["evaluate", str(checkpoint), "--data", str(packed), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main(command) == 2
    assert not (tmp_path / "was-run").exists()
