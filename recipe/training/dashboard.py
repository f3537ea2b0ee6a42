"""The run on a Trackio dashboard: on this machine, on a Space, or on a server of one's own.

    trackio show --project crowd-detr        looks at what was logged on this machine
    recipe sync OUTPUT_DIR                   sends what a dashboard has missed

A thread of its own carries what the run writes into its folder, metrics.jsonl and pictures/, to the dashboard. So no
dashboard stops or slows a training, whatever happens to it. Every row has an identity made of run, step and names, by
which Trackio knows it again: sending a row twice, after a resume or by `recipe sync`, shows it once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import huggingface_hub
import trackio
from gradio_client import handle_file
from trackio import deploy, fragments, gpu, utils
from trackio.media.utils import get_project_media_path
from trackio.remote_client import RemoteClient
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import rewrite_logs

from recipe.hub import in_a_line
from recipe.schema import UserError
from recipe.training.logs import read_log
from recipe.training.run import read_record

logger = logging.getLogger(__name__)

BATCH = 500  # rows per request
TIMEOUT = 20.0  # seconds for one request
GATHER = 0.5  # seconds in which rows come together
FAREWELL = 10.0  # seconds that the end of a training waits for a dashboard
Entry = dict[str, Any]


class Local:
    """Trackio's own database on this machine (TRACKIO_DIR)."""

    def log(self, entries: list[Entry]) -> None:
        fragments.import_records([fragments.metric_record(entry) for entry in entries])

    def log_system(self, entries: list[Entry]) -> None:
        fragments.import_records([fragments.system_metric_record(entry) for entry in entries])

    def show(self, picture: Path, entry: Entry) -> None:
        shutil.copy(picture, get_project_media_path(entry["project"], entry["run"], entry["step"]) / picture.name)


class Remote:
    """A Space, or a server of one's own."""

    def __init__(self, source: str, token: str | None, write_token: str | None = None) -> None:
        self.token = token
        self.client = RemoteClient(source, token, write_token, httpx_kwargs={"timeout": TIMEOUT})

    def log(self, entries: list[Entry]) -> None:
        self.client.predict(api_name="/bulk_log", logs=entries, hf_token=self.token)

    def log_system(self, entries: list[Entry]) -> None:
        self.client.predict(api_name="/bulk_log_system", logs=entries, hf_token=self.token)

    def show(self, picture: Path, entry: Entry) -> None:
        names = {name: entry[name] for name in ("project", "run", "run_id", "step")}
        upload = {**names, "relative_path": None, "uploaded_file": handle_file(str(picture))}
        self.client.predict(api_name="/bulk_upload_media", uploads=[upload], hf_token=self.token)


def connect(training: Mapping[str, Any]) -> Local | Remote:
    """The dashboard that the flags or TRACKIO_SPACE_ID or TRACKIO_SERVER_URL name; a Space is made if need be."""
    space, server = utils.resolve_space_id_and_server_url(training.get("trackio_space_id"), None)
    if space is not None:
        space, _, bucket = utils.preprocess_space_and_dataset_ids(space, None, training.get("trackio_bucket_id"))
        if training.get("trackio_bucket_id") is None:
            bucket = deploy.resolve_auto_bucket_id(space, bucket)
        deploy.create_space_if_not_exists(space, None, bucket, training.get("hub_private_repo"))
        return Remote(space, huggingface_hub.get_token())
    if server is not None:
        base, token = utils.parse_trackio_server_url(server)
        return Remote(base, None, token or os.environ.get("TRACKIO_WRITE_TOKEN"))
    return Local()


def entries(folder: Path, record: Mapping[str, Any]) -> dict[str, tuple[Entry, Path | None]]:
    """Identity -> what the run has logged so far, oldest first, with the picture's file where it is one."""
    found: dict[str, tuple[Entry, Path | None]] = {}
    names = {"project": record["training"]["project"], "run": record["run_name"], "run_id": record["run_id"]}
    config = {**record["training"], **record["config"], "_Username": None, "_Group": None}
    names["config"] = json.loads(json.dumps({**config, "_Created": record["started"]}, default=str))

    def add(metrics: dict[str, Any], step: int, picture: Path | None = None) -> None:
        identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{record['run_id']} {step} {sorted(metrics)}").hex
        found[identity] = ({**names, "metrics": metrics, "step": step, "log_id": identity}, picture)

    for row in read_log(folder):
        step = row.pop("step")
        add(rewrite_logs(row) | {"train/global_step": step}, step)  # eval_map -> eval/map, loss -> train/loss
    for picture in sorted((folder / "pictures").glob("*-step-*.jpg")):
        image, _, step = picture.stem.rpartition("-step-")
        path = f"{names['project']}/{names['run']}/{step}/{picture.name}"
        value = {"_type": trackio.Image.TYPE, "file_path": path, "caption": None}
        add({f"predictions/{image}": value}, int(step), picture)
    return found


def send(target: Local | Remote, folder: Path, record: Mapping[str, Any], sent: set[str]) -> None:
    """Send everything in `folder` that is not in `sent`, and add it there."""
    new = [(entry, picture) for identity, (entry, picture) in entries(folder, record).items() if identity not in sent]
    for start in range(0, len(new), BATCH):
        batch = new[start : start + BATCH]
        for entry, picture in batch:
            if picture is not None:
                target.show(picture, entry)
        target.log([entry for entry, _ in batch])
        sent.update(entry["log_id"] for entry, _ in batch)


class Dashboard(TrainerCallback):
    """Follows the run's folder while it trains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sent: set[str] = set()
        self._system: deque[Entry] = deque(maxlen=1000)
        self._news, self._stop = threading.Event(), threading.Event()
        self._monitor = gpu.GpuMonitor(self, interval=10.0)
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.record = read_record(self.folder)
            self._thread.start()
            if gpu.gpu_available():
                self._monitor.start()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._news.set()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self._thread.is_alive():
            return
        self._monitor.stop()
        self._stop.set()
        self._news.set()
        self._thread.join(FAREWELL)
        if missing := len(entries(self.folder, self.record).keys() - self._sent):
            logger.warning(
                "%d rows have not reached the dashboard; send them with `recipe sync %s`", missing, self.folder
            )

    def log_system(self, metrics: dict[str, Any]) -> None:
        """Called by Trackio's GPU monitor, from its own thread."""
        names = {"project": self.record["training"]["project"], "run": self.record["run_name"]}
        names |= {"run_id": self.record["run_id"], "timestamp": datetime.now(UTC).isoformat()}
        self._system.append({**names, "metrics": utils.serialize_values(metrics), "log_id": uuid.uuid4().hex})

    def _follow(self) -> None:
        target, pause, warned = None, GATHER, False
        while True:
            last = self._stop.is_set()
            try:
                target = target or connect(self.record["training"])
                send(target, self.folder, self.record, self._sent)
                while self._system:
                    target.log_system([self._system[0]])
                    self._system.popleft()
                pause = GATHER
            except Exception as error:  # nothing that happens to a dashboard may end a training
                pause = min(2 * pause, 30.0)
                if not warned:
                    logger.warning(
                        "the dashboard cannot be reached (%s); the rows stay in %s", in_a_line(error), self.folder
                    )
                warned = True
            if last:
                return
            if pause == GATHER:
                self._news.wait()
                self._news.clear()
            self._stop.wait(pause)


def sync(options: argparse.Namespace) -> int:
    """`recipe sync`: send all rows and pictures of a run; those that are there already are not repeated.

    Raises:
        UserError: not a run, or the dashboard cannot be reached.
    """
    folder, space = options.folder, options.trackio_space_id
    record, sent = read_record(folder, required=True), set[str]()
    try:
        send(connect(record["training"] | ({"trackio_space_id": space} if space else {})), folder, record, sent)
    except Exception as error:  # its clients' errors share no base
        raise UserError(
            f"the dashboard cannot be reached ({in_a_line(error)}). Give --trackio_space_id USER/SPACE, or set "
            "TRACKIO_SERVER_URL and TRACKIO_WRITE_TOKEN"
        ) from error
    logger.info("%d rows and pictures of %s are on the dashboard", len(sent), record["run_name"])
    return 0
