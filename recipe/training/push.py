"""The run on the Hub: every checkpoint a commit, every epoch a tag, and a lost machine goes on from there.

    recipe train --hub_model_id USER/NAME ...      the same command on an empty machine goes on
    recipe push OUTPUT_DIR                         sends what a Hub that stayed away has missed

In the repo: the newest epoch's model at the root (the best at the end), all that training needs in last-checkpoint/.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars

from recipe.commits import Tree, addition, head, is_there, send_files, tree
from recipe.hub import HubAway, check_write_access, in_a_line, plainly, retry
from recipe.model.checkpoint import SHARDS, link
from recipe.schema import UserError
from recipe.training.backlog import PUSHED, backlog, mark, model_files, report_files, tag_of, unpushed
from recipe.training.run import RUN_FILE, check_same, find_best, is_whole, last_checkpoint, read_record, step_of

logger = logging.getLogger(__name__)

LAST = "last-checkpoint"
STATE = "trainer_state.json"
INCOMING = ".incoming"
UNPUSHED_EXIT = 3


class RunRepo:
    """The model repo of one run.

    Args:
        minutes: for one push, all tries and pauses together; then training goes on, and what is left is sent later.
    """

    def __init__(self, repo_id: str, *, private: bool = True, minutes: float = 10.0, token: str | None = None) -> None:
        self.repo_id, self.private, self.limit = repo_id, private, minutes * 60
        self.api = HfApi(token=token)
        self.record: dict[str, Any] | None = None  # run.json of the run that the repo holds, as `open` found it
        self.state: dict[str, Any] = {}  # and its trainer_state.json: how far it has come
        self._commit = ""  # the repo's newest commit then
        self._worker: threading.Thread | None = None

    # ---- at the start ----

    def open(self, resume: str) -> None:
        """Create the repo if need be, and read which run it holds.

        Raises:
            UserError: it holds something else, or a run and `resume` is "never".
            HubAway: the Hub cannot be reached.
        """
        with plainly(f"--hub_model_id {self.repo_id}"):
            names = self._look()
        if self.record is None and set(names) - {".gitattributes", "README.md"}:
            raise UserError(f"--hub_model_id {self.repo_id}: holds something else than a run of this recipe")
        if self.record is not None and resume == "never":
            raise UserError(
                f"--hub_model_id {self.repo_id}: holds the run {self.record['run_name']} of {self.record['started']}. "
                "Give another repo, delete it, or go on with the run by `--resume auto`"
            )

    def restore(self, folder: Path, wanted: Mapping[str, Any]) -> None:
        """Bring the run that `open` found into `folder`, unless what lies there has come as far.

        Raises:
            UserError: the run in the repo has other settings, or cannot be fetched.
        """
        if self.record is None:
            return
        check_same(self.record["identity"], wanted, f"--hub_model_id {self.repo_id}")
        # A download that was killed has left its folder; the run.json comes last.
        ours = (folder / INCOMING).exists() or read_record(folder).get("identity") == wanted
        if not ours and folder.exists() and any(folder.iterdir()):
            return  # something else lies there: `run.claim` says so
        with plainly(f"--hub_model_id {self.repo_id}: cannot be fetched"):
            here = last_checkpoint(folder)
            if here is None or step_of(here) < self.state["global_step"]:
                self._restore(folder)
        shutil.rmtree(folder / INCOMING, ignore_errors=True)

    def _restore(self, folder: Path) -> None:
        state = self.state
        last, best = state["global_step"], state["best_global_step"]
        logger.info("going on with %s from step %d", self.repo_id, last)
        if best not in (None, last):  # its weights are needed at the end
            read = functools.partial(self.api.list_repo_commits, self.repo_id, revision=self._commit)
            commits = retry(f"reading {self.repo_id}", read)
            self._fetch(next(c.commit_id for c in commits if c.title.endswith(f"step {best}")), best, folder)
        checkpoint = self._fetch(self._commit, last, folder)
        find_best(checkpoint)
        self._tag(state, self._commit)  # the machine may have died between the commit and its tag
        (folder / RUN_FILE).write_text(json.dumps(self.record, indent=2) + "\n")

    def _fetch(self, commit: str, step: int, folder: Path) -> Path:
        """The checkpoint that `commit` holds, as folder/checkpoint-N; the frozen backbone is fetched once."""
        incoming, backbone = folder / INCOMING / commit, folder / SHARDS[True]
        files = retry(f"reading {self.repo_id}", lambda: tree(self.api, self.repo_id, commit))
        for name, found in files.items():
            if name == f"{LAST}/{SHARDS[True]}":
                if not (backbone.exists() and is_there(addition(name, backbone), found)):
                    self._download(name, commit, incoming).replace(backbone)
            elif name.startswith(f"{LAST}/"):
                self._download(name, commit, incoming)
        link(backbone, incoming / LAST / SHARDS[True])
        if not is_whole(incoming / LAST):
            raise OSError(f"its {LAST} of commit {commit} is not whole")
        mark(incoming / LAST, self.repo_id, commit)
        target = folder / f"checkpoint-{step}"
        shutil.rmtree(target, ignore_errors=True)
        (incoming / LAST).replace(target)
        return target

    # ---- while training ----

    def push(self, folder: Path, *, final: bool = False) -> list[str]:
        """Send every checkpoint that is not there yet, oldest first, and with `final` the finished run.

        Waits for it, but not beyond the limit: an upload that is still going on then goes on beside the training.
        Whatever goes wrong is logged and never raised.

        Returns:
            What is still to be sent, in words.
        """
        end = time.monotonic() + self.limit
        if self._worker is not None:
            self._worker.join(self.limit)
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(target=self._send, args=(folder, final, end), daemon=True)
            self._worker.start()
            self._worker.join(max(0.0, end - time.monotonic()))
        return unpushed(folder, self.repo_id, final=final)

    def _send(self, folder: Path, final: bool, deadline: float) -> None:
        disable_progress_bars()
        try:
            if not self._commit:  # the Hub was away at the start
                self._look(deadline)
            if self.record is not None:
                check_same(self.record["identity"], read_record(folder)["identity"], f"--hub_model_id {self.repo_id}")
            for checkpoint in backlog(folder, self.repo_id):
                self._send_checkpoint(folder, checkpoint, deadline)
            if final:
                info = retry(f"reading {self.repo_id}", lambda: self.api.repo_info(self.repo_id), deadline)
                paths = [*model_files(folder), *report_files(folder, private=bool(info.private))]
                files = {str(path.relative_to(folder)): path for path in paths}
                commit = send_files(self.api, self.repo_id, files, "The final model and its report", deadline)
                mark(folder, self.repo_id, commit)
        except Exception as error:  # nothing that happens to a push may end a training
            logger.warning("not pushed to %s (%s): %s", self.repo_id, type(error).__name__, in_a_line(error))

    def _send_checkpoint(self, folder: Path, checkpoint: Path, deadline: float) -> None:
        state = json.loads((checkpoint / STATE).read_text())
        if step_of(checkpoint) <= (there := self.state.get("global_step", 0)):
            logger.info("%s is not sent: %s has come to step %d", checkpoint.name, self.repo_id, there)
            if step_of(checkpoint) == there:  # the machine may have died between the commit and its tag
                self._tag(state, self._commit, deadline)
            mark(checkpoint, self.repo_id, self._commit)
            return
        files = {path.name: path for path in model_files(checkpoint)}
        kept = [path for path in checkpoint.iterdir() if path.is_file() and path.name not in (PUSHED, "README.md")]
        files |= {f"{LAST}/{path.name}": path for path in [*kept, folder / RUN_FILE]}
        title, started = f"{tag_of(state) or 'Within an epoch'}, step {step_of(checkpoint)}", time.monotonic()
        commit = send_files(self.api, self.repo_id, files, title, deadline)
        self._tag(state, commit, deadline)
        mark(checkpoint, self.repo_id, commit)
        logger.info("%s is on the Hub after %.0f s", checkpoint.name, time.monotonic() - started)

    def _tag(self, state: Mapping[str, Any], commit: str, deadline: float | None = None) -> None:
        if (tag := tag_of(state)) is not None:
            create = functools.partial(self.api.create_tag, self.repo_id, tag=tag, revision=commit, exist_ok=True)
            retry(f"tagging {tag} in {self.repo_id}", create, deadline)

    # ---- requests ----

    def _look(self, deadline: float | None = None) -> Tree:
        """Create the repo if need be, and read which run it holds and how far that has come."""
        create = functools.partial(self.api.create_repo, self.repo_id, private=self.private, exist_ok=True)
        self.repo_id = retry(f"creating {self.repo_id}", create, deadline).repo_id
        commit, names = retry(f"reading {self.repo_id}", lambda: head(self.api, self.repo_id), deadline)
        if f"{LAST}/{RUN_FILE}" in names:
            with tempfile.TemporaryDirectory() as folder:
                files = [self._download(f"{LAST}/{name}", commit, Path(folder)) for name in (RUN_FILE, STATE)]
                self.record, self.state = (json.loads(file.read_text()) for file in files)
        self._commit = commit
        return names

    def _download(self, name: str, commit: str, folder: Path) -> Path:
        get = functools.partial(self.api.hf_hub_download, self.repo_id, name, revision=commit, local_dir=folder)
        return Path(retry(f"fetching {name} of {self.repo_id}", get))


def open_run(name: str, folder: Path, resume: str, **settings: Any) -> RunRepo:
    """The repo that a training pushes to, with the token's rights checked and the run that it holds read.

    Raises:
        UserError: the token may not write there, or the repo is somebody else's, or its run is not to be gone on with.
    """
    repo = RunRepo(name, **settings)
    try:
        logger.info(check_write_access(name, token=settings.get("token")))
        repo.open(resume)
    except HubAway as error:
        if not (folder / RUN_FILE).exists():  # else a run that the Hub may hold would be started a second time
            raise
        logger.warning("%s; going on with what lies in %s", error, folder)
    return repo


def push(options: argparse.Namespace) -> int:
    """`recipe push`: send what is not on the Hub yet. Returns the exit code.

    Raises:
        UserError: not a run, no repo given, no right to write there, or the repo holds another run.
    """
    folder, record = options.folder, read_record(options.folder, required=True)
    name = options.hub_model_id or record["training"]["hub_model_id"]
    if not name:
        raise UserError(f"{folder}: was trained without a Hub repo; give one with `--hub_model_id USER/NAME`")
    repo = open_run(name, folder, "auto", private=record["training"]["hub_private_repo"] is not False)
    if repo.record is not None:
        check_same(repo.record["identity"], record["identity"], f"--hub_model_id {repo.repo_id}")
    finished = (folder / "report" / "report.md").exists()  # then the best model lies at the root of the run
    return report_unpushed(repo.push(folder, final=finished), folder)


def report_unpushed(left: list[str], folder: Path) -> int:
    """Say what could not be pushed, and return the exit code."""
    if left:
        logger.error("not pushed: %s\nthe Hub has missed it; send it with `recipe push %s`", ", ".join(left), folder)
    return UNPUSHED_EXIT if left else 0
