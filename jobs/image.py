"""The image of a job: whether HF Jobs can start it.

check_image(api, "hf.co/spaces/USER/recipe", args)  ->  its name, and what is known of it, in words
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from recipe.schema import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from recipe.arguments import Arguments

READY = {"RUNNING", "SLEEPING", "PAUSED"}  # a Space in one of these stages has a built image
BUILDING = {"BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING"}
MANIFESTS = """application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json,
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"""


def check_image(api: HfApi, name: str, args: Arguments) -> tuple[str, str]:
    """The image as the job is to name it, and what is known of it, in words.

    Raises:
        UserError: HF Jobs cannot start it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    space = re.fullmatch(r"(?:https://)?(?:hf\.co|huggingface\.co)/spaces/(.+)", name)
    if space is None:
        return check_registry(name)
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
    return name, f"{name} is built"


def check_registry(name: str) -> tuple[str, str]:
    """As `check_image`, by asking a registry as anybody may: HF Jobs has no field for a registry's password."""
    import httpx2

    first, _, rest = name.partition("/")
    host, path = (first, rest) if rest and ("." in first or ":" in first) else ("registry-1.docker.io", name)
    path, _, tag = path.partition("@" if "@" in path else ":")
    url = f"https://{host}/v2/{path if '/' in path else f'library/{path}'}/manifests/{tag or 'latest'}"
    headers = {"Accept": " ".join(MANIFESTS.split())}
    try:
        answer = httpx2.head(url, headers=headers, timeout=15, follow_redirects=True)
        if answer.status_code == 401:  # every registry says so first, and where to get a token for anybody
            asked = dict(re.findall(r'(\w+)="([^"]*)"', answer.headers.get("WWW-Authenticate", "")))
            token = httpx2.get(asked.pop("realm"), params=asked, timeout=15).json()
            headers["Authorization"] = f"Bearer {token.get('token') or token.get('access_token')}"
            answer = httpx2.head(url, headers=headers, timeout=15, follow_redirects=True)
    except (httpx2.HTTPError, KeyError, ValueError) as error:
        return name, f"{name} cannot be checked from here ({type(error).__name__})"
    if answer.status_code in (401, 403, 404):
        raise UserError(
            f"--image {name}: not there or not public, and HF Jobs cannot log in to a registry; make it "
            "public, or `python jobs/publish_image.py USER/NAME` puts it on a Space"
        )
    digest = answer.headers.get("Docker-Content-Digest")
    if digest is None or "@" in name:
        return name, f"{name}: the registry answers {answer.status_code}"
    base = name.removesuffix(f":{tag}") if tag else name
    return f"{base}@{digest}", f"{name} is {digest[:19]}"  # by digest, so that every job of a chain has the same
