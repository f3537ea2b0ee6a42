"""The detector on disk: two plain safetensors shards, the frozen one written once; restored completely or not at all.

    save_detector(model, Path("outputs/run/checkpoint-6931"), backbone_file)
    model = load_detector("outputs/run/checkpoint-6931")                 # to evaluate, predict, resume

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
from transformers import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    DINOv3ViTConfig,
    PretrainedConfig,
)

from recipe.config import Config
from recipe.hub import first_line
from recipe.model.backbone import BACKBONE_PREFIX, UNREADABLE
from recipe.model.deformable import NO_OBJECT, DeformableDetector
from recipe.model.detector import Detector, FrozenDetector, freeze
from recipe.schema import CLASS_NAMES, UserError

BACKBONE_FILE = "model-00001-of-00002.safetensors"
DETECTOR_FILE = "model-00002-of-00002.safetensors"
INDEX_FILE = "model.safetensors.index.json"
KINDS: dict[str, type[FrozenDetector]] = {"detr": Detector, "deformable_detr": DeformableDetector}  # by model_type


def load_detector(
    path: str | Path, revision: str | None = None, *, bf16: bool = False, dropout: float | None = None
) -> FrozenDetector:
    """A checkpoint folder or Hub repo as a detector, its backbone in bf16 or, to train and save it, in fp32.

    `dropout` replaces that of its training.

    Raises:
        UserError: no such checkpoint, not one of this recipe, for other classes, or a tensor of it is missing.
    """
    try:
        config = AutoConfig.from_pretrained(str(path), revision=revision or "main", trust_remote_code=False)
        _check_config(config, path)  # before the weights: other models ask for other libraries
        config.dropout = config.dropout if dropout is None else dropout
        model = KINDS[config.model_type].from_pretrained(str(path), revision=revision or "main", config=config)
    except UNREADABLE as error:
        raise UserError(f"{path}: no detector can be loaded from it ({first_line(error)})") from error
    return freeze(model, torch.bfloat16 if bf16 else torch.float32)


def load_processor(path: str | Path, revision: str | None = None) -> BaseImageProcessor:
    """The image processor saved beside a detector.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        return AutoImageProcessor.from_pretrained(str(path), revision=revision or "main", trust_remote_code=False)
    except UNREADABLE as error:
        raise UserError(f"{path}: no image processor can be loaded from it ({first_line(error)})") from error


def init_from(source: str, config: Config) -> FrozenDetector:
    """A new run's detector from every tensor of `--init_from`, its backbone included; `--backbone` is not fetched.

    Raises:
        UserError: no detector of this recipe, or of another shape than the flags say.
    """
    model = load_detector(source, dropout=config.dropout)
    flags = ("num_queries", "encoder_layers", "decoder_layers", "d_model")
    wrong = [name for name in flags if getattr(config, name) != getattr(model.config, name)]
    if wrong:
        asked = ", ".join(f"--{name} {getattr(config, name)}" for name in wrong)
        needed = " ".join(f"--{name} {getattr(model.config, name)}" for name in wrong)
        raise UserError(f"{asked}: --init_from {source} has another shape. Give `{needed}`, as it was trained")
    return model


def _check_config(config: PretrainedConfig, path: str | Path) -> None:
    """Refuse a model that this recipe cannot have made."""
    backbone = getattr(getattr(config, "backbone_config", None), "model_type", "none")
    if config.model_type not in KINDS or backbone != DINOv3ViTConfig.model_type:
        raise UserError(
            f"{path}: is {config.model_type} with backbone {backbone}, this recipe's are {' or '.join(KINDS)} with "
            f"backbone {DINOv3ViTConfig.model_type}. Train one with `recipe train`."
        )
    names = tuple(label for _, label in sorted(config.id2label.items()) if label != NO_OBJECT)
    if names != CLASS_NAMES:
        raise UserError(f"{path}: its classes are {names}, this recipe's are {CLASS_NAMES}")


def save_detector(model: FrozenDetector, folder: Path, backbone_file: Path) -> None:
    """Write `model` as two safetensors shards; the frozen backbone's is hard-linked from `backbone_file`.

    transformers would save under DETR's legacy key names, which Trainer then loads raw and not strictly: 103 of 172
    tensors stay at their initial values. Here the names are those of the modules. All tensors are fp32, as config.json
    says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    trained = {name: tensor for name, tensor in state.items() if not name.startswith(BACKBONE_PREFIX)}
    _write_tensors(trained, folder / DETECTOR_FILE)
    link(backbone_file, folder / BACKBONE_FILE)
    files = {name: DETECTOR_FILE if name in trained else BACKBONE_FILE for name in sorted(state)}
    total = sum(tensor.numel() * 4 for tensor in state.values())
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2))
    model.config.architectures = [MODEL_FOR_OBJECT_DETECTION_MAPPING[type(model.config)].__name__]  # the stock class
    model.config.dtype = torch.float32  # else a reload takes the dtype of whatever tensor comes first
    model.config.save_pretrained(folder)


def write_backbone(model: FrozenDetector, path: Path) -> None:
    """Write the backbone's shard once per run, from the fp32 weights as they were loaded."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(BACKBONE_PREFIX)}
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_tensors(state, path)


def load_weights(model: FrozenDetector, folder: Path) -> None:
    """Restore every tensor of a checkpoint of this recipe into `model`, or raise.

    A checkpoint of before 0.2.0 says `auxiliary_loss`: its tensors belong to that decoder.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape.
    """
    state: dict[str, Tensor] = {}
    for file in sorted(set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values())):
        state |= load_file(folder / file)
    model.load_state_dict(state, strict=True)
    model.config.auxiliary_loss = AutoConfig.from_pretrained(folder).auxiliary_loss


def link(source: Path, target: Path) -> None:
    """Hard-link `source` to `target`, or copy it where the file system cannot."""
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_tensors(state: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    # Copies, as safetensors refuses tensors that lie in one memory: the deformable decoder shares its box heads.
    copies = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in state.items()}
    save_file(copies, partial, {"format": "pt"})
    partial.replace(path)
