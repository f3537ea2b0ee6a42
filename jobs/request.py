"""What HF Jobs is asked for: one object that is printed by a dry run, sent, and carried by the job itself.

make_request(options, training, args, found, token).send(api)
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from jobs.job import PROJECT
from jobs.plan import schedule
from jobs.preflight import Findings
from recipe.schema import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

    from recipe.arguments import Arguments

REQUEST = "RECIPE_JOB"  # the variable in which a job carries its own request, to start its successor from
TRY_SECONDS = 30 * 60


@dataclass(frozen=True)
class JobRequest:
    """What HF Jobs is asked for: every argument of `run_job`, in a form that JSON keeps.

    labels: `chain` is common to the jobs of one training; with `link`, 1 for its first job, it names this job alone
    secrets: name -> value; the values go to the Hub and nowhere else
    """

    namespace: str
    image: str
    command: list[str]
    flavor: str
    timeout: int  # seconds
    env: dict[str, str]
    secrets: dict[str, str]
    labels: dict[str, str]
    attempts: int
    volumes: list[dict[str, Any]]  # each as `Volume.to_dict` has it
    ssh: bool
    resource_group_id: str | None

    def to_json(self, indent: int | None = None) -> str:
        """All of it, but only the names of the secrets: what a dry run prints, and what the job carries."""
        return json.dumps(asdict(self) | {"secrets": list(self.secrets)}, indent=indent)

    @classmethod
    def of_this_job(cls) -> JobRequest:
        """The request by which the job that we are in was started."""
        found = json.loads(os.environ[REQUEST])
        return cls(**found | {"secrets": {name: os.environ[name] for name in found["secrets"]}})

    def send(self, api: HfApi) -> JobInfo:
        """Start the job; the client does not repeat this request."""
        from huggingface_hub import Volume

        env, volumes = self.env | {REQUEST: self.to_json()}, [Volume(**volume) for volume in self.volumes]
        return api.run_job(**asdict(self) | {"env": env, "volumes": volumes})


def make_request(
    options: argparse.Namespace, training: list[str], args: Arguments, found: Findings, token: str
) -> JobRequest:
    """The job itself: what the user asks for, and what every job needs.

    Raises:
        UserError: the time or the money is too short, a variable has no value, or a volume cannot be read.
    """
    if wrong := [pair for pair in options.env if "=" not in pair]:
        raise UserError(f"--env {wrong[0]}: give NAME=VALUE; `--secret NAME` takes the value from this machine")
    if unset := [name for name in options.secret if name not in os.environ]:
        raise UserError(f"--secret {unset[0]}: not set here; `export {unset[0]}=...` first, its value is not printed")
    volumes = list(options.volume)
    if options.bucket:  # the same folder in the bucket as in the image, which works in /
        folder = args.output_dir.strip("/")
        volumes.append(f"hf://buckets/{options.bucket}/{folder}:/{folder}")
    server = {"TRACKIO_SERVER_URL": found.server} if found.server else {}
    write_token = {"TRACKIO_WRITE_TOKEN": found.write_token} if found.write_token else {}
    labels = {"name": found.model.split("/")[-1], "chain": uuid.uuid4().hex[:16], "link": "1"}
    if options.try_:
        command, seconds = try_command(training, found), TRY_SECONDS
    else:
        timeout, max_hours = schedule(options, args, found)
        command, seconds = train_command(options, training, found, max_hours), round(timeout * 3600)
        labels["model"] = found.model.replace("/", "--")
    return JobRequest(
        namespace=found.namespace,
        image=found.image,
        command=command,
        flavor=found.machine.name,
        timeout=seconds,
        env=dict(pair.split("=", 1) for pair in options.env) | server,
        secrets={"HF_TOKEN": token} | {name: os.environ[name] for name in options.secret} | write_token,
        labels=PROJECT | labels,
        attempts=options.attempts,
        volumes=[parse_volume(text) for text in volumes],
        ssh=options.ssh,
        resource_group_id=options.resource_group_id,
    )


def train_command(options: argparse.Namespace, training: list[str], found: Findings, max_hours: float) -> list[str]:
    """The user's flags, and those that every job needs; with --until-done as one job of a chain."""
    command = ["recipe", "train", *training]
    command += ["--max_hours", f"{max_hours:.3f}", "--hub_model_id", found.model, "--push_to_hub"]
    if found.space is not None:
        command += ["--trackio_space_id", found.space]
    if not options.until_done:
        return command
    limits = ["--max_cost", f"{options.max_cost:g}"] if options.max_cost is not None else []
    chain = ["python", "-m", "jobs.chain", "--model", found.model, "--max_jobs", str(options.max_jobs)]
    return [*chain, *limits, "--", *command]


def try_command(training: list[str], found: Findings) -> list[str]:
    """What shows within minutes that image, driver and token are right, what fits, and how fast a step is."""
    flags = [*training, "--hub_model_id", found.model]
    short = "--max_steps 60 --max_train_images 500 --max_val_images 50 --push_to_hub false --report_to none"
    doctor, train = shlex.join(["recipe", "doctor", *flags]), shlex.join(["recipe", "train", *flags])
    return ["sh", "-c", f"{doctor} && {train} --output_dir outputs/try {short}"]


def parse_volume(text: str) -> dict[str, Any]:
    """A volume such as hf://buckets/USER/NAME:/data or hf://datasets/USER/NAME:/data:ro, as the Hub is to be told.

    Raises:
        UserError: it is written in another way.
    """
    from huggingface_hub import Volume
    from huggingface_hub.utils import parse_hf_mount

    try:
        mount = parse_hf_mount(text)
    except ValueError as error:
        raise UserError(f"--volume {text}: {error}") from error
    return Volume(
        type=mount.source.type,
        source=mount.source.id,
        revision=mount.source.revision,
        path=mount.source.path_in_repo or None,
        mount_path=mount.mount_path,
        read_only=mount.read_only,
    ).to_dict()
