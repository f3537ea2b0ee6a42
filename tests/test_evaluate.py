"""`recipe evaluate`: wrong places are told before anything is loaded, one GPU, bf16 there, crowd regions ignored."""

from __future__ import annotations

import json
from pathlib import Path

import packed as rows
import pytest
import torch
from pycocotools.coco import COCO
from small_detector import save, small_config

from recipe.arguments import Arguments
from recipe.cli import main
from recipe.model.checkpoint import load_detector
from recipe.model.detector import build_detector
from recipe.schema import UserError
from recipe.training.run import writable


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return save(build_detector(small_config()), tmp_path_factory.mktemp("detector") / "checkpoint")


def asked_for(monkeypatch, command: str) -> list[dict]:
    """What `recipe COMMAND` asks load_detector for; it goes no further."""
    asked = []

    def load_detector(*_, **options):
        asked.append(options)
        raise UserError("far enough")

    monkeypatch.setattr(
        {"evaluate": "recipe.evaluate", "predict": "recipe.predict"}[command] + ".load_detector",
        load_detector,
    )
    return asked


def test_a_missing_out_is_told_before_the_model_is_fetched(monkeypatch, capsys):
    asked = asked_for(monkeypatch, "evaluate")
    assert main(["evaluate", "USER/DETECTOR", "--revision", "epoch-03", "--data", "USER/CROWD"]) == 2
    assert not asked
    words = "USER/DETECTOR: no such folder; if it is a Hub repo, say with `--out DIR` where the report goes"
    assert words in capsys.readouterr().err


def test_a_folder_that_is_there_but_takes_no_file_is_refused():
    with pytest.raises(UserError, match="--out /proc: cannot be written"):
        writable(Path("/proc"), "--out")


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_the_backbone_runs_in_bf16_on_a_gpu_and_in_fp32_on_a_cpu(command, gpu, packed, tmp_path, monkeypatch):
    asked = asked_for(monkeypatch, command)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    (tmp_path / "one.jpg").touch()
    what = {"evaluate": ["--data", str(packed)], "predict": [str(tmp_path)]}[command]
    assert main([command, "USER/DETECTOR", *what, "--out", str(tmp_path / "out")]) == 2
    assert asked == [{"bf16": gpu}]


def test_only_the_backbone_is_loaded_in_bf16(checkpoint):
    model = load_detector(checkpoint, bf16=True)
    assert model.model.backbone.model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


def test_several_gpus_are_no_reason_for_dataparallel(checkpoint, packed, tmp_path, monkeypatch):
    def on_two_gpus(**options):
        args = Arguments(**options)
        assert args.n_gpu == 0  # asked once, it is kept
        args._n_gpu = 2
        return args

    def refuse(*_):
        raise AssertionError("wrapped in DataParallel")

    monkeypatch.setattr("recipe.evaluate.Arguments", on_two_gpus)
    monkeypatch.setattr(torch.nn.DataParallel, "__init__", refuse)
    assert main(["evaluate", str(checkpoint), "--data", str(packed), "--out", str(tmp_path), "--workers", "0"]) == 0


@pytest.mark.parametrize("flag", ["--batch_size", "--limit"])
def test_no_batch_is_of_nothing(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "outputs/run", "--data", "packed", flag, "0"])
    assert f"argument {flag}: '0' is not a whole number from 1" in capsys.readouterr().err


def test_detections_are_saved_as_they_were_found(checkpoint, packed, tmp_path, monkeypatch):
    """COCO reads them, with the dataset's ids; they are those of the metrics to the last bit of each score."""
    seen = {}

    def report(_, metrics, *__, **___):
        seen.update(metrics.images())

    monkeypatch.setattr("recipe.evaluate.write_report", report)
    monkeypatch.setattr("recipe.evaluate.print_numbers", lambda *_: None)
    flags = ["--data", str(packed), "--out", str(tmp_path), "--workers", "0", "--save-detections"]
    assert main(["evaluate", str(checkpoint), *flags]) == 0
    targets = COCO()
    images = json.loads((tmp_path / "images.json").read_text())
    targets.dataset = {"images": images, "categories": [{"id": 0}, {"id": 1}], "annotations": []}
    targets.createIndex()
    found = targets.loadRes(str(tmp_path / "predictions.json"))
    assert {image["id"]: (image["height"], image["width"]) for image in images} == {
        number: image.size for number, image in seen.items()
    }
    assert all(image["file_name"].endswith((".jpg", ".png")) for image in images)
    for number, image in seen.items():
        scores = [each["score"] for each in found.imgToAnns[number]]
        assert scores == image.scores.tolist()
        assert len(scores) == 12


def test_the_metrics_see_which_boxes_are_crowd_regions(checkpoint, tmp_path, monkeypatch):
    row = rows.row(1, 60, 90, [[1, 1, 20, 30], [40, 1, 40, 50]])
    row["objects"]["iscrowd"] = [0, 1]
    rows.write(tmp_path / "crowd", [row], "validation")
    seen = []
    monkeypatch.setattr(
        "recipe.evaluate.write_report", lambda _, metrics, *__, **___: seen.extend(metrics.images().values())
    )
    monkeypatch.setattr("recipe.evaluate.print_numbers", lambda *_: None)
    flags = ["--data", str(tmp_path / "crowd"), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main(["evaluate", str(checkpoint), *flags]) == 0
    assert [image.crowd.tolist() for image in seen] == [[False, True]]
