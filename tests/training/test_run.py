"""A run folder belongs to one run; bad input is one readable line, exit code 2, and nothing is lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from conftest import TINY

from recipe.arguments import parse
from recipe.cli import main
from recipe.record import RunRecord, read_log, without_tokens
from recipe.schema import UserError
from recipe.training.run import check_run_folder, fixed_settings, lock_run_folder

DATASET = {"manifest": "abc"}


def expected(*flags: str):
    return fixed_settings(parse(["--data", "x", *TINY, *flags])) | {"dataset": DATASET}


def record(folder, *flags: str):
    folder.mkdir(parents=True)
    RunRecord("run", "1", "today", {}, expected(*flags), {}).write(folder)
    return folder


def test_an_empty_or_missing_folder_is_taken(tmp_path):
    lock = lock_run_folder(tmp_path / "new" / "run")
    check_run_folder(tmp_path / "new" / "run", expected(), "auto")
    lock.close()


def test_the_same_settings_resume_and_others_are_named(tmp_path):
    folder = record(tmp_path / "run")
    check_run_folder(folder, expected("--max_hours", "2", "--shown_images", "0"), "auto")
    with pytest.raises(UserError) as error:
        check_run_folder(folder, expected("--learning_rate", "5e-4", "--num_queries", "30"), "auto")
    assert "learning_rate was 0.001, now 0.0005" in str(error.value)
    assert "num_queries was 12, now 30" in str(error.value)
    assert "max_grad_norm" not in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        ["--data_revision", "v2"],
        ["--metric_for_best_model", "eval_map_50"],
        ["--greater_is_better", "false"],
        ["--adam_beta2", "0.95"],
        ["--adam_epsilon", "1e-6"],
        ["--lr_scheduler_kwargs", '{"num_cycles": 2}'],
    ],
)
def test_data_optimizer_and_the_choice_of_the_best_stay_those_of_the_first_day(tmp_path, flags):
    folder = record(tmp_path / "run")
    with pytest.raises(UserError, match=f"{flags[0][2:]} was"):
        check_run_folder(folder, expected(*flags), "auto")


def test_a_tokens_value_is_left_out_however_its_flag_is_written():
    words = ["recipe", "train", "--hub-token", "hf_1", "--hub-token=hf_2", "--hub_token", "hf_3", "--data", "crowd"]
    assert without_tokens(words) == [
        *("recipe", "train", "--hub-token", "...", "--hub-token=...", "--hub_token", "...", "--data", "crowd")
    ]


def test_the_record_of_a_run_of_version_0_1_is_read_and_the_run_resumed(tmp_path):
    old = {"run_name": "run", "run_id": "1", "started": "today", "training": {"seed": 3}, "config": {}, "dataset": {}}
    (tmp_path / "run.json").write_text(json.dumps(old | {"identity": expected()}))
    check_run_folder(tmp_path, expected(), "auto")
    assert RunRecord.load(tmp_path / "run.json").settings == {"seed": 3}
    with pytest.raises(UserError, match="other settings: seed was"):
        check_run_folder(tmp_path, expected() | {"seed": -1}, "auto")


def test_resume_never_refuses_to_overwrite_a_run(tmp_path):
    with pytest.raises(UserError, match="--resume auto"):
        check_run_folder(record(tmp_path / "run"), expected(), "never")


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a run of this recipe"):
        check_run_folder(tmp_path, expected(), "auto")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--data", "nowhere", *TINY], ["nowhere", "data_prep pack"]),
        (["train", "--data", "{empty}", *TINY], ["data_prep pack"]),
        (["train", "--data", "{packed}", *TINY, "--output_dir", "{file}/run"], ["--output_dir", "choose another"]),
        (["train", "--data", "{packed}", *TINY, "--backbone", "./nothing"], ["./nothing", "no such folder"]),
        (["evaluate", "{empty}", "--data", "{packed}"], ["config.json"]),
        (["evaluate", "USER/MODEL", "--data", "{packed}"], ["USER/MODEL"]),
        (["predict", "{empty}", "{packed}", "--out", "{empty}/out"], ["no images"]),
        (["predict", "{empty}", "missing.jpg", "--out", "{empty}/out"], ["missing.jpg", "no such file"]),
        (["replay", "{empty}"], ["batch.pt"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, packed, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    places = {"{packed}": packed, "{file}": tmp_path / "file", "{empty}": tmp_path / "empty"}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    if arguments[0] == "train" and "--output_dir" not in arguments:
        arguments = [*arguments, "--output_dir", str(tmp_path / "run")]
    capsys.readouterr()
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert all(word in errors[0] for word in words), errors[0]


def test_a_second_training_in_the_same_folder_is_refused_in_one_line_that_names_the_first(packed, tmp_path, capfd):
    """Two real processes; the first one's loader and lock are as in any run."""
    flags = ["train", "--data", str(packed), *TINY, "--num_train_epochs", "500", "--output_dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "recipe.cli", *flags]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, stderr=subprocess.DEVNULL) as first:
        try:
            while not read_log(tmp_path / "run"):
                assert first.poll() is None
                time.sleep(0.05)
            capfd.readouterr()
            assert main(flags) == 2
            (said,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
            assert f"process {first.pid} on {socket.gethostname()} trains there" in said
            assert first.poll() is None
        finally:
            first.kill()
    lock_run_folder(tmp_path / "run").close()  # whoever was killed owns nothing
