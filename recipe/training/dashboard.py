"""The run on a Trackio dashboard: on this machine, on a Space, or on a server of one's own.

    trackio show --project crowd-detr        looks at what was logged on this machine
    recipe sync OUTPUT_DIR                   sends what a dashboard has missed

metrics.jsonl in the run's folder is the truth. A thread of its own hands the rows to Trackio, so that no dashboard
stops or slows a training. Before a resumed run or `recipe sync` sends any, the dashboard is asked which it has.
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
import time
from collections.abc import Mapping
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import trackio
from huggingface_hub import HfApi
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import rewrite_logs

from recipe.arguments import Arguments
from recipe.hub import first_line, full_id, with_retries
from recipe.record import RUN_FILE, RunRecord, read_log
from recipe.schema import UserError

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds for one question to a dashboard
PAUSES = (0, 1, 4, 12)  # seconds before each try to end: Trackio loses what it is given before it listens
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


def job_space(args: Arguments) -> str | None:
    """The Space of a job of HF Jobs, whose disk will be gone: as given, else USER/trackio, made private.

    None where nothing is logged to Trackio, or to a server of one's own.
    """
    if "trackio" not in args.report_to:
        return None
    return named_space(args.trackio_space_id) or (None if "TRACKIO_SERVER_URL" in os.environ else "trackio")


def named_space(given: str | None) -> str | None:
    """The Space of a run: as given, else by TRACKIO_SPACE_ID. It wins over a server, as in Trackio."""
    return given or os.environ.get("TRACKIO_SPACE_ID")


def server() -> str:
    """The address of a server of one's own, without the write token that may stand behind it; "" for none."""
    return os.environ.get("TRACKIO_SERVER_URL", "").split("?")[0]


class TrackioRun:
    """One run on the dashboard that its settings, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL name, or on this machine."""

    def __init__(self, folder: Path, space: str | None = None, resume: str = "allow") -> None:
        self.folder, self.resume, record = folder, resume, RunRecord.load(folder / RUN_FILE)
        self.settings, self.name = record.settings, record.run_name
        self.space = named_space(space or self.settings.get("trackio_space_id"))
        self._there: set[tuple[int, str]] = set()  # step and first name of each row

    def start(self) -> None:
        """Make it Trackio's current run in this thread; a Space that is not there is made, private by default."""
        config = {name: value for name, value in self.settings.items() if not name.startswith("_")}
        where = {"space_id": self.space, "private": config.get("hub_private_repo") is not False}
        trackio.init(config["project"], name=self.name, config=config, resume=self.resume, embed=False, **where)
        self.resume = "allow"

    def send(self) -> None:
        """Show the rows and pictures that are not there yet."""
        for step, values in self._lacking():
            self._there.add((step, next(iter(values))))
            shown = {k: trackio.Image(str(v)) if isinstance(v, Path) else v for k, v in values.items()}
            trackio.log(shown, step=step)

    def finish(self) -> list[Row]:
        """Send the rest and end the run, again where Trackio did not take it; returns what is still missing."""
        left: list[Row] = []
        for pause in PAUSES:
            if left:
                self.start()
            self.send()
            time.sleep(pause)
            trackio.finish()
            if not (left := self.missing()):
                break
        return left

    def missing(self) -> list[Row]:
        """What the dashboard lacks; it is asked. Raises ConnectionError or TimeoutExpired where it does not answer."""
        names = {next(iter(values)) for _, values in rows_of(self.folder)}
        self._there = {(step, name) for name in names for step in self._steps(name)}
        return self._lacking()

    def _lacking(self) -> list[Row]:
        rows = rows_of(self.folder)
        return [(step, values) for step, values in rows if (step, next(iter(values))) not in self._there]

    def _steps(self, metric: str) -> set[int]:
        """Those at which the dashboard has it."""
        where = self.space or server()  # to read from a server, no token is needed
        if self.space:
            where = full_id(self.space, {} if "/" in self.space else HfApi().whoami())
        command = [sys.executable, "-c", TRACKIO, *(["--space", where] if where else []), "get", "metric", "--json"]
        command += [f"--project={self.settings['project']}", f"--run={self.name}", f"--metric={metric}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode and where:  # on this machine: there is no such run yet
            raise ConnectionError((done.stderr.strip().splitlines() or ["no answer"])[-1])
        return {each["step"] for each in json.loads(done.stdout)["values"]} if not done.returncode else set()


class Dashboard(TrainerCallback):
    """Shows what lies in the run's folder while it trains; what the recipe warns of becomes an alert there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._news: queue.SimpleQueue[logging.LogRecord | str | None] = queue.SimpleQueue()  # None: the end
        self._alerts = QueueHandler(self._news)
        self._alerts.setLevel(logging.WARNING)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            logging.getLogger("recipe").addHandler(self._alerts)
            self._thread = threading.Thread(target=self._follow, args=(state.global_step > 0,), daemon=True)
            self._thread.start()
            atexit.register(self.close)  # also where the training ends by an error

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._news.put("rows")

    on_evaluate = on_log  # pictures

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.close()

    def close(self) -> None:
        """Send what is there; a dashboard is waited for no longer than `SHUTDOWN_TIMEOUT`."""
        atexit.unregister(self.close)
        logging.getLogger("recipe").removeHandler(self._alerts)
        self._news.put(None)
        self._thread.join(SHUTDOWN_TIMEOUT)
        if self._thread.is_alive():
            self._warn("it does not answer")

    def _follow(self, resumed: bool) -> None:
        try:
            run = TrackioRun(self.folder, resume="allow" if resumed else "never")
            if resumed:
                with_retries("asking the dashboard", run.missing)
            run.start()
            for news in iter(self._news.get, None):
                if isinstance(news, logging.LogRecord):
                    title, _, text = news.getMessage().partition("\n")
                    level = trackio.AlertLevel.ERROR if news.levelno >= logging.ERROR else trackio.AlertLevel.WARN
                    trackio.alert(title, text or None, level)
                run.send()
            if left := run.finish():
                self._warn(f"{len(left)} did not arrive")
        except Exception as error:  # nothing that happens to a dashboard may end a training
            self._warn(first_line(error))

    def _warn(self, reason: str) -> None:
        logger.warning("the dashboard lacks rows (%s); `recipe sync %s` sends them", reason, self.folder)


def address(settings: Mapping[str, Any]) -> str:
    """Where the rows of a run with these settings are shown: a Space, a server, this machine, or nowhere."""
    if "trackio" not in settings["report_to"]:
        return f"none (--report_to {','.join(settings['report_to']) or 'none'})"
    if space := named_space(settings["trackio_space_id"]):
        return f"{HfApi().endpoint}/spaces/{space}" if "/" in space else f"the Space {space} of your account"
    return server() or f"trackio show --project {settings['project']}"


def sync(options: argparse.Namespace) -> int:
    """`recipe sync`: send the rows and pictures of a run that the dashboard lacks. Returns the exit code.

    Raises UserError where the folder is no run, or the dashboard cannot be reached.
    """
    if not (options.folder / RUN_FILE).exists():
        raise UserError(f"{options.folder}: holds no run of this recipe (no {RUN_FILE})")
    run = TrackioRun(options.folder, options.trackio_space_id)
    try:
        if new := run.missing():
            run.start()
            if left := run.finish():
                raise ConnectionError(f"{len(left)} rows did not arrive")
    except Exception as error:  # its clients' errors share no base
        raise UserError(
            f"the dashboard cannot be reached ({first_line(error)}). Give --trackio_space_id USER/SPACE, or set "
            "TRACKIO_SERVER_URL and TRACKIO_WRITE_TOKEN"
        ) from error
    logger.info("%d rows and pictures of %s were sent", len(new), run.name)
    return 0
