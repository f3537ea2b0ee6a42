"""Every default of the recipe, once, with its reason and what is allowed; and the flags of `recipe train`.

    recipe train --preset full --data DIR_OR_REPO --learning_rate 5e-5

`Config` holds the recipe's own flags, `TRAINING` and `RANGES` what is changed of transformers' `TrainingArguments`.
Standard library only: `--help` and the launcher answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

DEADLINE_EXIT = 75  # EX_TEMPFAIL, of `recipe train`: not finished, the same command resumes
PATCH = 16  # side of a patch of the backbone, in pixels
DIVERGED_EXIT = 70  # EX_SOFTWARE: a loss, an evaluation or a weight is not finite


@dataclass(frozen=True)
class Range:
    """What is allowed of a number, in the words of an error."""

    least: float
    most: float
    open: bool = False  # `least` itself is not allowed

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.open and value == self.least)

    def __str__(self) -> str:
        return (
            f"above {self.least:g} and at most {self.most:g}" if self.open else f"from {self.least:g} to {self.most:g}"
        )


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range | None]) -> None:
    """Raises ValueError for the first of the values that is given and not allowed."""
    for flag, allowed in ranges.items():
        value = values.get(flag)
        if value is not None and allowed is not None and value not in allowed:  # NaN is in none
            raise ValueError(f"--{flag} {value}: must be {allowed}")


SHARE, COUNT = Range(0, 1), Range(1, 1e9)
HOURS, EDGE = Range(0, 1e4, open=True), Range(32, 4096)


def _flag(default: Any, text: str, allowed: Range | None = None) -> Any:
    return field(default=default, metadata={"help": text, "range": allowed})


@dataclass
class Config:
    """The recipe's own flags; type, default, range and help are written here and nowhere else."""

    preset: Literal["full", "pilot"] = _flag("full", "Phase B on the whole data, or Phase A on 10 + 10 images")
    data: str | None = _flag(None, "packed folder or Hub dataset repo; the pilot makes its own sample without it")
    data_revision: str | None = _flag(None, "branch, tag or commit of a Hub dataset")
    output_dir: str = _flag("outputs/run", "folder of this run")
    resume: Literal["auto", "never"] = _flag("auto", "resume from the last checkpoint of this run, or start anew")
    max_hours: float | None = _flag(None, "stop with a full checkpoint then, exit code 75", HOURS)
    push_minutes: float = _flag(10.0, "time for one push; then training continues, and it is sent later", HOURS)
    max_train_images: int | None = _flag(None, "use only so many training images, drawn by --seed", COUNT)
    max_val_images: int | None = _flag(None, "use only so many validation images, drawn by --seed", COUNT)
    eval_images: int | None = _flag(None, "evaluate on so many, drawn by --seed; the last and the best on all", COUNT)
    early_stopping_patience: int | None = _flag(None, "stop after so many evaluations without a better one", COUNT)
    shown_images: int = _flag(4, "validation images drawn and logged at every evaluation; 0 for none", Range(0, 100))

    backbone: str = _flag("facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3 repo id or folder; `tiny` for random")
    backbone_revision: str | None = _flag(None, "branch, tag or commit of the backbone")
    # bf16 gives the published features; 8 bits are faster, and what they do to one's own boxes is to be measured.
    backbone_precision: Literal["bf16", "fp8", "int8"] = _flag(
        "bf16", "of the frozen linear layers: fp8 from Ada and Hopper on, int8 from Ampere on; what is saved stays"
    )
    # COCO's detector knows persons: from scratch DETR's mAP stays near 0 for tens of epochs on one's own data.
    detr_init: str = _flag("facebook/detr-resnet-50", "COCO DETR for encoder and decoder; `none` for scratch")
    init_from: str | None = _flag(None, "start from a detector of this recipe: a run's folder, a checkpoint or a repo")
    detector: Literal["detr", "deformable"] = _flag("detr", "the latter reads four layers and has 900 queries")
    num_queries: int = _flag(300, "boxes that an image can have at most", Range(1, 3000))
    encoder_layers: int = _flag(6, "0 decodes straight from the frozen features (the ablation)", Range(0, 24))
    decoder_layers: int = _flag(6, "each has its own loss: deep supervision is always on", Range(1, 24))
    d_model: int = _flag(256, "width of the detector, a multiple of its 8 attention heads", Range(8, 2048))
    dropout: float = _flag(0.1, "in the detector", Range(0, 0.9))

    shortest_edge: int = _flag(960, "images are resized so that the shortest side has so many pixels", EDGE)
    longest_edge: int = _flag(1536, "... unless the longest would pass this", EDGE)

    # No crops: they cut crowds apart.
    augmentation: str | None = _flag(None, "your own, a file as albumentations writes it, or `none`; else these:")
    hflip: float = _flag(0.5, "probability of a horizontal flip", SHARE)
    affine: float = _flag(0.4, "probability of an affine transformation", SHARE)
    rotate: float = _flag(5.0, "degrees, to either side", Range(0, 180))
    shear: float = _flag(3.0, "degrees, to either side", Range(0, 45))
    translate: float = _flag(0.03, "share of the image, to either side", SHARE)
    scale_min: float = _flag(0.9, "smallest scale factor", Range(0.1, 10))
    scale_max: float = _flag(1.1, "largest scale factor", Range(0.1, 10))
    color: float = _flag(0.0, "probability of a light brightness and contrast change", SHARE)

    def __post_init__(self) -> None:
        for flag in fields(Config):
            if getattr(self, flag.name) == "":
                raise ValueError(f"--{flag.name} '': must not be empty; leave the flag out for its default")
        check_ranges(vars(self), {flag.name: flag.metadata["range"] for flag in fields(Config)})
        if self.longest_edge < self.shortest_edge:
            raise ValueError(f"--longest_edge {self.longest_edge} is below --shortest_edge {self.shortest_edge}")
        if self.d_model % 8:
            raise ValueError(f"--d_model {self.d_model}: must be a multiple of the 8 attention heads")
        if self.scale_min > self.scale_max:
            raise ValueError(f"--scale_min {self.scale_min} is above --scale_max {self.scale_max}")
        if self.preset == "full" and self.data is None:
            raise ValueError(
                "--data is missing: a Hub repo, or a folder of `python -m data_prep pack YOLO_DIR --out DIR`"
            )


# What the pilot changes: Phase A proves the whole path in a minute, on a laptop, with no network and no token.
PILOT: dict[str, Any] = {
    "output_dir": "outputs/pilot",
    "backbone": "tiny",  # a random DINOv3: no gated download
    "detr_init": "none",
    "max_train_images": 10,
    "max_val_images": 10,
}
DEFORMABLE: dict[str, Any] = {"num_queries": 900, "detr_init": "none"}  # what --detector deformable changes
PILOT_CPU: dict[str, Any] = {"shortest_edge": 256, "longest_edge": 416}  # full size takes minutes without a GPU

# Values that replace a default of TrainingArguments, each with its reason.
TRAINING: dict[str, Any] = {
    "num_train_epochs": 10,
    "per_device_train_batch_size": 2,  # 960x1536 in 20 GB with room to spare; a GPU with more room takes more
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
    "ddp_broadcast_buffers": False,  # 300 MB of quantised weights at every step, and none of them changes
    "ddp_find_unused_parameters": False,  # the frozen backbone asks for no gradient, so nothing is unused
    "report_to": "trackio",
    "project": "crowd-detr",
    "trackio_static_space_id": False,  # with a private repo the default tries a static Space and kills the run
    "push_to_hub": None,  # wherever --hub_model_id is given, unless refused
    "hub_private_repo": True,  # photographs of people: private unless asked otherwise
    "seed": 42,
    "torch_compile": None,  # the frozen layers on a GPU, where it succeeds; true: it must; false: never
}

PILOT_TRAINING: dict[str, Any] = {
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 1,  # 10 images at 2 x 4 would be 2 steps, the first at learning rate 0
    "warmup_steps": 0,
    "logging_steps": 1,  # the default of 500 would log nothing
    "dataloader_num_workers": 2,
}

# What is allowed of TrainingArguments' flags: they themselves take any number.
RANGES: dict[str, Range] = {
    "num_train_epochs": Range(0, 10_000, open=True),
    "max_steps": Range(-1, 1e9),
    "per_device_train_batch_size": Range(1, 1024),
    "per_device_eval_batch_size": Range(1, 1024),
    "gradient_accumulation_steps": Range(1, 4096),
    "learning_rate": SHARE,
    "weight_decay": SHARE,
    "warmup_steps": Range(0, 1e9),
    "max_grad_norm": Range(0, 1e6),
    "adam_beta1": Range(0, 0.99999),
    "adam_beta2": Range(0, 0.9999999),
    "adam_epsilon": Range(0, 1, open=True),
    "logging_steps": Range(0, 1e9, open=True),
    "save_steps": Range(0, 1e9, open=True),
    "save_total_limit": Range(2, 1e6),  # with 1 a power cut within a save would leave no complete checkpoint
    "dataloader_num_workers": Range(0, 256),
    "dataloader_prefetch_factor": Range(1, 64),
    "seed": Range(0, 2**32 - 1),
}

# What other trainers call a flag of ours.
ELSEWHERE: dict[str, str] = {
    "--lr": "--learning_rate",
    "--batch": "--per_device_train_batch_size",
    "--batch_size": "--per_device_train_batch_size",
    "--epochs": "--num_train_epochs",
    "--workers": "--dataloader_num_workers",
    "--imgsz": "--shortest_edge and --longest_edge",
    "--patience": "--early_stopping_patience",
    "--device": "CUDA_VISIBLE_DEVICES in the environment, or --use_cpu true",
}


def split_flags(argv: Sequence[str], command: str = "train") -> tuple[dict[str, Any], list[str]]:
    """The recipe's own flags that are given or preset, by name, and what is left for TrainingArguments.

    Exits with code 2 and one line when a flag of the recipe cannot be read or is out of its range.
    """
    # As transformers' own flags, each may be written with dashes too.
    argv = [re.sub(r"^--[\w-]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in argv]
    parser = train_parser(command)
    found, rest = parser.parse_known_args(argv)
    given = vars(found)
    pilot = PILOT if given.get("preset") == "pilot" else {}
    deformable = DEFORMABLE if given.get("detector") == "deformable" else {}
    values = pilot | deformable | given
    try:
        Config(**values)
    except ValueError as error:
        parser.error(f"{error}{did_you_mean(rest)}")
    return values, rest


def did_you_mean(words: Sequence[str], names: Sequence[str] = ()) -> str:
    """A hint for each of the words that is nearly a flag of the recipe, or one of the other `names`."""
    known, hints = [f"--{name}" for name in (*(flag.name for flag in fields(Config)), *names)], ""
    for flag in (word.split("=")[0] for word in words):
        close = [ELSEWHERE[flag]] if flag in ELSEWHERE else difflib.get_close_matches(flag, known, n=1, cutoff=0.8)
        hints += f". Did you mean {close[0]} by {flag}?" if close else ""
    return hints


def train_parser(command: str) -> argparse.ArgumentParser:
    """The recipe's own flags as argparse knows them, built from `Config`; it returns those that are given."""
    parser = argparse.ArgumentParser(
        prog=f"recipe {command}",
        usage=f"recipe {command} [--preset pilot] --data DIR_OR_REPO [--output_dir DIR] [--FLAG VALUE ...]",
        description="Train a DETR over a frozen DINOv3 on a packed dataset.",
        epilog="Every flag of transformers' TrainingArguments works too (--learning_rate 5e-5, --push_to_hub ...). "
        "Replaced defaults: " + ", ".join(f"{name} {value}" for name, value in TRAINING.items()),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    hints = get_type_hints(Config)
    for flag in fields(Config):
        allowed = flag.metadata["range"]
        text = f"{flag.metadata['help']} (default: {flag.default}{f'; {allowed}' if allowed else ''})"
        parser.add_argument(f"--{flag.name}", help=text, **_argument(hints[flag.name]))
    return parser


def _argument(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    kind = next((part for part in get_args(hint) if part is not type(None)), hint)  # `int | None` -> int
    return {"type": kind, "metavar": kind.__name__.upper()}
