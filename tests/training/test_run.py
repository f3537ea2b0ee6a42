"""A run folder belongs to one run; bad input is one readable line, exit code 2, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import TINY

from recipe.arguments import parse
from recipe.cli import main
from recipe.record import RunRecord, without_tokens
from recipe.schema import UserError
from recipe.training.checkpoints import SEAL, damage, seal
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


OWNER = """
import sys, time
from pathlib import Path
from recipe.training.checkpoints import SEAL, damage, seal
from recipe.training.run import lock_run_folder
lock = lock_run_folder(Path(sys.argv[1]))
print("mine", flush=True)
time.sleep(60)
"""


def test_a_folder_is_one_process_s_alone(tmp_path):
    """Two trainings in one folder both ended with 0 and wrong weights; a killed one leaves no lock behind."""
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.getcwd()}) as owner:
        assert owner.stdout.readline() == b"mine\n"
        with pytest.raises(UserError, match=f"process {owner.pid} on .* trains there"):
            lock_run_folder(tmp_path)
        owner.kill()
    lock_run_folder(tmp_path).close()


def test_a_damaged_checkpoint_is_told_whatever_was_damaged(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    for name in ("config.json", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_bytes(name.encode() * 100)
    assert damage(folder) == "its writing was interrupted"
    seal(folder)
    assert damage(folder) is None
    for name in ("config.json", "optimizer.pt", "trainer_state.json", SEAL):
        content = (folder / name).read_bytes()
        for broken in (b"", content[: len(content) // 2], bytes(len(content)), None):
            (folder / name).unlink() if broken is None else (folder / name).write_bytes(broken)
            assert damage(folder), (name, broken)
        (folder / name).write_bytes(content)
    assert damage(folder) is None
