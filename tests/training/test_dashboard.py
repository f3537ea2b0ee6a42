"""No dashboard stops or slows a training, misses a row or repeats one: python -m pytest tests/test_dashboard.py"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from recipe.cli import main
from recipe.training.dashboard import Dashboard
from recipe.training.logs import LOG_FILE
from recipe.training.run import RUN_FILE

WRITE_TOKEN = "write-token-of-the-test"


class Server:
    """`trackio show` in a process of its own, on a port that it keeps over a restart."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        own = {"TRACKIO_WRITE_TOKEN": WRITE_TOKEN, "GRADIO_SERVER_PORT": str(self.port), "TRACKIO_DIR": str(self.home)}
        command = [str(Path(sys.executable).parent / "trackio"), "show", "--host", "127.0.0.1"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=os.environ | own, start_new_session=True, **quiet)
        for _ in range(600):
            try:
                httpx.get(f"{self.url}/version", timeout=1)
                return
            except httpx.TransportError:
                time.sleep(0.1)
        raise RuntimeError("the Trackio server did not start")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def rows(self) -> list[tuple[str, str, int, dict[str, float]]]:
        """(run id, run, step, metrics) of everything that it holds."""
        file = self.home / "crowd-detr.db"
        if not file.exists():
            return []
        with sqlite3.connect(file) as database:
            found = database.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        return [(*row[:3], json.loads(row[3])) for row in found]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def remote(server, monkeypatch):
    """The server, empty, and the client's environment."""
    (server.home / "crowd-detr.db").unlink(missing_ok=True)
    monkeypatch.setenv("TRACKIO_SERVER_URL", server.url)
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", WRITE_TOKEN)
    return server


def make_run(folder: Path, run_id: str = "0123") -> Path:
    folder.mkdir()
    training = {"project": "crowd-detr", "trackio_space_id": None, "hub_private_repo": True}
    record = {"run_name": "run", "run_id": run_id, "started": "2026-01-01T00:00:00Z", "config": {"d_model": 32}}
    (folder / RUN_FILE).write_text(json.dumps(record | {"training": training}))
    return folder


def log(folder: Path, step: int, **values: float) -> None:
    with (folder / LOG_FILE).open("a") as file:
        file.write(json.dumps({**values, "epoch": step / 4, "step": step}) + "\n")


def train(folder: Path, tmp_path: Path, steps: range, pause: float = 0.0, between=None) -> float:
    """What the Trainer does with the callback, and how long it took, in seconds."""
    board, state = Dashboard(folder), TrainerState()
    arguments = TrainingArguments(output_dir=str(tmp_path / "arguments"), use_cpu=True)
    started = time.monotonic()
    board.on_train_begin(arguments, state, TrainerControl())
    for step in steps:
        log(folder, step, loss=1 / (step + 1))
        board.on_log(arguments, state, TrainerControl())
        time.sleep(pause)
        if between is not None:
            between(step)
    board.on_train_end(arguments, state, TrainerControl())
    return time.monotonic() - started


def steps_of(server: Server) -> list[int]:
    return sorted(step for _, _, step, metrics in server.rows() if "train/loss" in metrics)


# ---- a server of one's own ----


def test_every_row_arrives_once_with_its_step_and_the_settings(remote, tmp_path):
    train(make_run(tmp_path / "run"), tmp_path, range(30))
    assert steps_of(remote) == list(range(30))
    rows = remote.rows()
    assert {row[:2] for row in rows} == {("0123", "run")}
    assert rows[0][3] == {"train/loss": 1.0, "train/epoch": 0.0, "train/global_step": 0}
    with sqlite3.connect(remote.home / "crowd-detr.db") as database:
        (config,) = database.execute("SELECT config FROM configs").fetchone()
    assert json.loads(config)["d_model"] == 32


def test_a_resumed_run_is_one_run_without_repeated_rows(remote, tmp_path):
    """Also on another machine: the rows after the checkpoint come a second time, the run's id comes from the Hub."""
    folder = make_run(tmp_path / "run")
    train(folder, tmp_path, range(10))
    shutil.rmtree(folder)
    folder = make_run(tmp_path / "run")
    for step in range(6):
        log(folder, step, loss=1 / (step + 1))
    train(folder, tmp_path, range(6, 14))
    assert steps_of(remote) == list(range(14))
    assert len({row[0] for row in remote.rows()}) == 1


def test_two_runs_of_the_same_name_stay_two(remote, tmp_path):
    train(make_run(tmp_path / "one", "1111"), tmp_path, range(3))
    train(make_run(tmp_path / "two", "2222"), tmp_path, range(3))
    assert {row[0] for row in remote.rows()} == {"1111", "2222"}


def test_pictures_arrive_beside_the_curves(remote, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "pictures").mkdir()
    cv2.imwrite(str(folder / "pictures" / "7-step-4.jpg"), np.zeros((8, 8, 3), np.uint8))
    train(folder, tmp_path, range(5))
    picture = next(metrics for _, _, _, metrics in remote.rows() if "predictions/7" in metrics)["predictions/7"]
    there = remote.home / "media" / picture["file_path"]
    assert there.read_bytes() == (folder / "pictures" / "7-step-4.jpg").read_bytes()


# ---- a server that is not there ----


def test_a_server_dead_from_the_start_costs_no_time_and_sync_sends_all_once(remote, tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path / "run")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    assert train(folder, tmp_path, range(20)) < 3
    assert main(["sync", str(folder)]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    monkeypatch.setenv("TRACKIO_SERVER_URL", remote.url)
    assert main(["sync", str(folder)]) == 0
    assert main(["sync", str(folder)]) == 0
    assert steps_of(remote) == list(range(20))


def test_a_server_that_dies_and_comes_back_misses_nothing(tmp_path, monkeypatch):
    server = Server(tmp_path / "server")
    server.start()
    monkeypatch.setenv("TRACKIO_SERVER_URL", server.url)
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", WRITE_TOKEN)
    folder = make_run(tmp_path / "run")

    def between(step: int) -> None:
        if step == 5:
            time.sleep(1.5)  # some rows are there
            server.stop()
        if step == 12:
            server.start()

    try:
        train(folder, tmp_path, range(20), 0.05, between)
        assert main(["sync", str(folder)]) == 0
        assert steps_of(server) == list(range(20))
    finally:
        server.stop()


def test_a_server_that_never_answers_holds_up_neither_the_steps_nor_the_end(tmp_path, monkeypatch):
    """Trackio's own finish() waits 30 seconds for such a server."""
    monkeypatch.setattr("recipe.training.dashboard.FAREWELL", 1.0)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # takes connections and says nothing
        monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("TRACKIO_WRITE_TOKEN", WRITE_TOKEN)
        assert train(make_run(tmp_path / "run"), tmp_path, range(50), 0.01) < 3


def test_what_has_not_arrived_is_said_with_the_command_that_sends_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", WRITE_TOKEN)
    folder = make_run(tmp_path / "run")
    train(folder, tmp_path, range(3))
    assert f"3 rows have not reached the dashboard; send them with `recipe sync {folder}`" in caplog.text
    assert WRITE_TOKEN not in caplog.text


# ---- this machine ----


def test_without_a_server_the_rows_lie_in_trackios_own_database(tmp_path, monkeypatch):
    monkeypatch.delenv("TRACKIO_SERVER_URL", raising=False)
    folder = make_run(tmp_path / "run", "local")
    train(folder, tmp_path, range(4))
    train(folder, tmp_path, range(4, 6))
    from trackio.sqlite_storage import SQLiteStorage

    assert [row["step"] for row in SQLiteStorage.get_logs("crowd-detr", "run", run_id="local")] == list(range(6))


def test_the_dashboards_thread_ends_with_the_training(tmp_path, monkeypatch):
    monkeypatch.delenv("TRACKIO_SERVER_URL", raising=False)
    before = threading.active_count()
    train(make_run(tmp_path / "run", "ends"), tmp_path, range(2))
    assert threading.active_count() == before


def test_sync_refuses_what_is_no_run(tmp_path, capsys):
    assert main(["sync", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
