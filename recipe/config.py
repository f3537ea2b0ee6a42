"""Every default of the recipe, once, with its reason.

    recipe train --preset full --data DIR_OR_REPO --learning_rate 5e-5

`Config` holds the recipe's own flags; `TRAINING` holds the values that replace a default of transformers'
`TrainingArguments`. Any other `TrainingArguments` flag is passed through and checked by transformers itself.
Standard library only: `--help` and the launcher must answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

DEADLINE_EXIT = 75  # EX_TEMPFAIL, of `recipe train`: not finished, the same command goes on
PATCH = 16  # DINOv3's patch size: the canvas is a whole number of patches


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    """The recipe's own flags; type, default and help are written here and nowhere else."""

    preset: Literal["full", "pilot"] = _flag("full", "Phase B on the whole data, or Phase A on 10 + 10 images")
    data: str | None = _flag(None, "packed folder or Hub dataset repo; the pilot makes its own sample without it")
    data_revision: str | None = _flag(None, "branch, tag or commit of a Hub dataset")
    output_dir: str = _flag("outputs/run", "folder of this run")
    resume: Literal["auto", "never"] = _flag("auto", "go on from the last checkpoint of this run, or start anew")
    max_hours: float | None = _flag(None, "stop with a full checkpoint after so many hours, exit code 75")
    push_minutes: float = _flag(10.0, "time for one push to the Hub; then training goes on, and it is sent later")
    max_train_images: int | None = _flag(None, "use only the first so many training images")
    max_val_images: int | None = _flag(None, "use only the first so many validation images")
    shown_images: int = _flag(4, "validation images drawn and logged at every evaluation; 0 for none")

    backbone: str = _flag("facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3 repo id or folder; `tiny` for random")
    backbone_revision: str | None = _flag(None, "branch, tag or commit of the backbone")
    # COCO's detector knows persons: from scratch DETR's mAP stays near 0 for tens of epochs on one's own data.
    detr_init: str = _flag("facebook/detr-resnet-50", "COCO DETR for encoder and decoder; `none` for scratch")
    num_queries: int = _flag(300, "boxes that an image can have at most")
    encoder_layers: int = _flag(6, "0 decodes straight from the frozen features (the ablation)")
    decoder_layers: int = _flag(6, "each has its own loss: the auxiliary loss is always on")
    d_model: int = _flag(256, "width of the detector")
    dropout: float = _flag(0.1, "in the detector")

    shortest_edge: int = _flag(960, "images are resized so that the shortest side has so many pixels ...")
    longest_edge: int = _flag(1536, "... unless the longest would pass this")

    augment: bool = _flag(True, "flip and affine; crops would cut crowds apart")
    hflip: float = _flag(0.5, "probability of a horizontal flip")
    affine: float = _flag(0.4, "probability of an affine transformation")
    rotate: float = _flag(5.0, "degrees, to either side")
    shear: float = _flag(3.0, "degrees, to either side")
    translate: float = _flag(0.03, "share of the image, to either side")
    scale_min: float = _flag(0.9, "smallest scale factor")
    scale_max: float = _flag(1.1, "largest scale factor")
    color: float = _flag(0.0, "probability of a light brightness and contrast change")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name} {value}: must be a finite number")
        for name in ("num_queries", "decoder_layers", "d_model", "shortest_edge", "longest_edge"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: must be 1 or more")
        for name in ("hflip", "affine", "color", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} {getattr(self, name)}: a probability, from 0 to 1")
        for name in ("max_train_images", "max_val_images", "max_hours", "push_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} {value}: must be above 0, or left out for no limit")
        if self.encoder_layers < 0 or self.shown_images < 0:
            raise ValueError("--encoder_layers and --shown_images: must be 0 or more")
        if self.longest_edge < self.shortest_edge:
            raise ValueError(f"--longest_edge {self.longest_edge} is below --shortest_edge {self.shortest_edge}")
        if self.d_model % 8:
            raise ValueError(f"--d_model {self.d_model}: must be a multiple of the 8 attention heads")
        if not 0 < self.scale_min <= self.scale_max:
            raise ValueError(f"--scale_min {self.scale_min} --scale_max {self.scale_max}: need 0 < min <= max")
        if self.preset == "full" and self.data is None:
            raise ValueError(
                "--data is missing: a packed folder (`python -m data_prep pack YOLO_DIR --out DIR`) or a Hub repo"
            )


# What the pilot changes: Phase A proves the whole path in a minute, on a laptop, with no network and no token.
PILOT: dict[str, Any] = {
    "output_dir": "outputs/pilot",
    "backbone": "tiny",  # a random DINOv3: no gated download
    "detr_init": "none",
    "max_train_images": 10,
    "max_val_images": 10,
}

# Values that replace a default of TrainingArguments, each with its reason.
TRAINING: dict[str, Any] = {
    "num_train_epochs": 10,
    "per_device_train_batch_size": 2,  # 960x1536 in 20 GB with room to spare
    "per_device_eval_batch_size": 4,  # no gradients: twice the training batch fits
    "gradient_accumulation_steps": 4,  # effective batch 8
    "learning_rate": 1e-4,  # DETR's own
    "weight_decay": 1e-4,  # DETR's own
    "warmup_steps": 0.05,  # below 1 it is a share of all steps; warmup_ratio is gone
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 0.1,  # DETR's own: the matching makes rare, large gradients
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 8,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_map",
    "logging_steps": 50,
    "logging_first_step": True,
    "logging_nan_inf_filter": False,  # the default hides a non-finite loss; here it stops the run
    "dataloader_num_workers": 8,
    "dataloader_persistent_workers": True,  # two forks of the parent instead of two per epoch
    "remove_unused_columns": False,  # the collator needs every column
    "label_names": ["labels"],
    "ddp_find_unused_parameters": False,  # the frozen backbone asks for no gradient, so nothing is unused
    "report_to": "trackio",
    "project": "crowd-detr",
    "trackio_static_space_id": False,  # with a private repo the default tries a static Space and kills the run
    "push_to_hub": None,  # wherever --hub_model_id is given, unless refused
    "hub_private_repo": True,  # photographs of people: private unless asked otherwise
    "hub_strategy": "checkpoint",  # adds last-checkpoint/, from which a lost machine resumes
    "seed": 42,
}

PILOT_TRAINING: dict[str, Any] = {
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 1,  # 10 images at 2 x 4 would be 2 steps, the first at learning rate 0
    "warmup_steps": 0,
    "logging_steps": 1,  # the default of 500 would log nothing
    "dataloader_num_workers": 2,
}

# Flags of TrainingArguments that would do nothing here, or harm: refused, with what holds instead.
REFUSED: dict[str, str] = {
    "resume_from_checkpoint": "the same command goes on from the last checkpoint in --output_dir or on the Hub",
    "save_only_model": "no run goes on from a checkpoint without its optimizer",
    "enable_jit_checkpoint": "SIGTERM leaves a whole checkpoint already",
    "hub_revision": "a run goes to main, with a tag per epoch; give another repo by --hub_model_id",
    "hub_strategy": "every checkpoint is pushed, with all that a lost machine needs",
    "data_seed": "--seed is also that of the data",
    "dataloader_drop_last": "every image is seen once an epoch",
    "train_sampling_strategy": "batches are drawn at random within an orientation",
    "auto_find_batch_size": "the batch is halved before the first step if the densest does not fit",
    "bf16_full_eval": "evaluation has the precision of the training",
    "fp16_full_eval": "evaluation has the precision of the training",
    "torch_compile_backend": "--torch_compile true compiles the frozen backbone, with inductor",
    "torch_compile_mode": "--torch_compile true compiles the frozen backbone, with inductor",
    "label_smoothing_factor": "DETR's loss of boxes has no smoothed labels",
    "fsdp": "every GPU holds the whole model",
    "deepspeed": "every GPU holds the whole model",
}

# What other trainers call a flag of ours.
ELSEWHERE: dict[str, str] = {
    "--lr": "--learning_rate",
    "--batch": "--per_device_train_batch_size",
    "--batch_size": "--per_device_train_batch_size",
    "--epochs": "--num_train_epochs",
    "--workers": "--dataloader_num_workers",
    "--imgsz": "--shortest_edge and --longest_edge",
    "--device": "CUDA_VISIBLE_DEVICES in the environment, or --use_cpu true",
}

# What an evaluation logs as eval_*, and --metric_for_best_model may be.
METRICS = """map map_50 map_75 map_small map_medium map_large map_max300 map_person map_head mar_1 mar_10 mar_100
    mar_small mar_medium mar_large mar_300 mar_100_person mar_100_head mr2_person mr2_head ji_person ji_head"""

PILOT_CPU: dict[str, Any] = {"shortest_edge": 256, "longest_edge": 416}  # a full canvas takes minutes without a GPU


def training_defaults(config: Config) -> dict[str, Any]:
    """The values of TrainingArguments that this preset starts from."""
    return TRAINING | (PILOT_TRAINING if config.preset == "pilot" else {}) | {"output_dir": config.output_dir}


def parse_train(argv: Sequence[str]) -> tuple[Config, list[str]]:
    """Split the flags of `recipe train` into the recipe's own and those left for TrainingArguments.

    Exits with code 2 and one line when a flag of the recipe is wrong.
    """
    # As transformers' own flags, each may be written with dashes too.
    argv = [re.sub(r"^--[\w-]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in argv]
    parser = train_parser()
    preset = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset.add_argument("--preset", default="full")
    if preset.parse_known_args(argv)[0].preset == "pilot":
        parser.set_defaults(**PILOT)
    values, rest = parser.parse_known_args(argv)
    try:
        return Config(**vars(values)), rest
    except ValueError as error:
        known = [f"--{name}" for name in vars(values)]
        close = {word: difflib.get_close_matches(word.split("=")[0], known, n=1, cutoff=0.8) for word in rest}
        typos = [f". Did you mean {hint[0]} by {word}?" for word, hint in close.items() if hint]
        parser.error("".join([str(error), *typos]))


def train_parser() -> argparse.ArgumentParser:
    """The recipe's own flags as argparse knows them, built from `Config`."""
    parser = argparse.ArgumentParser(
        prog="recipe train",
        usage="recipe train [--preset pilot] --data DIR_OR_REPO [--output_dir DIR] [--FLAG VALUE ...]",
        description="Train a DETR over a frozen DINOv3 on a packed dataset.",
        epilog="Every flag of transformers' TrainingArguments works too (--learning_rate 5e-5, --push_to_hub ...). "
        "Replaced defaults: " + ", ".join(f"{name} {value}" for name, value in TRAINING.items()),
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    hints = get_type_hints(Config)
    for flag in fields(Config):
        parser.add_argument(
            f"--{flag.name}", default=flag.default, help=flag.metadata["help"], **_argument(hints[flag.name])
        )
    return parser


def _argument(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    kind = next((part for part in get_args(hint) if part is not type(None)), hint)  # `int | None` -> int
    if kind is bool:
        return {"type": _boolean, "nargs": "?", "const": True, "metavar": "true|false"}
    return {"type": kind, "metavar": kind.__name__.upper()}


def _boolean(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]
