"""The frozen DINOv3: loaded, turned into a fixed function, and run without what a frozen model does not need.

backbone = load_backbone(config)              # --backbone: a repo id, a folder, a timm id, or `tiny`
backbone(pixel_values).feature_maps[0]        # [batch, channels, height / 16, width / 16]
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import DINOv3ViTBackbone, DINOv3ViTConfig, DINOv3ViTImageProcessor
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTBackboneOutput, DINOv3ViTLayer

from recipe.config import Config
from recipe.hub import as_user_errors, causes, first_line, is_repo_id
from recipe.model.precision import side_by_side
from recipe.schema import UserError

logger = logging.getLogger(__name__)

BACKBONE_PREFIX = "model.backbone."
TIMM_RENAMED = {  # timm -> transformers
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.",
    r"^cls_token": "embeddings.cls_token",
    r"^reg_token": "embeddings.register_tokens",
    r"^blocks\.": "model.layer.",
    r"\.gamma_([12])$": r".layer_scale\1.lambda1",
    r"\.attn\.proj\.": ".attention.o_proj.",
    r"\.attn\.qkv\.": ".attention.qkv_proj.",  # split below
    r"\.attn\.([qkv])_bias$": r".attention.\1_proj.bias",
    r"\.mlp\.fc1_g\.": ".mlp.gate_proj.",
    r"\.mlp\.fc1(_x)?\.": ".mlp.up_proj.",
    r"\.mlp\.fc2\.": ".mlp.down_proj.",
}


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

    def compile_layers(self, *, required: bool, backend: Any = "inductor") -> None:
        """Compile one layer for all layers and all sizes, here and now; without it where that fails.

        Raises:
            UserError: it fails and is `required`; where there is no C compiler, Triton and inductor say so.
        """
        self.run_layer = torch.compile(run_layer, dynamic=True, fullgraph=True, backend=backend)
        try:
            self(torch.zeros(2, 3, 64, 96, device=self.device))
        except Exception as error:  # whatever a compiler raises
            *_, cause = causes(error)
            if required:
                raise UserError(
                    f"--torch_compile true: {first_line(cause)}. Leave the flag out; or where a C compiler is missing "
                    "install gcc, or build the image with one: `docker build --build-arg COMPILER=true -t recipe .`"
                ) from error
            self.run_layer = run_layer
            logger.warning("the frozen layers run uncompiled, which is slower: %s", first_line(cause))

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
    """One layer of DINOv3: 15 kernels where the stock layer starts 27, and 0.7 of its memory traffic.

    One product for queries, keys and values, both rotated at once and in place; LayerScale and the residual in one
    pass.
    """
    attention = layer.attention
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    bias = torch.cat([no_bias if part.bias is None else part.bias for part in parts])
    product = side_by_side(layer.norm1(hidden), parts, bias)  # [batch, tokens, 3 * channels]
    product = product.view(*hidden.shape[:2], 3, attention.num_heads, attention.head_dim)
    both = product[:, :, :2]  # queries and keys [batch, tokens, 2, heads, head]
    left, right = both.chunk(2, dim=-1)
    rotated = both * cos
    turned_left, turned_right = rotated.chunk(2, dim=-1)
    turned_left.addcmul_(right, sin, value=-1)
    turned_right.addcmul_(left, sin)
    query, key, value = (part.transpose(1, 2) for part in (rotated[:, :, 0], rotated[:, :, 1], product[:, :, 2]))
    attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(hidden.shape)
    hidden = hidden.addcmul(attention.o_proj(attended), layer.layer_scale1.lambda1)
    return hidden.addcmul(layer.mlp(layer.norm2(hidden)), layer.layer_scale2.lambda1)


def load_backbone(config: Config) -> FrozenBackbone:
    """The DINOv3 named by `--backbone`: a repo id, a folder, a timm id, or `tiny` for a small random one.

    Its config carries `image_mean` and `image_std`, what its images were normalised by.

    Raises:
        UserError: it cannot be had, or is no DINOv3 ViT.
    """
    name, revision = config.backbone, config.backbone_revision or "main"
    if name == "tiny":
        return FrozenBackbone(tiny_backbone())
    what, local = f"--backbone {name}", Path(name).is_dir()
    if not local and not is_repo_id(name):
        raise UserError(f"{what}: no such folder, and not a repo id of the form USER/NAME")
    try:
        if is_timm(name):
            with as_user_errors(what):
                return read_timm(name, revision)
        # Not AutoBackbone: it takes a folder's name for a repo id.
        backbone = load_complete(FrozenBackbone, name, what, revision=revision, dtype=torch.float32)
    except UserError as error:
        if local:
            raise
        raise UserError(
            f"{error}. If it is gated, accept its licence on its page and run `hf auth login`; or take the same "
            "without a gate, `--backbone timm/vit_large_patch16_dinov3.lvd1689m`, or a folder, `--backbone DIR`"
        ) from error
    try:
        with as_user_errors(what):
            processor = DINOv3ViTImageProcessor.from_pretrained(name, revision=revision)
        backbone.config.image_mean, backbone.config.image_std = [*processor.image_mean], [*processor.image_std]
    except UserError:
        logger.warning("%s has no preprocessor_config.json: images are normalised by ImageNet's mean and std", name)
    return backbone.requires_grad_(False)


def load_complete(kind: Any, name: str, what: str, *, left_out: tuple[str, ...] = (), **options: Any) -> Any:
    """`kind.from_pretrained`, but every tensor is there, or only names that begin with `left_out` are missing.

    Raises:
        UserError: it cannot be had or read, or a tensor is missing; the line begins with `what`.
    """
    with as_user_errors(what):
        model, report = kind.from_pretrained(name, output_loading_info=True, **options)
    lost = sorted(key for key in report["missing_keys"] if not key.startswith(left_out))
    if lost:
        raise UserError(
            f"{what}: {len(lost)} tensors of a {kind.config_class.model_type} are missing, the first {lost[:3]}"
        )
    return model


def is_timm(name: str) -> bool:
    """A repo of timm's, or a folder with such a repo's files."""
    config = Path(name) / "config.json"
    return name.startswith("timm/") or (config.is_file() and "architecture" in json.loads(config.read_text()))


def read_timm(name: str, revision: str) -> FrozenBackbone:
    """A DINOv3 as timm publishes them, ungated: a repo or folder with a config.json and one safetensors file.

    Raises:
        UserError: not a DINOv3 ViT.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=["config.json", "model.safetensors"]))
    published = json.loads((folder / "config.json").read_text())
    if "patch16_dinov3" not in published["architecture"]:
        raise UserError(f"--backbone {name}: is timm's {published['architecture']}, not a DINOv3 ViT")
    found = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    width = len(found["norm.weight"])
    weights = {"embeddings.mask_token": torch.zeros(1, 1, width)}  # of the pretraining alone: timm leaves it out
    for key, value in found.items():
        for pattern, renamed in TIMM_RENAMED.items():
            key = re.sub(pattern, renamed, key)
        parts = zip("qkv", value.chunk(3), strict=True) if "qkv_proj" in key else [("qkv", value)]
        weights |= {key.replace("qkv_proj", f"{part}_proj"): rows for part, rows in parts}
    biased = "model.layer.0.attention.q_proj.bias" in weights  # left out where the distillation made them zero
    gated = "model.layer.0.mlp.gate_proj.weight" in weights
    config = DINOv3ViTConfig(
        hidden_size=width,
        intermediate_size=len(weights["model.layer.0.mlp.up_proj.weight"]),
        num_hidden_layers=sum(key.endswith("norm1.weight") for key in weights),
        num_attention_heads=32 if width == 4096 else width // 64,  # the 7B's heads are 128 wide, all others' 64
        num_register_tokens=found["reg_token"].shape[1],
        query_bias=biased,
        value_bias=biased,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        image_mean=published["pretrained_cfg"]["mean"],
        image_std=published["pretrained_cfg"]["std"],
    )
    backbone = FrozenBackbone(config)
    backbone.load_state_dict(weights)
    return backbone


def shallow(backbone: DINOv3ViTConfig) -> DINOv3ViTConfig:
    """As many layers as maps are read: transformers first draws a random backbone, and ViT-L's takes 8 s or more."""
    levels = len(backbone.out_indices)
    return DINOv3ViTConfig(
        hidden_size=backbone.hidden_size,
        num_attention_heads=backbone.num_attention_heads,
        num_hidden_layers=levels,
        out_indices=list(range(1, levels + 1)),
    )


def tiny_backbone() -> DINOv3ViTConfig:
    """A random DINOv3 for the pilot and the tests: the real architecture, a few thousand times smaller."""
    return DINOv3ViTConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_register_tokens=4,
        layerscale_value=1.0,
    )


def large_backbone() -> DINOv3ViTConfig:
    """The shape of DINOv3 ViT-L/16, to measure with random weights."""
    return DINOv3ViTConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, num_register_tokens=4
    )
