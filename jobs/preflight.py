"""What can be found out about a job before it costs anything: token, machine, data, model repo, dashboard, image.

python jobs/launch.py --flavor a10g-large --dry-run -- --data USER/CROWD
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, JobHardwareInfo

from jobs.job import ask, say
from recipe.config import PILOT_CPU
from recipe.hub import check_read_access, check_rights, check_write_access, full_id, is_repo_id
from recipe.record import RunRecord
from recipe.schema import UserError

if TYPE_CHECKING:
    from recipe.arguments import Arguments

READY = ("RUNNING", "SLEEPING", "PAUSED")  # a Space in one of these stages has a built image


@dataclass(frozen=True)
class Findings:
    """What a job works on, as found on the Hub."""

    namespace: str
    image: str
    model: str
    machine: JobHardwareInfo
    machines: list[JobHardwareInfo]
    images: dict[str, int]  # per split; empty where only the job can know
    record: RunRecord | None  # of the run that the job resumes; None for a new one
    space: str | None  # of Trackio; None where a server is given, or nothing is logged


def check(api: HfApi, options: argparse.Namespace, args: Arguments) -> Findings:
    """Look at everything that the job needs, and print what is found. Raises UserError where it would stop the job."""
    from recipe.training.dashboard import job_space

    user = ask("asking the Hub who we are", api.whoami)
    namespace = options.namespace or user["name"]
    check_rights(user, namespace, "job.write")
    say(f"token      {user['name']} may start jobs in {namespace}")
    machines = ask("asking for the machines", api.list_jobs_hardware)
    machine = find_machine(machines, options.flavor)
    say(f"machine    {machine.name}, ${hourly(machine):.2f} an hour")
    data, images = check_data(api, options, args)
    say(f"data       {data or 'the built-in sample'} {images or ''}".rstrip())
    if options.upload_data:
        say(f"           {check_write_access(data, 'dataset')}, privately: --data {args.data} is sent there")
    model = full_id(args.hub_model_id or f"{namespace}/{(data or 'recipe-pilot').split('/')[-1]}-detector", user)
    say(f"model      {check_write_access(model)}")
    record = check_earlier_run(api, model, args, machine)
    if record:
        say(f"           it holds this run already, begun {record.started}: the job resumes it")
    for flag in ("augmentation",) if record else ("augmentation", "backbone", "detr_init", "init_from"):
        name = getattr(args, flag)
        if name in (None, "tiny", "none") or is_mounted(name, options):
            continue
        if not is_repo_id(name):
            raise UserError(f"--{flag} {name}: a job sees no file of this machine; give a Hub repo, or --volume")
        say(f"weights    {check_read_access(name)}")
    space = full_id(name, user) if (name := job_space(args)) else None
    say(f"dashboard  {check_write_access(space, 'space') if space else 'a server of your own, or none'}")
    image = options.image or f"hf.co/spaces/{namespace}/recipe"
    say(f"image      {check_image(api, image)}")
    return Findings(namespace, image, model, machine, machines, images, record, space)


def find_machine(machines: list[JobHardwareInfo], name: str) -> JobHardwareInfo:
    """The machine of this name. Raises UserError where there is none."""
    found = {machine.name: machine for machine in machines}
    if name not in found:
        raise UserError(f"--flavor {name}: HF Jobs has {', '.join(found)}; `hf jobs hardware` shows their prices")
    return found[name]


def hourly(machine: JobHardwareInfo) -> float:
    """Dollars for an hour."""
    return machine.unit_cost_usd * {"minute": 60, "hour": 1, "second": 3600}[machine.unit_label]


def gpus(machine: JobHardwareInfo) -> str:
    """The GPUs of a machine, such as "1 x A10G"."""
    return f"{machine.accelerator.quantity} x {machine.accelerator.model}" if machine.accelerator else "CPU"


def processes(machine: JobHardwareInfo) -> int:
    """One for each GPU."""
    return int(machine.accelerator.quantity) if machine.accelerator else 1


def check_data(api: HfApi, options: argparse.Namespace, args: Arguments) -> tuple[str, dict[str, int]]:
    """The repo or folder that the job reads ("" for the built-in sample), and the images of each split, where known.

    Raises UserError for a folder of this machine that is not to be sent, and for a repo that is no packed dataset.
    """
    data, revision = args.data or "", args.data_revision
    pack = "`python -m data_prep pack YOLO_DIR --out DIR` makes a packed folder"
    for volume in options.volume:
        if data == volume.mount_path and volume.type == "dataset":
            data, revision = volume.source, volume.revision
    if not data or is_mounted(data, options):
        return data, {}
    if options.upload_data:
        manifest = Path(data, "manifest.json")
        if not manifest.is_file():
            raise UserError(f"--data {data}: holds no {manifest.name}; {pack}")
        splits = json.loads(manifest.read_text())["splits"]
        return options.upload_data, {name: split["images"] for name, split in splits.items()}
    if not is_repo_id(data):
        words = "a job sees no folder of this machine; `--upload-data USER/NAME` sends it to a private dataset repo"
        raise UserError(f"--data {data}: {words}")
    info = ask(f"--data {data}", lambda: api.dataset_info(data, revision=revision))
    names = [file.rfilename for file in info.siblings or ()]
    for split in ("train", "validation"):
        if not fnmatch.filter(names, f"data/{split}-*.parquet"):
            raise UserError(f"--data {data}: holds no data/{split}-*.parquet; {pack}, and --repo-id {data} sends it")
    card = info.card_data.to_dict() if info.card_data else {}
    return data, {each["name"]: each["num_examples"] for each in card.get("dataset_info", {}).get("splits", ())}


def is_mounted(path: str, options: argparse.Namespace) -> bool:
    """Whether a job finds it in one of its volumes."""
    return any(Path(path).is_relative_to(volume.mount_path) for volume in options.volume)


def check_earlier_run(api: HfApi, model: str, args: Arguments, machine: JobHardwareInfo) -> RunRecord | None:
    """The record of the run that the model repo holds already, which the job would resume.

    Raises UserError where it holds something else, a run with other settings, or one that is not to be resumed.
    """
    from recipe.training.push import RunRepo
    from recipe.training.run import fixed_settings

    if not ask(f"looking at {model}", lambda: api.repo_exists(model)):  # to open it would make it
        return None
    repo = RunRepo(model)
    repo.open(args.resume)
    if repo.record is not None:
        # What only the job knows: what its device can do, and on a CPU the size of the pilot's images.
        left = {"dataset", "bf16", *(PILOT_CPU if args.preset == "pilot" else ())}
        expected = {name: value for name, value in fixed_settings(args).items() if name not in left}
        expected["processes"] = processes(machine)
        repo.record.check_same(expected, f"--hub_model_id {model}")
    return repo.record


def check_image(api: HfApi, name: str) -> str:
    """What is known of the image, in words. Raises UserError where it is a Space without a built image."""
    moves = "" if "@sha256:" in name else "; the next job may find another there: only NAME@sha256:... stays the same"
    space = name.partition("/spaces/")[2]
    if not space:  # HF Jobs has no field for a registry's password
        return f"{name} must be public in its registry{moves}"

    def stage() -> str:
        there = api.repo_exists(space, repo_type="space")
        return str(api.get_space_runtime(space).stage) if there else "no such Space for this token"

    if (found := ask(f"--image {name}", stage)) not in READY:
        publish = f"`python jobs/publish_image.py {space}` builds it, or shows why that fails"
        raise UserError(f"--image {name}: not built ({found}); {publish}")
    return f"{name} is built{moves}"
