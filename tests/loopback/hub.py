"""A Hub on 127.0.0.1 for the tests: the real clients (huggingface_hub, datasets, transformers, `hf`) work against it.

    with LoopbackHub(tmp_path, users={"hf_alice": {"name": "alice", "role": "write"}}) as hub:
        hub.api("hf_alice").create_repo("alice/detector")
        hub.fail(r"/commit/", status=503, times=2)
        subprocess.run(["hf", "download", "alice/detector"], env=hub.env("hf_alice", tmp_path / "home"))

It runs in a thread of the test process, so that faults can be set and requests be counted while a client works. What
it holds lies under `root`. README.md says what it stands for, and what not.
"""

import asyncio
import os
import re
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import uvicorn
from huggingface_hub import HfApi, constants
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from loopback import jobs, repos, spaces, uploads
from loopback.access import Call
from loopback.faults import STORM, Cut, Entry, Fault, Wire
from loopback.machines import Jobs
from loopback.store import HubError, Repo

if TYPE_CHECKING:
    import pytest  # not in the image, in which tests/image.sh starts this Hub

SWITCHES = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK"), "1")


Handler = Callable[..., Awaitable[Response]]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = [
    (method, re.compile(pattern), handler)
    for method, pattern, handler in (*jobs.ROUTES, *spaces.ROUTES, *uploads.ROUTES, *repos.ROUTES)
]


class LoopbackHub:
    """The server; see the module's docstring. `users` maps a token to its owner:

    {"hf_x": {"name": "alice", "role": "read" | "write" | "fineGrained", "orgs": ["acme"],
              "scopes": {"alice": ["repo.write", "job.write"]}}}     (the scopes for fineGrained tokens only)
    """

    def __init__(
        self,
        root: Path,
        users: dict[str, dict[str, Any]],
        *,
        build_seconds: float = 0.2,  # how long a Space stays in BUILDING
        schedule_seconds: float = 0.0,  # how long a job stays in SCHEDULING
        job_env: dict[str, str] | None = None,  # added to the environment of every job
    ) -> None:
        defaults = {"role": "write", "orgs": [], "scopes": {}}
        self.root = root
        self.users = {token: {**defaults, **user} for token, user in users.items()}
        self.build_seconds = build_seconds
        self.requests: list[Entry] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []  # tracebacks: mistakes of this stand-in, which no test should take for a fault
        self.stopping = False
        self.key = uuid.uuid4().hex  # signs upload addresses
        self.port = 0
        self.jobs = Jobs(root, schedule_seconds, job_env or {})
        self._server: uvicorn.Server | None = None
        self._modes = (constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE)

    def __enter__(self) -> "LoopbackHub":
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.jobs.kill_all()
        self.stop()
        constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = self._modes
        if self.errors and kind is None:
            raise RuntimeError("the loopback Hub itself failed:\n" + "\n".join(self.errors))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; after a `stop` on the same port as before, so that clients find it again."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self.jobs.env = {**SWITCHES, "HF_ENDPOINT": self.url}
        quiet = {"lifespan": "off", "log_level": "critical", "date_header": False}
        config = uvicorn.Config(self, timeout_keep_alive=600, timeout_graceful_shutdown=1, **quiet)
        self.stopping, self._server = False, uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the loopback Hub did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        """Be unreachable: connections are closed, new ones refused. Jobs run on, and `start` brings it back."""
        if self._server is not None:
            self.stopping = self._server.should_exit = True
            self._thread.join(timeout=10)
            self._server = None

    def env(self, token: str | None, home: Path) -> dict[str, str]:
        """The whole environment for a client in a subprocess: this Hub, this token, its own caches, no proxies."""
        hidden = ("HF_", "HUGGING", "TRACKIO_", "JOB_ID", "ACCELERATOR")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(hidden) and not k.lower().endswith("_proxy")}
        path = os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", os.defpath)))
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home / "hf"), "HOME": str(home), "PATH": path}
        return {**kept, **own, **SWITCHES, **({"HF_TOKEN": token} if token else {})}

    def api(self, token: str | bool) -> HfApi:
        """A client in this process (False: anonymous). Give downloads a cache_dir or local_dir, or they go home.

        Until this Hub ends, huggingface_hub's offline mode is off here, and so is Xet, which only the real Hub has.
        """
        constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = True, False
        return HfApi(endpoint=self.url, token=token)

    def serve(self, monkeypatch: "pytest.MonkeyPatch", token: str) -> HfApi:
        """Make the clients of this process ask this Hub, with this token."""
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", token)
        return self.api(token)

    def fail(self, route: str, **how: Any) -> Fault:
        """Make requests whose path matches `route` fail as `Fault` says, until `heal` or `times` were struck."""
        self.faults.append(Fault(route, **how))
        return self.faults[-1]

    def storm(self, probability: float = 0.3, *, seed: int = 0, hang: float = 1.0, route: str = "") -> Fault:
        """A bad day: this share of all requests fails, with 500, 503, 429, a dropped connection or a silence."""
        return self.fail(route, status=STORM, probability=probability, seed=seed, hang=hang)

    def heal(self) -> None:
        self.faults.clear()

    def repo(self, repo_id: str, kind: Literal["models", "datasets", "spaces"] = "models") -> Repo:
        """The repository as it lies on disk, past all access rules."""
        return Repo(self.root, kind, repo_id)

    def uploaded(self, repo_id: str | None = None, since: int = 0) -> int:
        """Body bytes sent by clients (to this repository), refused and repeated ones included, since a log line."""
        return sum(e.bytes_in for e in self.requests[since:] if repo_id in (None, e.repo))

    def gate(self, repo_id: str) -> None:
        """Make a model gated, its conditions accepted by nobody but its owner."""
        repo = self.repo(repo_id)
        repo.state.update(gated="manual")
        repo.save()

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """One request, as ASGI: log it, let a fault strike, answer."""
        path = scope["raw_path"].decode()
        entry = Entry(time.time(), scope["method"], path)
        wire = Wire(receive, send, entry)
        request = Request(scope, wire.receive, wire.send)
        handler, match = self._route(entry)
        self.requests.append(entry)
        fault = next((fault for fault in self.faults if fault.strikes(entry)), None)
        try:
            answer = await self._strike(fault, wire) if fault else None
            if answer is None or (fault and fault.late):
                wire.swallow = answer is not None
                await (await self._answer(request, entry, handler, match))(scope, wire.receive, wire.send)
                wire.swallow = False
            if answer == "drop":
                raise Cut
            if answer is not None:
                await answer(scope, wire.receive, wire.send)
        except Cut:
            await wire.drop()
        except ClientDisconnect:
            pass
        except Exception:
            self.errors.append(traceback.format_exc())
            raise

    async def _strike(self, fault: Fault, wire: Wire) -> Response | Literal["drop"] | None:
        outcome = fault.outcome()
        wire.entry.injected = str(outcome or "delay")
        await asyncio.sleep(fault.delay)
        if outcome == "hang":
            await asyncio.sleep(fault.hang)
            return "drop"
        if outcome == "drop" and not fault.late and fault.after_bytes:
            wire.cut_after = fault.after_bytes
            return None
        if isinstance(outcome, int):
            if not fault.late:
                await wire.drain()
            limits = {"RateLimit": f'"api";r=0;t={fault.retry_after}'} if outcome == 429 else {}
            retry = {"Retry-After": str(fault.retry_after)} if outcome in (429, 503) else {}
            return JSONResponse({"error": "injected"}, outcome, {**retry, **limits})
        return outcome

    def _route(self, entry: Entry) -> tuple[Handler | None, dict[str, str]]:
        """The handler of a path. Revisions may hold %2F, so the match is on the path as sent and unquoted after it."""
        for method, pattern, handler in ROUTES:
            if (match := pattern.fullmatch(entry.path)) and entry.method in method.split():
                fields = {name: unquote(value or "") for name, value in match.groupdict().items()}
                entry.repo = fields.get("repo")
                return handler, fields
        return None, {}

    async def _answer(
        self, request: Request, entry: Entry, handler: Handler | None, match: dict[str, str]
    ) -> Response:
        try:
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            if token and token not in self.users:
                raise HubError(401, "Invalid credentials in Authorization header")
            user = self.users.get(token)
            entry.user = user["name"] if user else None
            if handler is None:
                missing = re.match(r"/api/(models|datasets|spaces)/|/.+/resolve/", entry.path)
                raise HubError(
                    404, "Sorry, we can't find the page you are looking for.", "RepoNotFound" if missing else None
                )
            response = await handler(Call(self, request, user, entry), **match)
        except HubError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            headers = {"X-Error-Message": error.message, **code, **error.headers}
            response = JSONResponse({"error": error.message}, error.status, headers)
        response.headers["X-Request-Id"] = uuid.uuid4().hex
        response.headers["Date"] = formatdate(usegmt=True)  # uvicorn's own is up to a second old; log clients read it
        return response
