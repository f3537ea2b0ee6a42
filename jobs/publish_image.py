"""An image for HF Jobs without a registry account: the Docker build goes to a Space, and the Hub builds it.

    python jobs/publish_image.py USER/recipe
    python jobs/launch.py --flavor a10g-large --image hf.co/spaces/USER/recipe -- --data USER/CROWD

What is sent is what the Dockerfile copies, as it lies in this checkout, with its commit and lock written into it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.job import PATIENCE, patiently, say, show_retries
from jobs.preflight import BUILDING, READY
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
    log = patiently("reading the log", lambda: list(api.fetch_space_logs(space, build=stage == "BUILD_ERROR")))
    say("".join(log))
    say(f"error: the build of {space} ended as {stage}; its log is above")
    return 1


def create(api: HfApi, space: str, *, private: bool) -> str:
    """Make the Space unless it is there, and return its USER/NAME. Never public without being asked.

    Raises:
        UserError: the Hub does not let this user have a private Space.
    """
    from huggingface_hub.errors import HfHubHTTPError

    from recipe.hub import in_a_line, is_transient

    def ask() -> str:
        try:
            return api.create_repo(
                space, repo_type="space", space_sdk="docker", private=private, exist_ok=True
            ).repo_id
        except HfHubHTTPError as error:
            if is_transient(error) or not private:
                raise
            raise UserError(
                f"{space}: cannot be made private ({in_a_line(error)}); --public makes it public"
            ) from error

    return patiently(f"creating {space}", ask)


def contents(folder: Path) -> dict[str, Path]:
    """The files of the Space, by their path in it; the two that are others than here are written into `folder`."""
    modules = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    found = {str(path.relative_to(ROOT)): path for path in (*(ROOT / name for name in FILES), *modules)}
    # The Hub gives its builds no arguments, so these two become the defaults.
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name, value in (("COMMIT", commit()), ("LOCK", lock())):
        assert f"ARG {name}=unknown" in dockerfile, name
        dockerfile = dockerfile.replace(f"ARG {name}=unknown", f"ARG {name}={value}")
    (folder / "Dockerfile").write_text(dockerfile + ANSWER)
    (folder / "README.md").write_text(HEADER + (ROOT / "README.md").read_text())
    return found | {path.name: path for path in folder.iterdir()}


def upload(api: HfApi, space: str) -> bool:
    """Make the Space hold these files and no others, in one commit. Returns whether anything changed."""
    from recipe.commits import head, send_files
    from recipe.hub import plainly, retry

    title, deadline = f"recipe {commit()[:7]}", time.monotonic() + PATIENCE
    with tempfile.TemporaryDirectory() as folder:
        files = contents(Path(folder))
        with plainly(f"sending the build to {space}"):
            before, there = retry(f"reading {space}", lambda: head(api, space, "space"), deadline)
            stale = there.keys() - files.keys() - {".gitattributes"}
            return send_files(api, space, files, title, deadline, kind="space", delete=stale) != before


def wait(api: HfApi, space: str, grace: float) -> str:
    """The stage in which the build ends. Within `grace` seconds a stage may still be that of the build before."""
    begun, stage = time.monotonic() + grace, ""
    while True:
        before, stage = stage, str(patiently(f"asking for {space}", lambda: api.get_space_runtime(space)).stage)
        if stage != before:
            say(f"{space}: {stage}")
        if stage in BUILDING:
            begun = 0.0
        elif time.monotonic() >= begun:
            return stage
        time.sleep(POLL)


if __name__ == "__main__":
    sys.exit(main())
