"""The whole road: packed, published, launched, the machine lost, launched again, watched, downloaded, used.

Everything is real but the Hub, which is the loopback one and runs a job's command on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import TINY
from loopback.hub import LoopbackHub
from loopback.store import HubError
from published import IMAGE, JOB_ENV, publish
from training.test_dashboard import WRITE_TOKEN, Server

from data_prep.publish import upload
from jobs import launch
from recipe.cli import main
from recipe.model.checkpoint import BACKBONE_FILE, DETECTOR_FILE

TOKEN = "hf_token_of_alice_0123456789"
MODEL = "alice/detector"
EPOCHS = ["epoch-01", "epoch-02", "epoch-03"]


@pytest.fixture
def dashboard(tmp_path, monkeypatch):
    server = Server(tmp_path / "trackio")
    server.start()
    monkeypatch.setenv("TRACKIO_SERVER_URL", server.url)
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", WRITE_TOKEN)
    yield server
    server.stop()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub", {TOKEN: {"name": "alice"}}, build_seconds=0, job_env=JOB_ENV) as hub:
        publish(hub.serve(monkeypatch, TOKEN), "alice/recipe", IMAGE, "space")
        yield hub


def start() -> int:
    flags = ["--data", "alice/crowd", *TINY, "--num_train_epochs", "3", "--report_to", "trackio"]
    return launch.main(["--flavor", "a10g-large", "--timeout", "2h", "--", *flags, "--hub_model_id", MODEL])


def tags(hub: LoopbackHub) -> list[str]:
    try:
        return sorted(hub.repo(MODEL).state["tags"])
    except HubError:
        return []


def lose_the_machine_after(hub: LoopbackHub, tag: str) -> None:
    while tag not in tags(hub):
        time.sleep(0.05)
    (job_id,) = hub.jobs.all
    hub.jobs.kill(job_id)


def test_a_launched_training_survives_a_lost_machine_and_its_model_is_used(hub, dashboard, packed, tmp_path, capfd):
    upload(packed, "alice/crowd")
    killer = threading.Thread(target=lose_the_machine_after, args=(hub, "epoch-01"), daemon=True)
    killer.start()
    assert start() not in (0, 2)
    killer.join(timeout=60)
    assert tags(hub) != EPOCHS

    assert start() == 0
    assert tags(hub) == EPOCHS
    assert len(hub.jobs.all) == 2
    assert "it holds this run already" in capfd.readouterr().err

    trackio = str(Path(sys.executable).parent / "trackio")
    own = os.environ | {"TRACKIO_DIR": str(dashboard.home)}
    own.pop("TRACKIO_SERVER_URL")
    words = [trackio, "get", "metric", "--project", "crowd-detr", "--run", "run", "--metric", "eval/map", "--json"]
    read = subprocess.run(words, env=own, check=True, capture_output=True, text=True, timeout=120)
    assert [value["step"] for value in json.loads(read.stdout)["values"]] == [4, 8, 12]

    best = tmp_path / "best"
    download = ["hf", "download", MODEL, "--local-dir", str(best)]
    subprocess.run(download, env=hub.env(TOKEN, tmp_path / "home"), check=True, capture_output=True, timeout=120)
    photographs = packed.parent / "yolo" / "val" / "images"
    assert main(["predict", str(best), str(photographs), "--out", str(tmp_path / "out"), "--threshold", "0.1"]) == 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 4


def test_a_training_of_three_jobs_ends_by_itself_and_as_one_never_stopped(hub, packed, tmp_path):
    """The launcher is killed once the first job runs; each job has time for one step. --data is a mounted repo."""
    upload(packed, "alice/crowd")
    data, env = tmp_path / "mounted", hub.env(TOKEN, tmp_path / "home") | JOB_ENV
    flags = [*TINY, "--per_device_train_batch_size", "8", "--max_steps", "3"]  # an epoch is two steps
    own = ["--flavor", "a10g-large", "--timeout", "2h", "--until-done", "--max-cost", "9"]
    command = [
        sys.executable,
        "-m",
        "jobs.launch",
        *own,
        "--volume",
        f"hf://datasets/alice/crowd:{data}",
        "--",
        *flags,
    ]
    command += ["--data", str(data), "--max_hours", "1e-6", "--hub_model_id", MODEL]
    launcher = subprocess.Popen(command, env=env)
    while not hub.jobs.all:
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    assert main(["train", *flags, "--data", str(packed), "--output_dir", str(tmp_path / "one")]) == 0
    ended = time.monotonic() + 300
    while not all(job.ended for job in hub.jobs.all.values()):
        assert time.monotonic() < ended
        time.sleep(0.05)
    said = ["\n".join(line["data"] for line in job.log) for job in hub.jobs.all.values()]
    assert [job.stage for job in hub.jobs.all.values()] == ["COMPLETED"] * 3, said
    repo = hub.repo(MODEL)
    assert sorted(repo.state["tags"]) == ["epoch-01"]
    for name in (BACKBONE_FILE, DETECTOR_FILE):
        assert repo.read(name) == (tmp_path / "one" / name).read_bytes(), name
