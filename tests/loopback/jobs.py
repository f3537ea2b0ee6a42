"""The loopback Hub's routes for Jobs. The image is not looked at, except that a Space must be one the caller sees."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from loopback.machines import FLAVORS, Job
from loopback.spaces import sse
from loopback.store import HubError

if TYPE_CHECKING:
    from loopback.access import Call


def price_list() -> list[dict[str, Any]]:
    answer = []
    for name, (cpus, ram, disk, gpu, vram, hourly) in FLAVORS.items():
        card = {"type": "gpu", "model": gpu, "quantity": "1", "vram": f"{vram} GB", "manufacturer": "Nvidia"}
        size = {"cpu": f"{cpus} vCPU", "ram": f"{ram} GB", "ephemeralStorage": f"{disk} GB"}
        cost = {"unitCostMicroUSD": round(hourly / 60 * 1e6), "unitCostUSD": hourly / 60, "unitLabel": "minute"}
        accelerator = {"accelerator": card} if gpu else {}
        answer.append({"name": name, "prettyName": name.replace("-", " ").title(), **size, **accelerator, **cost})
    return answer


async def submit(call: "Call", ns: str) -> Response:
    demand(call, ns, "job.write")
    spec = await call.json()
    if spec.get("flavor") not in FLAVORS:
        raise HubError(400, f"Invalid flavor {spec.get('flavor')!r}: expected one of {', '.join(FLAVORS)}")
    if not spec.get("command") or not (spec.get("dockerImage") or spec.get("spaceId")):
        raise HubError(400, "A job needs a command, and a dockerImage or a spaceId")
    for key, value in (spec.get("labels") or {}).items():
        if not re.fullmatch(r"[\w.-]{1,100}", key) or not re.fullmatch(r"[\w.-]{0,100}", value):
            raise HubError(400, f"Invalid label {key}={value}: letters, digits, dashes and underscores, 100 at most")
    if spec.get("spaceId"):
        call.repo("spaces", spec["spaceId"])
    assert call.user is not None
    return JSONResponse(call.hub.jobs.start(spec, ns, call.user["name"]).describe())


def demand(call: "Call", namespace: str, permission: str) -> None:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    if not call.may(permission, namespace):
        raise HubError(403, f"Forbidden: missing permissions: {permission}")


def find(call: "Call", ns: str, job_id: str, permission: str = "job.read") -> Job:
    demand(call, ns, permission)
    job = call.hub.jobs.all.get(job_id)
    if job is None or job.info["owner"]["name"] != ns:
        raise HubError(404, "Job not found")
    return job


async def listing(call: "Call", ns: str) -> Response:
    """GET ?stage=RUNNING&stage=SCHEDULING&label=key=value: newest first."""
    demand(call, ns, "job.read")
    query = call.request.query_params
    stages, labels = query.getlist("stage"), query.getlist("label")
    found = []
    for job in call.hub.jobs.all.values():
        own = {f"{key}={value}" for key, value in job.info["labels"].items()}
        if job.info["owner"]["name"] == ns and (not stages or job.stage in stages) and own.issuperset(labels):
            found.append(job.describe())
    return JSONResponse(found[::-1])


async def hardware(call: "Call") -> Response:
    return JSONResponse(price_list())


async def inspect(call: "Call", ns: str, job: str) -> Response:
    return JSONResponse(find(call, ns, job).describe())


async def cancel(call: "Call", ns: str, job: str) -> Response:
    found = find(call, ns, job, "job.write")
    found.kill("CANCELED", None)
    while not found.ended:
        await asyncio.sleep(0.01)
    return JSONResponse(found.describe())


async def logs(call: "Call", ns: str, job: str) -> Response:
    """All lines from the first on, then those to come, until the job has ended."""
    found = find(call, ns, job)

    async def lines() -> AsyncIterator[str]:
        sent = 0
        while not call.hub.stopping:
            over = found.ended  # asked before the lines are read, so that the last ones are not missed
            for event in found.log[sent:]:
                sent += 1
                yield sse(event)
            if over:
                return
            await asyncio.sleep(0.02)

    return StreamingResponse(lines(), media_type="text/event-stream")


async def metrics(call: "Call", ns: str, job: str) -> Response:
    """One look at an idle machine."""
    find(call, ns, job)
    idle = dict.fromkeys(("cpu_usage_pct", "memory_used_bytes", "rx_bps", "tx_bps"), 0)
    idle |= {"cpu_millicores": 1000, "memory_total_bytes": 2**30, "gpus": {}, "replica": "one"}
    return Response(f"event: metric\n{sse(idle)}", media_type="text/event-stream")


JOBS = r"/api/jobs/(?P<ns>[^/]+)"
JOB = rf"{JOBS}/(?P<job>[^/]+)"
ROUTES = (
    ("GET", r"/api/jobs/hardware", hardware),
    ("POST", JOBS, submit),
    ("GET", JOBS, listing),
    ("GET", JOB, inspect),
    ("POST", rf"{JOB}/cancel", cancel),
    ("GET", rf"{JOB}/logs", logs),
    ("GET", rf"{JOB}/metrics", metrics),
)
