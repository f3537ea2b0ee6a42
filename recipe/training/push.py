"""Every checkpoint of a run on the Hub: training waits for each push, and nothing that is missing stays unsaid.

recipe train --hub_model_id USER/NAME ...      the same command on an empty machine resumes the run
recipe push OUTPUT_DIR                         sends what a Hub that stayed away has missed
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe.hub import HubAway, check_write_access
from recipe.record import RUN_FILE, RunRecord
from recipe.schema import UserError
from recipe.training.checkpoints import checkpoints, step_of
from recipe.training.run_repo import RunRepo

logger = logging.getLogger(__name__)

UNPUSHED_EXIT = 3


class Push(TrainerCallback):
    """Sends each checkpoint when it is saved; training waits for it, within the limit of `repo`.

    The library deletes old checkpoints before `on_save` of a new one. While the Hub lacks any, none is deleted.
    """

    def __init__(self, repo: RunRepo) -> None:
        self.repo = repo

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._save_total_limit = args.save_total_limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.should_save:
            folder = Path(args.output_dir)
            args.save_total_limit = self._save_total_limit
            if self.repo.push(folder) and self._save_total_limit:
                args.save_total_limit = max(self._save_total_limit, len(checkpoints(folder)) + 1)


def open_run(name: str, folder: Path, resume: str, *, token: str | None = None, **settings: Any) -> RunRepo:
    """The repo that a run pushes to, with the token's rights checked and the run that it holds read.

    Raises:
        UserError: the token may not write there, or the repo is somebody else's, or its run is not to be resumed.
    """
    repo = RunRepo(name, token=token, **settings)
    try:
        logger.info(check_write_access(name, token=token))
        repo.open(resume)
    except HubAway as error:
        if not (folder / RUN_FILE).exists():  # else a run that the Hub may hold would be started a second time
            raise
        logger.warning("%s; resuming from what lies in %s", error, folder)
    return repo


def push(options: argparse.Namespace) -> int:
    """`recipe push`: send what is not on the Hub yet. Returns the exit code.

    Raises:
        UserError: not a run, no repo given, no right to write there, or the repo holds another run.
    """
    folder, record = options.folder, RunRecord.read(options.folder)
    if record is None:
        raise UserError(f"{folder}: holds no run of this recipe (no {RUN_FILE})")
    name = options.hub_model_id or record.settings["hub_model_id"]
    if not name:
        raise UserError(f"{folder}: was trained without a Hub repo; give one with `--hub_model_id USER/NAME`")
    repo = open_run(name, folder, "auto", private=record.settings["hub_private_repo"] is not False)
    if repo.record is not None:
        repo.record.check_same(record.fixed_settings, f"--hub_model_id {repo.repo_id}")
        logger.info("%s has come to step %d", repo.repo_id, repo.step)
    behind = any(step_of(path) < repo.step for path in checkpoints(folder)[-1:])  # another machine has come further
    finished = (folder / "report" / "report.md").exists()  # then the best model lies at the root of the run
    return report_unpushed(repo.push(folder, final=finished and not behind), folder)


def report_unpushed(left: list[str], folder: Path) -> int:
    """Say what could not be pushed, and return the exit code."""
    if left:
        logger.error("not pushed: %s\nthe Hub has missed it; send it with `recipe push %s`", ", ".join(left), folder)
    return UNPUSHED_EXIT if left else 0
