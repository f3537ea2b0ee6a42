"""The loopback Hub's request log, and the wire on which its faults strike."""

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Outcome = int | Literal["drop", "hang"] | None  # None: only a delay, or a cut on the way
STORM: tuple[Outcome, ...] = (500, 503, 429, "drop", "hang")


@dataclass
class Entry:
    """One line of the request log. It is there from the request's first byte on, and filled in as the bytes pass."""

    time: float  # seconds since the epoch
    method: str
    path: str  # as sent (percent-encoded), without the query
    repo: str | None = None  # alice/detector
    user: str | None = None
    status: int | None = None  # what the client saw; None: it got no answer
    bytes_in: int = 0  # body bytes
    bytes_out: int = 0
    injected: str | None = None  # "503", "drop", "hang", "delay"; None for an honest answer


@dataclass
class Fault:
    """A rule made by `LoopbackHub.fail`; `hits` counts the requests it has struck."""

    route: str  # re.search in the path
    method: str | None = None
    status: int | tuple[Outcome, ...] | None = None  # a tuple: one of these at random ("drop" and "hang" too)
    drop: bool = False  # close the connection, after this many body bytes up or down
    after_bytes: int = 0
    hang: float = 0.0  # say nothing for so many seconds, then close
    delay: float = 0.0  # wait so many seconds, then answer
    late: bool = False  # the request is carried out first, only its answer is lost (or replaced by the status)
    times: int | None = None
    probability: float = 1.0
    seed: int = 0
    retry_after: int = 1  # seconds, of a 429 or 503
    hits: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def outcome(self) -> Outcome:
        """What happens to the request that was struck."""
        if isinstance(self.status, tuple):
            return self.random.choice(self.status)
        return self.status or ("drop" if self.drop else "hang" if self.hang else None)

    def strikes(self, entry: Entry) -> bool:
        if not re.search(self.route, entry.path) or self.method not in (None, entry.method):
            return False
        if (self.times is not None and self.hits >= self.times) or self.random.random() >= self.probability:
            return False
        self.hits += 1
        return True


class Cut(Exception):
    """The connection is to be dropped now."""


class Wire:
    """One request's receive and send: counts body bytes, cuts after so many, or swallows the answer."""

    def __init__(self, receive: Callable, send: Callable, entry: Entry) -> None:
        self._receive, self._send, self.entry = receive, send, entry
        self.cut_after: int | None = None
        self.swallow = False

    async def receive(self) -> Any:
        message = await self._receive()
        self.entry.bytes_in += len(message.get("body", b""))
        if self.cut_after is not None and self.entry.bytes_in > self.cut_after:
            raise Cut
        return message

    async def drain(self) -> None:
        """Read the request to its end, as a server does before it answers."""
        while (await self.receive()).get("more_body"):
            pass

    async def send(self, message: Any) -> None:
        if self.swallow:
            return
        if message["type"] == "http.response.start":
            self.entry.status = message["status"]
        body = message.get("body", b"")
        room = len(body) if self.cut_after is None else self.cut_after - self.entry.bytes_out
        self.entry.bytes_out += min(len(body), room)
        if len(body) > room:
            await self._send({**message, "body": body[:room], "more_body": True})
            raise Cut
        await self._send(message)

    async def drop(self) -> None:
        """Uvicorn's `send` is a bound method of the object that holds the socket. close() sends what is buffered."""
        transport = self._send.__self__.transport  # type: ignore[attr-defined]
        transport.close() if self.entry.bytes_out else transport.abort()
        self.entry.status = None
        await asyncio.sleep(0.01)  # until uvicorn has seen it, or it would try to answer
