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
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi

from jobs.job import ask, run_command, say
from jobs.preflight import READY
from recipe.hub import check_write_access
from recipe.record import commit, lock

ROOT = Path(__file__).parent.parent
SENT = ("recipe", "data_prep", "jobs", "LICENSE", "pyproject.toml", "requirements.lock", "uv.lock", ".dockerignore")
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
BUILDING = ("BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING")
POLL, GRACE = 5.0, 60.0  # seconds between questions; until a build has begun after a commit


def main(argv: Sequence[str] | None = None) -> int:
    """Upload and wait. Returns 0 when the image is built, 1 when the build failed, 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python jobs/publish_image.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("space", help="USER/NAME of the private Space; made if it is not there")
    options = parser.parse_args(argv)
    return run_command(lambda: publish(options.space))


def publish(name: str) -> int:
    """Make the Space hold the build and nothing else, in one commit, and wait for the image. Returns the exit code."""
    api = HfApi()
    say(check_write_access(name, "space"))
    create = partial(api.create_repo, name, repo_type="space", space_sdk="docker", private=True, exist_ok=True)
    space = ask(f"creating {name} as a private Space", create).repo_id
    look = partial(api.space_info, space)
    before = ask(f"looking at {space}", look).sha
    with tempfile.TemporaryDirectory() as folder:
        write_build(Path(folder))
        send = partial(api.upload_folder, repo_id=space, repo_type="space", folder_path=folder, delete_patterns="*")
        ask(f"sending the build to {space}", lambda: send(commit_message=f"recipe {commit()[:7]}"))
    if ask(f"looking at {space}", look).sha == before:  # asked, as the answer to the commit may have been lost
        say(f"nothing new for {space}")
    else:
        say(f"sent to {api.endpoint}/spaces/{space}")
        time.sleep(GRACE)  # until then the stage may be that of the build before
    while (stage := str(ask(f"asking for {space}", lambda: api.get_space_runtime(space)).stage)) in BUILDING:
        time.sleep(POLL)
    if stage in READY:
        print(f"built; give it to jobs/launch.py as --image hf.co/spaces/{space}")
        return 0
    log = ask("reading the log", lambda: list(api.fetch_space_logs(space, build=stage == "BUILD_ERROR")))
    say(f"{''.join(log)}\nerror: the build of {space} ended as {stage}; its log is above")
    return 1


def write_build(folder: Path) -> None:
    """The files of the Space: those of this checkout, but for its card and the end of its Dockerfile."""
    tree = partial(shutil.copytree, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SENT:
        (tree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    dockerfile = (ROOT / "Dockerfile").read_text() + ANSWER
    built = {"COMMIT": commit(), "LOCK": lock(), "VERSION": version("recipe")}
    for name, value in built.items():  # the Hub gives its builds no arguments
        dockerfile = dockerfile.replace(f"ARG {name}=unknown", f"ARG {name}={value}")
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "README.md").write_text(HEADER + (ROOT / "README.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
