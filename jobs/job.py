"""A training as a job on HF Jobs: `follow(api, start_once(api, request))`.

A request holds every argument of `HfApi.run_job`, in a form that JSON keeps: a dry run prints it, and the job carries
it, to start its successor from. jobs/request.py makes it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub import HfApi, JobInfo, Volume

from recipe.hub import as_user_errors, first_line, is_transient, with_retries
from recipe.schema import UserError

PROJECT = {"project": "recipe"}  # the label by which our jobs are found
REQUEST = "RECIPE_JOB"  # the variable in which a job carries its own request
ENDED = ("COMPLETED", "ERROR", "CANCELED", "DELETED")
PATIENCE, LOG_PATIENCE = 600.0, 20.0  # seconds of passing failures before a question, a log's end, is given up
POLL = 1.0  # seconds between two looks at a job
TIMEOUT_EXIT, CANCELED_EXIT = 124, 143  # as `timeout` and a terminated shell have them
Request = dict[str, Any]
Result = TypeVar("Result")


def to_json(request: Request, indent: int | None = None) -> str:
    """All of the request, but only the names of its secrets."""
    return json.dumps(request | {"secrets": list(request["secrets"])}, indent=indent)


def own_request() -> Request:
    """The request by which the job that we are in was started."""
    found = json.loads(os.environ[REQUEST])
    return found | {"secrets": {name: os.environ[name] for name in found["secrets"]}}


def find_jobs(api: HfApi, namespace: str, **labels: str) -> list[JobInfo]:
    """Our jobs with these labels, newest first."""
    return ask("looking for jobs", lambda: list(api.list_jobs(namespace=namespace, labels=PROJECT | labels)))


def start_once(api: HfApi, request: Request) -> JobInfo:
    """Start the job unless it was started already: an answer may be lost on its way back, and a job costs.

    Raises UserError where the Hub refuses the job, or takes none for `PATIENCE` seconds.
    """
    volumes = [Volume(**volume) for volume in request["volumes"]]
    sent = request | {"volumes": volumes, "env": request["env"] | {REQUEST: to_json(request)}}
    labels = {name: request["labels"][name] for name in ("chain", "link")}

    def start() -> JobInfo:
        found = find_jobs(api, request["namespace"], **labels)
        return found[0] if found else api.run_job(**sent)

    return ask("starting the job", start)


def follow(api: HfApi, job: JobInfo) -> JobInfo:
    """Print the job's log until it ends, each line once, through lost connections. Returns the job as it ended.

    Raises UserError where the Hub does not answer for `PATIENCE` seconds, or refuses the log.
    """
    owner, shown, ended = job.owner.name, 0, False

    def read() -> None:
        nonlocal shown
        for number, line in enumerate(api.fetch_job_logs(job_id=job.id, namespace=owner, follow=not ended), 1):
            if number > shown:  # the Hub sends a log from its first line on
                print(line, flush=True)
                shown = number

    while True:
        now = ask("asking for the job", lambda: api.inspect_job(job_id=job.id, namespace=owner))
        ended = now.status.stage in ENDED  # asked before the log is read, which is complete then
        try:
            with_retries("reading the log", read, time.monotonic() + LOG_PATIENCE)
        except Exception as error:
            if ended:
                say(f"note: the end of the log cannot be read ({first_line(error)})")
            elif not is_transient(error):
                raise UserError(f"{job.id} runs on; its log cannot be read ({first_line(error)})") from error
        if ended:
            say(f"{job.id}: {now.status.stage} {now.status.message or ''}".rstrip())
            return now
        time.sleep(POLL)


def exit_code(job: JobInfo) -> int:
    """That of the job's command, from what the Hub says of its end."""
    message = job.status.message or ""
    if (code := re.search(r"exit code:? (\d+)", message)) is not None:
        return int(code[1])
    other = TIMEOUT_EXIT if "timeout" in message.lower() else 1
    return {"COMPLETED": 0, "CANCELED": CANCELED_EXIT}.get(job.status.stage, other)


def ask(what: str, call: Callable[[], Result]) -> Result:
    """`call()`, repeated after passing failures. Raises UserError after `PATIENCE` seconds, or if refused."""
    with as_user_errors(what):
        return with_retries(what, call, time.monotonic() + PATIENCE)


def run_command(command: Callable[[], int]) -> int:
    """The exit code of a command line: a user's mistake is one line on stderr and 2. Waits for the Hub are told."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("recipe").setLevel(logging.INFO)
    try:
        return command()
    except UserError as error:
        say(f"error: {error}")
        return 2


def say(line: str) -> None:
    """For the person at the terminal; stdout is the job's log, or the JSON of a dry run."""
    print(line, file=sys.stderr, flush=True)
