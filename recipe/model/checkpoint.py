"""The detector on disk: two plain safetensors shards, the frozen one written once; restored completely or not at all.

    save_detector(model, Path("outputs/run/checkpoint-6931"), backbone_file)
    model = load_detector("outputs/run/checkpoint-6931")                 # to evaluate, predict, resume

What is saved is plain: `AutoModelForObjectDetection.from_pretrained` reads it without this code.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, DINOv3ViTConfig

from recipe.config import Config
from recipe.hub import as_user_errors
from recipe.model.backbone import BACKBONE_PREFIX, load_complete
from recipe.model.detector import DETECTORS, Detector, freeze
from recipe.schema import CLASS_NAMES, UserError

BACKBONE_FILE = "model-00001-of-00002.safetensors"
DETECTOR_FILE = "model-00002-of-00002.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def load_detector(
    path: str | Path, revision: str | None = None, *, bf16: bool = False, dropout: float | None = None
) -> Detector:
    """A checkpoint folder or Hub repo as a detector, its backbone in bf16 or, to train and save it, in fp32.

    `dropout` replaces that of its training.

    Raises:
        UserError: no such checkpoint, not one of this recipe, for other classes, or a tensor of it is missing.
    """
    with as_user_errors(str(path)):
        config = AutoConfig.from_pretrained(str(path), revision=revision or "main", trust_remote_code=False)
    # Before the weights: other models ask for other libraries.
    kinds = {kind.config_class.model_type: kind for kind in DETECTORS.values()}
    kind, names = kinds.get(config.model_type), tuple(config.id2label.values())
    backbone = getattr(getattr(config, "backbone_config", None), "model_type", "none")
    if kind is None or backbone != DINOv3ViTConfig.model_type or names != kind.LABELS:
        raise UserError(
            f"{path}: is {config.model_type} with backbone {backbone} for {', '.join(names[:4])}; this recipe's are "
            f"{' or '.join(kinds)} with backbone {DINOv3ViTConfig.model_type} for {', '.join(CLASS_NAMES)}. Train one "
            "with `recipe train`"
        )
    config.dropout = config.dropout if dropout is None else dropout
    model = load_complete(kind, str(path), str(path), revision=revision or "main", config=config)
    return freeze(model, torch.bfloat16 if bf16 else torch.float32)


def load_processor(path: str | Path, revision: str | None = None) -> BaseImageProcessor:
    """The image processor saved beside a detector.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    with as_user_errors(f"the image processor of {path}"):
        return AutoImageProcessor.from_pretrained(str(path), revision=revision or "main", trust_remote_code=False)


def init_from(source: str, config: Config) -> Detector:
    """A new run's detector from every tensor of `--init_from`, its backbone included; `--backbone` is not fetched.

    Raises:
        UserError: no detector of this recipe, or of another kind or shape than the flags say.
    """
    model = load_detector(source, dropout=config.dropout)
    kind = next(name for name, kind in DETECTORS.items() if isinstance(model, kind))
    flags = ("num_queries", "encoder_layers", "decoder_layers", "d_model")
    found = {"detector": kind, **{name: getattr(model.config, name) for name in flags}}
    wrong = [name for name, value in found.items() if getattr(config, name) != value]
    if wrong:
        asked = ", ".join(f"--{name} {getattr(config, name)}" for name in wrong)
        needed = " ".join(f"--{name} {found[name]}" for name in wrong)
        raise UserError(f"{asked}: --init_from {source} has another shape. Give `{needed}`, as it was trained")
    return model


def save_detector(model: Detector, folder: Path, backbone_file: Path) -> None:
    """Write `model` as two safetensors shards; the frozen backbone's is hard-linked from `backbone_file`.

    transformers would save under DETR's legacy key names, which Trainer then loads raw and not strictly: 103 of 172
    tensors stay at their initial values. Here the names are those of the modules, and all tensors fp32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    trained = {name: tensor for name, tensor in state.items() if not name.startswith(BACKBONE_PREFIX)}
    _write_tensors(trained, folder / DETECTOR_FILE)
    link(backbone_file, folder / BACKBONE_FILE)
    files = {name: DETECTOR_FILE if name in trained else BACKBONE_FILE for name in sorted(state)}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": files}, indent=2))
    model.config.architectures = [type(model).__mro__[1].__name__]  # the stock class
    model.config.dtype = torch.float32  # else a reload takes the dtype of whatever tensor comes first
    model.config.save_pretrained(folder)


def write_backbone(model: Detector, path: Path) -> None:
    """Write the backbone's shard once per run, from the fp32 weights as they were loaded."""
    state = model.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_tensors({name: state[name] for name in state if name.startswith(BACKBONE_PREFIX)}, path)


def load_weights(model: Detector, folder: Path) -> None:
    """Restore every tensor of a checkpoint of this recipe into `model`, or raise.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape.
    """
    model.load_state_dict(load_file(folder / BACKBONE_FILE) | load_file(folder / DETECTOR_FILE))
    model.config.auxiliary_loss = AutoConfig.from_pretrained(folder).auxiliary_loss  # decides the decoder's path


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
    partial.chmod(0o644)  # safetensors writes for its own user alone, whoever shares the folder
    partial.replace(path)
