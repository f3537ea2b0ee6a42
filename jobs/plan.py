"""What a job takes: hours, dollars, and a timeout that holds them.

timeout, max_hours = schedule(options, args, found)
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.job import say
from jobs.preflight import Findings, hourly
from recipe.pace import START_HOURS, Pace, computed_rate, cost_table
from recipe.record import RunRecord
from recipe.schema import UserError

if TYPE_CHECKING:
    from huggingface_hub import JobHardwareInfo

    from recipe.arguments import Arguments

DEFAULT_HOURS = 12.0  # the job's timeout where no pace is known; the Hub's own default is 30 minutes


def schedule(options: argparse.Namespace, args: Arguments, found: Findings) -> tuple[float, float]:
    """Print the expected hours and costs.

    Returns:
        Hours until the Hub kills the job, and hours of training, after which the recipe stops by itself before that.

    Raises:
        UserError: the timeout cannot hold the first epoch, or --max_cost not the first job.
    """
    pace, price = find_pace(options, args, found), hourly(found.machine)
    evaluation = pace.hours_of_evaluation if pace else 0.0
    timeout = options.timeout or (math.ceil(pace.hours * 1.15 + START_HOURS + evaluation) if pace else DEFAULT_HOURS)
    # At the deadline the epoch's evaluation may still have to run. Without a pace: a sixth of the time for it.
    reserve = START_HOURS + (evaluation if pace else timeout / 6)
    max_hours = min(timeout - min(reserve, 0.3 * timeout), args.max_hours or math.inf)
    if pace is None:
        say("time       unknown: no pace was measured. Give --pace-from RUN_DIR (a run writes one), or --try first")
    else:
        say(
            f"time       {pace.hours:.1f} h, ${pace.hours * price:.2f}, for {pace.epochs:.4g} epochs at "
            f"{pace.images_per_second:.2f} images/s"
        )
        if options.dry_run:
            say(cost_table(pace, {each.name: (gpus(each), hourly(each)) for each in found.machines}))
        first = min(pace.hours_per_epoch, pace.hours)  # a run may be shorter than an epoch
        if max_hours < first:
            least = math.ceil(first + START_HOURS + evaluation)
            raise UserError(
                f"--timeout {timeout:g}h cannot hold the first epoch, which takes {first:.1f} h on "
                f"{found.machine.name} besides the start and the end of the job: give --timeout {least}h"
            )
        if max_hours < pace.hours and not options.until_done:
            say(f"note: {timeout:g} h do not hold all epochs; with --until-done each job starts the next")
    dearest = timeout * price * options.attempts
    say(f"timeout    {timeout:g} h, ${dearest:.2f} at most")
    if options.max_cost is not None and dearest > options.max_cost:
        raise UserError(f"--max_cost {options.max_cost:g}: one job may cost ${dearest:.2f}; give a shorter --timeout")
    return timeout, max_hours


def find_pace(options: argparse.Namespace, args: Arguments, found: Findings) -> Pace | None:
    """Images per second on the flavor: as given, or measured by a run here or on the Hub and carried over."""
    limits = {"train": args.max_train_images, "validation": args.max_val_images}
    images = [min(found.images.get(split, 0), limit or sys.maxsize) for split, limit in limits.items()]
    gpu, card = gpus(found.machine), found.machine.accelerator
    if not images[0]:
        return None
    epochs = args.num_train_epochs
    if args.max_steps > 0:  # for transformers it overrides the epochs, be it fewer or more
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * int(card.quantity if card else 1)
        epochs = args.max_steps / math.ceil(images[0] / step)
    work = Pace(options.pace or 1.0, gpu, images[0], images[1], epochs)
    if options.pace:
        return work
    record = RunRecord.read(options.pace_from) if options.pace_from else found.record
    measured = Pace.read(record.pace) if record else None
    if measured is None:
        if options.pace_from:
            raise UserError(
                f"--pace-from {options.pace_from}: holds no pace; a run writes one after its first 50 steps"
            )
        return None
    there = replace(work, images_per_second=measured.images_per_second, device=measured.device).on(gpu)
    if there is None:
        say(f"note: a pace on {measured.device} says nothing of {gpu}; --pace IMAGES gives one")
    elif computed_rate(measured.device) != computed_rate(gpu):
        say(f"note: the pace is an estimate, from {measured.device} by the images/s computed for both GPUs")
    return there


def gpus(machine: JobHardwareInfo) -> str:
    """The GPUs of a machine, such as "1 x A10G"."""
    return f"{machine.accelerator.quantity} x {machine.accelerator.model}" if machine.accelerator else "CPU"


def hours(text: str) -> float:
    """Hours of "90m", "12h", "1d" or, without a unit as in HF's own tools, seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 12h, 90m or 1d")
    return float(found[1]) * {"": 1 / 3600, "s": 1 / 3600, "m": 1 / 60, "h": 1, "d": 24}[found[2]]
