"""A step whose loss was not finite is kept by the process that saw it, and repeated as it was."""

from __future__ import annotations

import pytest
import torch
from small_detector import save, small_config, targets
from training.test_trainer import make_trainer

from recipe import replay as room
from recipe.cli import main
from recipe.model.detector import build_detector, freeze
from recipe.record import RunRecord
from recipe.training.trainer import Diverged


def test_every_process_keeps_its_own_step(tiny_flags, tmp_path, monkeypatch):
    trainer = make_trainer(tiny_flags, tmp_path)
    monkeypatch.setattr(type(trainer.args), "process_index", 1)
    monkeypatch.setattr(type(trainer.args), "should_save", False)
    with torch.no_grad():
        trainer.model.bbox_predictor.layers[0].weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="step-0-rank-1"):
        trainer.train()
    assert main(["replay", str(tmp_path / "run" / "nonfinite" / "step-0-rank-1")]) == 1


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_step_is_repeated_in_the_precision_of_its_run(bf16, dtype, tmp_path, monkeypatch):
    torch.manual_seed(0)
    folder = save(freeze(build_detector(small_config())), tmp_path / "run" / "nonfinite" / "step-1")
    RunRecord("run", "1", "today", {"bf16": bf16}, {}, {}).write(tmp_path / "run")
    label = targets([3])[0] | {"image_id": torch.tensor([1])}
    inputs = {"pixel_values": torch.zeros(1, 3, 64, 96, dtype=torch.uint8), "labels": [label]}
    torch.save({"inputs": inputs, "items": None, "random_state": (torch.get_rng_state(), None)}, folder / "batch.pt")
    models = []
    monkeypatch.setattr(room, "collect_nonfinite", lambda model: models.append(model) or [])
    assert main(["replay", str(folder)]) == 0
    assert models[0].model.backbone.model.dtype == dtype
