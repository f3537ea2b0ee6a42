"""What can be found out about a job before it costs anything: token, machine, data, model repo, dashboard, image.

python jobs/launch.py --flavor a10g-large --dry-run -- --data USER/CROWD
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from jobs.image import check_image
from jobs.job import ask, say
from recipe.config import PILOT_CPU
from recipe.record import RunRecord
from recipe.schema import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobHardwareInfo

    from recipe.arguments import Arguments

NEEDED = ("train", "validation")  # splits


@dataclass(frozen=True)
class Findings:
    """What a job works on, as found on the Hub."""

    namespace: str
    image: str  # by digest where it comes from a registry
    model: str
    machine: JobHardwareInfo
    machines: list[JobHardwareInfo]
    images: dict[str, int]  # per split; empty for the built-in sample
    record: RunRecord | None  # of the run that the job resumes; None for a new one
    space: str | None  # of Trackio; None where a server is given, or nothing is logged
    server: str | None  # its address, without the token
    write_token: str | None  # of the server


def check(api: HfApi, options: argparse.Namespace, args: Arguments) -> Findings:
    """Look at everything that the job needs, cheapest first, and print what is found.

    Raises:
        UserError: something would stop the job.
    """
    from recipe.hub import check_rights, check_write_access, full_id

    user = ask("asking the Hub who we are", api.whoami)
    namespace = options.namespace or user["name"]
    check_rights(user, namespace, "job.write")
    say(f"token      {user['name']} may start jobs in {namespace}")
    machines = ask("asking for the machines", api.list_jobs_hardware)
    machine = find_machine(machines, options.flavor)
    say(f"machine    {machine.name}, ${hourly(machine):.2f} an hour")
    images = ask("looking at the data", lambda: check_dataset(api, args)) if args.data else {}
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
    space, server, write_token = find_dashboard(args, namespace)
    if space:
        space = full_id(space, user)
    say(f"dashboard  {check_write_access(space, 'space') if space else server or 'none'}")
    name = options.image or f"hf.co/spaces/{namespace}/recipe"
    image, words = ask("looking at the image", lambda: check_image(api, name, args))
    say(f"image      {words}")
    return Findings(namespace, image, model, machine, machines, images, record, space, server, write_token)


def find_machine(machines: list[JobHardwareInfo], name: str) -> JobHardwareInfo:
    """The machine of this name. Raises UserError where there is none, and lists all with their prices."""
    for machine in machines:
        if machine.name == name:
            return machine
    lines = [
        f"  {m.name:14} {m.accelerator.model if m.accelerator else 'no GPU':8} "
        f"{m.accelerator.vram if m.accelerator else '':6} {m.cpu:8} {m.ram:7} ${hourly(m):.2f}/h"
        for m in sorted(machines, key=hourly)
    ]
    raise UserError("\n".join([f"--flavor {name}: HF Jobs has no such machine, only", *lines]))


def hourly(machine: JobHardwareInfo) -> float:
    """Dollars for an hour."""
    return machine.unit_cost_usd * {"minute": 60, "hour": 1, "second": 3600}[machine.unit_label]


def check_dataset(api: HfApi, args: Arguments) -> dict[str, int]:
    """Images per split of the dataset repo, by its card (0 where that does not say).

    Raises:
        UserError: a folder of this machine, a repo that is not there or that the token may not read, or no shards.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from recipe.hub import is_repo_id

    assert args.data is not None
    publish = "publish it with `python -m data_prep pack YOLO_DIR --out DIR --repo-id USER/NAME`"
    if not is_repo_id(args.data):
        raise UserError(f"--data {args.data}: a job sees no folder of this machine; {publish}")
    try:
        info = api.dataset_info(args.data, revision=args.data_revision)
    except RevisionNotFoundError as error:
        raise UserError(f"--data_revision {args.data_revision}: {args.data} has no such revision") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"--data {args.data}: no such dataset, or this token may not read it; {publish}") from error
    names = [file.rfilename for file in info.siblings or ()]
    for split in NEEDED:
        if not any(name.startswith(f"data/{split}-") and name.endswith(".parquet") for name in names):
            raise UserError(f"--data {args.data}: holds no data/{split}-*.parquet; {publish}")
    card = info.card_data.to_dict() if info.card_data else {}
    splits = (card.get("dataset_info") or {}).get("splits") or ()
    return dict.fromkeys(NEEDED, 0) | {split["name"]: split["num_examples"] for split in splits}


def check_pretrained(flag: str, repo_id: str) -> str:
    """That the job can fetch the model of --backbone or --detr_init, in words. Raises UserError where it cannot."""
    from recipe.hub import check_read_access, is_repo_id

    if repo_id in ("tiny", "none"):
        return f"{flag} {repo_id}: nothing to fetch"
    if not is_repo_id(repo_id):
        raise UserError(f"--{flag} {repo_id}: a job sees no folder of this machine; give the id of a Hub repo")
    return check_read_access(repo_id)


def check_earlier_run(api: HfApi, model: str, args: Arguments, machine: JobHardwareInfo) -> RunRecord | None:
    """The record of the run that the model repo holds already, which the job would resume.

    Raises:
        UserError: the repo holds something else, a run with other settings, or one that is not to be resumed.
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


def find_dashboard(args: Arguments, namespace: str) -> tuple[str | None, str | None, str | None]:
    """The job's Trackio Space, or else the address and the write token of a server: the job's own disk will be gone.

    As Trackio reads them: TRACKIO_SPACE_ID wins over TRACKIO_SERVER_URL, whose address may carry the token.

    Raises:
        UserError: TRACKIO_SERVER_URL is no address; what it holds is not shown, a token may be part of it.
    """
    if "trackio" not in args.report_to:
        return None, None, None
    space, address = args.trackio_space_id or os.environ.get("TRACKIO_SPACE_ID"), os.environ.get("TRACKIO_SERVER_URL")
    if space or not address:
        return space or f"{namespace}/trackio", None, None
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise UserError("TRACKIO_SERVER_URL: must begin with http:// or https://; unset it to log to a Space")
    query = dict(parse_qsl(parts.query))
    token = query.pop("write_token", None) or os.environ.get("TRACKIO_WRITE_TOKEN")
    return None, parts._replace(query=urlencode(query)).geturl(), token
