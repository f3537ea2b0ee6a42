"""The same image on HF Jobs, with everything checked before it costs anything.

    python jobs/launch.py --flavor a10g-large --dry-run -- --data USER/CROWD --hub_model_id USER/DETECTOR
    python jobs/launch.py --flavor a10g-large --until-done -- --data USER/CROWD --hub_model_id USER/DETECTOR
    python jobs/launch.py --status

What stands after `--` are flags of `recipe train`. The exit code is the job's; 75: its time was up, and the same
command goes on. Standard library only until there is something to ask the Hub.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import preflight
from jobs.job import PROJECT, follow, patiently, say, show_retries, submit, table
from jobs.plan import Plan, Target, hours, schedule
from recipe.config import DEADLINE_EXIT, Config, parse_train
from recipe.schema import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo
    from transformers import TrainingArguments

DETACHED_EXIT = 130  # as a shell has it after Ctrl-C


def build_parser() -> argparse.ArgumentParser:
    """The launcher's own flags; those of `recipe train` come after `--`."""
    parser = argparse.ArgumentParser(
        prog="python jobs/launch.py",
        usage="%(prog)s --flavor FLAVOR [options] -- [flags of recipe train]",
        description="Train on HF Jobs: checks everything first, starts the job once, follows its log.",
        allow_abbrev=False,
    )
    parser.add_argument("--flavor", help="machine, such as a10g-large; a wrong name lists all with their prices")
    parser.add_argument(
        "--image", help="image in a public registry, or hf.co/spaces/USER/NAME; default: NAMESPACE/recipe"
    )
    parser.add_argument("--timeout", type=hours, help="such as 12h or 90m; default: from the pace, else 12h")
    parser.add_argument("--namespace", help="user or organisation that pays; default: the token's user")
    parser.add_argument("--attempts", type=int, default=1, help="how often the Hub itself runs a failed command")
    parser.add_argument(
        "--pace-from", type=Path, metavar="RUN_DIR", help="an earlier run, for the hours and the costs"
    )
    parser.add_argument("--pace", type=float, metavar="IMAGES", help="training images per second on this flavor")
    parser.add_argument("--until-done", action="store_true", help="start the next job while one ends by its deadline")
    parser.add_argument("--detach", action="store_true", help="do not follow the log")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the job as JSON, stop")
    parser.add_argument("--status", action="store_true", help="list this project's jobs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check, start, follow. Returns the job's exit code; a user's mistake is one line on stderr and 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = build_parser()
    # With underscores too, as those of `recipe train` with dashes.
    own = [re.sub(r"^--[\w-]+", lambda name: name[0].replace("_", "-"), word) for word in argv[:cut]]
    options = parser.parse_args(own)
    if not (options.flavor or options.status):
        parser.error("--flavor is missing, such as --flavor a10g-large")
    show_retries()
    try:
        if options.status:
            return status(options.namespace)
        return launch(options, argv[cut + 1 :])
    except UserError as error:
        say(f"error: {error}")
        return 2


def launch(options: argparse.Namespace, training: list[str]) -> int:
    """The recipe of a launch: the flags, the Hub's side, the time and the costs, the job."""
    config, rest = parse_train(training)
    args = check_training_flags(config, rest)
    from huggingface_hub import HfApi

    from recipe.hub import impatiently

    api, token = HfApi(), own_token()
    with impatiently():
        target = check_hub(api, options, config, args)
    plan = schedule(options, config, args, target)
    order = make_order(options, training, token, target, plan)
    if options.dry_run:
        from huggingface_hub._jobs_api import _create_job_spec  # by which `run_job` makes what it sends

        print(json.dumps(_create_job_spec(**order) | {"secrets": list(order["secrets"])}, indent=2))
        return 0
    return run(api, options, order, target)


def own_token() -> str:
    """The token of this machine. Raises UserError where there is none."""
    from huggingface_hub import get_token

    if (token := get_token()) is None:
        raise UserError("no token. Run `hf auth login`, or set HF_TOKEN to one that may write and start jobs")
    return token


def check_training_flags(config: Config, rest: list[str]) -> TrainingArguments:
    """Let the recipe and transformers judge the other flags, as on a job with a GPU, whatever this machine has.

    Only whether the GPU can do what --tf32 and --bf16 ask for is left to the job itself.
    """
    from recipe.train import training_arguments

    args = training_arguments(config, ["--bf16", "true", *rest, "--tf32", "false", "--use_cpu", "true"])
    if args.hub_token is not None:
        raise UserError("--hub_token: a job's command can be read by others; the job gets your token as a secret")
    return args


def check_hub(api: HfApi, options: argparse.Namespace, config: Config, args: TrainingArguments) -> Target:
    """Token, flavor, data, weights, model repo, dashboard and image, cheapest first; prints what it finds."""
    from recipe.hub import check_rights, check_write_access, full_id

    user = patiently("asking the Hub who we are", api.whoami)
    namespace = options.namespace or user["name"]
    check_rights(user, namespace, "job.write")
    say(f"token      {user['name']} may start jobs in {namespace}")
    machine = preflight.flavor(patiently("asking for the machines", api.list_jobs_hardware), options.flavor)
    say(f"machine    {machine.name}, ${preflight.hourly(machine):.2f} an hour")
    images = patiently("looking at the data", lambda: preflight.dataset(api, config)) if config.data else {}
    say(f"data       {config.data or 'the built-in sample'} {images or ''}".rstrip())
    default = f"{namespace}/{(config.data or 'recipe-pilot').split('/')[-1]}-detector"
    model = full_id(args.hub_model_id or default, user)
    say(f"model      {check_write_access(model)}")
    find = partial(preflight.earlier_run, api, model, config, args, machine)
    record = patiently("looking at the model repo", find)
    if record:
        say(f"           it holds this run already, begun {record['started']}: the job goes on with it")
    else:
        for name in ("backbone", "detr_init"):
            say(f"weights    {preflight.pretrained(name, getattr(config, name))}")
    space, server, write_token = dashboard(args, namespace)
    if space is not None:
        space = full_id(space, user)
    say(f"dashboard  {check_write_access(space, 'space') if space else server or 'none'}")
    image = options.image or f"hf.co/spaces/{namespace}/recipe"
    known, words = patiently("looking at the image", lambda: preflight.image(api, image, args))
    say(f"image      {words}" if known else f"note: image {words}")
    return Target(namespace, image, model, space, server, write_token, machine, images, record)


def dashboard(args: TrainingArguments, namespace: str) -> tuple[str | None, str | None, str | None]:
    """The job's Trackio Space, or else the address and the write token of a server: the job's own disk will be gone.

    Raises:
        UserError: TRACKIO_SERVER_URL is no address; what it holds is not shown, a token may be part of it.
    """
    from trackio.utils import parse_trackio_server_url, resolve_space_id_and_server_url

    if "trackio" not in args.report_to:
        return None, None, None
    space, address = resolve_space_id_and_server_url(args.trackio_space_id, None)
    if not address:
        return space or f"{namespace}/trackio", None, None
    server, token = parse_trackio_server_url(address)
    if not re.match("https?://", server):
        raise UserError("TRACKIO_SERVER_URL: must begin with http:// or https://; unset it to log to a Space")
    return None, server, token or os.environ.get("TRACKIO_WRITE_TOKEN")


def make_order(
    options: argparse.Namespace, training: list[str], token: str, target: Target, plan: Plan
) -> dict[str, Any]:
    """The job itself, as arguments of `run_job`: the user's flags, and those that every job needs."""
    command = ["recipe", "train", *training]
    command += ["--max_hours", f"{plan.max_hours:.3f}", "--hub_model_id", target.model, "--push_to_hub"]
    if target.space is not None:
        command += ["--trackio_space_id", target.space]
    secrets = {"HF_TOKEN": token, "TRACKIO_WRITE_TOKEN": target.write_token}
    return {
        "image": target.image,
        "command": command,
        "env": {"TRACKIO_SERVER_URL": target.server} if target.server else {},
        "secrets": {name: value for name, value in secrets.items() if value},
        "flavor": target.machine.name,
        "timeout": round(plan.timeout * 3600),
        "attempts": options.attempts,
        "labels": {**PROJECT, "model": target.model.replace("/", "--"), "name": target.model.split("/")[-1]},
    }


def run(api: HfApi, options: argparse.Namespace, order: dict[str, Any], target: Target) -> int:
    """Start the job and follow it; with --until-done the next one too, until the training is over."""
    while True:
        before = head(api, target.model)
        job = submit(api, target.namespace, order)
        announce(job, target)
        if options.detach:
            return 0
        try:
            code = follow(api, job)
        except KeyboardInterrupt:
            say(f"detached: the job goes on, and costs. Stop it with `hf jobs cancel {job.owner.name}/{job.id}`")
            return DETACHED_EXIT
        if code != DEADLINE_EXIT:
            return code
        if not options.until_done:
            say("the time was up: the same command goes on with the training")
            return code
        if head(api, target.model) == before:
            raise UserError(
                f"{job.id} had to stop before it pushed anything to {target.model}; give a longer --timeout"
            )
        say("the time was up: the next job goes on")


def head(api: HfApi, model: str) -> str | None:
    """The newest commit of the model repo; None while there is none."""
    return patiently(f"looking at {model}", lambda: api.model_info(model).sha if api.repo_exists(model) else None)


def announce(job: JobInfo, target: Target) -> None:
    """Where the job is to be seen, and how it is watched, stopped and gone on with."""
    name = f"{job.owner.name}/{job.id}"
    say(f"job        {job.id}")
    say(f"page       {job.url}")
    if target.space or target.server:
        say(f"dashboard  {f'{job.endpoint}/spaces/{target.space}' if target.space else target.server}")
    say(f"model      {job.endpoint}/{target.model}")
    say(f"watch      hf jobs logs --follow {name}")
    say(f"cancel     hf jobs cancel {name}")
    say(f"resume     python {shlex.join(sys.argv)}")


def status(namespace: str | None) -> int:
    """List this project's jobs, newest first."""
    from huggingface_hub import HfApi

    from recipe.hub import impatiently

    api = HfApi(token=own_token())
    with impatiently():
        owner = namespace or patiently("asking the Hub who we are", api.whoami)["name"]
        jobs = patiently("listing the jobs", lambda: list(api.list_jobs(namespace=owner, labels=PROJECT)))
    print(table(jobs) if jobs else f"no jobs of this project in {owner}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
