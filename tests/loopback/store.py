"""The disk of the loopback Hub: repositories with commits, branches, tags, git blobs and LFS objects.

ROOT/repos/models/alice/detector/repo.json            settings and refs
ROOT/repos/models/alice/detector/commits/SHA.json     one snapshot per commit: path -> {oid, size, lfs}
ROOT/repos/models/alice/detector/objects/OID          contents, by git sha1 (regular) or sha256 (LFS)
"""

import base64
import fnmatch
import hashlib
import json
import os
import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

LFS_SUFFIXES = ("arrow", "bin", "ckpt", "jpg", "npz", "onnx", "parquet", "png", "pt", "safetensors", "zip")
LFS_FROM = 10 * 1024 * 1024  # bytes: above this the Hub takes no regular file
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)

URL_PREFIX = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
REPO = r"(?P<repo>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
REV = r"(?P<rev>[^/]+)"
WEB = rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}"


class HubError(Exception):
    """An answer of the Hub that is not a success; `code` is the X-Error-Code which the clients look at."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_json(path: Path, value: Any) -> None:
    """All or nothing, so that a server killed while writing leaves the old state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value))
    os.replace(partial, path)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_entry(sha256: str, size: int) -> dict[str, Any]:
    """What a tree says of an LFS file: its git object is the pointer, not the content."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return {"oid": git_oid(pointer), "size": size, "lfs": {"oid": sha256, "size": size, "pointerSize": len(pointer)}}


def card_data(readme: str) -> dict[str, Any]:
    """The metadata at the top of a card; HubError 400 as the Hub refuses them."""
    header = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", readme, re.DOTALL)
    try:
        data = yaml.safe_load(header[1]) if header else {}
    except yaml.YAMLError as error:
        raise HubError(400, f"Invalid metadata in README.md: {error}") from error
    if not isinstance(data or {}, dict):
        raise HubError(400, "Invalid metadata in README.md: not a mapping")
    return data or {}


class Repo:
    """One repository; `kind` is models, datasets or spaces."""

    def __init__(self, root: Path, kind: str, repo_id: str) -> None:
        self.kind, self.id = kind, repo_id
        self.folder = root / "repos" / kind / repo_id
        if not (self.folder / "repo.json").is_file():
            raise HubError(404, "Repository not found", "RepoNotFound")
        self.state: dict[str, Any] = json.loads((self.folder / "repo.json").read_text())

    @classmethod
    def create(cls, root: Path, kind: str, repo_id: str, author: str, **settings: Any) -> "Repo":
        folder = root / "repos" / kind / repo_id
        if (folder / "repo.json").is_file():
            raise HubError(409, f"You already created this {kind[:-1]} repo: {repo_id}")
        state = {"private": False, "gated": False, "created": now(), "branches": {}, "tags": {}}
        write_json(folder / "repo.json", state | settings)
        repo = cls(root, kind, repo_id)
        attributes = {"path": ".gitattributes", "content": base64.b64encode(GITATTRIBUTES.encode())}
        repo.commit("main", [{"key": "file", "value": attributes}], title="initial commit", author=author)
        return repo

    def save(self) -> None:
        write_json(self.folder / "repo.json", self.state)

    def object(self, oid: str) -> Path:
        return self.folder / "objects" / oid

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag, a full ref or a commit id stands for."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for refs in (self.state["branches"], self.state["tags"]):
            if name in refs:
                return refs[name]
        if re.fullmatch("[0-9a-f]{40}", revision) and (self.folder / "commits" / f"{revision}.json").is_file():
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def snapshot(self, revision: str) -> dict[str, Any]:
        """The commit itself: {id, parent, title, message, date, author, files: {path: {oid, size, lfs?}}}."""
        return json.loads((self.folder / "commits" / f"{self.resolve(revision)}.json").read_text())

    def history(self, revision: str) -> list[dict[str, Any]]:
        commits = [self.snapshot(revision)]
        while commits[-1]["parent"]:
            commits.append(self.snapshot(commits[-1]["parent"]))
        return commits

    def empty_commits(self, revision: str = "main") -> list[str]:
        """Titles of the commits that hold exactly what their parent holds."""
        commits = self.history(revision)
        return [new["title"] for new, old in pairwise(commits) if new["files"] == old["files"]]

    def read(self, path: str, revision: str = "main") -> bytes:
        """The content of a file, for tests that look at what arrived."""
        entry = self.snapshot(revision)["files"].get(path)
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=self.resolve(revision))
        return self.object(entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]).read_bytes()

    def is_lfs(self, path: str, size: int, revision: str) -> bool:
        """The Hub's rule: large files, and what .gitattributes says."""
        there = ".gitattributes" in self.snapshot(revision)["files"]
        attributes = self.read(".gitattributes", revision) if there else b""
        lines = [line.split() for line in attributes.decode().splitlines() if "filter=lfs" in line]
        names = (path, path.rsplit("/", 1)[-1])
        return size > LFS_FROM or any(fnmatch.fnmatch(name, line[0]) for line in lines for name in names)

    def commit(self, branch: str, operations: list[dict[str, Any]], *, title: str, author: str, **fields: Any) -> str:
        """Apply the lines of a /commit request; `parentCommit` must be the branch's head.

        A commit without operations is refused. One whose operations change nothing is taken, as on the Hub, whose
        clients leave it out: `empty_commits` finds those that were sent all the same.
        """
        head = self.state["branches"].get(branch)
        expected = fields.get("parentCommit")
        if expected and head and expected != head:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        before = self.snapshot(head)["files"] if head else {}
        files = dict(before)
        for operation in operations:
            self._apply(files, operation["key"], operation["value"])
        if not operations:
            raise HubError(400, "Nothing to commit")
        commit = {"parent": head, "title": title, "date": now(), "author": author, "files": files}
        commit["message"] = str(fields.get("description") or "")
        oid = hashlib.sha1(json.dumps(commit, sort_keys=True).encode() + os.urandom(8)).hexdigest()
        write_json(self.folder / "commits" / f"{oid}.json", {"id": oid, **commit})
        self.state["branches"][branch] = oid
        self.save()
        return oid

    def _apply(self, files: dict[str, Any], key: str, value: dict[str, Any]) -> None:
        path = value["path"].rstrip("/")
        if path.startswith("/") or not path or {".", "..", ".git", ""} & set(path.split("/")):
            raise HubError(400, f"Invalid path: {value['path']}")
        if key == "file":
            files[path] = self._store(path, base64.b64decode(value["content"]))
        elif key == "lfsFile":
            stored = self.object(value["oid"])
            if not re.fullmatch("[0-9a-f]{64}", value["oid"]) or not stored.is_file():
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            if value.get("size", stored.stat().st_size) != stored.stat().st_size:
                raise HubError(400, f"LFS pointer has the wrong size: {path}")
            files[path] = lfs_entry(value["oid"], stored.stat().st_size)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(f"{path}/"))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation in commit: {key}")

    def _store(self, path: str, content: bytes) -> dict[str, Any]:
        if len(content) > LFS_FROM:
            raise HubError(400, f"Your push was rejected because it contains files larger than 10 MiB: {path}")
        if path == "README.md":
            card_data(content.decode())
        oid = git_oid(content)
        self.object(oid).parent.mkdir(exist_ok=True)
        self.object(oid).write_bytes(content)
        return {"oid": oid, "size": len(content)}
