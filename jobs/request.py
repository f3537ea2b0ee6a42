"""What HF Jobs is asked for, with a timeout that holds the training: what a dry run prints, and what is sent.

start_once(api, make_request(options, training, args, found))
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
import uuid
from typing import TYPE_CHECKING

from huggingface_hub import JobHardwareInfo, Volume
from huggingface_hub.utils import parse_hf_mount

from jobs.job import PROJECT, Request, say
from jobs.preflight import Findings, gpus, hourly, processes
from recipe.hub import own_token
from recipe.pace import Pace, computed_rate
from recipe.record import RunRecord
from recipe.schema import UserError

if TYPE_CHECKING:
    from recipe.arguments import Arguments

TRY_SECONDS = 30 * 60
DEFAULT_HOURS = 12.0  # the job's timeout where nothing is known of its pace; the Hub's own default is 30 minutes
START_HOURS = 1 / 3  # of a job: to fetch image, data and backbone, and to push at the end
SERVER = ("TRACKIO_SERVER_URL", "TRACKIO_WRITE_TOKEN")  # secrets: the address may carry the token


def make_request(options: argparse.Namespace, training: list[str], args: Arguments, found: Findings) -> Request:
    """Every argument of `HfApi.run_job`: what the user asks for, and what every job needs.

    Raises UserError where the time or the money is too short, or a variable has no value.
    """
    if wrong := [pair for pair in options.env if "=" not in pair]:
        raise UserError(f"--env {wrong[0]}: give NAME=VALUE; `--secret NAME` takes the value from this machine")
    if unset := [name for name in options.secret if name not in os.environ]:
        raise UserError(f"--secret {unset[0]}: not set here; `export {unset[0]}=...` first, its value is not printed")
    volumes = list(options.volume)
    if options.bucket:  # the same folder in the bucket as in the image, which works in /
        folder = args.output_dir.strip("/")
        volumes.append(Volume(type="bucket", source=options.bucket, path=folder, mount_path=f"/{folder}"))
    sent = ["--data", options.upload_data] if options.upload_data else []
    flags = [*training, *sent, "--hub_model_id", found.model]
    server = [name for name in SERVER if name in os.environ and not found.space]
    # `chain` is common to the jobs of one training; with `link`, 1 for its first job, it names one job alone.
    labels = PROJECT | {"name": found.model.split("/")[-1], "chain": uuid.uuid4().hex[:16], "link": "1"}
    if options.try_:
        command, seconds = try_command(flags), TRY_SECONDS
    else:
        timeout, max_hours = schedule(options, args, found)
        command, seconds = train_command(options, flags, found, max_hours), round(timeout * 3600)
        labels["model"] = found.model.replace("/", "--")
    return {
        "namespace": found.namespace,
        "image": found.image,
        "command": command,
        "flavor": found.machine.name,
        "timeout": seconds,
        "env": dict(pair.split("=", 1) for pair in options.env),
        "secrets": {"HF_TOKEN": own_token()} | {name: os.environ[name] for name in [*options.secret, *server]},
        "labels": labels,
        "volumes": [volume.to_dict() for volume in volumes],
        "ssh": options.ssh,
        "resource_group_id": options.resource_group_id,
    }


def train_command(options: argparse.Namespace, flags: list[str], found: Findings, max_hours: float) -> list[str]:
    """The training with its deadline and its dashboard; with --until-done as one job of a chain."""
    command = ["recipe", "train", *flags, "--max_hours", f"{max_hours:.4g}"]
    if found.space is not None:
        command += ["--trackio_space_id", found.space]
    if not options.until_done:
        return command
    limits = ["--max_cost", f"{options.max_cost:g}"] if options.max_cost is not None else []
    chain = ["python", "-m", "jobs.chain", "--model", found.model, "--max_jobs", str(options.max_jobs)]
    return [*chain, *limits, "--", *command]


def try_command(flags: list[str]) -> list[str]:
    """What shows within minutes that image, driver and token are right, what fits, and how fast a step is."""
    short = "--max_steps 60 --max_train_images 500 --max_val_images 50 --push_to_hub false --report_to none"
    words = shlex.join(flags)
    return ["sh", "-c", f"recipe doctor {words} && recipe train {words} --output_dir outputs/try {short}"]


def schedule(options: argparse.Namespace, args: Arguments, found: Findings) -> tuple[float, float]:
    """Hours until the Hub kills the job, and hours of training, after which the recipe itself stops before that.

    Prints the expected hours and costs. Raises UserError where --max_cost does not allow the first job.
    """
    pace, price = find_pace(options, args, found), hourly(found.machine)
    if pace is None:
        say("time       unknown: neither the images nor the GPU tell it; `--try` measures a pace, `--pace` gives one")
        timeout, needed = options.timeout or DEFAULT_HOURS, math.inf
        end = timeout / 6  # at the deadline the epoch's evaluation may still have to run
    else:
        needed, end = pace.hours, pace.validation_images / pace.images_per_second / 3600
        words = f"{needed:.1f} h, ${needed * price:.2f}, for {pace.epochs:.4g} epochs"
        say(f"time       {words} at {pace.images_per_second:.2f} images/s")
        if options.dry_run:
            say(cost_table(pace, found.machines))
        timeout = options.timeout or math.ceil(needed * 1.15 + START_HOURS + end)
    max_hours = min(timeout - min(START_HOURS + end, 0.3 * timeout), args.max_hours or math.inf)
    dearest = timeout * price
    say(f"timeout    {timeout:g} h, ${dearest:.2f} at most")
    if max_hours < needed and not options.until_done:
        say("note: with --until-done a job whose time is up starts the next")
    if options.max_cost is not None and dearest > options.max_cost:
        raise UserError(f"--max_cost {options.max_cost:g}: one job may cost ${dearest:.2f}; give a shorter --timeout")
    return timeout, max_hours


def find_pace(options: argparse.Namespace, args: Arguments, found: Findings) -> Pace | None:
    """The work of the job, at the pace that was given, measured by a run here or on the Hub, or computed; says which.

    None where the images are not known, or no pace of the GPU.
    """
    limits = {"train": args.max_train_images, "validation": args.max_val_images}
    train, validation = (min(found.images.get(split, 0), limit or sys.maxsize) for split, limit in limits.items())
    if not train:
        return None
    gpu, epochs = gpus(found.machine), args.num_train_epochs
    if args.max_steps > 0:  # for transformers it overrides the epochs, be it fewer or more
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes(found.machine)
        epochs = args.max_steps / math.ceil(train / step)
    if options.pace:
        return Pace(options.pace, gpu, train, validation, epochs)
    record = RunRecord.read(options.pace_from) if options.pace_from else found.record
    measured = Pace.read(record.pace) if record else None
    if measured is None and options.pace_from:
        raise UserError(f"--pace-from {options.pace_from}: holds no pace; a run writes one after its first 50 steps")
    if measured and (there := measured.on(gpu)):
        if computed_rate(measured.device) != computed_rate(gpu):
            say(f"note: the pace is an estimate, from {measured.device} by the images/s computed for both GPUs")
        return Pace(there.images_per_second, gpu, train, validation, epochs)
    if (computed := Pace.computed(gpu, train, validation, epochs)) is not None:
        say("note: the pace is arithmetic, for ViT-L at 960x1536; `--try` measures it, `--pace IMAGES` gives it")
    return computed


def cost_table(pace: Pace, machines: list[JobHardwareInfo]) -> str:
    """Hours and dollars of the work of `pace` on each machine whose GPU is known, cheapest first, start included."""
    rows = []
    for machine in machines:
        if there := pace.on(gpus(machine)):
            hours = there.hours + START_HOURS
            cost = hours * hourly(machine)
            rows.append((cost, f"{machine.name:14} {there.device:10} {hours:6.1f} h  ${cost:8.2f}"))
    return "\n".join(row for _, row in sorted(rows))


def hours(text: str) -> float:
    """Hours of "90m", "12h", "1d" or, without a unit as in HF's own tools, seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 12h, 90m or 1d")
    return float(found[1]) * {"": 1 / 3600, "s": 1 / 3600, "m": 1 / 60, "h": 1, "d": 24}[found[2]]


def volume(text: str) -> Volume:
    """A volume such as hf://datasets/USER/NAME:/data, as `hf jobs run --volume` has it."""
    try:
        mount = parse_hf_mount(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    source, path = mount.source, mount.mount_path
    where = {"revision": source.revision, "path": source.path_in_repo or None, "read_only": mount.read_only}
    return Volume(type=source.type, source=source.id, mount_path=path, **where)
