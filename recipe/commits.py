"""One commit of local files to a Hub repo: only what differs travels, and a lost answer makes no second commit.

send_files(api, "USER/NAME", {"model.safetensors": path}, "epoch-03", time.monotonic() + 600)
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from recipe.hub import retry

Tree = dict[str, RepoFile]

_infos: dict[tuple[int, int, int], Any] = {}  # (device, inode, time of change) -> the client's record with the sha256


def addition(path_in_repo: str, path: Path) -> CommitOperationAdd:
    """A file of a commit. A file that lies under several names, as the backbone does, is hashed once."""
    operation, stat = CommitOperationAdd(path_in_repo, str(path)), path.stat()
    key = stat.st_dev, stat.st_ino, stat.st_mtime_ns
    if key not in _infos:
        operation.upload_info.sha256  # noqa: B018 - computed here, while the file is there, and kept
    operation.upload_info = _infos.setdefault(key, operation.upload_info)
    return operation


def is_there(operation: CommitOperationAdd, found: RepoFile | None) -> bool:
    """Whether the repo's file has the content that we would send."""
    if found is None or found.size != operation.upload_info.size:
        return False
    if found.lfs is not None:
        return bool(found.lfs.sha256 == operation.upload_info.sha256.hex())
    content = Path(str(operation.path_or_fileobj)).read_bytes()
    return bool(found.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def tree(api: HfApi, repo_id: str, commit: str, kind: str = "model") -> Tree:
    """Path -> file of one commit."""
    entries = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=kind)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def head(api: HfApi, repo_id: str, kind: str = "model") -> tuple[str, Tree]:
    """The newest commit and its files."""
    commit = str(api.repo_info(repo_id, repo_type=kind).sha)
    return commit, tree(api, repo_id, commit, kind)


def send_files(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, Path],
    title: str,
    deadline: float,
    *,
    kind: str = "model",
    delete: Collection[str] = (),
) -> str:
    """Make the repo hold `files` (path in the repo -> file here) and none of `delete`, in one commit.

    Tries until time.monotonic() reaches `deadline`; what was uploaded once is not sent again, in this call or a later.

    Returns:
        The new commit; the newest one when the repo holds all that already, as after an answer that was lost.
    """
    operations = [addition(name, path) for name, path in files.items()]

    def attempt() -> str:
        commit, found = head(api, repo_id, kind)
        missing = [operation for operation in operations if not is_there(operation, found.get(operation.path_in_repo))]
        stale = [CommitOperationDelete(name) for name in delete if name in found]
        if not missing and not stale:
            return commit
        # A new file under two names, as every weight is, would be sent once for each within one commit.
        unique = {operation.upload_info.sha256: operation for operation in missing}
        api.preupload_lfs_files(repo_id, unique.values(), repo_type=kind, free_memory=False)
        done = api.create_commit(
            repo_id, [*missing, *stale], commit_message=title, parent_commit=commit, repo_type=kind
        )
        return str(done.oid)

    return retry(f"pushing {title!r}", attempt, deadline)
