"""`recipe train`, as the recipe reads: settings, data, model, training, report.

recipe train --preset pilot
recipe train --data DIR_OR_REPO --output_dir outputs/run
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from recipe.arguments import Arguments, parse
from recipe.config import DEADLINE_EXIT, DIVERGED_EXIT
from recipe.data.annotations import Annotations
from recipe.doctor import driver, installed_driver
from recipe.evaluation.metrics import DetectionMetrics
from recipe.model.checkpoint import BACKBONE_FILE, init_from, load_detector, write_backbone
from recipe.model.detector import Detector, build_detector, build_processor, freeze
from recipe.model.precision import check_precision, quantise
from recipe.record import RUN_FILE, RunRecord, read_log, without_tokens
from recipe.report.advice import Outlook
from recipe.report.card import Card, write_card
from recipe.report.pictures import Pictures
from recipe.report.report import print_numbers, write_report
from recipe.training.checkpoints import Resume, Seal, last_checkpoint, seal_old_checkpoints
from recipe.training.dashboard import Dashboard, address, job_space
from recipe.training.deadline import Deadline
from recipe.training.logs import MetricsLog, PaceLog
from recipe.training.memory import find_batch_size
from recipe.training.processes import run_on_all
from recipe.training.push import Push, RunRepo, open_run, report_unpushed
from recipe.training.run import (
    check_run_folder,
    check_shared,
    fix_revisions,
    fixed_settings,
    lock_run_folder,
    write_record,
)
from recipe.training.splits import Splits, load_splits
from recipe.training.trainer import CrowdTrainer, Diverged

logger = logging.getLogger(__name__)


def start(options: argparse.Namespace) -> int:
    """`recipe train`: in this process, or in one for each GPU. Returns the exit code."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and "LOCAL_RANK" not in os.environ:
        return run_on_all(gpus, ["train", *options.flags])
    return train(parse(options.flags))


def train(args: Arguments) -> int:
    """Train, keep the best model, write the report. Returns the exit code: 0, 3, 70 or 75."""
    # 1. The run: its folder and its repo, which are no other run's.
    folder, expected = Path(args.output_dir), fixed_settings(args)
    say_driver()
    if "JOB_ID" in os.environ:
        prepare_for_job(args)
    check_precision(args.backbone_precision)
    repo = open_repo(args)
    fix_revisions(args, repo.record if repo is not None else None)
    lock = lock_run_folder(folder) if args.should_save else None  # kept open: ours until this process ends
    check_shared(folder, lock)

    # 2. The data, and how far a run on the same data has come.
    data = load_splits(args)
    expected |= {"dataset": data.record["fixed"]}
    checkpoint = find_checkpoint(args, repo, expected)

    # 3. The model, and the batch size that fits.
    set_seed(args.seed)
    model, processor = build_model(args, data.train.annotations, checkpoint)
    if args.should_save:  # before any other file: a folder without its record is not resumed
        write_record(folder, args, expected, data.record)
    model = freeze_and_save_backbone(model, args, folder)
    if torch.cuda.is_available():
        find_batch_size(args, model, processor, data.train, grow=checkpoint is None)

    # 4. The training.
    metrics, deadline = DetectionMetrics(num_queries=args.num_queries), Deadline(args.max_hours)
    callbacks = [*make_callbacks(args, data, metrics, repo, checkpoint), deadline]
    trainer = CrowdTrainer(args, model, processor, data.train, data.validation, metrics, callbacks, part=data.part)
    gc.freeze()  # a collection writes to all objects, and so parts 120 MB from what the loader workers share with us
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Diverged as error:
        best = trainer.state.best_model_checkpoint
        again = f" from the best checkpoint, --init_from {best}" if best else ""
        words = "error: %s. Nothing of it was saved; start a new --output_dir with a lower --learning_rate%s"
        logger.error(words, error, again)
        return DIVERGED_EXIT
    finally:
        gc.unfreeze()

    # 5. The best model and its report; or not yet.
    if deadline.reason is None:
        return finish(trainer, repo)
    logger.warning("stopped: %s; the same command resumes from %s", deadline.reason, last_checkpoint(folder))
    if repo is not None:
        report_unpushed(repo.unpushed(folder), folder)
    return DEADLINE_EXIT


def say_driver() -> None:
    """One line where there is an NVIDIA driver: too old for the locked CUDA, it would only show as a missing GPU."""
    fine, words = driver(torch.version.cuda, installed_driver())
    if fine is not None:
        logger.log(logging.INFO if fine else logging.WARNING, "driver %s", words)


def prepare_for_job(args: Arguments) -> None:
    """In a job of HF Jobs, also one started by hand: no variable, nor the Hub's client (2.4), tells its timeout."""
    args.trackio_space_id = job_space(args)
    if args.max_hours is None and args.max_steps < 0:
        logger.warning("a job is killed at its timeout: give --max_hours, an hour below `hf jobs run --timeout`")
    if not args.push_to_hub:
        logger.warning("a job's disk is gone at its end: give --hub_model_id USER/NAME, or mount a bucket")


def open_repo(args: Arguments) -> RunRepo | None:
    """The Hub repo of this run, on the process that pushes; found wanting now rather than at the first push."""
    wanted, args.push_to_hub = args.push_to_hub, False  # Trainer's own pushes lose epochs in silence; `Push` waits
    if not wanted or not args.should_save:
        return None
    folder = Path(args.output_dir)
    settings = {"private": args.hub_private_repo, "minutes": args.push_minutes, "token": args.hub_token}
    repo = open_run(args.hub_model_id or folder.resolve().name, folder, args.resume, **settings)
    args.hub_model_id = repo.repo_id
    return repo


def find_checkpoint(args: Arguments, repo: RunRepo | None, expected: Mapping[str, Any]) -> Path | None:
    """The last complete checkpoint of this run, here or on the Hub; None to start anew."""
    folder = Path(args.output_dir)
    with args.main_process_first(local=False, desc="the checkpoint to resume from"):
        if args.should_save:
            if repo is not None:
                repo.restore(folder, expected)
            check_run_folder(folder, expected, args.resume)
            seal_old_checkpoints(folder)
        return last_checkpoint(folder)


def build_model(args: Arguments, annotations: Annotations, checkpoint: Path | None) -> tuple[Detector, Any]:
    """The detector as it stands at the checkpoint, or a new one; and the processor that is saved beside it."""
    if checkpoint is not None:
        model = load_detector(checkpoint)
    elif args.init_from is not None:
        model = init_from(args.init_from, args)
    else:
        model = build_detector(args, annotations.class_prior(args.num_queries))
    return model, build_processor(args, model.config.backbone_config)


def freeze_and_save_backbone(model: Detector, args: Arguments, folder: Path) -> Detector:
    """Keep the backbone's weights in the run's folder, then freeze and cast them for the training."""
    shard = folder / BACKBONE_FILE
    if args.should_save and not shard.exists():
        write_backbone(model, shard)  # from the fp32 weights as loaded, before the cast
    freeze(model, torch.bfloat16 if args.bf16 else torch.float32).to(args.device)
    quantise(model.model.backbone, args.backbone_precision)
    if args.torch_compile or (args.torch_compile is None and args.device.type == "cuda"):  # minutes on a CPU
        model.model.backbone.model.compile_layers(required=bool(args.torch_compile))
    return model


def make_callbacks(
    args: Arguments, data: Splits, metrics: DetectionMetrics, repo: RunRepo | None, checkpoint: Path | None
) -> list[TrainerCallback]:
    """What observes the run, in the order in which it is called: a checkpoint is sealed, gets its card, is pushed."""
    flags = shlex.join(without_tokens(sys.argv)[2:])
    command = f"python jobs/launch.py --flavor a10g-large --pace-from {args.output_dir} -- {flags}"
    pictures = Pictures(metrics, data.part or data.validation, args.shown_images)
    pace = PaceLog(len(data.train), len(data.validation), command)
    callbacks: list[TrainerCallback] = [Resume(checkpoint), MetricsLog(), pace, Outlook(), pictures, Seal()]
    if repo is not None:
        callbacks += [Card(metrics), Push(repo, args.save_total_limit)]
    if "trackio" in args.report_to:  # the library's own waits for its server, and loses rows
        args.report_to.remove("trackio")
        callbacks.append(Dashboard(Path(args.output_dir)))
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    return callbacks


def finish(trainer: CrowdTrainer, repo: RunRepo | None) -> int:
    """Save the best model at the root of the run, write the report on it, and push both. Returns the exit code."""
    args, state, metrics = trainer.args, trainer.state, trainer.metrics
    last, best = state.global_step, state.best_global_step if args.load_best_model_at_end else None
    if metrics.step != last or best not in (None, last):
        trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation of the final model")
    if not trainer.is_world_process_zero():
        return 0
    folder = Path(args.output_dir)
    record = RunRecord.load(folder / RUN_FILE)
    found = write_report(folder, metrics, trainer.eval_dataset, record=vars(record), history=read_log(folder))
    # Each class's best-F1 score travels in config.json, a plain extra key: `recipe predict` starts from it.
    trainer.model.config.detection_thresholds = found["details"]["thresholds"]
    trainer.save_model()
    weights = f"the best evaluation, at step {best}" if best is not None else f"the last step, {last}"
    write_card(folder, metrics.compute(), metrics.details(), record, weights)
    left = repo.push(folder, final=True) if repo is not None else []
    print_numbers(found)
    print(f"model      {folder}{f' and {repo.api.endpoint}/{repo.repo_id}' if repo is not None else ''}")
    print(f"report     {folder / 'report' / 'report.md'}")
    print(f"dashboard  {address(record.settings)}")
    if args.preset == "pilot":
        print(f"{last} steps prove that everything runs; scores of 0 are to be expected of them")
    print(f"next       recipe predict {folder} PHOTOS --out DIR")
    return report_unpushed(left, folder)
