"""`recipe train`, as the recipe reads: settings, data, model, training, report.

recipe train --preset pilot
recipe train --data DIR_OR_REPO --output_dir outputs/run
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import shlex
import shutil
import sys
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.integrations.integration_utils import TrackioCallback

from recipe.config import DEADLINE_EXIT, ELSEWHERE, METRICS, PILOT_CPU, REFUSED, Config, training_defaults
from recipe.data.annotations import Annotations, describe, summary
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.doctor import driver, installed_driver
from recipe.hub import newest
from recipe.model.checkpoint import SHARDS, load_model, write_backbone
from recipe.model.detector import build_model, build_processor, compile_backbone, freeze
from recipe.report.card import write_card
from recipe.report.pictures import Pictures
from recipe.schema import CLASS_NAMES, UserError
from recipe.training import logs as tracking
from recipe.training import run
from recipe.training.backlog import unpushed
from recipe.training.deadline import Deadline
from recipe.training.memory import fit
from recipe.training.push import RunRepo, open_run, report_unpushed
from recipe.training.trainer import CrowdTrainer, NonFiniteLoss

logger = logging.getLogger(__name__)

NONFINITE_EXIT = 70  # EX_SOFTWARE


def train(config: Config, rest: Sequence[str]) -> int:
    """Train, keep the best model, write the report. Returns the exit code: 0, or 75 when the time was up."""
    say_driver()
    config = fit_to_device(config)
    args = training_arguments(config, rest)
    folder = Path(config.output_dir)
    repo = open_repo(config, args)
    pinned = pin(config, repo)

    training, validation, dataset = load_data(pinned, args)
    wanted = run.identity(config, args, dataset["identity"])
    with args.main_process_first(desc="the checkpoint to go on from"):
        if repo is not None:
            repo.restore(folder, wanted)
        checkpoint = run.claim(folder, wanted, config.resume) if args.should_save else run.last_checkpoint(folder)
    args.run_name = name_run(folder, args)

    set_seed(args.seed)
    model = build(pinned, training.annotations, checkpoint)
    processor = build_processor(config.shortest_edge, config.longest_edge)
    if args.should_save:  # before any other file: a folder without its record is not gone on with
        run_id = run.read_record(folder).get("run_id") or uuid.uuid4().hex  # one run on the dashboard, for ever
        run.write_record(folder, pinned, args, wanted, {"dataset": dataset, "run_id": run_id})
    model = settle(model, args, folder)

    trainer = CrowdTrainer(config, args, model, processor, training, validation)
    trainer.repo = repo
    deadline = watch(trainer, config)
    if torch.cuda.is_available():
        fit(trainer)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return NONFINITE_EXIT
    if deadline.reason is not None:
        if trainer.is_world_process_zero():
            print(f"stopped: {deadline.reason}; the same command goes on from {run.last_checkpoint(folder)}")
        if repo is not None:
            report_unpushed(unpushed(folder, repo.repo_id, final=False), folder)
        return DEADLINE_EXIT
    return finish(trainer, config)


def say_driver() -> None:
    """One line where there is an NVIDIA driver: too old for the locked CUDA, it would only show as a missing GPU."""
    fine, words = driver(torch.version.cuda, installed_driver())
    if fine is not None:
        logger.log(logging.INFO if fine else logging.WARNING, "driver %s", words)


def fit_to_device(config: Config) -> Config:
    """The pilot takes a small canvas where there is no GPU, unless the flags say otherwise."""
    untouched = (config.shortest_edge, config.longest_edge) == (Config.shortest_edge, Config.longest_edge)
    if config.preset == "pilot" and untouched and not torch.cuda.is_available():
        return dataclasses.replace(config, **PILOT_CPU)
    return config


def training_arguments(config: Config, rest: Sequence[str]) -> TrainingArguments:
    """transformers' own arguments: the recipe's defaults, then what the command line says.

    Raises:
        UserError: a flag that neither the recipe nor transformers knows, or one that either of them refuses.
    """
    parser = HfArgumentParser(TrainingArguments, allow_abbrev=False, add_help=False)

    def refuse(message: str) -> Any:
        raise UserError(f"{message}. `recipe train --help` lists the recipe's flags")

    parser.error = refuse
    gpu = torch.cuda.is_available()
    parser.set_defaults(**training_defaults(config), bf16=gpu, use_cpu=not gpu, disable_tqdm=not sys.stderr.isatty())
    values, unknown = parser.parse_known_args(list(rest))
    if unknown:
        known = [f"--{name}" for name in vars(values)] + [f"--{field.name}" for field in dataclasses.fields(Config)]
        flag = unknown[0].split("=")[0]
        close = [ELSEWHERE[flag]] if flag in ELSEWHERE else difflib.get_close_matches(flag, known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"unknown flag {unknown[0]}.{hint} `recipe train --help` lists the recipe's flags")
    judge(values, parser)
    compiled, values.torch_compile = values.torch_compile, False  # transformers would compile the loss too: minutes
    try:
        args = TrainingArguments(**vars(values))
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"transformers refuses these flags: {str(error).splitlines()[0]}") from error
    args.torch_compile = compiled
    return args


def judge(values: Namespace, parser: ArgumentParser) -> None:
    """Refuse what transformers allows and this recipe does not honour; fill in what follows from other flags."""
    for name, instead in REFUSED.items():
        if (value := getattr(values, name)) != parser.get_default(name):
            raise UserError(f"--{name} {value}: not in this recipe, leave it out; {instead}")
    if values.save_strategy == "best":
        raise UserError("--save_strategy best: a stopped run would fall back to its best epoch; give epoch or steps")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(values, name) < 1:
            raise UserError(f"--{name} {getattr(values, name)}: must be 1 or more")
    if values.dataloader_num_workers < 0:
        raise UserError(f"--dataloader_num_workers {values.dataloader_num_workers}: must be 0 or more")
    metric = values.metric_for_best_model.removeprefix("eval_")
    if metric not in METRICS.split():
        allowed = ", ".join(f"eval_{name}" for name in METRICS.split())
        raise UserError(f"--metric_for_best_model {values.metric_for_best_model}: give one of {allowed}")
    if values.greater_is_better is None:
        values.greater_is_better = not metric.startswith("mr2")
    if values.push_to_hub is None:
        values.push_to_hub = values.hub_model_id is not None


def open_repo(config: Config, args: TrainingArguments) -> RunRepo | None:
    """The Hub repo of this run, on the process that pushes; found wanting now rather than at the first push."""
    if not args.push_to_hub or not args.should_save:
        return None
    folder = Path(config.output_dir)
    settings = {"private": args.hub_private_repo, "minutes": config.push_minutes, "token": args.hub_token}
    repo = open_run(args.hub_model_id or folder.resolve().name, folder, config.resume, **settings)
    args.hub_model_id = repo.repo_id
    return repo


def pin(config: Config, repo: RunRepo | None) -> Config:
    """Branches become commits: those of the run that is gone on with, else today's. The same on every process."""
    earlier = (repo.record if repo is not None else None) or run.read_record(Path(config.output_dir))
    if earlier:
        backbone = earlier["config"]["backbone_revision"]
    else:
        backbone = newest(config.backbone, config.backbone_revision, "model")
    if earlier and earlier["config"]["data"] == config.data:
        data = earlier["dataset"]["revision"]
    else:  # or a push to the dataset between the two downloads would give its splits from two commits
        data = newest(config.data or "", config.data_revision, "dataset")
    pinned = dataclasses.replace(config, backbone_revision=backbone, data_revision=data)
    return broadcast_object_list([pinned])[0]


def load_data(config: Config, args: TrainingArguments) -> tuple[CrowdDataset, CrowdDataset, dict[str, Any]]:
    """Both splits as datasets, and what run.json says of them."""
    data = config.data or built_in_sample(config, args)
    geometry = Geometry(config.shortest_edge, config.longest_edge)
    splits: list[CrowdDataset] = []
    record: dict[str, Any] = {"data": data}
    limits = {"train": config.max_train_images, "validation": config.max_val_images}
    for split, limit in limits.items():
        source, annotations, info = load_split(data, split, revision=config.data_revision, limit=limit)
        found = summary(annotations, geometry, config.num_queries)
        logger.info(describe(found, split, config.num_queries))
        augmentation = config if split == "train" and config.augment else None
        splits.append(CrowdDataset(source, annotations, geometry, augmentation, args.seed))
        record |= {split: found, "revision": info["revision"], "manifest": info["manifest"]}
    record["identity"] = {key: record[key] for key in ("manifest",)} | {
        f"{split}_{key}": record[split][key] for split in limits for key in ("images", "boxes")
    }
    return splits[0], splits[1], record


def built_in_sample(config: Config, args: TrainingArguments) -> str:
    """The pilot's own data: a synthetic crowd, packed as a user would."""
    from data_prep.sample import make_sample
    from data_prep.shards import pack

    folder = Path(f"{config.output_dir}-data")
    packed = folder / "packed"
    with args.main_process_first(desc="the built-in sample"):
        if not (packed / "manifest.json").exists():
            logger.info("making the built-in sample in %s", folder)
            if not (folder / "yolo" / "data.yaml").exists():  # written last: without it a killed process was at it
                shutil.rmtree(folder / "yolo", ignore_errors=True)
                make_sample(folder / "yolo", train=10, val=10, seed=0)
            pack(folder / "yolo", packed)
    return str(packed)


def name_run(folder: Path, args: TrainingArguments) -> str:
    """The run's name on Trackio: as given, else the folder's; one name for all continuations."""
    given = args.run_name if args.run_name != args.output_dir else None
    return given or run.read_record(folder).get("run_name") or folder.resolve().name


def build(config: Config, annotations: Annotations, checkpoint: Path | None) -> Any:
    """The model to train: new, or that of the checkpoint (which needs no access to the gated backbone)."""
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint)
        return load_model(checkpoint)
    return build_model(config, class_prior(annotations, config.num_queries))


def settle(model: Any, args: TrainingArguments, folder: Path) -> Any:
    """Keep the backbone's weights in the run's folder, then freeze and cast them for the training."""
    shard = folder / SHARDS[True]
    if args.should_save and not shard.exists():
        write_backbone(model, shard)  # from the fp32 weights as loaded, before the cast
    freeze(model, torch.bfloat16 if args.bf16 else torch.float32)
    if args.torch_compile:
        compile_backbone(model)
    return model


def class_prior(annotations: Annotations, num_queries: int) -> list[float]:
    """Expected share of each class, and of "no object", among the queries."""
    boxes = np.bincount(annotations.labels, minlength=len(CLASS_NAMES)) / max(len(annotations), 1)
    shares = (boxes / num_queries).clip(max=0.9 / len(CLASS_NAMES)).tolist()
    return [*shares, 1 - sum(shares)]


def watch(trainer: CrowdTrainer, config: Config) -> Deadline:
    """Attach what observes the run: the log file, Trackio, the pictures, the deadline."""
    folder = Path(config.output_dir)
    trainer.add_callback(tracking.MetricsLog())
    trainer.add_callback(Pictures(trainer))
    if trainer.pop_callback(TrackioCallback) is not None:  # the library's own waits for its server, and loses rows
        from recipe.training.dashboard import Dashboard

        trainer.add_callback(Dashboard(folder))
    flags = shlex.join(run.without_tokens(sys.argv)[2:])
    command = f"python jobs/launch.py --flavor a10g-large --pace-from {folder} -- {flags}"
    trainer.add_callback(tracking.PaceLog(len(trainer.train_dataset), len(trainer.eval_dataset), command))
    deadline = Deadline(trainer, config.max_hours)
    trainer.add_callback(deadline)
    return deadline


def finish(trainer: CrowdTrainer, config: Config) -> int:
    """Save the best model at the root of the run, write the report on it, and push both. Returns the exit code."""
    from recipe.report.report import print_summary, write_report

    last = trainer.state.global_step
    kept = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None
    best = trainer.state.best_global_step if kept else None
    if trainer.evaluation is None or best not in (None, last):
        trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation of the final model")
    if not trainer.is_world_process_zero():
        return 0
    folder = Path(config.output_dir)
    assert trainer.evaluation is not None
    found = write_report(folder, trainer.evaluation, trainer.eval_dataset, history=tracking.read_log(folder))
    # Each class's best-F1 score travels in config.json, a plain extra key: `recipe predict` starts from it.
    trainer.model.config.detection_thresholds = found["details"]["thresholds"]
    trainer.save_model()
    values = {key: value for key, value in found.items() if isinstance(value, float)}
    weights = f"the best evaluation, at step {best}" if best is not None else f"the last step, {last}"
    write_card(folder, values, found["details"], run.read_record(folder) | {"weights": weights})
    left = trainer.repo.push(folder, final=True) if trainer.repo is not None else []
    print_summary(found)
    print(f"model      {folder}")
    print(f"report     {folder / 'report' / 'report.md'}")
    print(f"dashboard  trackio show --project {trainer.args.project}")
    if config.preset == "pilot":
        print(f"{last} steps prove that everything runs; scores of 0 are to be expected of them")
    print(f"next       recipe predict {folder} PHOTOS --out DIR")
    return report_unpushed(left, folder)
