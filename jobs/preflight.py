"""What can be found out about a job before it costs anything: token, machine, data, model repo, dashboard, image.

python jobs/launch.py --flavor a10g-large --dry-run -- --data USER/CROWD
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, JobHardwareInfo
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from jobs.job import ask, say
from recipe.config import PILOT_CPU
from recipe.hub import check_read_access, check_rights, check_write_access, full_id, is_repo_id
from recipe.record import RunRecord
from recipe.schema import UserError

if TYPE_CHECKING:
    from recipe.arguments import Arguments

SERVER = ("TRACKIO_SERVER_URL", "TRACKIO_WRITE_TOKEN")
READY = ("RUNNING", "SLEEPING", "PAUSED")  # a Space in one of these stages has a built image


@dataclass(frozen=True)
class Findings:
    """What a job works on, as found on the Hub."""

    namespace: str
    image: str
    model: str
    machine: JobHardwareInfo
    machines: list[JobHardwareInfo]
    images: dict[str, int]  # per split; empty for the built-in sample
    record: RunRecord | None  # of the run that the job resumes; None for a new one
    space: str | None  # of Trackio; None where a server is given, or nothing is logged
    secrets: list[str]  # variables of that server


def check(api: HfApi, options: argparse.Namespace, args: Arguments) -> Findings:
    """Look at everything that the job needs, and print what is found. Raises UserError where it would stop the job."""
    user = ask("asking the Hub who we are", api.whoami)
    namespace = options.namespace or user["name"]
    check_rights(user, namespace, "job.write")
    say(f"token      {user['name']} may start jobs in {namespace}")
    machines = ask("asking for the machines", api.list_jobs_hardware)
    machine = find_machine(machines, options.flavor)
    say(f"machine    {machine.name}, ${hourly(machine):.2f} an hour")
    images = ask("looking at the data", lambda: check_dataset(api, args.data, args.data_revision))
    say(f"data       {args.data or 'the built-in sample'} {images or ''}".rstrip())
    default = f"{namespace}/{(args.data or 'recipe-pilot').split('/')[-1]}-detector"
    model = full_id(args.hub_model_id or default, user)
    say(f"model      {check_write_access(model)}")
    record = ask("looking at the model repo", lambda: check_earlier_run(api, model, args, machine))
    if record:
        say(f"           it holds this run already, begun {record.started}: the job resumes it")
    else:
        for name in ("backbone", "detr_init"):
            say(f"weights    {check_pretrained(name, getattr(args, name))}")
    space, secrets = find_dashboard(args, user, namespace)
    say(f"dashboard  {check_write_access(space, 'space') if space else ', '.join(secrets) or 'none'}")
    image = options.image or f"hf.co/spaces/{namespace}/recipe"
    say(f"image      {ask('looking at the image', lambda: check_image(api, image))}")
    return Findings(namespace, image, model, machine, machines, images, record, space, secrets)


def find_machine(machines: list[JobHardwareInfo], name: str) -> JobHardwareInfo:
    """The machine of this name. Raises UserError where there is none, and lists all with their prices."""
    for machine in machines:
        if machine.name == name:
            return machine
    lines = [f"--flavor {name}: HF Jobs has no such machine, only"]
    for each in sorted(machines, key=hourly):
        gpu = f"{gpus(each)}, {each.accelerator.vram}" if each.accelerator else "no GPU"
        lines.append(f"  {each.name:14} {gpu:16} {each.cpu:8} {each.ram:7} ${hourly(each):.2f}/h")
    raise UserError("\n".join(lines))


def hourly(machine: JobHardwareInfo) -> float:
    """Dollars for an hour."""
    return machine.unit_cost_usd * {"minute": 60, "hour": 1, "second": 3600}[machine.unit_label]


def gpus(machine: JobHardwareInfo) -> str:
    """The GPUs of a machine, such as "1 x A10G"."""
    return f"{machine.accelerator.quantity} x {machine.accelerator.model}" if machine.accelerator else "CPU"


def check_dataset(api: HfApi, data: str | None, revision: str | None) -> dict[str, int]:
    """Images per split of the dataset repo, as far as its card says; none for the built-in sample.

    Raises UserError for a folder of this machine, a repo that the token cannot read, and one without shards.
    """
    if data is None:
        return {}
    publish = "publish it with `python -m data_prep pack YOLO_DIR --out DIR --repo-id USER/NAME`"
    if not is_repo_id(data):
        raise UserError(f"--data {data}: a job sees no folder of this machine; {publish}")
    try:
        info = api.dataset_info(data, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        where = f"{data}@{revision}" if revision else data
        raise UserError(f"--data {where}: no such dataset, or this token may not read it; {publish}") from error
    names = " ".join(file.rfilename for file in info.siblings or ())
    for split in ("train", "validation"):
        if not re.search(rf"\bdata/{split}-\S*\.parquet\b", names):
            raise UserError(f"--data {data}: holds no data/{split}-*.parquet; {publish}")
    card = info.card_data.to_dict() if info.card_data else {}
    splits = (card.get("dataset_info") or {}).get("splits") or ()
    return {split["name"]: split["num_examples"] for split in splits}


def check_pretrained(flag: str, repo_id: str) -> str:
    """That the job can fetch the model of --backbone or --detr_init, in words. Raises UserError where it cannot."""
    if repo_id in ("tiny", "none"):
        return f"{flag} {repo_id}: nothing to fetch"
    if not is_repo_id(repo_id):
        raise UserError(f"--{flag} {repo_id}: a job sees no folder of this machine; give the id of a Hub repo")
    return check_read_access(repo_id)


def check_earlier_run(api: HfApi, model: str, args: Arguments, machine: JobHardwareInfo) -> RunRecord | None:
    """The record of the run that the model repo holds already, which the job would resume.

    Raises UserError where it holds something else, a run with other settings, or one that is not to be resumed.
    """
    from recipe.training.push import RunRepo
    from recipe.training.run import fixed_settings

    if not api.repo_exists(model):  # to open it would make it
        return None
    repo = RunRepo(model)
    repo.open(args.resume)
    if repo.record is not None:
        # What only the job knows: what its device can do, and on a CPU the size of the pilot's images.
        left = {"dataset", "bf16", *(PILOT_CPU if args.preset == "pilot" else ())}
        expected = {name: value for name, value in fixed_settings(args).items() if name not in left}
        expected["processes"] = int(machine.accelerator.quantity) if machine.accelerator else 1
        repo.record.check_same(expected, f"--hub_model_id {model}")
    return repo.record


def find_dashboard(args: Arguments, user: Mapping[str, Any], namespace: str) -> tuple[str | None, list[str]]:
    """The job's Trackio Space, or the variables of a server of one's own: the job's own disk will be gone.

    As Trackio reads them: TRACKIO_SPACE_ID wins over TRACKIO_SERVER_URL, whose address may carry the write token.
    """
    if "trackio" not in args.report_to:
        return None, []
    space = args.trackio_space_id or os.environ.get("TRACKIO_SPACE_ID")
    if space is None and SERVER[0] in os.environ:
        return None, [name for name in SERVER if name in os.environ]
    return full_id(space or f"{namespace}/trackio", user), []


def check_image(api: HfApi, name: str) -> str:
    """What is known of the image, in words. Raises UserError where it is a Space without a built image."""
    space = re.fullmatch(r"(?:https://)?(?:hf\.co|huggingface\.co)/spaces/(.+)", name)
    if space is None:  # HF Jobs has no field for a registry's password, and a tag may move within a chain
        note = "" if "@sha256:" in name else "; NAME@sha256:... keeps it the same for every job of a chain"
        return f"{name} must be public in its registry{note}"
    publish = f"`python jobs/publish_image.py {space[1]}` makes it"
    try:
        stage = str(api.get_space_runtime(space[1]).stage)
    except RepositoryNotFoundError as error:
        raise UserError(f"--image {name}: no such Space, or this token may not see it; {publish}") from error
    if stage not in READY:
        raise UserError(f"--image {name}: not built, its stage is {stage}; {publish}, and shows why where that fails")
    return f"{name} is built"
