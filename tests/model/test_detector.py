"""Frozen means frozen, boxes in fp32, DETR's own start, and a checkpoint that plain transformers reads whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.ops import box_convert, box_iou
from transformers import (
    AutoConfig,
    AutoModelForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DINOv3ViTBackbone,
    DINOv3ViTModel,
    pipeline,
)
from transformers.models.detr.modeling_detr import DetrModelOutput

from recipe.config import parse_train
from recipe.evaluation.metrics import DetectionMetrics
from recipe.model.checkpoint import SHARDS, load_model, load_weights, save_detector, write_backbone
from recipe.model.detector import (
    BACKBONE_PREFIX,
    build_model,
    build_processor,
    freeze,
    load_backbone,
    start_from_coco,
    tiny_backbone,
)
from recipe.model.loss import detection_loss
from recipe.schema import UserError

SMALL = [
    "--preset",
    "pilot",
    "--d_model",
    "32",
    "--encoder_layers",
    "1",
    "--decoder_layers",
    "2",
    "--num_queries",
    "12",
]


def config(*flags: str):
    return parse_train([*SMALL, *flags])[0]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return freeze(build_model(config()))


@pytest.fixture
def checkpoint(model, tmp_path):
    return save(model, tmp_path / "checkpoint")


def save(model, folder):
    write_backbone(model, folder.parent / "backbone.safetensors")
    save_detector(model, folder, folder.parent / "backbone.safetensors")
    build_processor(64, 96).save_pretrained(folder)
    return folder


def images(seed: int = 0):
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def batch():
    labels = [
        {"class_labels": torch.tensor([0, 1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.5, 0.3, 0.1, 0.1]])}
    ]
    return {"pixel_values": images()[:1], "labels": labels}


# ---- frozen ----


def test_features_are_bit_equal_in_train_and_eval_mode(model):
    """Fails without FrozenBackbone.train(): in train mode DINOv3 rescales its RoPE coordinates at random."""
    backbone = model.model.backbone.model
    backbone.config.pos_embed_rescale = 2.0  # as in the published config
    model.eval()
    expected = backbone(images()).feature_maps[0]
    model.train()
    assert torch.equal(backbone(images()).feature_maps[0], expected)
    assert not backbone.training
    assert model.model.encoder.training


def test_the_stock_backbone_drifts_in_train_mode():
    """The trap itself: when this fails, the library has fixed it and the override can go."""
    torch.manual_seed(0)
    stock = DINOv3ViTBackbone(DINOv3ViTConfig_with_rescale())
    stock.eval()
    expected = stock(images()).feature_maps[0]
    stock.train()
    assert not torch.allclose(stock(images()).feature_maps[0], expected, atol=1e-3)


def DINOv3ViTConfig_with_rescale():
    found = tiny_backbone()
    found.pos_embed_rescale = 2.0
    return found


def test_the_lean_forward_gives_the_features_of_the_stock_one(model):
    backbone = model.model.backbone.model
    expected = DINOv3ViTBackbone.forward(backbone, images()).feature_maps[-1]
    found = backbone(images()).feature_maps
    assert len(found) == 1
    torch.testing.assert_close(found[0], expected)


def test_a_training_step_moves_the_detector_and_nothing_of_the_backbone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(2):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        if name.startswith(BACKBONE_PREFIX):
            assert torch.equal(value, before[name]), name
        elif "k_proj.bias" not in name:  # a key's bias cancels in the softmax: its gradient is 0 but for rounding
            assert not torch.equal(value, before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in model.model.backbone.parameters())


def test_the_backbone_keeps_no_graph_and_one_map(model):
    model.train()
    features = model.model.backbone.model(images())
    assert features.feature_maps[0].grad_fn is None
    assert features.hidden_states is None


# ---- fp32 where it counts ----


def test_boxes_and_logits_are_fp32_under_bf16_autocast(model):
    """Fails without the fp32 heads: under autocast pred_boxes is bfloat16, up to 3 px off at a width of 1536."""
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        outputs = model(images())
    assert outputs.pred_boxes.dtype == outputs.logits.dtype == torch.float32
    # Not only upcast after the fact: the sigmoid's values do not lie on bf16's grid.
    assert not torch.equal(outputs.pred_boxes, outputs.pred_boxes.bfloat16().float())


def plant(model, boxes_cxcywh: torch.Tensor, labels: torch.Tensor):
    """Make the decoder hand over states from which the real heads predict exactly these boxes, with certainty."""
    with torch.no_grad():
        for layer in model.bbox_predictor.layers:
            layer.weight.copy_(torch.eye(*layer.weight.shape))
            layer.bias.zero_()
        model.bbox_predictor.layers[0].bias.fill_(20.0)  # past the ReLUs
        model.bbox_predictor.layers[2].bias.fill_(-20.0)
        model.class_labels_classifier.weight.zero_()
        model.class_labels_classifier.weight[0, 4] = model.class_labels_classifier.weight[1, 5] = 9.0
        model.class_labels_classifier.bias.zero_()
    states = torch.zeros(1, len(boxes_cxcywh), model.config.d_model)
    states[0, :, :4] = boxes_cxcywh.logit()
    states[0, torch.arange(len(labels)), 4 + labels] = 1.0
    model.model.forward = lambda *_, **__: DetrModelOutput(last_hidden_state=states)
    return model.eval()


def planted_map(model, heads_in_fp32: bool) -> float:
    """mAP of a planted perfect prediction of 60 heads and persons of 8 to 16 pixels in a 1536x960 image."""
    rng = np.random.default_rng(0)
    corner = rng.uniform((0, 0), (1500, 900), (60, 2)).round()
    xyxy = np.concatenate([corner, corner + rng.uniform(8, 16, (60, 2))], axis=1)
    labels = torch.arange(60) % 2
    cxcywh = box_convert(torch.tensor(xyxy), "xyxy", "cxcywh") / torch.tensor([1536.0, 960.0] * 2)
    model = plant(model, cxcywh.float(), labels)
    if not heads_in_fp32:
        del model.class_labels_classifier.forward, model.bbox_predictor.forward  # back to the library's
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        outputs = model(images()[:1])
    found = build_processor(960, 1536).post_process_object_detection(outputs, -1.0, target_sizes=[(960, 1536)])[0]
    metrics = DetectionMetrics()
    metrics.update(
        1,
        size=(960, 1536),
        pred_xyxy=found["boxes"].float().numpy(),
        scores=found["scores"].float().numpy(),
        labels=found["labels"].numpy(),
        target_xyxy=xyxy,
        target_labels=labels.numpy(),
    )
    return metrics.compute()["map"]


def test_a_planted_perfect_prediction_of_tiny_boxes_scores_map_1(model):
    """Fails without the fp32 heads, as the second assertion shows: boxes rounded to bf16 are not even near."""
    assert planted_map(model, heads_in_fp32=True) == pytest.approx(1.0)
    assert planted_map(model, heads_in_fp32=False) < 0.5


@pytest.mark.parametrize(
    ("width", "height"), [(1920, 1080), (1080, 1920), (700, 700), (640, 480), (90, 60), (3000, 2000), (1200, 100)]
)
def test_the_pipeline_puts_a_planted_box_where_it_is_padded_or_not(model, tmp_path, width, height):
    """Fails with targets normalised by the padded canvas: IoU 0.58 at 1920x1080, 0.00 for a square image."""
    box = torch.tensor([[0.5, 0.25, 0.2, 0.3]])
    folder = save(model, tmp_path / "checkpoint")
    detector = pipeline("object-detection", model=str(folder))
    plant(detector.model, box, torch.tensor([0]))
    image = Image.fromarray(np.full((height, width, 3), 90, np.uint8))
    found = detector(image, threshold=0.5)[0]
    assert found["label"] == "person"
    truth = box_convert(box * torch.tensor([width, height] * 2), "cxcywh", "xyxy")
    # The pipeline cuts its boxes to whole pixels, so small images are compared within one.
    exact = torch.tensor([[found["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]])
    assert (exact - truth).abs().max() <= 1
    assert width * height < 300_000 or box_iou(exact, truth) > 0.99


def test_a_bf16_backbone_stays_within_bf16_rounding(model):
    expected = model.model.backbone.model(images()).feature_maps[0]
    found = freeze(model, torch.bfloat16).model.backbone.model(images()).feature_maps[0]
    assert found.dtype == torch.bfloat16
    error = (found.float() - expected).norm() / expected.norm()
    assert error < 0.02


# ---- initialisation ----


def test_queries_start_apart_and_the_transformer_at_xavier(model):
    """Fails with the stock initialisation: N(0, 0.02) everywhere, all first boxes alike."""
    detr = model.model
    assert 0.8 < detr.query_position_embeddings.weight.std() < 1.2
    weight = detr.decoder.layers[0].mlp.fc1.weight  # [256, 32]
    assert weight.abs().max() <= (6 / sum(weight.shape)) ** 0.5
    assert weight.std() > 0.06
    with torch.no_grad():
        boxes = model.eval()(images()).pred_boxes
    stock = DetrForObjectDetection(model.config)
    with torch.no_grad():
        stock_boxes = stock.eval()(images()).pred_boxes
    assert boxes.std(dim=1).mean() > 20 * stock_boxes.std(dim=1).mean()


def test_the_first_gradient_is_far_below_that_of_the_stock_initialisation():
    def norm(prepare):
        torch.manual_seed(0)
        built = build_model(parse_train(["--preset", "pilot"])[0])
        if prepare == "stock":
            built = DetrForObjectDetection(built.config)
        built = freeze(built)
        built.train()
        built(**batch()).loss.backward()
        return torch.nn.utils.get_total_norm([p.grad for p in built.parameters() if p.grad is not None])

    assert norm("own") < 0.5 * norm("stock")


def test_the_class_bias_starts_at_the_prior_as_the_loss_weighs_it():
    built = build_model(config(), class_prior=[0.2, 0.1, 0.7])
    shares = built.class_labels_classifier.bias.softmax(0)
    weighted = torch.tensor([0.2, 0.1, 0.7 * built.config.eos_coefficient])
    torch.testing.assert_close(shares, weighted / weighted.sum())


def coco_detr(folder, **changes):
    """A checkpoint of the shape of facebook/detr-resnet-50: legacy key names, 91 classes, fewer queries."""
    shape = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    labels = {0: "N/A", 1: "person", **{i: f"LABEL_{i}" for i in range(2, 91)}}
    found = DetrConfig(backbone_config=tiny_backbone(), num_queries=8, id2label=labels, **shape | changes)
    donor = DetrForObjectDetection(found)
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.normal_()
    donor.save_pretrained(folder)
    return donor, folder


def test_a_coco_detr_lends_encoder_decoder_queries_and_its_person(tmp_path):
    donor, folder = coco_detr(tmp_path / "detr")
    names = load_file(folder / "model.safetensors").keys()
    assert any("out_proj" in name for name in names)  # the legacy names that transformers still writes
    built = build_model(config("--detr_init", str(folder)))
    for part in ("encoder", "decoder"):
        mine, theirs = getattr(built.model, part).state_dict(), getattr(donor.model, part).state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    queries = built.model.query_position_embeddings.weight
    assert torch.equal(queries[:8], donor.model.query_position_embeddings.weight)
    assert 0.5 < queries[8:].std() < 1.5
    assert torch.equal(built.class_labels_classifier.weight[0], donor.class_labels_classifier.weight[1])
    assert torch.equal(built.class_labels_classifier.weight[-1], donor.class_labels_classifier.weight[-1])
    assert torch.equal(built.bbox_predictor.layers[2].weight, donor.bbox_predictor.layers[2].weight)


def test_a_coco_detr_of_another_shape_or_out_of_reach_means_scratch(tmp_path, caplog):
    _, folder = coco_detr(tmp_path / "detr", encoder_layers=2)
    built = build_model(config())
    before = built.model.query_position_embeddings.weight.clone()
    assert not start_from_coco(built, str(folder))
    assert not start_from_coco(built, "facebook/detr-resnet-50")  # tests run offline
    assert torch.equal(built.model.query_position_embeddings.weight, before)
    assert "another shape" in caplog.text
    assert "starting from scratch" in caplog.text


# ---- the backbone's own files ----


def test_a_dinov3_folder_gives_exactly_its_features(tmp_path):
    torch.manual_seed(3)
    reference = DINOv3ViTModel(tiny_backbone()).eval()
    reference.save_pretrained(tmp_path / "dinov3")
    backbone = freeze(build_model(config("--backbone", str(tmp_path / "dinov3")))).model.backbone.model
    with torch.no_grad():
        tokens = reference(images()).last_hidden_state[:, 5:]  # after the class and 4 register tokens
    expected = tokens.transpose(1, 2).reshape(2, -1, 4, 6)
    torch.testing.assert_close(backbone(images()).feature_maps[0], expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./missing", ["./missing", "no such folder"]),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", ["hf auth login", "--backbone DIR", "licence"]),
    ],
)
def test_a_backbone_that_cannot_be_had_is_one_clear_error(name, words):
    with pytest.raises(UserError) as error:
        load_backbone(config("--backbone", name))
    assert all(word in str(error.value) for word in [name, *words])


def test_a_folder_that_is_no_dinov3_is_refused_instead_of_left_random(tmp_path):
    _, folder = coco_detr(tmp_path / "detr")
    with pytest.raises(UserError, match="DINOv3"):
        load_backbone(config("--backbone", str(folder)))


def test_a_git_lfs_pointer_in_place_of_the_weights_is_one_line(tmp_path, checkpoint):
    DINOv3ViTModel(tiny_backbone()).save_pretrained(tmp_path / "dinov3")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (tmp_path / "dinov3" / "model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match=r"dinov3: cannot be read as DINOv3 \(.*header"):
        load_backbone(config("--backbone", str(tmp_path / "dinov3")))
    (checkpoint / SHARDS[False]).write_text(pointer)
    with pytest.raises(UserError, match=r"no detector can be loaded from it \(.*header"):
        load_model(checkpoint)


# ---- checkpoints ----


def test_what_is_saved_loads_in_plain_transformers_tensor_for_tensor(model, checkpoint):
    plain, report = AutoModelForObjectDetection.from_pretrained(checkpoint, output_loading_info=True)
    assert type(plain) is DetrForObjectDetection
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = model.state_dict()
    assert plain.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in plain.state_dict().items())
    with torch.no_grad():
        assert torch.equal(plain.eval()(images()).pred_boxes, model.eval()(images()).pred_boxes)


def test_every_saved_tensor_and_a_default_reload_have_the_dtype_of_the_config(model, tmp_path):
    """Fails if the bf16 backbone of training is saved as it lies in memory."""
    shard = tmp_path / "backbone.safetensors"
    write_backbone(model, shard)
    save_detector(freeze(model, torch.bfloat16), tmp_path / "checkpoint", shard)
    assert AutoConfig.from_pretrained(tmp_path / "checkpoint").dtype == torch.float32
    for name in SHARDS.values():
        assert {value.dtype for value in load_file(tmp_path / "checkpoint" / name).values()} == {torch.float32}
    plain = AutoModelForObjectDetection.from_pretrained(tmp_path / "checkpoint")
    assert {value.dtype for value in plain.parameters()} == {torch.float32}


def test_the_backbone_shard_is_linked_not_copied(model, tmp_path):
    write_backbone(model, tmp_path / "backbone.safetensors")
    for number in range(3):
        save_detector(model, tmp_path / f"checkpoint-{number}", tmp_path / "backbone.safetensors")
    assert (tmp_path / "backbone.safetensors").stat().st_nlink == 4
    new = (tmp_path / "checkpoint-2" / SHARDS[False]).stat()
    assert new.st_nlink == 1


def test_restore_brings_back_every_tensor_or_raises(model, checkpoint):
    """Fails with Trainer's own loader: strict=False leaves tensors at their initial values and only warns."""
    torch.manual_seed(1)
    other = freeze(build_model(config()))
    load_weights(other, checkpoint)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if shard == SHARDS[False]}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(other, checkpoint)
    with pytest.raises(UserError, match="tensors are missing"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("auxiliary_loss", False, "auxiliary_loss"), ("id2label", {"0": "cat", "1": "dog"}, "cat")],
)
def test_a_checkpoint_of_another_kind_is_refused(checkpoint, field, value, words):
    found = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(found | {field: value}))
    with pytest.raises(UserError, match=words):
        load_model(checkpoint)


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
    with pytest.raises(UserError, match=f"{words}, this recipe's are detr with backbone dinov3_vit"):
        load_model(tmp_path)


def test_the_saved_config_names_no_private_class_and_turns_off_the_random_rope(checkpoint):
    found = json.loads((checkpoint / "config.json").read_text())
    assert found["architectures"] == ["DetrForObjectDetection"]
    assert found["auxiliary_loss"] is True
    assert found["backbone_config"]["pos_embed_rescale"] is None
    assert "auto_map" not in found


def test_the_object_detection_pipeline_runs_on_a_saved_folder(checkpoint):
    found = pipeline("object-detection", model=str(checkpoint))(
        Image.fromarray(np.full((120, 80, 3), 90, np.uint8)), threshold=0.0
    )
    assert len(found) == 12
    assert {item["label"] for item in found} <= {"person", "head"}


def test_no_encoder_layers_is_the_documented_ablation(tmp_path):
    built = freeze(build_model(config("--encoder_layers", "0")))
    assert len(built.model.encoder.layers) == 0
    assert torch.isfinite(built(**batch()).loss)
    assert load_model(save(built, tmp_path / "checkpoint")).config.encoder_layers == 0


def test_the_loss_used_in_training_is_this_recipes(model):
    assert model.loss_function is detection_loss
    assert len(model(**batch()).loss_dict) == 3 * model.config.decoder_layers
