"""An image for HF Jobs without a registry account: the Docker build goes to a Space, and the Hub builds it.

    python jobs/publish_image.py USER/recipe
    python jobs/launch.py --flavor a10g-large --image hf.co/spaces/USER/recipe -- --data USER/CROWD

What is sent is what the Dockerfile copies, as it lies in this checkout, with its commit and lock written into it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.image import BUILDING, READY
from jobs.job import ask, say, show_retries
from recipe.schema import UserError
from recipe.version import commit, lock

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ROOT = Path(__file__).parent.parent
FILES = ("LICENSE", "pyproject.toml", "requirements.lock", "uv.lock", ".dockerignore")
ROOMS = ("recipe", "data_prep", "jobs")
HEADER = """---
title: Recipe
sdk: docker
app_port: 7860
---

"""
# A Space is up when something answers on its port; a job brings its own command.
ANSWER = """
ENTRYPOINT []
CMD ["python", "-m", "http.server", "7860", "--directory", "/outputs"]
"""
POLL, GRACE = 5.0, 60.0  # seconds between questions; until a build must have begun after a commit


def main(argv: Sequence[str] | None = None) -> int:
    """Upload and wait. Returns 0 when the image is built, 1 when the build failed, 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python jobs/publish_image.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("space", help="USER/NAME of the Space; made if it is not there")
    parser.add_argument("--public", action="store_true", help="let everybody see and use it; default: private")
    options = parser.parse_args(argv)
    show_retries()
    try:
        return publish(options)
    except UserError as error:
        say(f"error: {error}")
        return 2


def publish(options: argparse.Namespace) -> int:
    """Create the Space, send the build, wait for it."""
    from huggingface_hub import HfApi

    from recipe.hub import check_write_access

    say(check_write_access(options.space, "space"))
    api = HfApi()
    space = create(api, options.space, private=not options.public)
    changed = upload(api, space)
    say(f"{'sent to' if changed else 'nothing new for'} {api.endpoint}/spaces/{space}")
    stage = wait(api, space, GRACE if changed else 0.0)
    if stage in READY:
        print(f"built: give it to jobs/launch.py as --image hf.co/spaces/{space}")
        return 0
    log = ask("reading the log", lambda: list(api.fetch_space_logs(space, build=stage == "BUILD_ERROR")))
    say("".join(log))
    say(f"error: the build of {space} ended as {stage}; its log is above")
    return 1


def create(api: HfApi, space: str, *, private: bool) -> str:
    """Make the Space unless it is there, and return its USER/NAME. Never public without being asked.

    Raises:
        UserError: the Hub does not let this user have a private Space.
    """
    from recipe.hub import HubAway

    make = partial(api.create_repo, space, repo_type="space", space_sdk="docker", private=private, exist_ok=True)
    try:
        return ask(f"creating {space}", make).repo_id
    except UserError as error:
        hint = "; --public makes it public" if private and not isinstance(error, HubAway) else ""
        raise UserError(f"{error}{hint}") from error


def upload(api: HfApi, space: str) -> bool:
    """Make the Space hold the build and nothing else, in one commit. Returns whether anything changed."""

    def head() -> str | None:
        return ask(f"looking at {space}", lambda: api.space_info(space).sha)

    before, title = head(), f"recipe {commit()[:7]}"
    with tempfile.TemporaryDirectory() as folder:
        write_build(Path(folder))
        send = partial(api.upload_folder, repo_id=space, repo_type="space", folder_path=folder, delete_patterns="*")
        ask(f"sending the build to {space}", lambda: send(commit_message=title))
    return head() != before


def write_build(folder: Path) -> None:
    """The files of the Space: those of this checkout, but for its card and the end of its Dockerfile."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    dockerfile = (ROOT / "Dockerfile").read_text() + ANSWER
    for name, value in (("COMMIT", commit()), ("LOCK", lock())):  # the Hub gives its builds no arguments
        dockerfile = dockerfile.replace(f"ARG {name}=unknown", f"ARG {name}={value}")
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "README.md").write_text(HEADER + (ROOT / "README.md").read_text())


def wait(api: HfApi, space: str, grace: float) -> str:
    """The stage in which the build ends. Within `grace` seconds a stage may still be that of the build before."""
    begun, stage = time.monotonic() + grace, ""
    while True:
        before, stage = stage, str(ask(f"asking for {space}", lambda: api.get_space_runtime(space)).stage)
        if stage != before:
            say(f"{space}: {stage}")
        if stage in BUILDING:
            begun = 0.0
        elif time.monotonic() >= begun:
            return stage
        time.sleep(POLL)


if __name__ == "__main__":
    sys.exit(main())
