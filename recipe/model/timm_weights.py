"""The weights of a DINOv3 as timm publishes them, ungated, under the names of transformers.

    backbone_config, weights = read_timm("timm/vit_large_patch16_dinov3.lvd1689m")

timm itself is not needed: its repositories hold a config.json and one safetensors file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor
from transformers import DINOv3ViTConfig

FILES = ["config.json", "model.safetensors"]
RENAMED = {  # timm -> transformers
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.",
    r"^cls_token": "embeddings.cls_token",
    r"^reg_token": "embeddings.register_tokens",
    r"^blocks\.": "model.layer.",
    r"\.gamma_([12])$": r".layer_scale\1.lambda1",
    r"\.attn\.proj\.": ".attention.o_proj.",
    r"\.attn\.([qkv])_bias$": r".attention.\1_proj.bias",
    r"\.mlp\.fc1_g\.": ".mlp.gate_proj.",
    r"\.mlp\.fc1(_x)?\.": ".mlp.up_proj.",
    r"\.mlp\.fc2\.": ".mlp.down_proj.",
}


def is_timm(name: str) -> bool:
    """A repo of timm's, or a folder with such a repo's files."""
    config = Path(name) / "config.json"
    return name.startswith("timm/") or (config.is_file() and "architecture" in json.loads(config.read_text()))


def read_timm(name: str, revision: str | None = None) -> tuple[DINOv3ViTConfig, dict[str, Tensor]]:
    """Config and tensors of a repo id or folder, in fp32.

    Raises:
        KeyError: not a DINOv3 ViT.
        OSError, ValueError: cannot be fetched or read.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    published = json.loads((folder / FILES[0]).read_text())["pretrained_cfg"]
    found = {key: value.float() for key, value in load_file(folder / FILES[1]).items()}
    width, _, patch, _ = found["patch_embed.proj.weight"].shape
    gated = "blocks.0.mlp.fc1_g.weight" in found
    config = DINOv3ViTConfig(
        hidden_size=width,
        intermediate_size=len(found["blocks.0.mlp.fc1_g.weight" if gated else "blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=1 + max(int(key.split(".")[1]) for key in found if key.startswith("blocks.")),
        num_attention_heads=32 if width == 4096 else width // 64,  # the 7B's heads are 128 wide, all others' 64
        num_register_tokens=found["reg_token"].shape[1],
        patch_size=patch,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        image_mean=list(published["mean"]),
        image_std=list(published["std"]),
    )
    weights = {"embeddings.mask_token": torch.zeros(1, 1, width)}  # of the pretraining alone: timm leaves it out
    for key, value in found.items():
        layer = re.match(r"blocks\.(\d+)\.attn\.qkv\.weight", key)
        if layer:
            parts = zip("qkv", value.chunk(3), strict=True)
            weights |= {f"model.layer.{layer[1]}.attention.{part}_proj.weight": rows for part, rows in parts}
            for part in "qv":  # zero after the distillation, and left out where they are
                bias = f"model.layer.{layer[1]}.attention.{part}_proj.bias"
                weights.setdefault(bias, torch.zeros(width))
        else:
            for pattern, name_here in RENAMED.items():
                key = re.sub(pattern, name_here, key)
            weights[key] = value
    return config, weights
