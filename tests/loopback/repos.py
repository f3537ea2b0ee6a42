"""The loopback Hub's routes for accounts and repositories: who am I, create, look, tag, download."""

import hashlib
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.responses import FileResponse, JSONResponse, Response

from loopback.store import API, REV, URL_PREFIX, WEB, HubError, Repo, card_data

if TYPE_CHECKING:
    from loopback.access import Call


async def whoami(call: "Call") -> Response:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    token: dict[str, Any] = {"displayName": "test", "role": call.user["role"], "createdAt": "2026-01-01T00:00:00.000Z"}
    if token["role"] == "fineGrained":
        scoped = [
            {"entity": {"type": "model" if "/" in name else "user", "name": name}, "permissions": list(permissions)}
            for name, permissions in call.user["scopes"].items()
        ]
        token["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": scoped}
    orgs = [{"type": "org", "id": org, "name": org, "roleInOrg": "write"} for org in call.user["orgs"]]
    person = {"type": "user", "id": call.user["name"], "name": call.user["name"], "fullname": call.user["name"]}
    return JSONResponse({**person, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}})


async def create(call: "Call") -> Response:
    body = await call.json()
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    repo_id = f"{body.get('organization') or call.user['name']}/{body['name']}"
    kind = f"{body.get('type') or 'model'}s"
    call.entry.repo = repo_id
    call.demand_write(repo_id)
    address = {"url": f"{call.hub.url}/{URL_PREFIX[kind]}{repo_id}", "name": repo_id}
    private = body.get("visibility") == "private"
    try:
        Repo.create(call.hub.root, kind, repo_id, call.user["name"], private=private, sdk=body.get("sdk"))
    except HubError as error:
        return JSONResponse({"error": error.message, **address}, error.status)
    return JSONResponse(address)


async def auth_check(call: "Call", kind: str, repo: str, write: str) -> Response:
    call.demand_access(call.repo(kind, repo, write=bool(write)))
    return JSONResponse({})


async def info(call: "Call", kind: str, repo: str, rev: str = "") -> Response:
    found = call.repo(kind, repo)
    commit = found.snapshot(rev or "main")
    card = card_data(found.read("README.md", commit["id"]).decode()) if "README.md" in commit["files"] else {}
    return JSONResponse(
        {
            **{"id": repo, "author": repo.split("/")[0], "sha": commit["id"], "lastModified": commit["date"]},
            **{"createdAt": found.state["created"], "private": found.state["private"], "gated": found.state["gated"]},
            **{"disabled": False, "downloads": 0, "likes": 0, "tags": card.get("tags") or [], "cardData": card},
            **{key: value for key in ("library_name", "pipeline_tag") if (value := card.get(key))},
            **({"sdk": found.state.get("sdk")} if kind == "spaces" else {}),
            "siblings": [{"rfilename": path} for path in sorted(commit["files"])],
        }
    )


def tree_entries(commit: dict[str, Any], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below `folder` ("" is the root), sorted by path, in the Hub's shape."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, entry in commit["files"].items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            parent = prefix + "/".join(parts[:depth])
            oid = hashlib.sha1(f"{commit['id']}/{parent}".encode()).hexdigest()
            entries[parent] = {"type": "directory", "path": parent, "oid": oid, "size": 0}
        if recursive or len(parts) == 1:
            entries[path] = {"type": "file", "path": path, **entry}
    return [entries[path] for path in sorted(entries)]


async def tree(call: "Call", kind: str, repo: str, rev: str, path: str) -> Response:
    commit, query = call.repo(kind, repo).snapshot(rev), call.request.query_params
    entries = tree_entries(commit, path, query.get("recursive", "").lower() in ("true", "1"))
    if path and not entries:
        raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound")
    return JSONResponse(entries)


async def paths_info(call: "Call", kind: str, repo: str, rev: str) -> Response:
    commit = call.repo(kind, repo).snapshot(rev)
    paths = (await call.request.form()).getlist("paths")
    entries = {entry["path"]: entry for entry in tree_entries(commit, "", recursive=True)}
    return JSONResponse([entries[path.strip("/")] for path in paths if path.strip("/") in entries])


async def refs(call: "Call", kind: str, repo: str) -> Response:
    state = call.repo(kind, repo).state

    def listed(group: str, prefix: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{prefix}/{n}", "targetCommit": oid} for n, oid in state[group].items()]

    found = {"branches": listed("branches", "heads"), "tags": listed("tags", "tags")}
    return JSONResponse({**found, "converts": [], "pullRequests": []})


async def commits(call: "Call", kind: str, repo: str, rev: str) -> Response:
    keys = ("id", "title", "message", "date")
    history = call.repo(kind, repo).history(rev)
    return JSONResponse([{**{key: c[key] for key in keys}, "authors": [{"user": c["author"]}]} for c in history])


async def set_ref(call: "Call", kind: str, repo: str, group: str, name: str) -> Response:
    """POST branch/NAME {startingPoint}, POST tag/REVISION {tag}, DELETE branch/NAME, DELETE tag/NAME."""
    found = call.repo(kind, repo, write=True)
    refs = found.state["branches" if group == "branch" else "tags"]
    if call.request.method == "DELETE":
        if name not in refs or name == "main":
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        del refs[name]
    else:
        body = await call.json()
        start, new = (body.get("startingPoint") or "main", name) if group == "branch" else (name, body["tag"])
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", new):
            raise HubError(400, f"Invalid reference for a {group}: {new}")
        if new in refs:
            raise HubError(409, f"Reference refs/{'heads' if group == 'branch' else 'tags'}/{new} already exists")
        refs[new] = found.resolve(start)
    found.save()
    return JSONResponse({})


async def validate_yaml(call: "Call") -> Response:
    try:
        empty = not card_data((await call.json())["content"])
    except HubError as error:
        return JSONResponse({"errors": [{"message": error.message}], "warnings": []}, 400)
    warnings = [{"message": "empty or missing yaml metadata in repo card"}] if empty else []
    return JSONResponse({"errors": [], "warnings": warnings})


async def resolve(call: "Call", kind: str, repo: str, rev: str, path: str) -> Response:
    found = call.repo(kind or "models", repo)
    call.demand_access(found)
    snapshot = found.snapshot(rev)
    headers = {"X-Repo-Commit": snapshot["id"], "Access-Control-Expose-Headers": "*"}
    entry = snapshot["files"].get(path)
    if entry is None:
        raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=snapshot["id"])
    oid = entry["oid"]
    if "lfs" in entry:
        oid = entry["lfs"]["oid"]
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(entry["size"])}
    headers |= {"ETag": f'"{oid}"', "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.split('/')[-1])}"}
    return FileResponse(found.object(oid), headers=headers, media_type="application/octet-stream")


ROUTES = (
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", API, info),
    ("GET", rf"{API}/revision/{REV}", info),
    ("GET", rf"{API}/auth-check(?P<write>/write)?", auth_check),
    ("GET", rf"{API}/tree/{REV}(?:/(?P<path>.+))?", tree),
    ("POST", rf"{API}/paths-info/{REV}", paths_info),
    ("GET", rf"{API}/refs", refs),
    ("GET", rf"{API}/commits/{REV}", commits),
    ("POST DELETE", rf"{API}/(?P<group>branch|tag)/(?P<name>[^/]+)", set_ref),
    ("GET HEAD", rf"{WEB}/resolve/{REV}/(?P<path>.+)", resolve),
)
