"""Frozen means frozen, lean means the same features, and a backbone that cannot be had is one line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from small_detector import images, small_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
)

from recipe.model.backbone import FrozenBackbone, load_backbone, tiny_backbone
from recipe.model.detector import build_processor, freeze
from recipe.model.precision import quantise
from recipe.schema import UserError


def stock(backbone: FrozenBackbone) -> DINOv3ViTBackbone:
    """The library's own class with the same tensors."""
    found = DINOv3ViTBackbone(backbone.config)
    found.load_state_dict(backbone.state_dict())
    return found.eval()


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    found = FrozenBackbone(tiny_backbone())
    with torch.no_grad():
        for parameter in found.parameters():  # LayerScales, norms and biases that are not all ones and zeros
            parameter.normal_(std=0.3)
    return found


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
    config = tiny_backbone()
    config.pos_embed_rescale = 2.0
    found = DINOv3ViTBackbone(config).eval()
    expected = found(images()).feature_maps[0]
    found.train()
    assert not torch.allclose(found(images()).feature_maps[0], expected, atol=1e-3)


def test_the_backbone_keeps_no_graph_and_one_map(model):
    model.train()
    features = model.model.backbone.model(images())
    assert features.feature_maps[0].grad_fn is None
    assert len(features.feature_maps) == 1
    assert features.hidden_states is None


# ---- lean ----


@pytest.mark.parametrize("gated", [False, True])
def test_the_lean_forward_gives_the_features_of_the_stock_one(gated):
    torch.manual_seed(0)
    config = tiny_backbone()
    config.use_gated_mlp = gated
    backbone = FrozenBackbone(config)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.3)
        expected = stock(backbone)(images()).feature_maps[-1]
    found = backbone(images()).feature_maps[0]
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_weights_that_are_loaded_or_cast_later_are_the_ones_that_are_used(backbone):
    """Bites where fused weights are kept: they would be those of before."""
    backbone(images())
    with torch.no_grad():
        other = {name: value * 1.1 for name, value in backbone.state_dict().items()}
        backbone.load_state_dict(other)
        expected = stock(backbone)(images()).feature_maps[-1]
    torch.testing.assert_close(backbone(images()).feature_maps[0], expected)


def test_a_bf16_backbone_stays_within_bf16_rounding(model):
    expected = model.model.backbone.model(images()).feature_maps[0]
    backbone = freeze(model, torch.bfloat16).model.backbone.model
    found = backbone(images()).feature_maps[0]
    assert found.dtype == torch.bfloat16
    assert backbone.rope_embeddings.inv_freq.dtype == torch.float32  # else angles are off by 0.7 degrees
    error = (found.float() - expected).norm() / expected.norm()
    assert error < 0.02


class Traffic(TorchDispatchMode):
    """Counts the kernels started within it and the bytes that they read and write."""

    FREE = ("aten::detach", "aten::view", "aten::_unsafe_view", "aten::empty", "aten::new_empty")

    def __init__(self):
        super().__init__()
        self.kernels = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func.name().startswith(self.FREE):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.kernels += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def test_the_lean_forward_starts_three_fifths_of_the_kernels_and_moves_three_quarters_of_the_bytes():
    config = DINOv3ViTConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=24, num_attention_heads=2, num_register_tokens=4
    )
    backbone = FrozenBackbone(config)
    pixels = torch.randn(2, 3, 320, 512)
    with torch.no_grad():
        with Traffic() as usual:
            stock(backbone)(pixels)
        with Traffic() as ours:
            backbone(pixels)
    assert ours.kernels <= 0.6 * usual.kernels
    assert ours.bytes <= 0.75 * usual.bytes


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_one_compiled_graph_serves_all_layers_and_all_sizes(model, precision):
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    quantise(model.model.backbone, precision)
    backbone = model.model.backbone.model
    pixels = [torch.randn(2, 3, *size) for size in ((64, 96), (96, 64), (128, 160))]
    plain = [backbone(each).feature_maps[0] for each in pixels]
    for backend in (count, "aot_eager"):
        torch._dynamo.reset()
        backbone.compile_layers(required=True, backend=backend)
        for each, expected in zip(pixels, plain, strict=True):
            torch.testing.assert_close(backbone(each).feature_maps[0], expected)
    assert len(graphs) == 1


def test_where_compiling_fails_the_layers_run_without_unless_it_is_required(backbone, caplog):
    def no_compiler(*_):
        raise RuntimeError("Failed to find C compiler.\nA long explanation")

    expected = backbone(images()).feature_maps[0]
    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"--torch_compile true: .*Failed to find C compiler.*install gcc"):
        backbone.compile_layers(required=True, backend=no_compiler)
    backbone.compile_layers(required=False, backend=no_compiler)
    assert torch.equal(backbone(images()).feature_maps[0], expected)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("recipe")]
    assert "Failed to find C compiler" in line
    assert "\n" not in line


# ---- where it comes from ----


def test_a_dinov3_folder_gives_exactly_its_features(tmp_path):
    torch.manual_seed(3)
    reference = DINOv3ViTModel(tiny_backbone()).eval()
    reference.save_pretrained(tmp_path / "dinov3")
    backbone = load_backbone(small_config(backbone=str(tmp_path / "dinov3")))
    with torch.no_grad():
        tokens = reference(images()).last_hidden_state[:, 5:]  # after the class and 4 register tokens
    expected = tokens.transpose(1, 2).reshape(2, -1, 4, 6)
    torch.testing.assert_close(backbone(images()).feature_maps[0], expected)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_images_are_normalised_as_the_backbone_was_trained(tmp_path):
    """Satellite DINOv3 has another mean than ImageNet's; a folder without a processor has ImageNet's."""
    folder = tmp_path / "dinov3"
    DINOv3ViTModel(tiny_backbone()).save_pretrained(folder)
    config = small_config(backbone=str(folder))
    assert list(build_processor(config, load_backbone(config).config).image_mean) == [0.485, 0.456, 0.406]
    satellite = DINOv3ViTImageProcessor(image_mean=[0.430, 0.411, 0.296], image_std=[0.213, 0.156, 0.143])
    satellite.save_pretrained(folder)
    processor = build_processor(config, load_backbone(config).config)
    assert list(processor.image_mean) == [0.430, 0.411, 0.296]
    assert list(processor.image_std) == [0.213, 0.156, 0.143]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./missing", ["./missing", "no such folder"]),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", ["hf auth login", "--backbone DIR", "licence", "timm/vit_large"]),
        ("timm/vit_large_patch16_dinov3.lvd1689m", ["hf auth login"]),
    ],
)
def test_a_backbone_that_cannot_be_had_is_one_clear_error(name, words):
    with pytest.raises(UserError) as error:
        load_backbone(small_config(backbone=name))
    assert all(word in str(error.value) for word in [name, *words])


def test_a_folder_that_is_no_dinov3_is_refused_instead_of_left_random(tmp_path):
    shape = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    ResNetModel(ResNetConfig(**shape)).save_pretrained(tmp_path / "resnet")
    with pytest.raises(UserError, match="tensors of a dinov3_vit are missing"):
        load_backbone(small_config(backbone=str(tmp_path / "resnet")))


def test_a_git_lfs_pointer_in_place_of_the_weights_is_one_line(tmp_path):
    DINOv3ViTModel(tiny_backbone()).save_pretrained(tmp_path / "dinov3")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (tmp_path / "dinov3" / "model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match=r"dinov3: .*header"):
        load_backbone(small_config(backbone=str(tmp_path / "dinov3")))


# ---- timm ----


def timm_repo(folder, name, **shape):
    """A repository as timm publishes them, with random weights; and the model that they are of."""
    import timm

    torch.manual_seed(5)
    found = timm.create_model(name, pretrained=False, embed_dim=128, depth=2, num_heads=2, **shape).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.2)
    folder.mkdir()
    save_file(found.state_dict(), folder / "model.safetensors", {"format": "pt"})
    published = {"mean": [0.430, 0.411, 0.296], "std": [0.213, 0.156, 0.143]}
    (folder / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": published}))
    return found


@pytest.mark.parametrize(
    "name", ["vit_large_patch16_dinov3", "vit_large_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3"]
)
def test_timms_weights_give_timms_features(tmp_path, name):
    reference = timm_repo(tmp_path / "timm", name)
    backbone = load_backbone(small_config(backbone=str(tmp_path / "timm")))
    with torch.no_grad():
        tokens = reference.forward_features(images())[:, 5:]
    expected = tokens.transpose(1, 2).reshape(2, -1, 4, 6)
    found = backbone(images()).feature_maps[0]
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert list(build_processor(small_config(), backbone.config).image_std) == [0.213, 0.156, 0.143]


def test_a_timm_model_of_another_kind_is_one_line(tmp_path):
    folder = tmp_path / "resnet"
    folder.mkdir()
    save_file({"conv1.weight": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet50", "pretrained_cfg": {}}))
    with pytest.raises(UserError, match="is timm's resnet50, not a DINOv3 ViT"):
        load_backbone(small_config(backbone=str(folder)))
