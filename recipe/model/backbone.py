"""The frozen DINOv3: loaded, turned into a fixed function, and run without what a frozen model does not need.

backbone = load_backbone(config)              # --backbone: a repo id, a folder, a timm id, or `tiny`
backbone(pixel_values).feature_maps[0]        # [batch, channels, height / 16, width / 16]
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx2
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from transformers import DINOv3ViTBackbone, DINOv3ViTConfig, DINOv3ViTImageProcessor
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTBackboneOutput, DINOv3ViTLayer

from recipe.config import Config
from recipe.hub import first_line
from recipe.model.timm_weights import is_timm, read_timm
from recipe.schema import UserError

logger = logging.getLogger(__name__)

BACKBONE_PREFIX = "model.backbone."
# What from_pretrained raises: nothing there, refused, out of reach, or a damaged file (a git-lfs pointer).
UNREADABLE = (OSError, ValueError, httpx2.HTTPError, SafetensorError)


class FrozenBackbone(DINOv3ViTBackbone):
    """DINOv3 as a fixed function: always in eval mode, without gradients, keeping only the maps that are read.

    Closes two traps: in train mode DINOv3 rescales its RoPE coordinates at random, and Trainer calls `model.train()`
    at every step; and the stock forward keeps one hidden state per layer and normalises each. The tensors and their
    names are the stock ones.
    """

    def __init__(self, config: DINOv3ViTConfig) -> None:
        config.pos_embed_rescale = None  # the random rescaling of train mode, also for those who fine-tune ours
        super().__init__(config)
        self.requires_grad_(False).eval()
        self.run_layer = run_layer

    def train(self, mode: bool = True) -> FrozenBackbone:
        return super().train(False)

    def compile_layers(self, backend: Any = "inductor") -> None:
        """Compile one layer for all layers and all sizes: minutes of compiling otherwise, one graph for each."""
        self.run_layer = torch.compile(run_layer, dynamic=True, backend=backend)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, **_: Any) -> DINOv3ViTBackboneOutput:
        """pixel_values [batch, 3, height, width], normalised -> maps [batch, channels, height / 16, width / 16].

        One for each of the config's `out_indices`; without any, that of the last layer.
        """
        height, width = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        prefix = 1 + self.config.num_register_tokens
        with torch.autocast(pixel_values.device.type, enabled=False):  # autocast would cast every weight at every step
            pixel_values = pixel_values.to(self.dtype)
            hidden = self.embeddings(pixel_values)  # [batch, prefix + patches, channels]
            # The class and register tokens turn by no angle: cos 1, sin 0. Both halves of a head turn by the same.
            cos, sin = self.rope_embeddings(pixel_values)  # [patches, head]
            cos = pad(cos, (0, 0, prefix, 0), value=1.0)[:, None, None]  # [tokens, 1, 1, head]
            sin = pad(sin[:, : sin.shape[1] // 2], (0, 0, prefix, 0))[:, None, None]  # [tokens, 1, 1, head / 2]
            no_bias = hidden.new_zeros(hidden.shape[-1])
            maps = []
            for number, layer in enumerate(self.model.layer, start=1):
                hidden = self.run_layer(layer, hidden, cos, sin, no_bias)
                if number in self.config.out_indices:
                    patches = self.norm(hidden)[:, prefix:].transpose(1, 2)
                    maps.append(patches.reshape(*patches.shape[:2], height, width).contiguous())
        return DINOv3ViTBackboneOutput(feature_maps=tuple(maps))


def run_layer(layer: DINOv3ViTLayer, hidden: Tensor, cos: Tensor, sin: Tensor, no_bias: Tensor) -> Tensor:
    """One layer of DINOv3, in place: 15 kernels where the stock layer starts 27, and 0.7 of its memory traffic.

    One product for queries, keys and values, both rotated at once and in place; LayerScale and the residual in one
    pass. The three weights are laid side by side anew each time (6 MB in ViT-L, where one token map of a batch of two
    has 24 MB): a kept copy would take 150 MB and could disagree with the weights that are saved.
    """
    attention = layer.attention
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight = torch.cat([part.weight for part in parts])
    bias = torch.cat([no_bias if part.bias is None else part.bias for part in parts])
    product = linear(layer.norm1(hidden), weight, bias)  # [batch, tokens, 3 * channels]
    product = product.view(*hidden.shape[:2], 3, attention.num_heads, attention.head_dim)
    both = product[:, :, :2]  # queries and keys [batch, tokens, 2, heads, head]
    left, right = both.chunk(2, dim=-1)
    rotated = both * cos
    turned_left, turned_right = rotated.chunk(2, dim=-1)
    turned_left.addcmul_(right, sin, value=-1)
    turned_right.addcmul_(left, sin)
    query, key, value = (part.transpose(1, 2) for part in (rotated[:, :, 0], rotated[:, :, 1], product[:, :, 2]))
    attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(hidden.shape)
    hidden.addcmul_(attention.o_proj(attended), layer.layer_scale1.lambda1)
    return hidden.addcmul_(layer.mlp(layer.norm2(hidden)), layer.layer_scale2.lambda1)


def load_backbone(config: Config) -> FrozenBackbone:
    """The DINOv3 named by `--backbone`: a repo id, a folder, a timm id, or `tiny` for a small random one.

    Its config carries `image_mean` and `image_std`, what its images were normalised by.

    Raises:
        UserError: it cannot be had, or is no DINOv3 ViT.
    """
    name = config.backbone
    if name == "tiny":
        return FrozenBackbone(tiny_backbone())
    local = Path(name).is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise UserError(f"--backbone {name}: no such folder, and not a repo id of the form USER/NAME")
    where = {"pretrained_model_name_or_path": name, "revision": config.backbone_revision or "main"}
    try:
        if is_timm(name):
            backbone_config, weights = read_timm(name, config.backbone_revision)
            backbone = FrozenBackbone(backbone_config)
            backbone.load_state_dict(weights)
            return backbone
        # Not AutoBackbone: it takes a folder's name for a repo id.
        backbone, report = FrozenBackbone.from_pretrained(**where, output_loading_info=True, dtype=torch.float32)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"--backbone {name}: not a DINOv3 ViT of timm ({first_line(error)})") from error
    except UNREADABLE as error:
        if local:
            raise UserError(f"--backbone {name}: cannot be read as DINOv3 ({first_line(error)})") from error
        raise UserError(
            f"The backbone {name} cannot be fetched ({first_line(error)}). If it is gated, accept its licence on the "
            f"page of {name} and run `hf auth login`; or take the same weights without a gate by "
            "`--backbone timm/vit_large_patch16_dinov3.lvd1689m`; or a folder that holds them by `--backbone DIR`."
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        lost = sorted(report["missing_keys"])[:3]
        raise UserError(f"--backbone {name}: not a DINOv3 ViT, {len(report['missing_keys'])} tensors missing {lost}")
    try:
        processor = DINOv3ViTImageProcessor.from_pretrained(**where)
    except UNREADABLE:
        logger.warning("%s has no preprocessor_config.json: images are normalised by ImageNet's mean and std", name)
        processor = DINOv3ViTImageProcessor()
    backbone.config.image_mean, backbone.config.image_std = list(processor.image_mean), list(processor.image_std)
    return backbone.requires_grad_(False)


def tiny_backbone() -> DINOv3ViTConfig:
    """A random DINOv3 for the pilot and the tests: the real architecture, a few thousand times smaller."""
    return DINOv3ViTConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_register_tokens=4,
        pos_embed_rescale=None,
        layerscale_value=1.0,
    )


def large_backbone() -> DINOv3ViTConfig:
    """The shape of DINOv3 ViT-L/16, to measure with random weights."""
    return DINOv3ViTConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, num_register_tokens=4
    )
