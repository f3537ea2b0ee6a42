"""A training as a job on HF Jobs: started once, followed to its end, found again later.

submit(api, namespace, order)  ->  the job, even where the answer to the first request was lost
follow(api, job)           ->  its exit code, its log printed on the way
"""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from recipe.schema import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

PROJECT = {"project": "recipe"}  # the label by which --status knows our jobs
ENDED = ("COMPLETED", "ERROR", "CANCELED", "DELETED")
PATIENCE = 600.0  # seconds of answers that fail in passing, before we give up on a request
LAST_TRIES = 10  # to read the log of a job that has ended: its exit code is known by then
TIMEOUT_EXIT, CANCELED_EXIT = 124, 143  # as `timeout` and a terminated shell have them
Result = TypeVar("Result")


def submit(api: HfApi, namespace: str, order: dict[str, Any]) -> JobInfo:
    """Start a job with these arguments of `run_job`, once.

    The client does not repeat this request, and an answer may be lost on the way back: before it is sent again, the
    job is looked for by a label that only this call has.

    Raises:
        UserError: the Hub refuses the job, or does not say whether it runs.
    """
    from recipe.hub import in_a_line, is_transient

    mine = {"launch": uuid.uuid4().hex[:16]}
    end, pause = time.monotonic() + PATIENCE, 1.0
    while True:
        try:
            return api.run_job(**order | {"labels": order["labels"] | mine}, namespace=namespace)
        except Exception as error:
            if not is_transient(error):
                raise UserError(f"HF Jobs refuses the job: {in_a_line(error)}") from error
            say(f"note: the Hub did not confirm the job ({in_a_line(error)}); looking whether it runs")
        time.sleep(pause)
        found = patiently("looking for the job", lambda: list(api.list_jobs(namespace=namespace, labels=mine)))
        if found:
            return found[0]
        if time.monotonic() > end:
            raise UserError("HF Jobs takes no job at the moment, and none was started. Try again later")
        pause = min(2 * pause, 60)


def follow(api: HfApi, job: JobInfo) -> int:
    """Print the job's log until it ends, each line once, through lost connections. Returns its exit code.

    Raises:
        UserError: the Hub does not answer for `PATIENCE` seconds, or refuses the log.
    """
    from recipe.hub import in_a_line, is_transient

    asked = partial(api.inspect_job, job_id=job.id, namespace=job.owner.name)
    shown, failures = 0, 0
    while True:
        now = patiently("asking for the job", asked)
        ended = now.status.stage in ENDED  # asked before the log is read, which is then the whole of it
        try:
            lines = api.fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=not ended)
            for number, line in enumerate(lines, 1):
                if number > shown:  # the Hub sends a log from its first line on
                    print(line, flush=True)
                    shown = number
        except Exception as error:
            failures += ended
            if is_transient(error) and failures < LAST_TRIES:
                time.sleep(2)
                continue
            if not ended:
                raise UserError(f"the log of {job.id} cannot be read ({in_a_line(error)}); the job goes on") from error
            say(f"note: the end of the log cannot be read ({in_a_line(error)})")
        if ended:
            say(f"{job.id}: {now.status.stage} {now.status.message or ''}".rstrip())
            return exit_code(now)
        time.sleep(1)


def patiently(what: str, call: Callable[[], Result]) -> Result:
    """`call()`, again after failures that pass.

    Raises:
        UserError: none succeeded within `PATIENCE` seconds.
    """
    from recipe.hub import plainly, retry

    with plainly(what):
        return retry(what, call, time.monotonic() + PATIENCE)


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


def table(jobs: list[JobInfo]) -> str:
    """One line for each job, newest first."""
    rows = [("JOB", "STAGE", "FLAVOR", "STARTED", "RAN", "MODEL", "")]
    for job in jobs:
        seconds = (job.durations.running_secs if job.durations else None) or 0
        ran = f"{seconds // 3600}:{seconds // 60 % 60:02d}"
        started = f"{job.started_at:%Y-%m-%d %H:%M}" if job.started_at else "-"
        model = (job.labels or {}).get("model", "").replace("--", "/")
        rows.append((job.id, str(job.status.stage), str(job.flavor), started, ran, model, job.status.message or ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def show_retries() -> None:
    """Print what recipe/hub.py says of a Hub that does not answer: a wait without a word looks like a hang."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("recipe").setLevel(logging.INFO)


def say(line: str) -> None:
    """For the person at the terminal; stdout is the job's log, or the JSON of a dry run."""
    print(line, file=sys.stderr, flush=True)
