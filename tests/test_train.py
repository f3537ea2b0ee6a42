"""`recipe train` around the training: what a kill at the start leaves behind, and what the run says of its weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import TINY, make_yolo

from recipe.arguments import parse
from recipe.cli import main
from recipe.evaluation.metrics import DetectionMetrics
from recipe.model.backbone import FrozenBackbone
from recipe.model.checkpoint import DETECTOR_FILE
from recipe.model.detector import build_detector
from recipe.record import RunRecord, read_log
from recipe.train import freeze_and_save_backbone, prepare_for_job
from recipe.training.checkpoints import checkpoints
from recipe.training.splits import built_in_sample
from recipe.training.trainer import CrowdTrainer

THREE = """
import sys
import recipe.schema
recipe.schema.CLASS_NAMES = ("person", "head", "bag")
from data_prep.__main__ import main as prepare
from recipe.cli import main
folder, packed, *flags = sys.argv[1:]
assert prepare(["inspect", folder]) == 0
assert prepare(["pack", folder, "--out", packed]) == 0
run, best = packed + "-run", ["--metric_for_best_model", "eval_map_50_bag"]
assert main(["train", "--data", packed, *flags, *best, "--output_dir", run]) == 0
assert main(["evaluate", run, "--data", packed, "--workers", "0"]) == 0
assert main(["predict", run, folder + "/val/images", "--out", packed + "-found", "--threshold", "0"]) == 0
"""


def test_a_third_class_is_a_change_of_one_line(tmp_path):
    """Fails where another place lists the classes: the metrics' names did, and `inspect` expected two."""
    yolo = make_yolo(tmp_path / "yolo", train=12)
    (yolo / "data.yaml").write_text("train: train/images\nval: val/images\nnames: [person, head, bag]\n")
    for file in [*(yolo / "train").rglob("*.*")]:
        file.rename(file.with_name(f"persons_{file.name}"))
    for file in (yolo / "train" / "labels").iterdir():
        file.write_text("".join(line for line in file.open() if line.startswith("0")))
    for file in (yolo / "val" / "labels").iterdir():
        file.write_text(file.read_text() + "2 0.5 0.5 0.4 0.4\n")
    command = [sys.executable, "-c", THREE, str(yolo), str(tmp_path / "packed"), *TINY, "--num_train_epochs", "1"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "have no head or bag box" in done.stdout
    found = json.loads((tmp_path / "packed-run" / "report" / "metrics.json").read_text())
    assert found["details"]["boxes"]["bag"] == 4


class Killed(BaseException):
    """As by SIGKILL: nothing cleans up."""


def killed(*_args):
    raise Killed


def test_a_run_killed_before_its_first_step_is_resumed(tiny_flags, tmp_path, monkeypatch):
    """Fails if the backbone's file is written before run.json: the folder was then taken for somebody else's."""
    command = ["train", *tiny_flags, "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr("recipe.train.freeze", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            main(command)


@pytest.mark.parametrize(
    ("extra", "warned"), [([], True), (["--max_hours", "1"], False), (["--max_steps", "9"], False)]
)
def test_a_job_that_was_started_by_hand_is_warned_of_its_timeout(
    tiny_flags, tmp_path, monkeypatch, caplog, extra, warned
):
    """Where none is given the Hub kills it after 30 minutes."""
    monkeypatch.setenv("JOB_ID", "1")
    monkeypatch.setattr("recipe.train.open_repo", killed)
    with pytest.raises(Killed):
        main(["train", *tiny_flags, "--output_dir", str(tmp_path / "run"), *extra])
    assert ("give --max_hours" in caplog.text) == warned
    assert "a job's disk is gone at its end: give --hub_model_id USER/NAME" in caplog.text


@pytest.mark.parametrize(
    ("flags", "variables", "space"),
    [
        ([], {}, "trackio"),
        (["--trackio_space_id", "alice/mine"], {}, "alice/mine"),
        ([], {"TRACKIO_SPACE_ID": "alice/mine"}, "alice/mine"),
        ([], {"TRACKIO_SERVER_URL": "http://127.0.0.1:1"}, None),
        (["--report_to", "none"], {}, None),
    ],
)
def test_a_job_shows_its_numbers_on_a_space_unless_something_else_is_said(monkeypatch, flags, variables, space):
    """Its own disk, where Trackio would write without one, is gone at its end."""
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    args = parse(["--preset", "pilot", *flags])
    prepare_for_job(args)
    assert args.trackio_space_id == space


def test_a_sample_that_was_half_drawn_is_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sample.make_sample", lambda folder, *_: make_yolo(folder))
    (tmp_path / "run-data" / "yolo" / "train" / "images").mkdir(parents=True)  # and no data.yaml: that comes last
    built_in_sample(parse(["--preset", "pilot", "--output_dir", str(tmp_path / "run")]))
    assert (tmp_path / "run-data" / "packed" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("best", "words"), [("true", "the best evaluation, at step 4"), ("false", "the last step, 8")]
)
def test_the_card_names_the_weights_at_the_root(tiny_flags, tmp_path, monkeypatch, best, words):
    scores = iter([0.7, 0.2])
    compute = DetectionMetrics.compute
    monkeypatch.setattr(DetectionMetrics, "compute", lambda self: compute(self) | {"map": next(scores, 0.2)})
    command = ["train", *tiny_flags, "--load_best_model_at_end", best, "--output_dir", str(tmp_path / "run")]
    assert main(command) == 0
    assert f"Weights of {words}." in (tmp_path / "run" / "README.md").read_text()


def test_a_run_in_a_folder_that_was_moved_still_ends_with_its_best_model(tiny_flags, tmp_path, monkeypatch):
    """Fails if trainer_state.json keeps the old path: the last model took the root, under the card of the best."""
    scores = iter([0.7, 0.2])
    compute = DetectionMetrics.compute
    monkeypatch.setattr(DetectionMetrics, "compute", lambda self: compute(self) | {"map": next(scores, 0.2)})
    command = ["train", *tiny_flags, "--output_dir"]
    assert main([*command, str(tmp_path / "one")]) == 0
    best = (tmp_path / "one" / DETECTOR_FILE).read_bytes()
    (tmp_path / "one").rename(tmp_path / "two")
    assert main([*command, str(tmp_path / "two")]) == 0
    assert (tmp_path / "two" / DETECTOR_FILE).read_bytes() == best
    assert "Weights of the best evaluation, at step 4." in (tmp_path / "two" / "README.md").read_text()


def test_ctrl_c_is_one_line(tiny_flags, tmp_path, monkeypatch, capsys):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(CrowdTrainer, "training_step", interrupted)
    assert main(["train", *tiny_flags, "--output_dir", str(tmp_path / "run")]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "interrupted; the same command resumes from the last checkpoint"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "a"),
        OSError(27, "File too large", "a"),
        RuntimeError("I/O error: File too large (os error 27)"),  # safetensors
        RuntimeError("unexpected pos 704 vs 5"),
    ],
)
def test_a_full_disk_is_one_line(error, tiny_flags, tmp_path, monkeypatch, capsys):
    def full(*_args):
        try:
            raise error
        except Exception as found:
            raise ValueError("wrapped by a library") from found

    monkeypatch.setattr(CrowdTrainer, "_save_checkpoint", full)
    assert main(["train", *tiny_flags, "--output_dir", str(tmp_path / "run")]) == 2
    assert "error: a disk is full (" in capsys.readouterr().err.splitlines()[-1]


def test_torch_compile_compiles_the_frozen_layers_and_nothing_else(tmp_path, monkeypatch):
    """transformers would hand the whole model to accelerate: matcher and loss too, minutes for the first step."""
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND", raising=False)
    required = []
    monkeypatch.setattr(FrozenBackbone, "compile_layers", lambda self, **flags: required.append(flags["required"]))
    for flags in ([], ["--torch_compile", "false"], ["--torch_compile", "true"]):  # left out, a CPU compiles nothing
        args = parse(["--preset", "pilot", "--output_dir", str(tmp_path), *flags])
        assert "ACCELERATE_DYNAMO_BACKEND" not in os.environ
        model = freeze_and_save_backbone(build_detector(args), args, tmp_path)
        assert not any(module._compiled_call_impl for module in model.modules())
    assert required == [True]


def test_a_run_in_8_bits_says_so_and_is_resumed_in_8_bits_only(tiny_flags, tmp_path, capsys):
    command = ["train", *tiny_flags, "--num_train_epochs", "1", "--output_dir", str(tmp_path / "run")]
    assert main([*command, "--backbone_precision", "int8"]) == 0
    record = RunRecord.load(tmp_path / "run" / "run.json")
    assert record.settings["backbone_precision"] == "int8"
    assert main(command) == 2
    assert "backbone_precision was int8, now bf16" in capsys.readouterr().err


def test_epochs_are_compared_on_a_part_and_the_last_is_evaluated_on_all(tiny_flags, tmp_path):
    """Fails if the best is chosen among numbers of different images, or the report is of the part."""
    command = ["train", *tiny_flags, "--eval_images", "2", "--output_dir", str(tmp_path / "run")]
    assert main(command) == 0
    rows = read_log(tmp_path / "run")
    assert len([row for row in rows if "eval_map" in row]) == 2
    assert len([row for row in rows if "eval_all_map" in row]) == 1
    found = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
    assert found["details"]["images"] == 4


def test_a_run_from_another_one_at_learning_rate_0_has_its_numbers(tiny_flags, tmp_path):
    """Every tensor of the detector comes along: a COCO start of one's own run lost the head row and the bias."""
    command = ["train", *tiny_flags, "--num_train_epochs", "1", "--output_dir"]
    assert main([*command, str(tmp_path / "one")]) == 0
    again = ["--init_from", str(tmp_path / "one"), "--learning_rate", "0", "--weight_decay", "0"]
    assert main([*command, str(tmp_path / "two"), *again]) == 0
    losses = [[row["eval_loss"] for row in read_log(tmp_path / run) if "eval_loss" in row] for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_run_that_no_longer_gets_better_stops(tiny_flags, tmp_path, monkeypatch):
    scores = iter([0.7, 0.2, 0.1, 0.05, 0.01])
    compute = DetectionMetrics.compute
    monkeypatch.setattr(DetectionMetrics, "compute", lambda self: compute(self) | {"map": next(scores, 0.0)})
    flags = [*tiny_flags, "--num_train_epochs", "5", "--early_stopping_patience", "2"]
    assert main(["train", *flags, "--output_dir", str(tmp_path / "run")]) == 0
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
