"""The model repo of a run: every checkpoint a commit, every epoch a tag, and a lost machine's run comes back from it.

    repo = RunRepo("USER/NAME")
    repo.open(resume="auto")                  which run it holds, and how far that has come
    repo.restore(folder, fixed_settings)      brings it to an empty machine
    repo.push(folder)                         sends what is not there yet

Branch main holds the model alone: the newest epoch's while training, the best at the end. Branch training-state
holds, in last-checkpoint/, what resuming needs beside it. The model goes first, and is found again by the step in its
commit's title: whatever is killed between the two commits, the state that is there has its model.
"""

from __future__ import annotations

import functools
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

from recipe.hub import as_user_errors, files_at, first_line, head_commit, send_files, with_retries
from recipe.model.checkpoint import BACKBONE_FILE, link
from recipe.record import RUN_FILE, RunRecord
from recipe.schema import UserError
from recipe.training.checkpoints import checkpoints, is_complete, last_checkpoint, step_of

logger = logging.getLogger(__name__)

BRANCH = "training-state"
LAST = "last-checkpoint"  # the folder in BRANCH; a repo of version 0.1 has it on main, the model's files among it
STATE = "trainer_state.json"
INCOMING = ".incoming"  # in the run's folder, while a checkpoint comes down
MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "README.md")
PLOTS = ("thresholds", "where", "curves")  # the report's pictures without photographs


class RunRepo:
    """One run's repo. `record` is the run.json that it held when it was opened, `step` how far it has come since.

    Args:
        minutes: for one push, all tries and pauses together; then training continues, and what is left is sent later.
    """

    def __init__(self, repo_id: str, *, private: bool = True, minutes: float = 10.0, token: str | None = None) -> None:
        self.repo_id, self.private, self.limit = repo_id, private, minutes * 60
        self.api = HfApi(token=token)
        self.record: RunRecord | None = None
        self.step = 0
        self._opened = ""  # the commit of the training state when it was opened
        self._signature = f"by {uuid.uuid4().hex[:8]}"  # ends the titles of this process's commits to BRANCH
        self._final_is_sent = False
        self._deadline: float | None = None  # of the push that is at work, on time.monotonic()
        self._worker: threading.Thread | None = None

    def open(self, resume: str) -> None:
        """Create the repo if need be, and read which run it holds.

        Raises:
            UserError: it holds something else, or a run and `resume` is "never".
            HubAway: the Hub cannot be reached.
        """
        where = f"--hub_model_id {self.repo_id}"
        with as_user_errors(where), tempfile.TemporaryDirectory() as temporary:
            self.repo_id = self._ask(self.api.create_repo, private=self.private, exist_ok=True).repo_id
            try:
                commit, files = self._ask(functools.partial(head_commit, self.api), revision=BRANCH)
            except RevisionNotFoundError:
                commit, files = self._ask(functools.partial(head_commit, self.api))
                if f"{LAST}/{RUN_FILE}" not in files and set(files) - {".gitattributes", "README.md"}:
                    raise UserError(f"{where}: holds something else than a run of this recipe") from None
            found = self._download(commit, Path(temporary), f"{LAST}/{RUN_FILE}", f"{LAST}/{STATE}") / LAST
            if (found / RUN_FILE).exists():
                self.record = RunRecord.load(found / RUN_FILE)
            if (found / STATE).exists():
                self.step = json.loads((found / STATE).read_text()).get("global_step", 0)
        if self.record is not None and resume == "never":
            raise UserError(
                f"{where}: holds the run {self.record.run_name} of {self.record.started}. "
                "Give another repo, delete it, or resume the run by `--resume auto`"
            )
        self._opened = commit

    def _ask(self, call: Callable[..., Any], **given: Any) -> Any:
        """One of the client's functions about this repo, with retries."""
        name = getattr(call, "__name__", "reading")
        return with_retries(f"{name} {self.repo_id}", lambda: call(self.repo_id, **given), self._deadline)

    # ---- from the Hub ----

    def restore(self, folder: Path, expected: Mapping[str, Any]) -> None:
        """Bring the run that `open` found into `folder`, unless what lies there has come as far.

        Raises:
            UserError: the run in the repo or in the folder has other settings, or cannot be fetched.
        """
        if self.record is None:
            return
        self.record.check_same(expected, f"--hub_model_id {self.repo_id}")
        here = RunRecord.read(folder)
        if here is not None:
            here.check_same(expected, f"--output_dir {folder}")
        elif any(not path.name.startswith(".") for path in folder.glob("*")) and not (folder / INCOMING).exists():
            return  # something else lies there, and no killed download: opening the run's folder says so
        checkpoint = last_checkpoint(folder)
        if self.step > (step_of(checkpoint) if checkpoint is not None else 0):
            logger.info("resuming %s from step %d", self.repo_id, self.step)
            with as_user_errors(f"--hub_model_id {self.repo_id}: cannot be fetched"):
                self._fetch(folder)
            self.record.write(folder)  # last: without it the folder is no run yet
        shutil.rmtree(folder / INCOMING, ignore_errors=True)

    def _fetch(self, folder: Path) -> None:
        """The last checkpoint, and the model of the best one, which is needed at the end."""
        state = self._download(self._opened, folder / INCOMING / self._opened, f"{LAST}/*") / LAST
        best = json.loads((state / STATE).read_text())["best_global_step"]
        history = self._ask(self.api.list_repo_commits)
        for step in sorted({best or self.step, self.step}):
            commit = next((each.commit_id for each in history if each.title.endswith(f", step {step}")), None)
            if commit is None:
                raise UserError(f"--hub_model_id {self.repo_id}: its history holds no model of step {step} any more")
            staged, target = folder / INCOMING / commit, folder / f"checkpoint-{step}"
            staged.mkdir(exist_ok=True)
            if (folder / BACKBONE_FILE).exists():  # frozen: one file for all checkpoints
                link(folder / BACKBONE_FILE, staged / BACKBONE_FILE)
            self._download(commit, staged, *MODEL_FILES)
            link(staged / BACKBONE_FILE, folder / BACKBONE_FILE)
            for path in state.iterdir() if step == self.step else ():
                path.replace(staged / path.name)
            if step == self.step and not is_complete(staged):
                raise UserError(f"--hub_model_id {self.repo_id}: the checkpoint of step {step} there is not complete")
            shutil.rmtree(staged / ".cache")  # the client's own
            shutil.rmtree(target, ignore_errors=True)
            staged.replace(target)

    def _download(self, commit: str, into: Path, *patterns: str) -> Path:
        """The files of one commit that match; those that are there already, unchanged, are not fetched again."""
        for name in self._ask(functools.partial(files_at, self.api), commit=commit):
            in_both = name.startswith(f"{LAST}/") and matches(name.removeprefix(f"{LAST}/"), *MODEL_FILES)
            if matches(name, *patterns) and not in_both:
                self._ask(self.api.hf_hub_download, filename=name, revision=commit, local_dir=into)
        return into

    # ---- to the Hub ----

    def push(self, folder: Path, *, final: bool = False) -> list[str]:
        """Send every checkpoint that is not there yet, oldest first, and with `final` the finished run.

        Waits for it, but not beyond the limit: an upload that is not done then continues beside the training.
        Whatever goes wrong is logged and never raised.

        Returns:
            What is still to be sent, in words.
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
        """Before anything is sent: the repo is this run's, and no other process has continued the run in it.

        Raises:
            UserError: it holds another run, or another process resumed this one.
        """
        if not self._opened:  # the Hub was away at the start
            self.open("auto")
        ours = RunRecord.load(folder / RUN_FILE)
        if self.record is not None:
            self.record.check_same(ours.fixed_settings, f"--hub_model_id {self.repo_id}")
        self._ask(self.api.create_branch, branch=BRANCH, revision=self._opened, exist_ok=True)
        newest = self._ask(self.api.list_repo_commits, revision=BRANCH)[0]
        if newest.commit_id != self._opened and not newest.title.endswith(self._signature):
            raise UserError("another process has pushed to it since it was opened here; this one stops pushing")
        if self.record is None:  # the repo is this run's before it holds a model
            self._commit({f"{LAST}/{RUN_FILE}": folder / RUN_FILE}, "The run", BRANCH)
            self.record = ours

    def _send_checkpoint(self, checkpoint: Path) -> None:
        """Its model to main, a tag at the end of an epoch, then its state to the state's branch."""
        step, started = step_of(checkpoint), time.monotonic()
        epoch = json.loads((checkpoint / STATE).read_text())["epoch"]
        tag = f"epoch-{round(epoch):02d}" if abs(epoch - round(epoch)) < 1e-6 else None
        title = f"{tag or 'Within an epoch'}, step {step}"
        model = {path.name: path for path in model_files(checkpoint)}
        others = [path for path in checkpoint.iterdir() if path.is_file() and path.name not in model]
        state = {f"{LAST}/{path.name}": path for path in [*others, checkpoint.parent / RUN_FILE]}
        version_0_1 = [*state, *(f"{LAST}/{name}" for name in model)]  # lay on main
        commit = self._commit(model, title, delete=version_0_1)
        if tag is not None:
            self._ask(self.api.create_tag, tag=tag, revision=commit, exist_ok=True)
        self._commit(state, title, BRANCH)
        self.step = step
        logger.info("%s is on the Hub after %.0f s", checkpoint.name, time.monotonic() - started)

    def _send_final(self, folder: Path) -> None:
        """The model at the root of the run's folder and its report, without photographs where the repo is public."""
        private = self._ask(self.api.repo_info).private
        report = sorted((folder / "report").glob("*"))
        shown = [path for path in report if private or path.suffix != ".png" or path.stem in PLOTS]
        files = {str(path.relative_to(folder)): path for path in [*model_files(folder), *shown]}
        self._commit(files, "The final model and its report")
        self._final_is_sent = True

    def _commit(self, files: Mapping[str, Path], title: str, branch: str | None = None, **others: Any) -> str:
        title = f"{title}, {self._signature}" if branch else title
        return send_files(self.api, self.repo_id, files, title, self._deadline, revision=branch, **others)


def matches(name: str, *patterns: str) -> bool:
    """Whether one of the patterns names this file; `*` stays within a folder."""
    return any(fnmatch(name, each) and name.count("/") == each.count("/") for each in patterns)


def model_files(folder: Path) -> list[Path]:
    """What makes a folder a model for plain transformers, and its card."""
    return [path for path in sorted(folder.iterdir()) if matches(path.name, *MODEL_FILES)]
