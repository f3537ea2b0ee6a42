"""One job of a chain: trains until its time is up, then starts the next job itself. No laptop has to stay awake.

    python -m jobs.chain --model USER/NAME --max_jobs 10 -- recipe train ...        within a job, which
    python jobs/launch.py --until-done --max_cost 60 ...                            starts with this command

The next job has the same image, flags and secrets. None is started where this one made no progress or was stopped,
or where a limit would be passed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from huggingface_hub import HfApi

from jobs.job import Request, ask, find_jobs, own_request, run_command, say, start_once
from jobs.preflight import find_machine, hourly
from recipe.config import DEADLINE_EXIT
from recipe.schema import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and start the next job where one is due. Returns 0 where it was, else the training's exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.chain", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="USER/NAME to which the training pushes")
    parser.add_argument("--max_jobs", type=int, required=True)
    parser.add_argument("--max_cost", type=float, help="dollars for all jobs of the chain together")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    return run_command(lambda: train_and_hand_over(options))


def train_and_hand_over(options: argparse.Namespace) -> int:
    """Raises UserError where no next job can be started though one is due."""
    api, request = HfApi(), own_request()
    before = newest_push(api, options.model)
    code, stopped = run(options.command)
    if code != DEADLINE_EXIT or stopped:
        return code
    if newest_push(api, options.model) == before:
        raise UserError(f"the time was up before anything was pushed to {options.model}; give a longer --timeout")
    if reason := limit_reached(api, request, options):
        say(f"the time was up, and no next job is started: {reason}. The same command resumes the training")
        return code
    labels = request["labels"]
    successor = start_once(api, request | {"labels": labels | {"link": str(int(labels["link"]) + 1)}})
    say(f"the time was up: {successor.id} continues, {successor.url}")
    return 0


def run(command: Sequence[str]) -> tuple[int, bool]:
    """The exit code of the training, and whether it was told to stop: SIGTERM is passed on to it."""
    process, signals = subprocess.Popen(command), []

    def pass_on(number: int, _: Any) -> None:
        signals.append(number)
        process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    code = process.wait()
    return (code if code >= 0 else 128 - code), bool(signals)


def limit_reached(api: HfApi, request: Request, options: argparse.Namespace) -> str | None:
    """Why the chain ends here, in words; None where another job may start."""
    jobs = find_jobs(api, request["namespace"], chain=request["labels"]["chain"])
    if any(job.id == os.environ["JOB_ID"] and job.status.stage in ("CANCELED", "DELETED") for job in jobs):
        return "this one was cancelled"
    if len(jobs) >= options.max_jobs:
        return f"this was the last of --max_jobs {options.max_jobs}"
    if options.max_cost is not None:
        price = hourly(find_machine(ask("asking for the machines", api.list_jobs_hardware), request["flavor"]))
        spent = price * sum((job.durations.running_secs or 0) / 3600 for job in jobs if job.durations)
        dearest = price * request["timeout"] / 3600
        if spent + dearest > options.max_cost:
            return f"${spent:.2f} are spent, and another ${dearest:.2f} could pass --max_cost {options.max_cost:g}"
    return None


def newest_push(api: HfApi, model: str) -> str | None:
    """The newest commit of the model repo; None while there is no repo."""
    return ask(f"looking at {model}", lambda: api.model_info(model).sha if api.repo_exists(model) else None)


if __name__ == "__main__":
    sys.exit(main())
