"""What can be found out about a job before it costs anything; each check returns what it found, in words.

python jobs/launch.py --flavor a10g-large --dry-run -- --data USER/CROWD
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.config import PILOT_CPU, Config
from recipe.schema import SPLITS, UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobHardwareInfo
    from transformers import TrainingArguments

READY = {"RUNNING", "SLEEPING", "PAUSED"}  # a Space in one of these stages has a built image
BUILDING = {"BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING"}


def dataset(api: HfApi, config: Config) -> dict[str, int]:
    """Images per split of the dataset repo, by its card (0 where that does not say).

    Raises:
        UserError: a folder of this machine, a repo that is not there or that the token may not read, or no shards.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from recipe.hub import is_repo_id

    assert config.data is not None
    publish = "publish it with `python -m data_prep pack YOLO_DIR --out DIR --repo-id USER/NAME`"
    if not is_repo_id(config.data):
        raise UserError(f"--data {config.data}: a job sees no folder of this machine; {publish}")
    try:
        info = api.dataset_info(config.data, revision=config.data_revision)
    except RevisionNotFoundError as error:
        raise UserError(f"--data_revision {config.data_revision}: {config.data} has no such revision") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"--data {config.data}: no such dataset, or this token may not read it; {publish}") from error
    names = [file.rfilename for file in info.siblings or ()]
    for split in SPLITS.values():
        if not any(name.startswith(f"data/{split}-") and name.endswith(".parquet") for name in names):
            raise UserError(f"--data {config.data}: holds no data/{split}-*.parquet; {publish}")
    card = info.card_data.to_dict() if info.card_data else {}
    splits = (card.get("dataset_info") or {}).get("splits") or ()
    return dict.fromkeys(SPLITS.values(), 0) | {split["name"]: split["num_examples"] for split in splits}


def pretrained(flag: str, repo_id: str) -> str:
    """Whether the job can fetch the model that --backbone or --detr_init names.

    Raises:
        UserError: it cannot.
    """
    from recipe.hub import check_read_access, is_repo_id

    if repo_id in ("tiny", "none"):
        return f"{flag} {repo_id}: nothing to fetch"
    if not is_repo_id(repo_id):
        raise UserError(f"--{flag} {repo_id}: a job sees no folder of this machine; give the id of a Hub repo")
    return check_read_access(repo_id)


def earlier_run(
    api: HfApi, repo_id: str, config: Config, args: TrainingArguments, machine: JobHardwareInfo
) -> dict[str, Any]:
    """run.json of the run that the model repo holds already, which the job would go on with; empty if there is none.

    Raises:
        UserError: the repo holds something else, a run with other settings, or one that is not to be gone on with.
    """
    from recipe.training.push import RunRepo
    from recipe.training.run import check_same, identity

    if not api.repo_exists(repo_id):  # to open it would make it
        return {}
    repo = RunRepo(repo_id)
    repo.open(config.resume)
    if repo.record is None:
        return {}
    gpus = int(machine.accelerator.quantity) if machine.accelerator else 1
    both = (repo.record["identity"], identity(config, args, {}) | {"processes": gpus})
    # What only the job knows: its data, what its device can do, and on a CPU the pilot's canvas.
    left = {"dataset", "bf16", *(PILOT_CPU if config.preset == "pilot" else ())}
    found, wanted = ({name: value for name, value in one.items() if name not in left} for one in both)
    check_same(found, wanted, f"--hub_model_id {repo_id}")
    return repo.record


def image(api: HfApi, name: str, args: TrainingArguments) -> tuple[bool | None, str]:
    """Whether HF Jobs can start the image (None: it cannot be told from here), and why.

    Raises:
        UserError: it cannot.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    space = re.fullmatch(r"(?:https://)?(?:hf\.co|huggingface\.co)/spaces/(.+)", name)
    if space is None:
        return registry(name)
    publish = f"`python jobs/publish_image.py {space[1]}`"
    try:
        stage = str(api.get_space_runtime(space[1]).stage)
    except RepositoryNotFoundError as error:
        raise UserError(
            f"--image {name}: no such Space, or this token may not see it; make it by {publish}"
        ) from error
    if stage in BUILDING:
        raise UserError(f"--image {name}: still builds; {publish} waits for it")
    if stage not in READY:
        raise UserError(f"--image {name}: its build ended as {stage}; {publish} shows why")
    if args.torch_compile:
        dockerfile = Path(api.hf_hub_download(space[1], "Dockerfile", repo_type="space")).read_text()
        if re.search(r"^ARG BASE=.*slim", dockerfile, re.MULTILINE):
            raise UserError(
                f"--torch_compile true: needs a C compiler, and {name} is built on a slim base, which has none; leave "
                f"the flag out, or write `ARG BASE=python:3.11` into the Dockerfile and publish it by {publish}"
            )
    return True, f"{name} is built"


def registry(name: str) -> tuple[bool | None, str]:
    """Ask an image registry for the manifest as anybody may: HF Jobs has no field for a registry's password."""
    import httpx2

    first, _, rest = name.partition("/")
    host, path = (first, rest) if rest and ("." in first or ":" in first) else ("registry-1.docker.io", name)
    path, _, tag = path.partition("@") if "@" in path else path.partition(":")
    url = f"https://{host}/v2/{path if '/' in path else f'library/{path}'}/manifests/{tag or 'latest'}"
    kinds = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
    headers = {"Accept": f"{kinds}, application/vnd.oci.image.manifest.v1+json, "
                         "application/vnd.docker.distribution.manifest.v2+json"}  # fmt: skip
    try:
        answer = httpx2.head(url, headers=headers, timeout=15, follow_redirects=True)
        if answer.status_code == 401:  # every registry says so first, and where to get a token for anybody
            asked = dict(re.findall(r'(\w+)="([^"]*)"', answer.headers.get("WWW-Authenticate", "")))
            token = httpx2.get(asked.pop("realm"), params=asked, timeout=15).json()
            headers["Authorization"] = f"Bearer {token.get('token') or token.get('access_token')}"
            answer = httpx2.head(url, headers=headers, timeout=15, follow_redirects=True)
    except (httpx2.HTTPError, KeyError, ValueError) as error:
        return None, f"{name} cannot be checked from here ({type(error).__name__})"
    if answer.status_code in (401, 403, 404):
        raise UserError(
            f"--image {name}: not there or not public, and HF Jobs cannot log in to a registry; make it "
            "public, or `python jobs/publish_image.py USER/NAME` puts it on a Space"
        )
    return (True if answer.is_success else None), f"{name}: the registry answers {answer.status_code}"


def flavor(machines: list[JobHardwareInfo], name: str) -> JobHardwareInfo:
    """The machine of this name.

    Raises:
        UserError: there is none; lists all with their prices.
    """
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
