"""The model repo of a run: every checkpoint a commit, every epoch a tag, and a lost machine's run comes back from it.

recipe train --hub_model_id USER/NAME ...      the same command on an empty machine resumes the run
recipe push OUTPUT_DIR                         sends what a Hub that stayed away has missed

Branch main holds the model alone: the newest epoch's while training, the best at the end. Branch training-state
holds, in last-checkpoint/, what resuming needs beside it. The model goes first, and is found again by the step in its
commit's title: whatever is killed between the two commits, the state that is there has its model.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe.hub import HubAway, as_user_errors, check_write_access, files_of, first_line, send_files, with_retries
from recipe.model.checkpoint import BACKBONE_FILE, link
from recipe.record import RUN_FILE, RunRecord
from recipe.schema import UserError
from recipe.training.checkpoints import SEAL, checkpoints, is_complete, last_checkpoint, seal, step_of

logger = logging.getLogger(__name__)

BRANCH = "training-state"
LAST = "last-checkpoint"  # the folder in BRANCH; a repo of version 0.1 has it on main, with a copy of the model
STATE = "trainer_state.json"
INCOMING = ".incoming"  # in the run's folder, while a checkpoint comes down
MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "README.md")
PLOTS = ("thresholds", "where", "curves")  # the report's pictures without photographs
UNPUSHED_EXIT = 3


class RunRepo:
    """One run's repo: its `record` (run.json) when it was opened, and the `step` to which it has come since.

    One push may take `minutes`, all tries and pauses together: what is left then is sent later.
    """

    def __init__(self, repo_id: str, *, private: bool = True, minutes: float = 10.0, token: str | None = None) -> None:
        self.api, self.repo_id, self.where = HfApi(token=token), repo_id, f"--hub_model_id {repo_id}"
        self.private, self.limit = private, minutes * 60  # seconds
        self.record: RunRecord | None = None
        self.step = 0
        self._opened = ""  # the commit of the training state when it was opened
        self._signature = f"by {uuid.uuid4().hex[:8]}"  # ends the titles of this process's commits to BRANCH
        self._final_is_sent = False
        self._deadline: float | None = None  # of the push that is at work, on time.monotonic()
        self._worker: threading.Thread | None = None

    def open(self, resume: str) -> None:
        """Create the repo if need be, and read its run; UserError for anything else, or where `resume` is "never"."""
        with as_user_errors(self.where), tempfile.TemporaryDirectory() as temporary:
            self.repo_id = self._ask(self.api.create_repo, private=self.private, exist_ok=True).repo_id
            try:
                head = self._ask(self.api.repo_info, revision=BRANCH)
            except RevisionNotFoundError:
                head = self._ask(self.api.repo_info)
            if f"{LAST}/{RUN_FILE}" in files_of(head):
                found = self._download(head.sha, Path(temporary), f"{LAST}/{RUN_FILE}", f"{LAST}/{STATE}") / LAST
                self.record = RunRecord.load(found / RUN_FILE)
                if (found / STATE).exists():
                    self.step = json.loads((found / STATE).read_text())["global_step"]
            elif files_of(head) - {".gitattributes", "README.md"}:
                raise UserError(f"{self.where}: holds something else than a run of this recipe")
        if self.record is not None and resume == "never":
            there = f"holds the run {self.record.run_name} of {self.record.started}"
            raise UserError(f"{self.where}: {there}. Give another repo, or resume the run by `--resume auto`")
        self._opened = head.sha

    def _ask(self, call: Callable[..., Any], **given: Any) -> Any:
        """One of the client's functions about this repo, with retries."""
        return with_retries(f"{call.__name__} {self.repo_id}", lambda: call(self.repo_id, **given), self._deadline)

    def _download(self, commit: str, cache: Path, *patterns: str) -> Path:
        """The files of a commit that match, as links into `cache`, to which each comes once."""
        return Path(self._ask(self.api.snapshot_download, revision=commit, cache_dir=cache, allow_patterns=patterns))

    def restore(self, folder: Path, expected: Mapping[str, Any]) -> None:
        """Bring the run to `folder`, unless what lies there has come as far; UserError where its settings differ."""
        if self.record is None:
            return
        self.record.check_same(expected, self.where)
        here = RunRecord.read(folder)
        if here is not None:
            here.check_same(expected, f"--output_dir {folder}")
        elif any(not path.name.startswith(".") for path in folder.glob("*")) and not (folder / INCOMING).exists():
            return  # something else lies there, and no killed download: opening the run's folder says so
        checkpoint = last_checkpoint(folder)
        if self.step > (step_of(checkpoint) if checkpoint is not None else 0):
            logger.info("resuming %s from step %d", self.repo_id, self.step)
            with as_user_errors(f"{self.where}: cannot be fetched"):
                self._fetch(folder)
            self.record.write(folder)  # last: without it the folder is no run yet
        shutil.rmtree(folder / INCOMING, ignore_errors=True)

    def _fetch(self, folder: Path) -> None:
        """The last checkpoint, and the model of the best one, which is needed at the end."""
        state = self._download(self._opened, folder / INCOMING, f"{LAST}/*") / LAST
        best = json.loads((state / STATE).read_text())["best_global_step"] or self.step
        history = self._ask(self.api.list_repo_commits)
        for step in sorted({best, self.step}):
            commit = next((each.commit_id for each in history if each.title.endswith(f", step {step}")), None)
            if commit is None:
                raise UserError(f"{self.where}: its history holds no model of step {step} any more")
            model = self._download(commit, folder / INCOMING, *MODEL_FILES)
            checkpoint = folder / f"checkpoint-{step}"
            checkpoint.mkdir(exist_ok=True)
            for path in [*(state.iterdir() if step == self.step else ()), *model_files(model)]:
                link(path.resolve(), checkpoint / path.name)
            link(checkpoint / BACKBONE_FILE, folder / BACKBONE_FILE)
        if not (state / SEAL).exists():  # as version 0.1 wrote it
            seal(checkpoint)
        if not is_complete(checkpoint):
            raise UserError(f"{self.where}: the checkpoint of step {self.step} there is not complete")

    def push(self, folder: Path, *, final: bool = False) -> list[str]:
        """Send every checkpoint that is not there yet, oldest first, and with `final` the finished run.

        Waits for it, but not beyond the limit: an upload that is not done then continues beside the training.
        Whatever goes wrong is logged and never raised. Returns what is still to be sent, in words.
        """
        end = time.monotonic() + self.limit
        if self._worker is not None:
            self._worker.join(self.limit)
        if self._worker is None or not self._worker.is_alive():
            self._deadline = end
            self._worker = threading.Thread(target=self._send, args=(folder, final), daemon=True)
            self._worker.start()
            self._worker.join(max(0.0, end - time.monotonic()))
        return self.unpushed(folder, final=final)

    def unpushed(self, folder: Path, *, final: bool = False) -> list[str]:
        """What the Hub lacks, oldest first, in words: it is never taken back to an earlier step."""
        left = [path.name for path in checkpoints(folder) if step_of(path) > self.step and is_complete(path)]
        return left + (["the final model and its report"] if final and not self._final_is_sent else [])

    def _send(self, folder: Path, final: bool) -> None:
        disable_progress_bars()
        try:
            self._check_owner(folder)
            for name in self.unpushed(folder):
                self._send_checkpoint(folder / name)
            if final:
                self._send_final(folder)
        except Exception as error:  # nothing that happens to a push may end a training
            logger.warning("not pushed to %s (%s): %s", self.repo_id, type(error).__name__, first_line(error))

    def _check_owner(self, folder: Path) -> None:
        """Raises UserError where the repo holds another run, or another process has resumed this one in it."""
        if not self._opened:  # the Hub was away at the start
            self.open("auto")
        ours = RunRecord.load(folder / RUN_FILE)
        if self.record is not None:
            self.record.check_same(ours.fixed_settings, self.where)
        self._ask(self.api.create_branch, branch=BRANCH, revision=self._opened, exist_ok=True)
        newest = self._ask(self.api.list_repo_commits, revision=BRANCH)[0]
        if newest.commit_id != self._opened and not newest.title.endswith(self._signature):
            raise UserError("another process has pushed to it since it was opened here; this one stops pushing")
        if self.record is None:  # the repo is this run's before it holds a model
            self._commit({f"{LAST}/{RUN_FILE}": folder / RUN_FILE}, f"The run, {self._signature}", revision=BRANCH)
            self.record = ours

    def _send_checkpoint(self, checkpoint: Path) -> None:
        """Its model to main, a tag at the end of an epoch, then its state to the state's branch."""
        epoch, step = json.loads((checkpoint / STATE).read_text())["epoch"], step_of(checkpoint)
        tag = f"epoch-{round(epoch):02d}" if abs(epoch - round(epoch)) < 1e-6 else None
        title = f"{tag or 'Within an epoch'}, step {step}"
        model = {path.name: path for path in model_files(checkpoint)}
        others = [path for path in checkpoint.iterdir() if path.is_file() and path.name not in model]
        state = {f"{LAST}/{path.name}": path for path in [*others, checkpoint.parent / RUN_FILE]}
        commit = self._commit(model, title, delete=[*state, *(f"{LAST}/{name}" for name in model)])  # of version 0.1
        if tag is not None:
            self._ask(self.api.create_tag, tag=tag, revision=commit, exist_ok=True)
        self._commit(state, f"{title}, {self._signature}", revision=BRANCH)
        self.step = step
        logger.info("%s is on the Hub", checkpoint.name)

    def _send_final(self, folder: Path) -> None:
        """The model at the root of the run's folder and its report, without photographs where the repo is public."""
        private = self._ask(self.api.repo_info).private  # asked of the Hub: one of before is as it was
        report = sorted((folder / "report").glob("*"))
        shown = [path for path in report if private or path.suffix != ".png" or path.stem in PLOTS]
        files = {str(path.relative_to(folder)): path for path in [*model_files(folder), *shown]}
        self._commit(files, "The final model and its report")
        self._final_is_sent = True

    def _commit(self, files: Mapping[str, Path], title: str, **where: Any) -> str:
        return send_files(self.api, self.repo_id, files, title, self._deadline, **where)


def model_files(folder: Path) -> list[Path]:
    """What makes a folder a model for plain transformers, and its card."""
    return [path for path in sorted(folder.iterdir()) if any(fnmatch(path.name, each) for each in MODEL_FILES)]


class Push(TrainerCallback):
    """Sends each checkpoint when it is saved, and waits for it. While the Hub lacks any, none is deleted."""

    def __init__(self, repo: RunRepo, save_total_limit: int | None) -> None:
        self.repo, self.save_total_limit = repo, save_total_limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.should_save:
            folder = Path(args.output_dir)
            args.save_total_limit = self.save_total_limit
            if self.repo.push(folder) and self.save_total_limit:
                # The library deletes old ones before the next `on_save`.
                args.save_total_limit = max(self.save_total_limit, len(checkpoints(folder)) + 1)


def open_run(name: str, folder: Path, resume: str, *, token: str | None = None, **settings: Any) -> RunRepo:
    """The repo that a run pushes to, opened; raises UserError where the token may not write there, or as `open`."""
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
    """`recipe push`: send what is not on the Hub yet. Returns the exit code; UserError where it cannot be begun."""
    folder, record = options.folder, RunRecord.read(options.folder)
    if record is None:
        raise UserError(f"{folder}: holds no run of this recipe (no {RUN_FILE})")
    name = options.hub_model_id or record.settings["hub_model_id"]
    if not name:
        raise UserError(f"{folder}: was trained without a Hub repo; give one with `--hub_model_id USER/NAME`")
    repo = open_run(name, folder, "auto", private=record.settings["hub_private_repo"] is not False)
    if repo.record is not None:
        repo.record.check_same(record.fixed_settings, repo.where)
        logger.info("%s has come to step %d", repo.repo_id, repo.step)
    behind = any(step_of(path) < repo.step for path in checkpoints(folder)[-1:])  # another machine has come further
    finished = (folder / "report" / "report.md").exists()  # then the best model lies at the root of the run
    return report_unpushed(repo.push(folder, final=finished and not behind), folder)


def report_unpushed(left: list[str], folder: Path) -> int:
    """Say what could not be pushed, and return the exit code."""
    if left:
        logger.error("not pushed: %s\nthe Hub has missed it; send it with `recipe push %s`", ", ".join(left), folder)
    return UNPUSHED_EXIT if left else 0
