"""DETR's own decoder and start, boxes in fp32, no masks and no host reads, and what a COCO detector lends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_detector import SMALL, images, save, small_config, targets
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_convert, box_iou
from transformers import AutoModelForObjectDetection, DetrConfig, DetrForObjectDetection, pipeline
from transformers.models.detr.modeling_detr import DetrMLPPredictionHead

from recipe.model.backbone import BACKBONE_PREFIX, tiny_backbone
from recipe.model.checkpoint import load_detector, load_weights
from recipe.model.detector import build_detector, build_processor, start_from_coco
from recipe.model.loss import LOSSES, count_items
from recipe.schema import UserError


def stock_with_our_features(model, folder) -> DetrForObjectDetection:
    """The saved checkpoint in plain transformers, reading the very features that ours reads."""
    plain = AutoModelForObjectDetection.from_pretrained(save(model, folder))
    assert type(plain) is DetrForObjectDetection
    plain.model.backbone.model = model.model.backbone.model
    return plain.eval()


# ---- the same function as plain transformers ----


@pytest.mark.parametrize("shape", [{}, {"encoder_layers": 0}, {"decoder_layers": 1}, {"encoder_layers": 2}])
def test_plain_transformers_computes_the_very_function_that_was_trained(tmp_path, shape):
    """Bites with auxiliary_loss true in training alone: that decoder reads normed states."""
    torch.manual_seed(0)
    model = build_detector(small_config(**shape))
    with torch.no_grad():
        for parameter in model.model.decoder.layernorm.parameters():
            parameter.normal_()  # so that a norm too many or too few shows
        plain = stock_with_our_features(model, tmp_path / "checkpoint")
        expected, found = plain(images()), model.eval()(images(), labels=targets([2, 1]))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.pred_boxes, expected.pred_boxes)
    assert plain.config.auxiliary_loss is False


def test_the_complete_detector_differs_from_the_plain_one_by_rounding_alone(model, checkpoint):
    plain = AutoModelForObjectDetection.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected, found = plain(images()), model.eval()(images())
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=0, atol=1e-5)


def test_every_decoder_layer_has_its_loss_and_its_gradient(model):
    """The loss of an earlier layer is that of a detector cut off after this layer: the copies are normed, once."""
    labels = targets([3, 1])
    with torch.no_grad():
        for parameter in model.eval().model.decoder.layernorm.parameters():
            parameter.normal_()  # else one norm more or less changes nothing
    losses = model(images(), labels=labels).loss_dict
    model.model.decoder.layers = model.model.decoder.layers[:1]
    alone = model(images(), labels=labels).loss_dict
    for name in LOSSES:
        torch.testing.assert_close(losses[name][:1], alone[name])


def test_a_checkpoint_of_an_older_version_stays_on_its_own_decoder_path(model, tmp_path):
    """auxiliary_loss true: the decoder norms its states between the layers, and such weights need it."""
    model.config.auxiliary_loss = True
    plain = stock_with_our_features(model, tmp_path / "checkpoint")
    resumed = build_detector(small_config())
    load_weights(resumed, tmp_path / "checkpoint")
    labels = targets([3, 1])
    for older in (load_detector(tmp_path / "checkpoint").eval(), resumed.eval()):
        assert older.config.auxiliary_loss
        with torch.no_grad():
            expected, found = plain(images(), labels=labels), older(images(), labels=labels)
        assert torch.equal(found.pred_boxes, expected.pred_boxes)
        for name, value in found.loss_dict.items():
            torch.testing.assert_close(value[-1], expected.loss_dict[name])
            torch.testing.assert_close(value[0], expected.loss_dict[f"{name}_0"])


# ---- the training step ----


def test_a_training_step_moves_the_detector_and_nothing_of_the_backbone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(2):
        model(images(), labels=targets([2, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        if name.startswith(BACKBONE_PREFIX):
            assert torch.equal(value, before[name]), name
        elif "k_proj.bias" not in name:  # a key's bias cancels in the softmax: its gradient is 0 but for rounding
            assert not torch.equal(value, before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in model.model.backbone.parameters())


def test_the_gradient_of_four_batches_of_two_is_that_of_one_of_eight(model):
    """Bites where each micro-batch is divided by its own boxes: dense crowds then count least."""
    labels, pixels = targets([0, 1, 9, 12, 3, 2, 20, 1]), images(8)
    model.eval()  # no dropout

    def gradient(size: int) -> torch.Tensor:
        model.zero_grad()
        batches = [{"labels": labels[start : start + size]} for start in range(0, 8, size)]
        items = count_items(batches, model.config.num_queries)
        for number, batch in enumerate(batches):
            model(pixels[number * size :][:size], labels=batch["labels"], num_items_in_batch=items).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradient(8)
    assert (gradient(2) - expected).norm() < 1e-5 * expected.norm()


class HostReads(TorchDispatchMode):
    """Names every operation for which a GPU would have to be waited for, and the widest attention mask."""

    WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().startswith(self.WAITS):
            self.found.append(func.name())
        if "attention" in func.name():
            assert (kwargs or {}).get("attn_mask") is None  # [batch, 1, tokens, tokens], kept for backward
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_on_the_host_but_the_matchers_costs_and_makes_no_mask(model, monkeypatch):
    """Bites with the stock encoder layer (an `isfinite().all()` each), and with the stock mask of ones."""
    copies, to_cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(tensor.shape) or to_cpu(tensor))
    model.train()
    labels = [
        label | {"labelled": torch.tensor([True, False]), "ignored": torch.rand(2, 4)} for label in targets([2, 5])
    ]
    with HostReads() as reads:
        model(images(), labels=labels, num_items_in_batch=torch.tensor([7.0, 2.0])).loss.backward()
    assert not reads.found
    assert copies == [(2, 12, 2 + 5)]  # the costs: layers, queries, boxes of either image
    plain = DetrForObjectDetection(model.config).train()
    with HostReads() as reads:
        plain(images())
    assert len(reads.found) >= 2  # the trap itself: when this fails, the library has mended it


def test_dropout_acts_in_training_and_only_there(model):
    model.train()
    first, second = (model(images()).pred_boxes for _ in range(2))
    assert not torch.equal(first, second)
    layer = model.model.encoder.layers[0]
    hidden = torch.randn(1, 6, 32)
    assert not torch.equal(layer(hidden, None), layer(hidden, None))
    layer.mlp.eval()
    assert not torch.equal(layer(hidden, None), layer(hidden, None))  # that of the attention's output
    model.eval()
    assert torch.equal(layer(hidden, None), layer(hidden, None))


# ---- fp32 where it counts ----


def test_boxes_and_logits_are_fp32_under_bf16_autocast(model):
    """Fails without the fp32 heads: under autocast pred_boxes is bfloat16, up to 3 px off at a width of 1536."""
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        outputs = model(images())
    assert outputs.pred_boxes.dtype == outputs.logits.dtype == torch.float32
    # Not only upcast after the fact: the sigmoid's values do not lie on bf16's grid.
    assert not torch.equal(outputs.pred_boxes, outputs.pred_boxes.bfloat16().float())


def plant(model, boxes_cxcywh: torch.Tensor, labels: torch.Tensor):
    """Make the decoder's norm hand over states from which the real heads predict exactly these boxes, with certainty.

    The norm's weight is zeroed, so its bias is its output: the first query's state alone, hence one box a call.
    """
    states = torch.zeros(1, len(boxes_cxcywh), model.config.d_model)
    states[0, :, :4] = boxes_cxcywh.logit()
    states[0, torch.arange(len(labels)), 4 + labels] = 1.0
    with torch.no_grad():
        for layer in model.bbox_predictor.layers:
            layer.weight.copy_(torch.eye(*layer.weight.shape))
            layer.bias.zero_()
        model.bbox_predictor.layers[0].bias.fill_(20.0)  # past the ReLUs
        model.bbox_predictor.layers[2].bias.fill_(-20.0)
        model.class_labels_classifier.weight.zero_()
        model.class_labels_classifier.weight[0, 4] = model.class_labels_classifier.weight[1, 5] = 9.0
        model.class_labels_classifier.bias.zero_()
    model.model.decoder.layernorm.register_forward_hook(lambda *_: states)
    return model.eval()


@pytest.mark.parametrize("heads_in_fp32", [True, False])
def test_planted_tiny_boxes_come_out_where_they_are(model, heads_in_fp32):
    """60 boxes of 8 to 16 pixels at 1536x960. With the stock heads, under autocast, mAP is capped at 0.48."""
    rng = np.random.default_rng(0)
    corner = rng.uniform((0, 0), (1500, 900), (60, 2)).round()
    xyxy = torch.tensor(np.concatenate([corner, corner + rng.uniform(8, 16, (60, 2))], axis=1)).float()
    cxcywh = box_convert(xyxy, "xyxy", "cxcywh") / torch.tensor([1536.0, 960.0] * 2)
    planted = plant(model, cxcywh, torch.arange(60) % 2)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = planted(images(1)) if heads_in_fp32 else DetrForObjectDetection.forward(planted, images(1))
    pixels = box_convert(found.pred_boxes[0].float(), "cxcywh", "xyxy") * torch.tensor([1536.0, 960.0] * 2)
    overlap = box_iou(pixels, xyxy).diag()
    assert (overlap > 0.95).all() if heads_in_fp32 else overlap.mean() < 0.75


@pytest.mark.parametrize(
    ("width", "height"), [(1920, 1080), (1080, 1920), (700, 700), (640, 480), (90, 60), (3000, 2000), (1200, 300)]
)
def test_the_pipeline_puts_a_planted_box_where_it_is(model, tmp_path, width, height):
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


def test_the_saved_processor_makes_whole_patches_so_that_no_pixel_is_cut_off(model):
    """DetrImageProcessor makes 1439x960 of 1000x667, and the patch embedding drops 15 columns."""
    processor = build_processor(small_config(shortest_edge=960, longest_edge=1536), model.config.backbone_config)
    for width, height in [(1000, 667), (333, 777), (1920, 1080), (4000, 3000)]:
        pixels = processor(Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"]
        assert all(side % 16 == 0 for side in pixels.shape[-2:])


# ---- initialisation ----


def test_queries_start_apart_and_the_transformer_at_xavier(model):
    """Fails with the stock initialisation: N(0, 0.02) everywhere, all first boxes alike."""
    detr = model.model
    assert 0.8 < detr.query_position_embeddings.weight.std() < 1.2
    for part in (detr.encoder, detr.decoder):
        weight = part.layers[0].mlp.fc1.weight  # [256, 32]
        assert weight.abs().max() <= (6 / sum(weight.shape)) ** 0.5
        assert weight.std() > 0.06
        assert not part.layers[0].self_attn.o_proj.bias.any()
    stock = DetrForObjectDetection(model.config).eval()
    with torch.no_grad():
        boxes, stock_boxes = model.eval()(images()).pred_boxes, stock(images()).pred_boxes
    assert boxes.std(dim=1).mean() > 20 * stock_boxes.std(dim=1).mean()


def test_the_first_gradient_is_far_below_that_of_the_stock_initialisation():
    def norm(initialisation: str) -> torch.Tensor:
        torch.manual_seed(0)
        built = build_detector(small_config(d_model=256, encoder_layers=6, decoder_layers=6, num_queries=300))
        if initialisation == "stock":
            built.load_state_dict(DetrForObjectDetection(built.config).state_dict())
        built.train()
        built(images(1), labels=targets([2])).loss.backward()
        return torch.nn.utils.get_total_norm([p.grad for p in built.parameters() if p.grad is not None])

    assert norm("own") < 0.5 * norm("stock")


def test_the_class_bias_starts_at_the_prior_as_the_loss_weighs_it():
    built = build_detector(small_config(), class_prior=[0.2, 0.1, 0.7])
    shares = built.class_labels_classifier.bias.softmax(0)
    weighted = torch.tensor([0.2, 0.1, 0.7 * built.config.eos_coefficient])
    torch.testing.assert_close(shares, weighted / weighted.sum())


# ---- a COCO detector ----


def coco_detr(folder, **changes):
    """A checkpoint of the shape of facebook/detr-resnet-50: legacy key names, a ResNet, 91 classes, fewer queries."""
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    labels = {0: "N/A", 1: "person", **{i: f"LABEL_{i}" for i in range(2, 91)}}
    shape = SMALL | {"num_queries": 8, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "backbone_config": resnet}
    donor = DetrForObjectDetection(DetrConfig(id2label=labels, **shape | changes))
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.normal_(std=0.5)
    donor.save_pretrained(folder)
    return donor.eval(), folder


def test_a_coco_detr_put_in_gives_its_own_outputs_for_the_same_features(tmp_path):
    """Bites with auxiliary_loss true: the same weights then are another function, and map_50 falls by half."""
    donor, folder = coco_detr(tmp_path / "detr", backbone_config=tiny_backbone())
    renamed = DetrConfig.from_pretrained(folder)
    renamed.backbone_config = coco_detr(tmp_path / "resnet")[0].config.backbone_config  # as if it were over a ResNet
    renamed.save_pretrained(folder)
    built = build_detector(small_config(detr_init=str(folder), num_queries=8)).eval()
    built.model.backbone.model.load_state_dict(donor.model.backbone.model.state_dict())
    built.model.input_projection.load_state_dict(donor.model.input_projection.state_dict())
    with torch.no_grad():
        expected, found = donor(images()), built(images())
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logits[..., [0, 2]], expected.logits[..., [1, -1]], rtol=0, atol=1e-4)


def test_a_coco_detr_lends_encoder_decoder_queries_and_its_person_with_their_biases(tmp_path):
    donor, folder = coco_detr(tmp_path / "detr")
    names = load_file(folder / "model.safetensors").keys()
    assert any("out_proj" in name for name in names)  # the legacy names that transformers still writes
    built = build_detector(small_config(detr_init=str(folder)), class_prior=[0.2, 0.1, 0.7])
    for part in ("encoder", "decoder"):
        mine, theirs = getattr(built.model, part).state_dict(), getattr(donor.model, part).state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    queries = built.model.query_position_embeddings.weight
    assert torch.equal(queries[:8], donor.model.query_position_embeddings.weight)
    assert 0.5 < queries[8:].std() < 1.5
    mine, theirs = built.class_labels_classifier, donor.class_labels_classifier
    for here, there in ((0, 1), (-1, -1)):
        assert torch.equal(mine.weight[here], theirs.weight[there])
        assert torch.equal(mine.bias[here], theirs.bias[there])
    # COCO has no heads: their prior relative to "no object" stays.
    expected = torch.tensor(0.1 / (0.7 * built.config.eos_coefficient)).log()
    torch.testing.assert_close(mine.bias[1] - mine.bias[-1], expected)
    assert torch.equal(built.bbox_predictor.layers[2].weight, donor.bbox_predictor.layers[2].weight)
    assert isinstance(built.bbox_predictor, DetrMLPPredictionHead)


def test_a_coco_detr_of_another_shape_or_out_of_reach_means_scratch(tmp_path, caplog):
    _, folder = coco_detr(tmp_path / "detr", encoder_layers=2)
    built = build_detector(small_config())
    before = built.model.query_position_embeddings.weight.clone()
    start_from_coco(built, str(folder))
    start_from_coco(built, "facebook/detr-resnet-50")  # tests run offline
    assert torch.equal(built.model.query_position_embeddings.weight, before)
    assert "another shape" in caplog.text
    build_detector(small_config(detector="deformable", detr_init=str(coco_detr(tmp_path / "same")[1])))
    assert f"{tmp_path / 'same'}: has another shape" in caplog.text
    assert "starting from scratch" in caplog.text


def test_one_of_ones_own_runs_as_detr_init_names_the_flag_that_is_meant(checkpoint):
    """It would lose input_projection and the row of heads: map 0.221 became 0.016 at learning rate 0."""
    with pytest.raises(UserError, match=f"--init_from {checkpoint}"):
        build_detector(small_config(detr_init=str(checkpoint)))
