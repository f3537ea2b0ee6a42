"""No dashboard stops or slows a training, misses a row or repeats one: tests/training/test_dashboard.py"""

from __future__ import annotations

import json
import logging
import os
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
from recipe.record import LOG_FILE, RunRecord, read_log
from recipe.training.dashboard import Dashboard, TrackioRun, address
from recipe.training.logs import MetricsLog

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


def make_run(folder: Path, name: str = "run") -> Path:
    folder.mkdir()
    settings = {"project": "crowd-detr", "trackio_space_id": None, "hub_private_repo": True, "d_model": 32}
    RunRecord(name, "0123", "2026-01-01T00:00:00Z", settings, {}, {}).write(folder)
    return folder


def train(folder: Path, steps: range, pause: float = 0.0, between=None, end: bool = True) -> float:
    """What the Trainer does with the callbacks, and how long it took, in seconds."""
    board, log = Dashboard(folder), MetricsLog()
    earlier = [row for row in read_log(folder) if row["step"] < steps.start]
    state = TrainerState(global_step=steps.start, log_history=earlier)
    state.is_world_process_zero = True
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True)
    started = time.monotonic()
    for callback in (log, board):
        callback.on_train_begin(arguments, state, TrainerControl())
    for step in steps:
        state.global_step = step
        for callback in (log, board):
            callback.on_log(arguments, state, TrainerControl(), logs={"loss": 1 / (step + 1), "epoch": step / 4})
        board.on_evaluate(arguments, state, TrainerControl())
        time.sleep(pause)
        if between is not None:
            between(step)
    if end:
        board.on_train_end(arguments, state, TrainerControl())
    return time.monotonic() - started


def steps_of(server: Server, name: str = "run") -> list[int]:
    return sorted(step for _, run, step, metrics in server.rows() if run == name and "train/loss" in metrics)


# ---- a server of one's own ----


def test_every_row_arrives_once_with_its_step_and_the_settings(remote, tmp_path):
    train(make_run(tmp_path / "run"), range(30))
    assert steps_of(remote) == list(range(30))
    rows = remote.rows()
    assert {row[1] for row in rows} == {"run"}
    assert rows[0][3] == {"train/loss": 1.0, "train/epoch": 0.0, "train/global_step": 0, "at a glance/loss": 1.0}
    with sqlite3.connect(remote.home / "crowd-detr.db") as database:
        (config,) = database.execute("SELECT config FROM configs").fetchone()
    assert json.loads(config)["d_model"] == 32


def test_a_resumed_run_is_one_run_without_repeated_rows(remote, tmp_path):
    """Also on another machine: the rows after the checkpoint come a second time."""
    folder = make_run(tmp_path / "run")
    train(folder, range(10))
    train(folder, range(6, 14))
    assert steps_of(remote) == list(range(14))
    assert len({row[0] for row in remote.rows()}) == 1


def test_two_runs_of_the_same_name_stay_two(remote, tmp_path):
    for number, name in enumerate(("one", "two"), 1):

        def until_it_is_there(step: int, number: int = number) -> None:
            """Trackio gives a run that ends before it has reached its server five seconds more."""
            for _ in range(300):
                if len({row[0] for row in remote.rows()}) == number:
                    return
                time.sleep(0.1)

        train(make_run(tmp_path / name), range(3), between=until_it_is_there)
    assert len({row[0] for row in remote.rows()}) == 2
    assert steps_of(remote) == [0, 0, 1, 1, 2, 2]


def test_what_the_recipe_warns_of_becomes_an_alert(remote, tmp_path):
    def between(step: int) -> None:
        if step == 1:
            logging.getLogger("recipe.training.memory").warning("batch 4 does not fit:\n2 x 2 does")
            logging.getLogger("recipe.training.trainer").error("the loss is not finite")
            logging.getLogger("recipe.training.trainer").info("best model: checkpoint-8")

    train(make_run(tmp_path / "first", "first"), range(1), 0.1)  # makes the server's tables, which takes a moment
    train(make_run(tmp_path / "run"), range(3), 0.1, between)
    with sqlite3.connect(remote.home / "crowd-detr.db") as database:
        found = database.execute("SELECT title, text, level FROM alerts ORDER BY id").fetchall()
    assert found == [("batch 4 does not fit:", "2 x 2 does", "warn"), ("the loss is not finite", None, "error")]


def test_the_trackio_command_reads_the_metrics_of_a_run(remote, tmp_path):
    train(make_run(tmp_path / "run"), range(3))
    command = [str(Path(sys.executable).parent / "trackio"), "--space", remote.url, "get", "metric"]
    command += ["--project", "crowd-detr", "--run", "run", "--metric", "train/loss", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [each["step"] for each in found["values"]] == [0, 1, 2]


def test_a_training_that_ends_by_an_error_has_shown_its_last_rows(remote, tmp_path):
    """No callback hears of it: the rows are sent as Python ends."""
    code = "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; import test_dashboard as t\n"
    code += "t.train(Path(sys.argv[1]), range(5), end=False); raise SystemExit(70)"
    folder = make_run(tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(Path(__file__).parent), *sys.path])
    assert done.returncode == 70
    assert steps_of(remote) == list(range(5))


def test_pictures_arrive_beside_the_curves(remote, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "pictures").mkdir()
    cv2.imwrite(str(folder / "pictures" / "7-step-4.jpg"), np.zeros((8, 8, 3), np.uint8))
    train(folder, range(5))
    train(folder, range(5, 6))  # and once only
    (row,) = [metrics for _, _, _, metrics in remote.rows() if "predictions/7" in metrics]
    picture = row["predictions/7"]
    there = remote.home / "media" / picture["file_path"]
    assert there.read_bytes() == (folder / "pictures" / "7-step-4.jpg").read_bytes()


# ---- a server that is not there ----


def test_a_server_dead_from_the_start_costs_no_time_and_sync_sends_all_once(remote, tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path / "run")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    assert train(folder, range(20)) < 12
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
    folder = make_run(tmp_path / "run", "flaky")

    def between(step: int) -> None:
        if step == 5:
            time.sleep(1.5)  # some rows are there
            server.stop()
        if step == 12:
            server.start()

    try:
        train(folder, range(20), 0.05, between)
        assert main(["sync", str(folder)]) == 0
        assert steps_of(server, "flaky") == list(range(20))
    finally:
        server.stop()


def test_a_server_that_never_answers_holds_up_neither_the_steps_nor_the_end(tmp_path, monkeypatch):
    """Trackio's own finish() waits 30 seconds for such a server."""
    monkeypatch.setattr("recipe.training.dashboard.SHUTDOWN_TIMEOUT", 1.0)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # takes connections and says nothing
        monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("TRACKIO_WRITE_TOKEN", WRITE_TOKEN)
        assert train(make_run(tmp_path / "run"), range(50), 0.01) < 3


def test_what_has_not_arrived_is_said_with_the_command_that_sends_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", WRITE_TOKEN)
    folder = make_run(tmp_path / "run")
    train(folder, range(3))
    assert "the dashboard lacks rows" in caplog.text
    assert f"`recipe sync {folder}` sends them" in caplog.text
    assert WRITE_TOKEN not in caplog.text


# ---- this machine ----


def test_without_a_server_the_rows_lie_in_trackios_own_database(tmp_path, monkeypatch):
    """In a process of its own, as a run is: after a loopback Hub in the same one Trackio writes no local rows."""
    name = "test_without_a_server_the_rows_lie_in_trackios_own_database"
    if "OWN_PROCESS" not in os.environ:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            f"{__file__}::{name}",
        ]
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")} | {"OWN_PROCESS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:]
        return
    monkeypatch.delenv("TRACKIO_SERVER_URL", raising=False)
    folder = make_run(tmp_path / "run", "local")
    train(folder, range(4))
    train(folder, range(4, 6))
    assert main(["sync", str(folder)]) == 0
    command = [str(Path(sys.executable).parent / "trackio"), "get", "metric", "--project", "crowd-detr", "--json"]
    command += ["--run", "local", "--metric", "train/loss"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [each["step"] for each in found["values"]] == list(range(6))


def test_the_dashboards_thread_ends_with_the_training(tmp_path, monkeypatch):
    monkeypatch.delenv("TRACKIO_SERVER_URL", raising=False)
    before = threading.active_count()
    train(make_run(tmp_path / "run", "ends"), range(2))
    assert threading.active_count() == before


def test_sync_refuses_what_is_no_run(tmp_path, capsys):
    assert main(["sync", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "where",
    [{"TRACKIO_SPACE_ID": "alice/board"}, {"TRACKIO_SERVER_URL": "http://127.0.0.1:9?write_token=wt-secret"}],
)
def test_no_token_stands_on_a_command_line(tmp_path, monkeypatch, where):
    """A private Space needs one, and a server's may stand in its address; any user of the machine can read both."""
    commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, '{"values": []}', "")

    monkeypatch.setattr("recipe.training.dashboard.subprocess.run", run)
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder = make_run(tmp_path / "run")
    (folder / LOG_FILE).write_text('{"loss": 1.0, "step": 1}\n')
    assert len(TrackioRun(folder).missing()) == 1
    assert "--space" in commands[0]
    assert "secret" not in " ".join(commands[0])


@pytest.mark.parametrize(
    ("settings", "variables", "words"),
    [
        ({}, {}, "trackio show --project crowd-detr"),
        ({"report_to": []}, {}, "none (--report_to none)"),
        ({"report_to": ["wandb"]}, {"TRACKIO_SPACE_ID": "me/board"}, "none (--report_to wandb)"),
        ({"trackio_space_id": "me/board"}, {}, "https://huggingface.co/spaces/me/board"),
        ({}, {"TRACKIO_SPACE_ID": "board"}, "the Space board of your account"),
        ({}, {"TRACKIO_SERVER_URL": "http://host:7860/?write_token=secret"}, "http://host:7860/"),
    ],
)
def test_the_closing_lines_name_where_the_dashboard_really_is(monkeypatch, settings, variables, words):
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert address({"report_to": ["trackio"], "project": "crowd-detr", "trackio_space_id": None} | settings) == words
