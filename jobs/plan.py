"""What a job takes: hours, dollars, and a timeout that holds them.

plan = schedule(options, config, args, target)
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.job import say
from jobs.preflight import hourly
from recipe.config import Config
from recipe.pace import Pace, peak_tflops
from recipe.schema import UserError

if TYPE_CHECKING:
    from huggingface_hub import JobHardwareInfo
    from transformers import TrainingArguments

DEFAULT_HOURS = 12.0  # the job's timeout where no pace is known; the Hub's own default is 30 minutes
START_HOURS = 1 / 3  # to fetch image, data and backbone, and to push at the end


@dataclass(frozen=True)
class Target:
    """What a job works on, as found on the Hub."""

    namespace: str
    image: str
    model: str
    space: str | None  # of Trackio; None where a server is given, or nothing is logged
    server: str | None  # its address, without the token
    write_token: str | None  # of the server
    machine: JobHardwareInfo
    images: dict[str, int]  # per split; empty for the built-in sample
    record: dict[str, Any]  # run.json of the run that goes on; empty for a new one


@dataclass(frozen=True)
class Plan:
    """The job's time in hours."""

    timeout: float
    max_hours: float  # of training: at its end the recipe stops by itself, before the Hub kills it


def schedule(options: argparse.Namespace, config: Config, args: TrainingArguments, target: Target) -> Plan:
    """The expected hours and costs, and a timeout above them.

    Raises:
        UserError: the timeout cannot hold the first epoch.
    """
    pace = find_pace(options, config, args, target)
    evaluation = pace.hours_of_evaluation if pace else 0.0
    timeout = options.timeout or (math.ceil(pace.hours * 1.15 + START_HOURS + evaluation) if pace else DEFAULT_HOURS)
    # At the deadline the epoch's evaluation may still have to run. Without a pace: a sixth of the time for it.
    reserve = START_HOURS + evaluation if pace else START_HOURS + timeout / 6
    plan = Plan(timeout, min(timeout - min(reserve, 0.3 * timeout), config.max_hours or math.inf))
    price = hourly(target.machine)
    if pace is None:
        say(
            "time       unknown: no pace was measured. Give --pace-from RUN_DIR (a run writes its pace after 50 steps)"
        )
    else:
        say(
            f"time       {pace.hours:.1f} h, ${pace.hours * price:.2f}, for {pace.epochs:.4g} epochs at "
            f"{pace.images_per_second:.2f} images/s"
        )
        first = min(pace.hours_per_epoch, pace.hours)  # a run may be shorter than an epoch
        if plan.max_hours < first:
            least = math.ceil(first + START_HOURS + evaluation)
            raise UserError(
                f"--timeout {timeout:g}h cannot hold the first epoch, which takes {first:.1f} h on "
                f"{target.machine.name} besides the start and the end of the job: give --timeout {least}h"
            )
        if plan.max_hours < pace.hours and not options.until_done:
            say(f"note: {timeout:g} h do not hold the whole run; --until-done starts the jobs that go on with it")
    say(f"timeout    {timeout:g} h, ${timeout * price * options.attempts:.2f} at most")
    return plan


def find_pace(options: argparse.Namespace, config: Config, args: TrainingArguments, target: Target) -> Pace | None:
    """Images per second on the flavor: as given, or measured by a run here or on the Hub and carried over."""
    limits = {"train": config.max_train_images, "validation": config.max_val_images}
    images = [min(target.images.get(split, 0), limit or sys.maxsize) for split, limit in limits.items()]
    card = target.machine.accelerator
    gpu = f"{card.quantity} x {card.model}" if card else "CPU"
    if not images[0]:
        return None
    epochs = args.num_train_epochs
    if args.max_steps > 0:  # for transformers it overrides the epochs, be it fewer or more
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * int(card.quantity if card else 1)
        epochs = args.max_steps / math.ceil(images[0] / step)
    work = Pace(options.pace or 1.0, gpu, images[0], images[1], epochs)
    if options.pace:
        return work
    try:
        found = Pace.read(options.pace_from) if options.pace_from else Pace.of(target.record)
    except ValueError as error:
        if options.pace_from:
            raise UserError(f"--pace-from {error}") from error
        return None
    there = replace(work, images_per_second=found.images_per_second, device=found.device).on(gpu)
    if there is None:
        say(f"note: a pace on {found.device} says nothing of {gpu}; --pace IMAGES gives one")
    elif peak_tflops(found.device) != peak_tflops(gpu):
        say(f"note: the pace is an estimate, from {found.device} by the peak bf16 TFLOPS of both GPUs")
    return there


def hours(text: str) -> float:
    """Hours of "90m", "12h", "1d" or, without a unit as in HF's own tools, seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 12h, 90m or 1d")
    return float(found[1]) * {"": 1 / 3600, "s": 1 / 3600, "m": 1 / 60, "h": 1, "d": 24}[found[2]]
