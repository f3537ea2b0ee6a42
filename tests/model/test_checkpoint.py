"""A checkpoint is one that plain transformers reads completely, and comes back completely or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_detector import images, save, small_config
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, DetrForObjectDetection, pipeline

from recipe.model.checkpoint import (
    BACKBONE_FILE,
    DETECTOR_FILE,
    init_from,
    load_detector,
    load_processor,
    load_weights,
    save_detector,
    write_backbone,
)
from recipe.model.detector import build_detector, freeze
from recipe.schema import UserError


def test_what_is_saved_loads_in_plain_transformers_tensor_for_tensor(model, checkpoint):
    plain, report = AutoModelForObjectDetection.from_pretrained(checkpoint, output_loading_info=True)
    assert type(plain) is DetrForObjectDetection
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = model.state_dict()
    assert plain.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in plain.state_dict().items())


def test_a_detector_comes_back_frozen_with_every_tensor_and_the_same_outputs(model, checkpoint):
    found = load_detector(checkpoint)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    assert [name for name, p in found.named_parameters() if not p.requires_grad] == [
        name for name, p in model.named_parameters() if not p.requires_grad
    ]
    assert not found.train().model.backbone.model.training
    with torch.no_grad():
        assert torch.equal(found.eval()(images()).pred_boxes, model.eval()(images()).pred_boxes)


def test_every_saved_tensor_and_a_default_reload_have_the_dtype_of_the_config(model, tmp_path):
    """Fails if the bf16 backbone of training is saved as it lies in memory."""
    save(freeze(model, torch.bfloat16), tmp_path / "checkpoint")
    assert AutoConfig.from_pretrained(tmp_path / "checkpoint").dtype == torch.float32
    for name in (BACKBONE_FILE, DETECTOR_FILE):
        assert {value.dtype for value in load_file(tmp_path / "checkpoint" / name).values()} == {torch.float32}
    plain = AutoModelForObjectDetection.from_pretrained(tmp_path / "checkpoint")
    assert {value.dtype for value in plain.parameters()} == {torch.float32}
    loaded = load_detector(tmp_path / "checkpoint", bf16=True)
    assert loaded.model.backbone.model.dtype == torch.bfloat16
    assert loaded.model.input_projection.weight.dtype == torch.float32


def test_the_backbone_shard_is_linked_not_copied(model, tmp_path):
    write_backbone(model, tmp_path / "backbone.safetensors")
    for number in range(3):
        save_detector(model, tmp_path / f"checkpoint-{number}", tmp_path / "backbone.safetensors")
    assert (tmp_path / "backbone.safetensors").stat().st_nlink == 4
    assert (tmp_path / "checkpoint-2" / DETECTOR_FILE).stat().st_nlink == 1


def test_restore_brings_back_every_tensor_or_raises(model, checkpoint):
    """Fails with Trainer's own loader: strict=False leaves tensors at their initial values and only warns."""
    torch.manual_seed(1)
    other = build_detector(small_config())
    load_weights(other, checkpoint)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    kept = load_file(checkpoint / DETECTOR_FILE)
    del kept["bbox_predictor.layers.2.weight"]
    save_file(kept, checkpoint / DETECTOR_FILE, {"format": "pt"})
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(other, checkpoint)
    with pytest.raises(UserError, match="1 tensors of a detr are missing"):
        load_detector(checkpoint)


def test_a_checkpoint_for_other_classes_is_refused(checkpoint):
    found = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(found | {"id2label": {"0": "cat", "1": "dog"}}))
    with pytest.raises(UserError, match="cat"):
        load_detector(checkpoint)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            {"model_type": "detr", "use_timm_backbone": True, "backbone": "resnet50"},
            "is detr with backbone timm_backbone",
        ),
        ({"model_type": "yolos"}, "is yolos with backbone none"),
        ({"model_type": "bert"}, "is bert with backbone none"),
    ],
)
def test_another_kind_of_model_is_one_line_and_not_another_library_to_install(tmp_path, found, words):
    """The first is facebook/detr-resnet-50's shape; DETR's own config turns the others into it: all asked for timm."""
    (tmp_path / "config.json").write_text(json.dumps(found))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=f"{words} for .*; this recipe's are detr or deformable_detr with backbone dinov3"
    ):
        load_detector(tmp_path)


def test_a_git_lfs_pointer_in_place_of_the_weights_is_one_line(checkpoint):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (checkpoint / DETECTOR_FILE).write_text(pointer)
    with pytest.raises(UserError, match=r"checkpoint: .*header"):
        load_detector(checkpoint)


def test_the_saved_config_names_no_private_class_and_turns_off_the_random_rope(checkpoint):
    found = json.loads((checkpoint / "config.json").read_text())
    assert found["architectures"] == ["DetrForObjectDetection"]
    assert found["auxiliary_loss"] is False
    assert found["backbone_config"]["pos_embed_rescale"] is None
    assert found["backbone_config"]["num_hidden_layers"] == 3
    assert "auto_map" not in found


def test_the_object_detection_pipeline_runs_on_a_saved_folder(checkpoint):
    found = pipeline("object-detection", model=str(checkpoint))(
        Image.fromarray(np.full((120, 80, 3), 90, np.uint8)), threshold=0.0
    )
    assert len(found) == 12
    assert {item["label"] for item in found} <= {"person", "head"}


def test_the_processor_comes_back_as_plain_transformers_reads_it(checkpoint, tmp_path):
    assert load_processor(checkpoint).to_dict() == AutoImageProcessor.from_pretrained(checkpoint).to_dict()
    with pytest.raises(UserError, match="the image processor of"):
        load_processor(tmp_path)


# ---- a new run from an old one ----


def test_a_new_run_starts_from_every_tensor_of_an_old_one(model, checkpoint):
    """`--backbone` is not asked for: the one of the old run is in its checkpoint."""
    found = init_from(str(checkpoint), small_config(backbone="facebook/never-fetched", dropout=0.3))
    expected = model.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    assert found.model.encoder.layers[0].dropout == 0.3
    assert not any(p.requires_grad for p in found.model.backbone.parameters())


def test_an_old_run_of_another_shape_names_the_flags_that_fit(checkpoint):
    with pytest.raises(UserError, match=r"--num_queries 900, --d_model 64: .* Give `--num_queries 12 --d_model 32`"):
        init_from(str(checkpoint), small_config(num_queries=900, d_model=64))


def test_an_old_run_of_the_other_kind_names_the_flag_that_fits(checkpoint):
    with pytest.raises(UserError, match=r"--detector deformable: .* Give `--detector detr`"):
        init_from(str(checkpoint), small_config(detector="deformable"))


def test_no_encoder_layers_is_the_documented_ablation(tmp_path):
    built = build_detector(small_config(encoder_layers=0))
    assert len(built.model.encoder.layers) == 0
    assert load_detector(save(built, tmp_path / "checkpoint")).config.encoder_layers == 0
