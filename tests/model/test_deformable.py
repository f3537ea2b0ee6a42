"""The second detector: plain to reload, every tensor learns, and four layers of the backbone are really read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from small_detector import images, save, small_config, targets
from torchvision.ops import box_convert
from transformers import AutoImageProcessor, AutoModelForObjectDetection, DeformableDetrForObjectDetection
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTBackboneOutput

from recipe.arguments import METRICS, parse
from recipe.cli import main
from recipe.config import DEADLINE_EXIT
from recipe.model.checkpoint import DETECTOR_FILE, load_detector, load_processor, load_weights
from recipe.model.deformable import DeformableDetr
from recipe.model.detector import build_detector
from recipe.model.loss import LOSSES


@pytest.fixture
def deformable():
    torch.manual_seed(0)
    found = build_detector(small_config(detector="deformable"), class_prior=[0.2, 0.1, 0.7])
    with torch.no_grad():
        for name, parameter in found.named_parameters():  # no zeroed layers, heads that differ
            if not name.startswith(("model.backbone", "class_embed")):
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return found


def test_plain_transformers_computes_the_very_function_that_was_trained(deformable, tmp_path):
    plain = AutoModelForObjectDetection.from_pretrained(save(deformable, tmp_path / "checkpoint")).eval()
    assert type(plain) is DeformableDetrForObjectDetection
    assert plain.config.tie_word_embeddings is False  # the library's default makes the heads of all layers one
    plain.model.backbone.model = deformable.model.backbone.model
    with torch.no_grad():
        expected, found = plain(images()), deformable.eval()(images(), labels=targets([2, 1]))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.pred_boxes, expected.pred_boxes)


def test_it_comes_back_with_every_tensor_and_the_same_outputs(deformable, tmp_path):
    folder = save(deformable, tmp_path / "checkpoint")
    loaded, restored = load_detector(folder), build_detector(small_config(detector="deformable"))
    load_weights(restored, folder)
    assert type(loaded) is DeformableDetr
    for found in (loaded.eval(), restored.eval()):
        with torch.no_grad():
            assert torch.equal(found(images()).pred_boxes, deformable.eval()(images()).pred_boxes)
        assert not any(p.requires_grad for p in found.model.backbone.parameters())


def test_every_tensor_gets_a_gradient_and_every_layer_its_loss(deformable):
    """Bites with the library's own decoder heads: it detaches what they refine, so they would never learn."""
    deformable.train()
    output = deformable(images(), labels=targets([3, 1]))
    output.loss.backward()
    without = [
        name for name, p in deformable.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not without
    assert {name: value.shape for name, value in output.loss_dict.items()} == dict.fromkeys(LOSSES, (2,))


def test_each_level_reads_its_own_layer_of_the_backbone(deformable):
    """DETR ignores all maps but the last, to the digit; here each of them counts."""
    backbone = deformable.model.backbone.model
    assert backbone.config.out_indices == [1, 2, 3]
    maps = backbone(images()).feature_maps
    with torch.no_grad():
        stock = type(backbone).__base__.forward(backbone, images()).feature_maps
        for found, expected in zip(maps, stock, strict=True):
            torch.testing.assert_close(found, expected)
        before = deformable.eval()(images()).pred_boxes
        for level in range(3):
            changed = list(maps)
            changed[level] = changed[level] + torch.randn_like(changed[level])
            handle = backbone.register_forward_hook(
                lambda *_, maps=changed: DINOv3ViTBackboneOutput(feature_maps=tuple(maps))
            )
            assert not torch.equal(deformable(images()).pred_boxes, before)
            handle.remove()


def test_it_starts_as_the_original_does_with_small_boxes_at_its_reference_points():
    torch.manual_seed(0)
    built = build_detector(small_config(detector="deformable", num_queries=100), class_prior=[0.2, 0.1, 0.7]).eval()
    with torch.no_grad():
        found = built(images())
    torch.testing.assert_close(found.pred_boxes[..., 2:], torch.tensor(-2.0).sigmoid().expand(2, 100, 2))
    assert found.pred_boxes[..., :2].std() > 0.1  # spread over the image
    attention = built.model.encoder.layers[0].self_attn
    assert attention.sampling_offsets.bias.any()  # in a ring around the point, and no weight yet
    assert not attention.sampling_offsets.weight.any()
    assert attention.value_proj.weight.std() > 0.1
    assert built.model.input_proj[0][1].weight.all()
    torch.testing.assert_close(found.logits[..., :2].mean().sigmoid(), torch.tensor(0.01), rtol=0.3, atol=0)
    torch.testing.assert_close(built.class_embed[0].bias.sigmoid(), torch.tensor([0.01, 0.01, 0.5]), rtol=0.01, atol=0)


def test_no_object_stays_at_zero_so_that_the_saved_processor_ranks_by_the_sigmoids(deformable, tmp_path):
    """Bites with a loss that reads the third logit: its row then learns, and the softmax ranks otherwise."""
    optimizer = torch.optim.AdamW([p for p in deformable.parameters() if p.requires_grad], lr=1e-2, weight_decay=1e-1)
    for _ in range(3):
        deformable.train()(images(), labels=targets([3, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        outputs = deformable.eval()(images())
    assert not outputs.logits[..., 2].any()
    assert outputs.logits[..., :2].std() > 0
    processor = load_processor(save(deformable, tmp_path / "checkpoint"))
    for image, logits in zip(processor.post_process_object_detection(outputs, -1.0), outputs.logits, strict=True):
        person, head = logits[:, :2].T
        best = logits[:, :2].max(-1)
        assert torch.equal(image["labels"], best.indices)
        torch.testing.assert_close(image["scores"], best.values.exp() / (1 + person.exp() + head.exp()))


def test_boxes_are_fp32_under_bf16_autocast_and_the_processor_returns_all_queries(deformable, tmp_path):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        outputs = deformable.eval()(images())
    assert outputs.pred_boxes.dtype == outputs.logits.dtype == torch.float32
    assert not torch.equal(outputs.pred_boxes, outputs.pred_boxes.bfloat16().float())
    processor = load_processor(save(deformable, tmp_path / "checkpoint"))
    found = processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=[(64, 96)] * 2)
    assert [len(image["boxes"]) for image in found] == [12, 12]
    assert set(found[0]["labels"].tolist()) <= {0, 1}


def test_it_learns_boxes_by_heart():
    torch.manual_seed(0)
    model = build_detector(small_config(detector="deformable", dropout=0.0), class_prior=[0.1, 0.1, 0.8]).train()
    labels, pixels = targets([1, 2, 1], seed=3), torch.zeros(3, 3, 64, 96)
    for image, label in zip(pixels, labels, strict=True):
        corners = box_convert(label["boxes"], "cxcywh", "xyxy") * torch.tensor([96, 64] * 2)
        for kind, (left, top, right, bottom) in zip(
            label["class_labels"], corners.int().clamp(0).tolist(), strict=True
        ):
            image[kind, top:bottom, left:right] = 2.0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(80):
        loss = model(pixels, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_a_run_is_stopped_resumed_bit_equal_evaluated_and_read_by_plain_transformers(tiny_flags, tmp_path):
    command = ["train", *tiny_flags, "--detector", "deformable", "--output_dir"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "two"), "--max_hours", "1e-9"]) == DEADLINE_EXIT
    assert main([*command, str(tmp_path / "two")]) == 0
    one, two = (load_file(tmp_path / name / DETECTOR_FILE) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    evaluate = ["evaluate", str(tmp_path / "one"), "--data", tiny_flags[1], "--workers", "0"]
    assert main([*evaluate, "--out", str(tmp_path / "report")]) == 0
    found, trained = (
        json.loads((tmp_path / name / "report" / "metrics.json").read_text()) for name in ("report", "one")
    )
    assert all(found[name] == trained[name] for name in METRICS)
    plain, report = AutoModelForObjectDetection.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert type(plain) is DeformableDetrForObjectDetection
    assert not any(report.values())
    ours = load_detector(tmp_path / "one").eval()
    plain.model.backbone.model = ours.model.backbone.model  # ours differs by rounding
    processor = AutoImageProcessor.from_pretrained(tmp_path / "one")
    pixels = processor(torch.randint(256, (2, 3, 80, 120), dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected, outputs = ours(pixels), plain.eval()(pixels)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.pred_boxes, expected.pred_boxes)


def test_it_has_900_queries_unless_the_command_line_says_another_number():
    given = ["--preset", "pilot", "--detector", "deformable"]
    assert parse(given).num_queries == 900
    assert parse([*given, "--num_queries", "300"]).num_queries == 300
    assert parse(given[:2]).num_queries == 300
