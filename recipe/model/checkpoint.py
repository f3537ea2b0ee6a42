"""The detector on disk: two plain safetensors shards, the frozen one written once; restored whole or not at all.

    save_detector(model, Path("outputs/run/checkpoint-6931"), backbone_shard)
    model = load_model("outputs/run/checkpoint-6931")                    # to evaluate, predict, resume

What is saved is a plain DETR checkpoint: `AutoModelForObjectDetection.from_pretrained` reads it without this code.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, DetrConfig, DetrForObjectDetection, DINOv3ViTConfig, PretrainedConfig

from recipe.hub import in_a_line
from recipe.model.detector import BACKBONE_PREFIX, UNREADABLE, freeze
from recipe.schema import CLASS_NAMES, UserError

SHARDS = {True: "model-00001-of-00002.safetensors", False: "model-00002-of-00002.safetensors"}  # backbone? -> file
INDEX = "model.safetensors.index.json"


def load_model(path: str | Path, revision: str | None = None, *, bf16: bool = False) -> DetrForObjectDetection:
    """A checkpoint folder or Hub repo as a frozen detector, its backbone in bf16 or, to go on training it, in fp32.

    Raises:
        UserError: no such checkpoint, not one of this recipe, without the auxiliary loss, for other classes, or a
            tensor of it is missing.
    """
    where = {"pretrained_model_name_or_path": str(path), "revision": revision or "main"}
    try:
        config = AutoConfig.from_pretrained(**where, trust_remote_code=False)
        check_config(config, path)  # before the weights: other models ask for other libraries
        model, report = DetrForObjectDetection.from_pretrained(**where, config=config, output_loading_info=True)
    except UNREADABLE as error:
        raise UserError(f"{path}: no detector can be loaded from it ({in_a_line(error)})") from error
    lost = sorted(set(report["missing_keys"]) | {str(key) for key in report["mismatched_keys"]})
    if lost:
        raise UserError(f"{path}: {len(lost)} tensors are missing from the checkpoint, the first {lost[:3]}")
    return freeze(model, torch.bfloat16 if bf16 else torch.float32)


def check_config(config: PretrainedConfig, path: str | Path) -> None:
    """Refuse a model that this recipe cannot have made.

    Raises:
        UserError: not a DETR over a DINOv3, without the auxiliary loss, or for other classes.
    """
    kinds = config.model_type, getattr(getattr(config, "backbone_config", None), "model_type", "none")
    if kinds != (DetrConfig.model_type, DINOv3ViTConfig.model_type):
        raise UserError(
            f"{path}: is {kinds[0]} with backbone {kinds[1]}, this recipe's are {DetrConfig.model_type} with backbone "
            f"{DINOv3ViTConfig.model_type}. Train one with `recipe train`."
        )
    if not config.auxiliary_loss:
        raise UserError(
            f"{path}: trained with auxiliary_loss false, which is another decoder than this recipe's. "
            "Train anew with `recipe train`."
        )
    names = tuple(label for _, label in sorted(config.id2label.items()))
    if names != CLASS_NAMES:
        raise UserError(f"{path}: its classes are {names}, this recipe's are {CLASS_NAMES}")


def save_detector(model: DetrForObjectDetection, directory: Path, backbone_shard: Path) -> None:
    """Write `model` as two safetensors shards; the frozen backbone's is hard-linked from `backbone_shard`.

    transformers would save under DETR's legacy key names, which Trainer then loads raw and not strictly: 103 of 172
    tensors stay at their initial values. Here the names are those of the modules. All tensors are fp32, as config.json
    says.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    trainable = {name: tensor for name, tensor in state.items() if not name.startswith(BACKBONE_PREFIX)}
    _write_shard(trainable, directory / SHARDS[False])
    link(backbone_shard, directory / SHARDS[True])
    sizes = sum(tensor.numel() * 4 for tensor in state.values())
    names = {name: SHARDS[name.startswith(BACKBONE_PREFIX)] for name in sorted(state)}
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": sizes}, "weight_map": names}, indent=2))
    model.config.architectures = [DetrForObjectDetection.__name__]
    model.config.dtype = torch.float32
    model.config.save_pretrained(directory)


def write_backbone(model: DetrForObjectDetection, path: Path) -> None:
    """Write the backbone's shard once per run, from the fp32 weights as they were loaded."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(BACKBONE_PREFIX)}
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_shard(state, path)


def load_weights(model: DetrForObjectDetection, directory: Path) -> None:
    """Restore every tensor of a checkpoint of this recipe into `model`, or raise.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape.
    """
    state: dict[str, Tensor] = {}
    for shard in sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values())):
        state |= load_file(directory / shard)
    model.load_state_dict(state, strict=True)


def link(source: Path, target: Path) -> None:
    """Hard-link `source` to `target`, or copy it where the file system cannot."""
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_shard(state: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file(
        {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}, partial, {"format": "pt"}
    )
    partial.replace(path)
