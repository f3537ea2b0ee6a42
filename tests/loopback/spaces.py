"""The loopback Hub's routes for Spaces: the stage of the build and its log.

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

from loopback.store import HubError, Repo, card_data

if TYPE_CHECKING:
    from loopback.access import Call
    from loopback.hub import LoopbackHub


def break_build(hub: "LoopbackHub", space_id: str, message: str | None) -> None:
    """Let this Space's builds end with an error (None: succeed again)."""
    repo = hub.repo(space_id, "spaces")
    repo.state["broken"] = message
    repo.save()


def stage(repo: Repo, build_seconds: float) -> str:
    head = repo.snapshot("main")
    sdk = card_data(repo.read("README.md").decode()).get("sdk") if "README.md" in head["files"] else None
    if "README.md" in head["files"] and sdk is None:
        return "CONFIG_ERROR"
    if ("Dockerfile" if (sdk or repo.state.get("sdk")) == "docker" else "app.py") not in head["files"]:
        return "NO_APP_FILE"
    if (datetime.now(UTC) - datetime.fromisoformat(head["date"])).total_seconds() < build_seconds:
        return "BUILDING"
    return "BUILD_ERROR" if repo.state.get("broken") else "RUNNING"


async def runtime(call: "Call", repo: str) -> Response:
    found = call.repo("spaces", repo)
    current = stage(found, call.hub.build_seconds)
    hardware = {"current": "cpu-basic" if current == "RUNNING" else None, "requested": "cpu-basic"}
    error = {"errorMessage": found.state["broken"]} if current == "BUILD_ERROR" else {}
    return JSONResponse({"stage": current, "hardware": hardware, "storage": None, "gcTimeout": 172800, **error})


def sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"


async def logs(call: "Call", repo: str, which: str) -> Response:
    found = call.repo("spaces", repo)
    head = found.snapshot("main")
    if which == "build" and "Dockerfile" not in head["files"]:
        raise HubError(404, "This Space has no build", None)

    async def lines() -> AsyncIterator[str]:
        start = head["date"]
        if which == "run":
            yield sse({"data": "===== Application Startup =====\n", "timestamp": start})
            return
        title = f"===== Build Queued at {start} / Commit SHA: {head['id'][:7]} ====="
        steps = [f"--> {step}" for step in found.read("Dockerfile").decode().splitlines() if step.strip()]
        for line in (title, *steps):
            yield sse({"data": f"{line}\n", "timestamp": start})
        while stage(found, call.hub.build_seconds) == "BUILDING" and not call.hub.stopping:
            await asyncio.sleep(0.05)
        if found.state.get("broken"):
            yield sse({"data": f"--> ERROR: {found.state['broken']}\n", "timestamp": start})

    return StreamingResponse(lines(), media_type="text/event-stream")


SPACE = r"/api/spaces/(?P<repo>[^/]+/[^/]+)"
ROUTES = (
    ("GET", rf"{SPACE}/runtime", runtime),
    ("GET", rf"{SPACE}/logs/(?P<which>build|run)", logs),
)
