"""The same image on HF Jobs, with everything checked before it costs anything.

    python jobs/launch.py --flavor a10g-large --try -- --data USER/CROWD
    python jobs/launch.py --flavor a10g-large --until-done --max_cost 60 -- --data USER/CROWD
    hf jobs ps --all --label project=recipe                    this project's jobs

What stands after `--` are flags of `recipe train`. The exit code is the job's; 75: its time was up, and the same
command resumes. torch and transformers are imported only once there is something to check.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, JobInfo

from data_prep.publish import upload
from jobs.job import ENDED, Request, exit_code, find_jobs, follow, run_command, say, start_once, to_json
from jobs.preflight import Findings, check
from jobs.request import hours, make_request, volume
from recipe.config import DEADLINE_EXIT
from recipe.hub import own_token, short_timeouts
from recipe.schema import UserError

DETACHED_EXIT = 130  # as a shell has it after Ctrl-C


def build_parser() -> argparse.ArgumentParser:
    """The launcher's own flags; those of `recipe train` come after `--`."""
    parser = argparse.ArgumentParser(
        prog="python jobs/launch.py",
        usage="%(prog)s --flavor FLAVOR [options] -- [flags of recipe train]",
        description="Train on HF Jobs: checks everything first, starts the job once, follows its log.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--flavor", required=True, help="machine, such as a10g-large; `hf jobs hardware` lists them with their prices")
    add("--image", help="image in a public registry, or hf.co/spaces/USER/NAME; default: NAMESPACE/recipe")
    add("--timeout", type=hours, help="such as 12h or 90m; default: from the pace, else 12h")
    add("--namespace", help="user or organisation that pays; default: the token's user")
    add("--pace-from", type=Path, metavar="RUN_DIR", help="an earlier run, for the hours and the costs")
    add("--pace", type=float, metavar="IMAGES", help="training images per second on this flavor")
    add("--until-done", action="store_true", help="a job whose time is up starts the next one itself")
    add("--max-jobs", type=int, default=10, help="with --until-done: how many at most")
    add("--max-cost", type=float, metavar="DOLLARS", help="no job is started that could pass this, with those before")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the job")
    add("--secret", action="append", default=[], metavar="NAME", help="variable of this machine, for the job alone")
    mounts = "as `hf jobs run --volume` has it; `-- --data /DIR` then reads a dataset repo without a download"
    add("--volume", type=volume, action="append", default=[], metavar="hf://...:/DIR", help=mounts)
    add("--upload-data", metavar="USER/NAME", help="private dataset repo to which the folder of --data is sent first")
    add("--bucket", metavar="USER/NAME", help="bucket that is mounted at --output_dir, so that all of it survives")
    add("--ssh", action="store_true", help="let `hf jobs ssh` into the job")
    add("--resource-group-id", metavar="ID", help="of an organisation, for its spending limits")
    add("--try", dest="try_", action="store_true", help="minutes: the doctor, and 60 steps, whose pace it prints")
    add("--detach", action="store_true", help="do not follow the log")
    add("--dry-run", action="store_true", help="check everything, print the job as JSON, stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check, start, follow. Returns the job's exit code; a user's mistake is one line on stderr and 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = build_parser()
    # With underscores too, as those of `recipe train` with dashes.
    own = [re.sub(r"^--[\w-]+", lambda name: name[0].replace("_", "-"), word) for word in argv[:cut]]
    options = parser.parse_args(own)
    return run_command(lambda: launch(options, argv[cut + 1 :]))


def launch(options: argparse.Namespace, training: list[str]) -> int:
    """The recipe of a launch: the flags, the Hub's side, the time and the costs, the job."""
    from recipe.arguments import parse

    args = parse(training, on_gpu=True)  # whatever this machine has
    if args.hub_token is not None:
        raise UserError("--hub_token: a job's command can be read by others; the job gets your token as a secret")
    api = HfApi(token=own_token())
    with short_timeouts():
        found = check(api, options, args)
    request = make_request(options, training, args, found)
    if options.dry_run:
        print(to_json(request, indent=2))
        return 0
    if (job := job_at_work(api, request)) is not None:
        say(f"note: {job.id} trains {found.model} already; no other is started")
    elif options.upload_data:
        upload(Path(str(args.data)), options.upload_data)
    job = job or start_once(api, request)
    announce(job, found, ssh=options.ssh)
    return 0 if options.detach else watch(api, job)


def job_at_work(api: HfApi, request: Request) -> JobInfo | None:
    """The job that trains this model now: a second one would push to the same repo, and be paid too."""
    if "model" not in request["labels"]:
        return None
    jobs = find_jobs(api, request["namespace"], model=request["labels"]["model"])
    return next((job for job in jobs if job.status.stage not in ENDED), None)


def watch(api: HfApi, job: JobInfo) -> int:
    """Follow a job, and those that it starts. Returns the exit code of the last; no job depends on it."""
    while True:
        try:
            ended = follow(api, job)
        except KeyboardInterrupt:
            say(f"detached: the job runs on, and costs. Stop it with `hf jobs cancel {job.owner.name}/{job.id}`")
            return DETACHED_EXIT
        labels = ended.labels or {}
        successors = find_jobs(api, job.owner.name, chain=labels["chain"], link=str(int(labels["link"]) + 1))
        if not successors:
            if (code := exit_code(ended)) == DEADLINE_EXIT:
                say("the time was up: the same command resumes the training")
            return code
        job = successors[0]


def announce(job: JobInfo, found: Findings, *, ssh: bool) -> None:
    """Where the job is to be seen, and how it is watched, entered, stopped and resumed."""
    name = f"{job.owner.name}/{job.id}"
    say(f"job        {job.url}")
    if found.space:
        say(f"dashboard  {job.endpoint}/spaces/{found.space}")
    say(f"model      {job.endpoint}/{found.model}")
    say(f"watch      hf jobs logs --follow {name}")
    say(f"stats      hf jobs stats {name}")
    if ssh:
        say(f"shell      hf jobs ssh {name}")
    say(f"cancel     hf jobs cancel {name}")
    say(f"all jobs   hf jobs ps --all --namespace {job.owner.name} --label project=recipe")
    say(f"resume     python {shlex.join(sys.argv)}")


if __name__ == "__main__":
    sys.exit(main())
