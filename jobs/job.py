"""A training as a job on HF Jobs: started once, followed to its end, found again later.

submit(api, namespace, order)  ->  the job, even where the answer to the first request was lost
follow(api, job)           ->  its exit code, its log printed on the way
"""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from recipe.schema import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

PROJECT = {"project": "recipe"}  # the label by which --status knows our jobs
ENDED = ("COMPLETED", "ERROR", "CANCELED", "DELETED")
PATIENCE = 600.0  # seconds of answers that fail in passing, before we give up on a request
TIMEOUT_EXIT, CANCELED_EXIT = 124, 143  # as `timeout` and a terminated shell have them
Result = TypeVar("Result")


def submit(api: HfApi, namespace: str, order: dict[str, Any]) -> JobInfo:
    """Start a job with these arguments of `run_job`, once.

    The client does not repeat this request, and an answer may be lost on the way back: before it is sent again, the
    job is looked for by a label that only this call has.

    Raises:
        UserError: the Hub refuses the job, or does not say whether it runs.
    """
    from recipe.access import in_a_line, is_transient

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
    """Print the job's log until it ends, through lost connections. Returns its exit code.

    Raises:
        UserError: the Hub has not answered for `PATIENCE` seconds.
    """
    from recipe.access import in_a_line, is_transient

    log, good = Log(api, job), time.monotonic()
    while True:
        began = time.monotonic()
        try:
            log.read(follow=True)
        except Exception as error:
            good = time.monotonic() if time.monotonic() - began > 60 else good
            if not is_transient(error) or time.monotonic() - good > PATIENCE:
                raise UserError(f"the log of {job.id} cannot be read ({in_a_line(error)}); the job goes on") from error
            time.sleep(2)
        if (now := look(api, job)).status.stage in ENDED:
            break
        time.sleep(1)
    # Where the connection dropped while the job ended, the client stops: the rest of the log is still to come.
    patiently("reading the end of the log", lambda: log.read(follow=False))
    say(f"{job.id}: {now.status.stage} {now.status.message or ''}".rstrip())
    return exit_code(now)


class Log:
    """The lines of a job's log, each printed once, however often the Hub sends them again from the first."""

    def __init__(self, api: HfApi, job: JobInfo) -> None:
        self.api, self.job, self.shown = api, job, 0

    def read(self, *, follow: bool) -> None:
        """Print what is new; with `follow`, go on until the job ends."""
        lines = self.api.fetch_job_logs(job_id=self.job.id, namespace=self.job.owner.name, follow=follow)
        for number, line in enumerate(lines, 1):
            if number > self.shown:
                print(line, flush=True)
                self.shown = number


def look(api: HfApi, job: JobInfo) -> JobInfo:
    """The job as it is now."""
    return patiently("asking for the job", lambda: api.inspect_job(job_id=job.id, namespace=job.owner.name))


def patiently(what: str, call: Callable[[], Result]) -> Result:
    """`call()`, again after failures that pass.

    Raises:
        UserError: none succeeded within `PATIENCE` seconds.
    """
    from recipe.access import in_a_line, retry

    try:
        return retry(what, call, time.monotonic() + PATIENCE)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {in_a_line(error)}") from error


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


def say(line: str) -> None:
    """For the person at the terminal; stdout is the job's log, or the JSON of a dry run."""
    print(line, file=sys.stderr, flush=True)
