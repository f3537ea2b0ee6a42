"""ONE settings object: transformers' TrainingArguments extended by the recipe's Config.

    args = parse(["--preset", "pilot", "--learning_rate", "5e-5"])
    args.num_queries, args.learning_rate, args.output_dir

What transformers allows and this recipe does not honour is refused here, before anything is loaded.
"""

from __future__ import annotations

import math
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from recipe.config import PILOT_CPU, PILOT_TRAINING, RANGES, TRAINING, Config, check_ranges, did_you_mean, split_flags
from recipe.schema import CLASS_NAMES, UserError

# Flags of TrainingArguments that would do nothing here, or harm: refused, with what holds instead.
REFUSED: dict[str, str] = {
    "resume_from_checkpoint": "the same command resumes from the last checkpoint in --output_dir or on the Hub",
    "save_only_model": "no run is resumed from a checkpoint without its optimizer",
    "enable_jit_checkpoint": "SIGTERM leaves a complete checkpoint already",
    "hub_revision": "a run goes to main, with a tag per epoch; give another repo by --hub_model_id",
    "hub_strategy": "every checkpoint is pushed, with all that a lost machine needs",
    "data_seed": "--seed is also that of the data",
    "dataloader_drop_last": "every image is seen once an epoch",
    "train_sampling_strategy": "batches are drawn at random among images of one size",
    "auto_find_batch_size": "the densest batch is tried before the first step, and halved if it does not fit",
    "average_tokens_across_devices": "the loss is normalised by the boxes of all processes",
    "bf16_full_eval": "evaluation has the precision of the training",
    "fp16": "DETR overflows in it, so give bf16, or neither for fp32",
    "fp16_full_eval": "evaluation has the precision of the training",
    "torch_compile_backend": "--torch_compile true compiles the frozen backbone, with inductor",
    "torch_compile_mode": "--torch_compile true compiles the frozen backbone, with inductor",
    "label_smoothing_factor": "DETR's loss of boxes has no smoothed labels",
    "fsdp": "every GPU holds the whole model",
    "deepspeed": "every GPU holds the whole model",
}

# What an evaluation logs as eval_*, and --metric_for_best_model may be.
METRICS = (
    *["map", "map_50", "map_75", "map_small", "map_medium", "map_large", "map_max300"],
    *["mar_1", "mar_10", "mar_100", "mar_300", "mar_small", "mar_medium", "mar_large"],
    *(f"{name}_{of}" for name in ("map", "map_50", "mar_100", "mr2", "ji") for of in CLASS_NAMES),
)
HELP = "`recipe train --help` lists the recipe's flags"


@dataclass
class Arguments(TrainingArguments, Config):
    """Every setting of a run, as the command line and the defaults give it.

    Raises:
        ValueError: a value out of its range, or one that transformers refuses.
    """

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        check_ranges(vars(self), RANGES)
        compiled = vars(self)["torch_compile"]
        self.torch_compile = False  # transformers would compile the loss too: minutes
        TrainingArguments.__post_init__(self)
        self.torch_compile = compiled

    @property
    def n_gpu(self) -> int:
        """One GPU for each process, or Trainer wraps the model in DataParallel, which scatters labels wrongly."""
        return min(super().n_gpu, 1)


def parse(argv: Sequence[str], *, on_gpu: bool | None = None) -> Arguments:
    """The flags of `recipe train` as one object: the recipe's defaults, then what the command line says.

    Args:
        on_gpu: whether the run will have a GPU; None asks this machine. With True nothing is asked of it.

    Raises:
        UserError: a flag that neither the recipe nor transformers knows, or one that either of them refuses.
    """
    own, rest = split_flags(argv)
    parser = HfArgumentParser(TrainingArguments, allow_abbrev=False, add_help=False)

    def refuse(message: str) -> Any:
        raise UserError(f"{message}. {HELP}")

    parser.error = refuse
    gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
    pilot = own.get("preset") == "pilot"
    defaults = TRAINING | (PILOT_TRAINING if pilot else {})
    if gpu:
        defaults = defaults | {"accelerator_config": {"non_blocking": True}}  # pinned memory: copies wait for nothing
    parser.set_defaults(**defaults, bf16=gpu, use_cpu=not gpu, disable_tqdm=not sys.stderr.isatty())
    parser.set_defaults(output_dir=Config.output_dir)  # of both classes, and `own` holds only what is given
    values, unknown = parser.parse_known_args(rest)
    if unknown:
        raise UserError(f"unknown flag {unknown[0]}{did_you_mean(unknown[:1], list(vars(values)))}. {HELP}")
    check(values, parser)
    for name, value in (vars(values) | own).items():
        if "token" not in name and re.search(r"hf_\w{20}", str(value)):
            raise UserError(
                f"--{name}: is a token of the Hub, which run.json and the log would show; set HF_TOKEN to it"
            )
    if on_gpu is not None:  # what the device itself can do is asked where the run is
        values.use_cpu, values.tf32 = True, None
    if pilot and not gpu and not own.keys() & PILOT_CPU:
        own |= PILOT_CPU
    try:
        return Arguments(**vars(values) | own)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise UserError(f"{str(error).splitlines()[0]}. {HELP}") from error


def check(values: Namespace, parser: ArgumentParser) -> None:
    """Refuse what transformers allows and this recipe does not honour; fill in what follows from other flags."""
    for name, value in vars(values).items():
        if isinstance(value, float) and not math.isfinite(value) and name not in RANGES:
            raise UserError(f"--{name} {value}: give a number. {HELP}")
    for name, instead in REFUSED.items():
        if (value := getattr(values, name)) != parser.get_default(name):
            raise UserError(f"--{name} {value}: not in this recipe, leave it out; {instead}")
    if values.save_strategy == "best":
        raise UserError("--save_strategy best: a stopped run would fall back to its best epoch; give epoch or steps")
    metric = values.metric_for_best_model.removeprefix("eval_")
    if metric not in METRICS:
        allowed = ", ".join(f"eval_{name}" for name in METRICS)
        raise UserError(f"--metric_for_best_model {values.metric_for_best_model}: give one of {allowed}")
    values.report_to = values.report_to.split(",")
    missing = {*values.report_to} - {"none", "all", *get_available_reporting_integrations()}
    if missing:
        raise UserError(f"--report_to {' '.join(missing)}: not installed here; install it, or give trackio or none")
    if values.greater_is_better is None:
        values.greater_is_better = not metric.startswith("mr2")
    if values.push_to_hub is None:
        values.push_to_hub = values.hub_model_id is not None
