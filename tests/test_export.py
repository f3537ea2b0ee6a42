"""What `recipe export` writes is the detector: at every size, described, or not there at all."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace

import onnxruntime
import pytest
import torch
from packed import photograph
from small_detector import save, small_config
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from recipe import export as exporting
from recipe.export import export
from recipe.model.detector import build_detector
from recipe.schema import UserError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = build_detector(small_config())
    model.config.detection_thresholds = {"person": 0.31, "head": 0.27}
    return save(model, tmp_path_factory.mktemp("detector") / "checkpoint")


@pytest.fixture(scope="module")
def file(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "deep" / "crowd.onnx"
    assert export(Namespace(checkpoint=str(checkpoint), revision=None, out=out)) == 0
    assert [path.name for path in out.parent.iterdir()] == ["crowd.onnx"]
    return out


@pytest.fixture
def exported(file):
    return onnxruntime.InferenceSession(file)


@pytest.mark.parametrize("size", [(1, 64, 96), (3, 96, 64), (2, 208, 32), (1, 32, 32)])
def test_it_gives_what_the_plain_checkpoint_gives_at_any_size_and_batch(checkpoint, exported, size):
    """The plain classes of transformers, without this project's code."""
    images = torch.stack([torch.from_numpy(photograph(*size[1:], seed=i)).permute(2, 0, 1) for i in range(size[0])])
    inputs = AutoImageProcessor.from_pretrained(checkpoint)(
        list(images), size={"height": size[1], "width": size[2]}, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = AutoModelForObjectDetection.from_pretrained(checkpoint).eval()(**inputs)
    logits, boxes = map(torch.from_numpy, exported.run(None, {"images": images.numpy()}))
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes, expected.pred_boxes, atol=1e-5, rtol=0)


def test_its_metadata_says_how_to_use_it(exported):
    found = exported.get_modelmeta().custom_metadata_map
    assert json.loads(found["thresholds"]) == {"person": 0.31, "head": 0.27}
    assert json.loads(found["classes"]) == ["person", "head"]
    assert (found["shortest_edge"], found["longest_edge"]) == ("64", "96")
    assert "uint8" in found["images"]


def test_one_that_differs_from_pytorch_is_not_there(file, tmp_path, monkeypatch):
    other = save(build_detector(small_config()), tmp_path / "other" / "checkpoint")
    monkeypatch.setattr(exporting, "write_onnx", lambda model, processor, unchecked: shutil.copy(file, unchecked))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"at 320x480 .* differs from PyTorch by more than 0\.001, so it was not kept"):
        export(Namespace(checkpoint=str(other), revision=None, out=tmp_path / "out" / "crowd.onnx"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_library_is_one_line(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "LIBRARIES", ("onnx", "onnxmissing"))
    with pytest.raises(UserError, match=r"needs onnxmissing: run `pip install 'recipe\[export\]'`"):
        export(Namespace(checkpoint=str(checkpoint), revision=None, out=tmp_path / "crowd.onnx"))


def test_a_detector_that_cannot_be_exported_is_refused_in_one_line(tmp_path):
    """Its trace has the sizes of the maps as constants: ONNX Runtime stops at any other image size."""
    checkpoint = save(build_detector(small_config(detector="deformable")), tmp_path / "other" / "checkpoint")
    with pytest.raises(UserError, match=r"is deformable_detr, which .* cannot write .* `--detector detr`"):
        export(Namespace(checkpoint=str(checkpoint), revision=None, out=tmp_path / "crowd.onnx"))
    assert not (tmp_path / "crowd.onnx").exists()
