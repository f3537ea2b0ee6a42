"""A training as a job on HF Jobs: started once, followed to its end.

start_once(api, request)   ->  the job, even where the answer to the request was lost
follow(api, job)           ->  the job as it ended, its log printed on the way
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from recipe.schema import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

    from jobs.request import JobRequest

PROJECT = {"project": "recipe"}  # the label by which our jobs are found
ENDED = ("COMPLETED", "ERROR", "CANCELED", "DELETED")
PATIENCE = 600.0  # seconds of passing failures before a question is given up
POLL = 1.0  # between two looks at a job
LAST_TRIES = 10  # to read the log of a job that has ended: its exit code is known by then
TIMEOUT_EXIT, CANCELED_EXIT = 124, 143  # as `timeout` and a terminated shell have them
Result = TypeVar("Result")


def find_jobs(api: HfApi, namespace: str, **labels: str) -> list[JobInfo]:
    """Our jobs with these labels, newest first."""
    return ask("looking for jobs", lambda: list(api.list_jobs(namespace=namespace, labels=PROJECT | labels)))


def start_once(api: HfApi, request: JobRequest) -> JobInfo:
    """Start the job unless it was started already: an answer may be lost on its way back, and a job costs.

    Raises:
        UserError: the Hub refuses the job, or does not say whether it runs.
    """
    from recipe.hub import first_line, is_transient

    end, pause = time.monotonic() + PATIENCE, POLL
    while True:
        labels = {name: request.labels[name] for name in ("chain", "link")}
        if found := find_jobs(api, request.namespace, **labels):
            return found[0]
        if time.monotonic() > end:
            raise UserError("HF Jobs takes no job at the moment, and none was started. Try again later")
        try:
            return request.send(api)
        except Exception as error:
            if not is_transient(error):
                raise UserError(f"HF Jobs refuses the job: {first_line(error)}") from error
            say(f"note: the Hub did not confirm the job ({first_line(error)}); looking whether it runs")
        time.sleep(pause)
        pause = min(2 * pause, 60)


def follow(api: HfApi, job: JobInfo) -> JobInfo:
    """Print the job's log until it ends, each line once, through lost connections. Returns the job as it ended.

    Raises:
        UserError: the Hub does not answer for `PATIENCE` seconds, or refuses the log.
    """
    from recipe.hub import first_line, is_transient

    shown, failures = 0, 0
    while True:
        now = ask("asking for the job", partial(api.inspect_job, job_id=job.id, namespace=job.owner.name))
        ended = now.status.stage in ENDED  # asked before the log is read, which is complete then
        try:
            lines = api.fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=not ended)
            for number, line in enumerate(lines, 1):
                if number > shown:  # the Hub sends a log from its first line on
                    print(line, flush=True)
                    shown = number
        except Exception as error:
            failures += ended
            if is_transient(error) and failures < LAST_TRIES:
                time.sleep(2 * POLL)
                continue
            if not ended:
                raise UserError(
                    f"the log of {job.id} cannot be read ({first_line(error)}); the job runs on"
                ) from error
            say(f"note: the end of the log cannot be read ({first_line(error)})")
        if ended:
            say(f"{job.id}: {now.status.stage} {now.status.message or ''}".rstrip())
            return now
        time.sleep(POLL)


def exit_code(job: JobInfo) -> int:
    """That of the job's command, from what the Hub says of its end."""
    if job.status.stage == "COMPLETED":
        return 0
    message = job.status.message or ""
    if (code := re.search(r"exit code:? (\d+)", message)) is not None:
        return int(code[1])
    if job.status.stage == "CANCELED":
        return CANCELED_EXIT
    return TIMEOUT_EXIT if "timeout" in message.lower() else 1


def ask(what: str, call: Callable[[], Result]) -> Result:
    """`call()`, repeated after passing failures.

    Raises:
        UserError: the Hub refuses, or none succeeded within `PATIENCE` seconds.
    """
    from recipe.hub import as_user_errors, with_retries

    with as_user_errors(what):
        return with_retries(what, call, time.monotonic() + PATIENCE)


def show_retries() -> None:
    """Print what recipe/hub.py says of a Hub that does not answer: a wait without a word looks like a hang."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("recipe").setLevel(logging.INFO)


def say(line: str) -> None:
    """For the person at the terminal; stdout is the job's log, or the JSON of a dry run."""
    print(line, file=sys.stderr, flush=True)
