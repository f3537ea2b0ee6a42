"""A chain of jobs on the loopback Hub, where a job is a process: python -m pytest tests/jobs/test_chain.py

The `recipe` that stands in pushes one commit; its time is up until it has run so many times.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from jobs import launch

TRAIN = ["--data", "alice/crowd", "--backbone", "tiny", "--detr_init", "none", "--hub_model_id", "alice/detector"]
FLAGS = ["--flavor", "a10g-large", "--timeout", "2h", "--until-done", "--secret", "OWN_KEY"]
TRAINS = """
from huggingface_hub import HfApi
api, count = HfApi(), pathlib.Path({count!r})
times = 1 + (len(count.read_text()) if count.exists() else 0)
count.write_text("x" * times)
print("trained", times, os.environ["OWN_KEY"], flush=True)
api.create_repo("alice/detector", exist_ok=True)
api.upload_file(path_or_fileobj=str(times).encode(), path_in_repo="README.md", repo_id="alice/detector")
while os.path.exists({hold!r}): time.sleep(0.02)
sys.exit(75 if times < {times} else 0)
"""


@pytest.fixture
def trains_in(stand_in, tmp_path, monkeypatch):
    """Let the training take so many jobs."""
    monkeypatch.setenv("OWN_KEY", "of-alice")
    files = {"count": str(tmp_path / "count"), "hold": str(tmp_path / "hold")}
    return lambda times: stand_in(TRAINS.format(times=times, **files))


@pytest.fixture
def hold(tmp_path):
    """While this file is there, no training ends."""
    (tmp_path / "hold").touch()
    return tmp_path / "hold"


def start(*options, train=TRAIN):
    return launch.main([*FLAGS, *options, "--", *train])


def jobs_of(hub, count):
    """The jobs in the order of their start, once there are so many and all have ended."""
    end = time.monotonic() + 60
    while len(hub.jobs.all) < count or not all(job.ended for job in hub.jobs.all.values()):
        assert time.monotonic() < end, [(job.stage, said(job)) for job in hub.jobs.all.values()]
        time.sleep(0.05)
    assert len(hub.jobs.all) == count
    return list(hub.jobs.all.values())


def said(job):
    return "\n".join(line["data"] for line in job.log)


def begun(hub, word):
    """The only job, once its log holds this word."""
    while not (hub.jobs.all and word in said(next(iter(hub.jobs.all.values())))):
        time.sleep(0.02)
    (job,) = hub.jobs.all.values()
    return job


def test_a_training_of_three_jobs_is_watched_to_its_end(hub, trains_in, capsys):
    """Asked for a NAME without its USER the Hub knows no such repo: a run that pushed would seem to get nowhere."""
    trains_in(3)
    assert start(train=[*TRAIN[:-1], "detector"]) == 0
    jobs_of(hub, 3)
    assert re.findall(r"^trained (\d) of-alice$", capsys.readouterr().out, re.MULTILINE) == ["1", "2", "3"]


def test_the_jobs_of_a_chain_differ_in_their_link_alone_and_never_run_side_by_side(hub, trains_in):
    trains_in(3)
    assert start("--detach", "--env", "MODE=x", "--volume", "hf://datasets/alice/crowd:/data") == 0
    first, *rest = jobs = jobs_of(hub, 3)
    assert [job.spec["labels"].pop("link") for job in jobs] == ["1", "2", "3"]
    for job in jobs:
        job.spec["environment"].pop("RECIPE_JOB")
    assert all(job.spec == first.spec for job in rest)
    for before, after in zip(jobs, rest, strict=False):  # the next begins where a job has only its last line to say
        assert before.log[-1]["timestamp"] < next(line for line in after.log if "trained" in line["data"])["timestamp"]


@pytest.mark.parametrize("arrives", [False, True])
def test_a_job_that_is_lost_as_it_starts_its_successor_leaves_one_or_none_and_never_two(hub, trains_in, hold, arrives):
    """The same command then follows the successor that runs, or starts the one that is not there."""
    trains_in(2)
    assert start("--detach") == 0
    lost = hub.fail(r"/api/jobs/alice$", method="POST", status=503, late=arrives)
    first = begun(hub, "trained")
    hold.unlink()
    while not lost.hits or len(hub.jobs.all) < 1 + arrives:
        time.sleep(0.02)
    hub.jobs.kill(first.info["id"])
    hub.heal()
    hold.touch()
    assert start("--detach") == 0
    hold.unlink()
    assert [job.stage for job in jobs_of(hub, 2)] == ["ERROR", "COMPLETED"]


def test_the_same_command_watches_what_runs_already_and_starts_nothing(hub, trains_in, hold, capsys):
    trains_in(1)
    assert start("--detach") == 0
    begun(hub, "trained")
    threading.Timer(1.0, hold.unlink).start()
    assert start() == 0
    assert "trains alice/detector already" in capsys.readouterr().err
    jobs_of(hub, 1)


@pytest.mark.parametrize("lost", [{"drop": True, "late": True}, {"status": 503}])
def test_an_answer_that_is_lost_starts_no_second_successor(hub, trains_in, lost):
    trains_in(2)
    assert start("--detach") == 0
    hub.fail(r"/api/jobs/alice$", method="POST", times=1, **lost)
    first, _ = jobs_of(hub, 2)
    assert re.search(r"starting the job: .*; again in \d s", said(first))


def test_a_cancelled_job_starts_no_successor(hub, trains_in, hold):
    trains_in(2)
    assert start("--detach") == 0
    hub.api("hf_alice").cancel_job(job_id=begun(hub, "trained").info["id"])
    assert [job.stage for job in jobs_of(hub, 1)] == ["CANCELED"]


def test_a_job_that_outlives_its_cancellation_starts_no_successor_either(hub, trains_in, hold):
    trains_in(2)
    assert start("--detach") == 0
    job = begun(hub, "trained")
    job.info["status"] = {"stage": "CANCELED", "message": None}
    hold.unlink()
    job.process.wait()
    jobs_of(hub, 1)
    assert "this one was cancelled" in said(job)


def test_a_training_that_is_told_to_stop_passes_that_on_and_starts_no_successor(hub, stand_in, monkeypatch):
    monkeypatch.setenv("OWN_KEY", "of-alice")
    stand_in("""
import signal
signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))
print('trained', flush=True)
time.sleep(60)""")
    assert start("--detach") == 0
    os.kill(begun(hub, "trained").process.pid, signal.SIGTERM)
    (job,) = jobs_of(hub, 1)
    assert "exit code: 75" in job.info["status"]["message"]
    assert "saved" in said(job)


def test_the_number_of_jobs_is_limited_and_then_the_exit_code_is_that_of_a_deadline(hub, trains_in, capsys):
    trains_in(2)
    assert start("--max-jobs", "1") == 75
    jobs_of(hub, 1)
    assert "this was the last of --max_jobs 1" in capsys.readouterr().out


def test_no_job_is_started_that_could_pass_the_cost_limit_with_those_before(hub, trains_in, hold, capsys):
    """A job of 2 hours costs $3 at most; this one has run for an hour."""
    trains_in(2)

    def an_hour_later():
        job = begun(hub, "trained")
        job.info["startedAt"] = f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%S.%fZ}"
        hold.unlink()

    threading.Thread(target=an_hour_later, daemon=True).start()
    assert start("--max_cost", "4.4") == 75
    jobs_of(hub, 1)
    assert "$1.50 are spent, and another $3.00 could pass --max_cost 4.4" in capsys.readouterr().out


def test_a_first_job_that_could_pass_the_limit_is_not_started(hub, trains_in, capsys):
    assert start("--max_cost", "2.99") == 2
    assert "--max_cost 2.99: one job may cost $3.00" in capsys.readouterr().err
    assert not hub.jobs.all


def test_no_job_is_paid_for_that_gets_nowhere(hub, trains_in, stand_in, capsys):
    stand_in("sys.exit(75)")
    assert start() == 2
    jobs_of(hub, 1)
    assert "before anything was pushed to alice/detector" in capsys.readouterr().out
