"""The loopback Hub's routes for Spaces: the stage of the build, its log, variables and secrets.

Nothing is built. A push to a Docker Space makes it BUILDING for `build_seconds`, then RUNNING, or BUILD_ERROR where
`break_build(hub, space_id, message)` was called; without `sdk` in its card it is CONFIG_ERROR, without a Dockerfile
NO_APP_FILE, as on the Hub.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from loopback.store import HubError, Repo, card_data, now

if TYPE_CHECKING:
    from loopback.access import Call
    from loopback.hub import LoopbackHub


def break_build(hub: "LoopbackHub", space_id: str, message: str | None) -> None:
    """Let this Space's builds end with an error (None: succeed again)."""
    repo = hub.repo(space_id, "spaces")
    repo.state["broken"] = message
    repo.save()


def began(repo: Repo) -> str:
    """When the last build began: at the last commit, or at a restart after it."""
    return max(repo.snapshot("main")["date"], repo.state.get("restarted", ""))


def stage(repo: Repo, build_seconds: float) -> str:
    head = repo.snapshot("main")
    sdk = card_data(repo.read("README.md").decode()).get("sdk") if "README.md" in head["files"] else None
    if repo.state.get("paused"):
        return "PAUSED"
    if "README.md" in head["files"] and sdk is None:
        return "CONFIG_ERROR"
    if ("Dockerfile" if (sdk or repo.state.get("sdk")) == "docker" else "app.py") not in head["files"]:
        return "NO_APP_FILE"
    if (datetime.now(UTC) - datetime.fromisoformat(began(repo))).total_seconds() < build_seconds:
        return "BUILDING"
    return "BUILD_ERROR" if repo.state.get("broken") else "RUNNING"


async def runtime(call: "Call", repo: str) -> Response:
    return describe(call, call.repo("spaces", repo))


def describe(call: "Call", repo: Repo) -> Response:
    current = stage(repo, call.hub.build_seconds)
    hardware = repo.state.get("hardware", "cpu-basic")
    running = {"current": hardware if current == "RUNNING" else None, "requested": hardware}
    error = {"errorMessage": repo.state["broken"]} if current == "BUILD_ERROR" else {}
    return JSONResponse({"stage": current, "hardware": running, "storage": None, "gcTimeout": 172800, **error})


async def power(call: "Call", repo: str, action: str) -> Response:
    found = call.repo("spaces", repo, write=True)
    found.state["paused"] = action == "pause"
    found.state["restarted"] = now()
    found.save()
    return describe(call, found)


async def keys(call: "Call", repo: str, group: str) -> Response:
    """Variables and secrets; a secret's value never comes back."""
    found = call.repo("spaces", repo, write=True)
    values: dict[str, str] = found.state.setdefault(group, {})
    hidden = group == "secrets"
    if call.request.method != "GET":
        body = await call.json()
        values.pop(body["key"], None)
        if call.request.method == "POST":
            values[body["key"]] = "" if hidden else body["value"]
        found.save()
    return JSONResponse(
        {k: {"key": k, "updatedAt": now(), **({} if hidden else {"value": v})} for k, v in values.items()}
    )


def sse(event: dict[str, Any], name: str = "") -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(event)}\n\n"


async def logs(call: "Call", repo: str, which: str) -> Response:
    found = call.repo("spaces", repo)
    head = found.snapshot("main")
    if which == "build" and "Dockerfile" not in head["files"]:
        raise HubError(404, "This Space has no build", None)

    async def lines() -> AsyncIterator[str]:
        start = began(found)
        if which == "run":
            yield sse({"data": "===== Application Startup =====\n", "timestamp": start})
            return
        title = f"===== Build Queued at {start} / Commit SHA: {head['id'][:7]} ====="
        for line in (
            title,
            *(f"--> {step}" for step in found.read("Dockerfile").decode().splitlines() if step.strip()),
        ):
            yield sse({"data": f"{line}\n", "timestamp": start})
        while stage(found, call.hub.build_seconds) == "BUILDING" and not call.hub.stopping:
            await asyncio.sleep(0.05)
        if found.state.get("broken"):
            yield sse({"data": f"--> ERROR: {found.state['broken']}\n", "timestamp": start})

    return StreamingResponse(lines(), media_type="text/event-stream")


SPACE = r"/api/spaces/(?P<repo>[^/]+/[^/]+)"
ROUTES = (
    ("GET", rf"{SPACE}/runtime", runtime),
    ("POST", rf"{SPACE}/(?P<action>pause|restart)", power),
    ("GET POST DELETE", rf"{SPACE}/(?P<group>variables|secrets)", keys),
    ("GET", rf"{SPACE}/logs/(?P<which>build|run)", logs),
)
