"""A packed folder on the Hub: `upload(out, "USER/NAME")`, or `python -m data_prep pack ... --repo-id USER/NAME`."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi

from recipe.hub import as_user_errors, files_of, send_files, with_retries
from recipe.schema import UserError

PATIENCE = 3600.0  # seconds in which the upload is tried again


def upload(out: Path, repo_id: str, *, private: bool = True) -> str:
    """Send a packed folder to a Hub dataset repo, in one commit; only what changed travels.

    A shard that arrived is not sent again, whatever interrupted the upload. Shards that an earlier packing left there
    are deleted in the same commit, or the dataset would hold both.

    Returns:
        The commit that holds the dataset; the newest one when nothing changed.

    Raises:
        UserError: the repo holds something else, is public though `private`, or cannot be written or reached.
    """
    api, deadline = HfApi(), time.monotonic() + PATIENCE
    manifest = json.loads((out / "manifest.json").read_text())
    names = [f"data/{file['name']}" for split in manifest["splits"].values() for file in split["files"]]
    with as_user_errors(f"--repo-id {repo_id}: not sent, the same command resumes"):
        create = partial(api.create_repo, repo_id, repo_type="dataset", private=private, exist_ok=True)
        repo_id = with_retries(f"creating {repo_id}", create, deadline).repo_id
        info = with_retries(f"reading {repo_id}", lambda: api.repo_info(repo_id, repo_type="dataset"), deadline)
        there = files_of(info)
        if "manifest.json" not in there and there - {".gitattributes", "README.md"}:
            raise UserError(f"--repo-id {repo_id}: holds something else than a packed dataset; give another")
        if private and not info.private:  # asked of the Hub: a repo that was there before is left as it was
            raise UserError(f"--repo-id {repo_id}: is public, for everybody to see; give --public, or another repo")
        stale = [name for name in there if name.startswith("data/") and name not in names]
        files = {name: out / name for name in [*names, "README.md", "manifest.json"]}
        return send_files(api, repo_id, files, "Packed dataset", deadline, kind="dataset", delete=stale)
