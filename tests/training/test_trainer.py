"""Training that can be trusted: resumed equals never stopped, restored means every tensor, nothing lost in silence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import packed as crowds
import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file

from recipe.arguments import parse
from recipe.cli import main
from recipe.config import DEADLINE_EXIT, DIVERGED_EXIT
from recipe.data.dataset import CrowdDataset
from recipe.evaluation.metrics import DetectionMetrics
from recipe.model.checkpoint import BACKBONE_FILE, DETECTOR_FILE, write_backbone
from recipe.record import read_log
from recipe.report.card import Card
from recipe.train import build_model, freeze_and_save_backbone
from recipe.training.checkpoints import checkpoints, is_complete
from recipe.training.run import fixed_settings, write_record
from recipe.training.splits import load_splits
from recipe.training.trainer import CrowdTrainer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / DETECTOR_FILE)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def make_trainer(flags: list[str], folder: Path, name: str = "run", callbacks=()) -> CrowdTrainer:
    args = parse([*flags, "--output_dir", str(folder / name)])
    data = load_splits(args)
    torch.manual_seed(0)
    model, processor = build_model(args, data.train.annotations, None)
    model = freeze_and_save_backbone(model, args, Path(args.output_dir))
    write_record(Path(args.output_dir), args, fixed_settings(args), data.record)
    metrics = DetectionMetrics(num_queries=args.num_queries)
    args.report_to = []
    return CrowdTrainer(
        args, model, processor, data.train, data.validation, metrics, [make(metrics) for make in callbacks], data.part
    )


@pytest.fixture(scope="module")
def finished(packed, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run of two epochs that was never stopped, with a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    flags = ["--data", str(packed), *TINY, "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "50"]
    flags += ["--eval_strategy", "steps", "--eval_steps", "1", "--dataloader_num_workers", "2"]
    assert main(["train", *flags, "--output_dir", str(folder)]) == 0
    return folder, flags


# ---- resume ----


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_run_killed_at_any_step_ends_with_the_weights_of_one_never_stopped(finished, tmp_path, step):
    """SIGKILL after the checkpoint of `step`, in the middle of the next; augmentation, dropout and two workers on.

    Fails without the loader's own generator in CrowdTrainer._loader: dropout then differs after a resume.
    """
    run, flags = finished
    folder = tmp_path / "killed"
    command = [*flags, "--output_dir", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(step), *command], env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert process.wait(timeout=240) == -signal.SIGKILL
    assert main(["train", *command]) == 0
    assert same(weights(folder), weights(run))
    last = checkpoints(folder)[-1].name
    ours, theirs = (torch.load(each / last / "optimizer.pt", weights_only=True) for each in (folder, run))
    assert all(
        torch.equal(ours["state"][index][name], value)
        for index, moments in theirs["state"].items()
        for name, value in moments.items()
    )
    states = [json.loads((each / last / "trainer_state.json").read_text()) for each in (folder, run)]
    assert states[0]["best_global_step"] == states[1]["best_global_step"]
    assert states[0]["best_metric"] == states[1]["best_metric"]
    assert [values(row) for row in read_log(folder)] == [values(row) for row in read_log(run)]


# Kills the process at the first forward pass after the checkpoint of a step, half a batch into the next.
KILLED = """
import os, signal, sys
import recipe.training.trainer
from recipe.cli import main
step = int(sys.argv[1])
def compute_loss(self, *args, original=recipe.training.trainer.CrowdTrainer.compute_loss, **kwargs):
    if self.state.global_step >= step and self.model.training:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)
recipe.training.trainer.CrowdTrainer.compute_loss = compute_loss
main(["train", *sys.argv[2:]])
"""


def values(row: dict[str, float]) -> dict[str, float]:
    """A logged row without what only this process knows: its clock, and the mean loss of its own steps."""
    own = ("runtime", "per_second", "train_loss")
    return {name: value for name, value in row.items() if not any(part in name for part in own)}


def test_damaged_checkpoints_are_passed_over_and_the_last_complete_one_is_used(finished, tmp_path):
    run, flags = finished
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    names = [path.name for path in checkpoints(folder)]
    (folder / names[-1] / "optimizer.pt").unlink()  # killed while it was deleted
    (folder / names[-2] / "trainer_state.json").write_text('{"global_step": ')  # killed while it was written
    assert main(["train", *flags, "--output_dir", str(folder)]) == 0
    assert [path.name for path in checkpoints(folder)] == names
    assert all(is_complete(path) for path in checkpoints(folder))
    assert same(weights(folder), weights(run))


# ---- what is kept is the best, all of it ----


def test_the_best_model_is_kept_when_it_is_not_the_last(tiny_flags, tmp_path, monkeypatch):
    """What is saved at the end is all of the best model, not a hybrid of best and last."""
    scores = iter([0.7, 0.2])

    def compute(self, original=DetectionMetrics.compute):
        return original(self) | {"map": next(scores, 0.2)}

    monkeypatch.setattr(DetectionMetrics, "compute", compute)
    trainer = make_trainer(tiny_flags, tmp_path)
    trainer.train()
    best, last = checkpoints(tmp_path / "run")
    assert trainer.state.best_model_checkpoint == str(best)
    assert not same(weights(best), weights(last))
    trainer.save_model()
    assert same(weights(tmp_path / "run"), weights(best))


def test_the_card_of_a_checkpoint_within_an_epoch_says_whose_numbers_it_shows(tiny_flags, tmp_path):
    steps = ["--save_strategy", "steps", "--save_steps", "6", "--load_best_model_at_end", "false"]
    make_trainer([*tiny_flags, *steps], tmp_path, callbacks=[Card]).train()
    card = (tmp_path / "run" / "checkpoint-6" / "README.md").read_text()
    assert "Weights of epoch 1.50, step 6; all numbers are those of step 4." in card


@pytest.mark.parametrize("loader", ["_load_from_checkpoint", "_load_best_model"])
def test_a_checkpoint_that_lacks_a_tensor_is_never_restored_in_part(tiny_flags, tmp_path, loader):
    """Fails with either of Trainer's own loaders: strict=False, a warning, and the tensor stays as it was."""
    trainer = make_trainer(tiny_flags, tmp_path)
    folder = tmp_path / "checkpoint-1"
    write_backbone(trainer.model, tmp_path / "run" / BACKBONE_FILE)
    trainer.save_model(str(folder))
    kept = weights(folder)
    kept.pop("bbox_predictor.layers.0.weight")
    save_file(kept, folder / DETECTOR_FILE, {"format": "pt"})
    trainer.state.best_model_checkpoint, trainer.state.best_metric = str(folder), 0.5
    arguments = [str(folder)] if loader == "_load_from_checkpoint" else []
    with pytest.raises(RuntimeError, match="Missing key"):
        getattr(trainer, loader)(*arguments)


def test_backbone_weights_and_optimizer_never_meet(tiny_flags, tmp_path):
    trainer = make_trainer(tiny_flags, tmp_path)
    backbone = {name: value.clone() for name, value in trainer.model.model.backbone.state_dict().items()}
    trainer.train()
    after = trainer.model.model.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in backbone.items())
    held = sum(parameter.numel() for group in trainer.optimizer.param_groups for parameter in group["params"])
    assert held == sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)


# ---- what is logged ----


def test_the_loss_is_logged_per_decoder_layer_and_adds_up(finished):
    rows = [row for row in read_log(finished[0]) if "loss" in row]
    assert len(rows) == 8
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_layer_1"] + row["loss_layer_2"], rel=1e-5)
        assert row["loss_layer_2"] == pytest.approx(
            row["loss_ce"] + 5 * row["loss_bbox"] + 2 * row["loss_giou"], rel=1e-5
        )


def test_every_metric_of_the_contract_is_logged_at_each_evaluation(finished):
    keys = """map map_50 map_75 map_small map_medium map_large mar_1 mar_10 mar_100 mar_small mar_medium mar_large
        map_person map_head map_50_person map_50_head mar_100_person mar_100_head map_max300 mar_300 mr2_person
        mr2_head ji_person ji_head"""
    rows = [row for row in read_log(finished[0]) if "eval_map" in row]
    assert len(rows) == 8
    assert all(f"eval_{key}" in row for row in rows for key in keys.split())


# ---- evaluation ----


def test_evaluation_keeps_no_outputs_of_the_model(tiny_flags, tmp_path):
    """Fails with the stock prediction_step, which keeps the encoder's states of every image: 75 GB at full size."""
    trainer = make_trainer(tiny_flags, tmp_path)
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation")
    assert output.predictions is None
    assert output.label_ids is None
    assert len(trainer.metrics.images()) == 4


def test_evaluating_a_checkpoint_gives_the_metrics_that_training_logged(finished, packed, tmp_path):
    run, _ = finished
    checkpoint = checkpoints(run)[-1]
    assert main(["evaluate", str(checkpoint), "--data", str(packed), "--out", str(tmp_path), "--workers", "0"]) == 0
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    logged = [row for row in read_log(run) if "eval_map" in row][-1]
    for key, value in logged.items():
        if key.startswith(("eval_ma", "eval_mr2", "eval_ji")):
            assert found[key.removeprefix("eval_")] == pytest.approx(value, abs=1e-6), key


def test_the_saved_model_carries_the_thresholds_that_predict_starts_from(finished):
    run, _ = finished
    carried = json.loads((run / "config.json").read_text())["detection_thresholds"]
    report = json.loads((run / "report" / "metrics.json").read_text())
    assert carried == report["details"]["thresholds"]
    assert set(carried) == {"person", "head"}


# ---- stops ----


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_bad_image_ends_the_run_in_one_line_with_its_name(tmp_path, capsys, split):
    """Its batch is empty: what counts, moves and sizes batches must take that until the error is raised."""
    for name in ("train", "validation"):
        bad = [crowds.row(6, 120, 180, data=b"\xff\xd8 no image")] if name == split else []
        crowds.write(tmp_path / "crowd", crowds.crowd(4) + bad, name)
    flags = ["--data", str(tmp_path / "crowd"), *TINY, "--dataloader_num_workers", "1"]
    assert main(["train", *flags, "--output_dir", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "Traceback"))]
    assert line.startswith("error: 6.jpg (image_id 6) is a bad image: not an image in the formats JPEG")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "a loader worker died (DataLoader worker (pid"),
        (lambda: time.sleep(60), "no batch came from the loader workers (DataLoader timed out after 3 seconds)"),
    ],
    ids=["killed", "hung"],
)
def test_a_loader_worker_that_dies_or_hangs_ends_the_run_in_one_line(
    tiny_flags, tmp_path, monkeypatch, capsys, fault, words
):
    """Without a timeout the training waits for a batch that never comes; a killed worker was three tracebacks."""

    def item(self, key, original=CrowdDataset.__getitem__):
        if torch.utils.data.get_worker_info() and key[0] == 1:  # in the second epoch
            fault()
        return original(self, key)

    monkeypatch.setattr(CrowdDataset, "__getitem__", item)
    monkeypatch.setattr("recipe.training.trainer.BATCH_SECONDS", 3)
    flags = ["train", *tiny_flags, "--output_dir", str(tmp_path / "run")]
    assert main([*flags, "--dataloader_num_workers", "1"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "Traceback"))]
    assert line.startswith(f"error: {words}")
    assert line.endswith("and give the same command again")
    monkeypatch.undo()
    assert main(flags) == 0
    assert "eval_map" in read_log(tmp_path / "run")[-2]


def test_a_non_finite_loss_stops_the_run_and_leaves_a_replay(tiny_flags, tmp_path, monkeypatch, capsys, caplog):
    poison = make_poison(at=3)
    monkeypatch.setattr("recipe.train.build_model", poison)
    assert main(["train", *tiny_flags, "--output_dir", str(tmp_path / "run")]) == DIVERGED_EXIT
    message = caplog.text
    folder = tmp_path / "run" / "nonfinite" / "step-3"
    assert f"recipe replay {folder}" in message
    saved = torch.load(folder / "batch.pt", weights_only=False)
    assert saved["inputs"]["pixel_values"].dtype == torch.uint8
    assert str([int(label["image_id"]) for label in saved["inputs"]["labels"]]) in message
    capsys.readouterr()
    assert main(["replay", str(folder)]) == 1
    assert "bbox_predictor" in capsys.readouterr().out


def make_poison(at: int):
    """`build_model`, with a detector whose box head turns to nan before step `at`."""

    def poisoned(*args):
        model, processor = build_model(*args)
        calls = iter(range(100))
        model.register_forward_pre_hook(lambda *_: spoil(model) if next(calls) == at else None)
        return model, processor

    def spoil(model):
        with torch.no_grad():
            model.bbox_predictor.layers[0].weight.fill_(float("nan"))

    return poisoned


def test_the_deadline_leaves_a_complete_checkpoint_and_the_same_command_resumes(finished, tmp_path):
    run, flags = finished
    command = ["train", *flags, "--output_dir", str(tmp_path / "run")]
    assert main([*command, "--max_hours", "1e-9"]) == DEADLINE_EXIT
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    assert main(command) == 0
    assert same(weights(tmp_path / "run"), weights(run))


def test_sigterm_saves_and_stops_also_when_the_whole_group_gets_it(finished, tmp_path):
    """systemd and Slurm signal the loader's workers too; fails if they die of it."""
    _, flags = finished
    code = """
import os, sys
from recipe.cli import main
from recipe.training.run import fixed_settings, write_record
from recipe.training.splits import load_splits
from recipe.training.trainer import CrowdTrainer
def step(self, *args, original=CrowdTrainer.training_step):
    if self.state.global_step == 2:
        os.system(f"kill -TERM -{os.getpgrp()}")  # from another process, as theirs comes
    return original(self, *args)
CrowdTrainer.training_step = step
sys.exit(main(["train", *sys.argv[1:]]))
"""
    folder = tmp_path / "run"
    flags = [flag if flag != "steps" else "epoch" for flag in flags]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, "--output_dir", str(folder)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        timeout=240,
        check=False,
        process_group=0,
    )
    assert done.returncode == DEADLINE_EXIT
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-3"]
    assert is_complete(folder / "checkpoint-3")
