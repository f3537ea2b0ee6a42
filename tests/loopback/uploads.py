"""The loopback Hub's routes for uploads: preupload, LFS batch, storage and verify, commit."""

import hashlib
import json
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from loopback.store import API, REPO, REV, URL_PREFIX, WEB, HubError

if TYPE_CHECKING:
    from loopback.access import Call


async def preupload(call: "Call", kind: str, repo: str, rev: str) -> Response:
    found = call.repo(kind, repo, write=True)
    files, answers = found.snapshot(rev)["files"], []
    for item in (await call.json())["files"]:
        mode = "lfs" if found.is_lfs(item["path"], item["size"], rev) else "regular"
        entry = files.get(item["path"])
        known = {"oid": entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]} if entry else {}
        answers.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, **known})
    return JSONResponse({"files": answers})


async def lfs_batch(call: "Call", kind: str, repo: str) -> Response:
    """No actions for an object that is there; else an address that needs no token, as on the Hub's storage."""
    kind = kind or "models"
    found, objects = call.repo(kind, repo, write=True), []
    for item in (await call.json())["objects"]:
        oid, size = item["oid"], item["size"]
        objects.append({"oid": oid, "size": size})
        if not found.object(oid).is_file():
            upload = f"{call.hub.url}/lfs-storage/{kind}/{repo}/{oid}?size={size}"
            verify = f"{call.hub.url}/{URL_PREFIX[kind]}{repo}.git/info/lfs/objects/verify"
            objects[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
    return JSONResponse({"transfer": "basic", "objects": objects})


async def lfs_put(call: "Call", kind: str, repo: str, oid: str) -> Response:
    size = int(call.request.query_params["size"])
    target, digest, received = call.hub.repo(repo, kind).object(oid), hashlib.sha256(), 0  # type: ignore[arg-type]
    partial = target.with_name(f"{oid}.{id(call)}.partial")
    try:
        with partial.open("wb") as file:
            async for chunk in call.request.stream():
                digest.update(chunk)
                received += file.write(chunk)
        if (digest.hexdigest(), received) != (oid, size):
            raise HubError(400, "BadDigest: the content does not have the announced hash and size")
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{oid}"'})


async def lfs_verify(call: "Call", kind: str, repo: str) -> Response:
    stored, body = call.repo(kind or "models", repo, write=True), await call.json()
    file = stored.object(body["oid"])
    if not file.is_file() or file.stat().st_size != body["size"]:
        raise HubError(404, f"LFS object {body['oid']} was not uploaded or has another size")
    return JSONResponse({})


async def commit(call: "Call", kind: str, repo: str, rev: str) -> Response:
    found = call.repo(kind, repo, write=True)
    lines = [json.loads(line) for line in (await call.request.body()).splitlines() if line.strip()]
    if "create_pr" in call.request.query_params:
        raise HubError(400, "This stand-in takes no pull requests")
    if rev not in found.state["branches"]:
        raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
        raise HubError(400, "The first line of a commit must be a header with a summary")
    header = lines[0]["value"]
    title, fields = header.pop("summary"), header
    oid = found.commit(rev, lines[1:], title=title, author=call.entry.user or "", **fields)
    url = f"{call.hub.url}/{URL_PREFIX[kind]}{repo}/commit/{oid}"
    return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url})


ROUTES = (
    ("POST", rf"{API}/preupload/{REV}", preupload),
    ("POST", rf"{API}/commit/{REV}", commit),
    ("PUT", rf"/lfs-storage/(?P<kind>[^/]+)/{REPO}/(?P<oid>[0-9a-f]{{64}})", lfs_put),
    ("POST", rf"{WEB}\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", rf"{WEB}\.git/info/lfs/objects/verify", lfs_verify),
)
