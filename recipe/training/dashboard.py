"""The run on a Trackio dashboard: on this machine, on a Space, or on a server of one's own.

    trackio show --project crowd-detr        looks at what was logged on this machine
    recipe sync OUTPUT_DIR                   sends what a dashboard has missed

metrics.jsonl in the run's folder is the truth. A thread of its own hands the rows to Trackio, so that no dashboard
stops or slows a training, whatever happens to it. Before a resumed run or `recipe sync` sends any, the dashboard is
asked which it has: a row is known again by its first name and its step.
"""

from __future__ import annotations

import argparse
import atexit
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections import defaultdict
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import trackio
from huggingface_hub import HfApi
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import rewrite_logs

from recipe.hub import first_line, full_id
from recipe.record import RUN_FILE, RunRecord, read_log
from recipe.schema import UserError

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds for one question to a dashboard
SHUTDOWN_TIMEOUT = 20.0  # seconds that the end of a training waits for a dashboard
GLANCE = ("loss", "eval_map", "eval_map_50", "eval_mr2_person", "eval_mr2_head")  # also in the first section of charts
# The `trackio` command. A private Space needs the token, which may not stand on a command line, for others to read.
TRACKIO = "import sys, huggingface_hub, trackio.cli; token = huggingface_hub.get_token(); "
TRACKIO += "sys.argv[1:1] = ['--hf-token', token] if token else []; trackio.cli.main()"
Row = tuple[int, dict[str, Any]]  # step, name -> a number, or the path of a picture


def rows_of(folder: Path) -> list[Row]:
    """What a run has logged, under Trackio's names (eval_map -> eval/map, loss -> train/loss), and its pictures."""
    rows: list[Row] = []
    for row in read_log(folder):
        step = row.pop("step")
        first = {f"at a glance/{name.removeprefix('eval_')}": row[name] for name in GLANCE if name in row}
        rows.append((step, rewrite_logs(row) | {"train/global_step": step} | first))
    for path in sorted((folder / "pictures").glob("*-step-*.jpg")):
        image, _, step = path.stem.rpartition("-step-")
        rows.append((int(step), {f"predictions/{image}": path}))
    return rows


class TrackioRun:
    """One run on the dashboard that its settings, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL name, or on this machine."""

    def __init__(self, folder: Path, space: str | None = None) -> None:
        self.record = RunRecord.load(folder / RUN_FILE)
        self.space = space or self.record.settings.get("trackio_space_id") or os.environ.get("TRACKIO_SPACE_ID")
        # A server's write token may stand behind its address; to read, none is needed.
        self.where = self.space or os.environ.get("TRACKIO_SERVER_URL", "").split("?")[0]
        self._there: defaultdict[str, set[int]] = defaultdict(set)  # first name of a row -> its steps

    def start(self, *, resume: bool) -> None:
        """Make it Trackio's current run in this thread; a Space that is not there is made, private by default."""
        settings = {name: value for name, value in self.record.settings.items() if not name.startswith("_")}
        private, mode = settings.get("hub_private_repo") is not False, "allow" if resume else "never"
        names = {"project": settings["project"], "name": self.record.run_name, "space_id": self.space}
        trackio.init(**names, private=private, config=settings, resume=mode, embed=False)

    def log(self, rows: list[Row]) -> None:
        """Show the rows that are not there yet."""
        for step, values in rows:
            if step not in self._there[next(iter(values))]:
                self._there[next(iter(values))].add(step)
                shown = {k: trackio.Image(str(v)) if isinstance(v, Path) else v for k, v in values.items()}
                trackio.log(shown, step=step)

    def missing(self, rows: list[Row]) -> list[Row]:
        """Those that the dashboard lacks; it is asked. Raises OSError or TimeoutExpired where it does not answer."""
        for step, values in rows:  # should it not answer, none of them is shown twice
            self._there[next(iter(values))].add(step)
        self._there.update({name: self._steps(name) for name in {next(iter(values)) for _, values in rows}})
        return [(step, values) for step, values in rows if step not in self._there[next(iter(values))]]

    def _steps(self, metric: str) -> set[int]:
        bare = self.where == self.space and "/" not in self.where  # a NAME in one's own namespace
        where = ["--space", full_id(self.where, HfApi().whoami()) if bare else self.where] if self.where else []
        run = [f"--project={self.record.settings['project']}", f"--run={self.record.run_name}", f"--metric={metric}"]
        command = [sys.executable, "-c", TRACKIO, *where, "get", "metric", *run, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode and where:  # on this machine: there is no such run yet
            raise ConnectionError((done.stderr.strip().splitlines() or ["no answer"])[-1])
        return {each["step"] for each in json.loads(done.stdout)["values"]} if not done.returncode else set()


class Dashboard(TrainerCallback):
    """Shows what lies in the run's folder while it trains; what the recipe warns of becomes an alert there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._news: queue.SimpleQueue[logging.LogRecord | str] = queue.SimpleQueue()
        self._alerts = QueueHandler(self._news)
        self._alerts.setLevel(logging.WARNING)
        logging.getLogger("recipe").addHandler(self._alerts)
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._thread.start()
            atexit.register(self.close)  # also where the training ends by an error

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._news.put("rows")

    on_evaluate = on_log  # pictures

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Send what is there; a dashboard is waited for no longer than `SHUTDOWN_TIMEOUT`."""
        logging.getLogger("recipe").removeHandler(self._alerts)
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._news.put("end")
            self._thread.join(SHUTDOWN_TIMEOUT)
            if self._thread.is_alive():
                self._warn("it does not answer")

    def _follow(self) -> None:
        try:
            run, rows = TrackioRun(self.folder), rows_of(self.folder)
            run.start(resume=bool(rows))
            try:
                run.missing(rows)
            except (
                OSError,
                subprocess.TimeoutExpired,
            ) as error:  # it may come back: only new rows are sent until then
                logger.info("the dashboard does not answer (%s)", first_line(error))
            news: logging.LogRecord | str = "rows"
            while news != "end":
                if isinstance(news, logging.LogRecord):
                    title, _, text = news.getMessage().partition("\n")
                    level = trackio.AlertLevel.ERROR if news.levelno >= logging.ERROR else trackio.AlertLevel.WARN
                    trackio.alert(title, text or None, level)
                run.log(rows_of(self.folder))
                news = self._news.get()
            run.log(rows_of(self.folder))
            trackio.finish()
            if run.where and (left := run.missing(rows_of(self.folder))):
                self._warn(f"{len(left)} did not arrive")
        except Exception as error:  # nothing that happens to a dashboard may end a training
            self._warn(first_line(error))

    def _warn(self, reason: str) -> None:
        logger.warning("the dashboard lacks rows (%s); `recipe sync %s` sends them", reason, self.folder)


def sync(options: argparse.Namespace) -> int:
    """`recipe sync`: send all rows and pictures of a run; those that are there already are not repeated.

    Raises:
        UserError: not a run, or the dashboard cannot be reached.
    """
    folder: Path = options.folder
    if not (folder / RUN_FILE).exists():
        raise UserError(f"{folder}: holds no run of this recipe (no {RUN_FILE})")
    run, rows = TrackioRun(folder, options.trackio_space_id), rows_of(folder)
    try:
        if new := run.missing(rows):
            run.start(resume=True)
            run.log(new)
            trackio.finish()
            if left := run.missing(rows):
                raise ConnectionError(f"{len(left)} rows did not arrive")
    except Exception as error:  # its clients' errors share no base
        raise UserError(
            f"the dashboard cannot be reached ({first_line(error)}). Give --trackio_space_id USER/SPACE, or set "
            "TRACKIO_SERVER_URL and TRACKIO_WRITE_TOKEN"
        ) from error
    logger.info("%d of %d rows and pictures of %s were sent", len(new), len(rows), run.record.run_name)
    return 0
