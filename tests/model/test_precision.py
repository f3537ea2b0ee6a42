"""Frozen layers in 8 bits: close to fp32, never on disk, and refused where the GPU has no such products."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from small_detector import images, save
from torch import nn
from torch.nn.functional import cosine_similarity

from recipe.model.checkpoint import BACKBONE_FILE
from recipe.model.precision import EIGHT_BITS, EightBitLinear, check_precision, quantise, side_by_side
from recipe.schema import UserError

PRECISIONS = pytest.mark.parametrize("precision", EIGHT_BITS)


@PRECISIONS
@pytest.mark.parametrize("outliers", [1, 100])
def test_a_layer_of_vit_l_keeps_its_outputs_direction(precision, outliers):
    """Fails with one scale for all tokens: those of small norm then round to 0 in int8, and below fp8's range."""
    torch.manual_seed(0)
    layer = nn.Linear(1024, 256).requires_grad_(False)
    tokens = torch.randn(32, 1024)
    tokens[:, :4] *= outliers  # channels of another size
    tokens *= torch.logspace(-4, 4, 32)[:, None]  # tokens of another size
    layer.bias.zero_()
    found = EightBitLinear(layer, EIGHT_BITS[precision][0])(tokens)
    assert cosine_similarity(found, layer(tokens), dim=-1).min() > 0.99


@PRECISIONS
@torch.no_grad()
def test_layers_side_by_side_are_the_layers(precision):
    torch.manual_seed(0)
    stock = [nn.Linear(64, 32).requires_grad_(False) for _ in range(3)]
    layers = [EightBitLinear(layer, EIGHT_BITS[precision][0]) for layer in stock]
    tokens = torch.randn(2, 20, 64)
    found = side_by_side(tokens, layers, torch.cat([layer.bias for layer in stock]))
    torch.testing.assert_close(found, torch.cat([layer(tokens) for layer in layers], dim=-1))


@PRECISIONS
def test_features_in_8_bits_are_near_those_in_fp32(model, precision):
    backbone = model.model.backbone.model
    expected = backbone(images()).feature_maps[0]
    quantise(model.model.backbone, precision)
    found = backbone(images()).feature_maps[0]
    assert not torch.allclose(found, expected, rtol=1e-3)  # it does compute in 8 bits
    assert cosine_similarity(found, expected, dim=1).min() > 0.99


@PRECISIONS
def test_the_weights_on_disk_are_those_that_were_loaded(model, precision, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantise(model.model.backbone, precision)
    folder = save(model, tmp_path / "checkpoint")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {value.dtype for value in load_file(folder / BACKBONE_FILE).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("capability", "fine"), [((8, 9), {"bf16", "int8", "fp8"}), ((8, 6), {"bf16", "int8"}), ((7, 5), {"bf16"})]
)
def test_a_gpu_without_such_products_is_refused_in_one_line(capability, fine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    for precision in ("bf16", *EIGHT_BITS):
        if precision in fine:
            check_precision(precision)
            continue
        with pytest.raises(UserError) as error:
            check_precision(precision)
        words = str(error.value)
        assert f"--backbone_precision {precision}" in words
        assert {name for name in ("bf16", *EIGHT_BITS) if name in words.split("give ")[1]} == fine
