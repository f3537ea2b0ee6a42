"""The Hub as it is: a token that may or may not write, and a server with bad days.

check_write_access("USER/NAME")                        before hours are spent, not at the first upload
retry("the push", lambda: api.create_commit(...), time.monotonic() + 600)
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, get_token, set_client_factory
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import get_session, parse_ratelimit_headers, validate_repo_id
from huggingface_hub.utils._http import default_client_factory

from recipe.schema import UserError

logger = logging.getLogger(__name__)

TRANSIENT = {408, 412, 425, 429, 500, 502, 503, 504}  # 412: somebody else committed in between, so look again
TIMEOUT = httpx2.Timeout(120, connect=20)  # the client's default is none: a silent server would hold it for ever
PATIENCE = 180.0  # seconds for each question, where nothing else is said
PREFLIGHT = 30.0  # seconds for all questions together that go unanswered while somebody sits and waits
FIX = "Make one that may write on the Hub's settings page (Access Tokens) and run `hf auth login`"
Result = TypeVar("Result")
_left = math.inf  # of PREFLIGHT, while `impatiently` is on


class HubAway(UserError):
    """The Hub did not answer, or only with errors of its own, for as long as we were ready to wait."""


def _client() -> httpx2.Client:
    """The client's own session, in which no request waits for ever: some of its calls ask for `timeout=None`."""
    client = default_client_factory()
    client.timeout = TIMEOUT
    client.event_hooks["request"].append(_in_time)
    return client


def _in_time(request: httpx2.Request) -> None:
    limits = get_session().timeout.as_dict()
    asked = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {kind: asked.get(kind) or limit for kind, limit in limits.items()}


set_client_factory(_client)


def retry(what: str, call: Callable[[], Result], deadline: float | None = None) -> Result:
    """`call()`, and again after each passing failure, until time.monotonic() reaches `deadline`; default: `PATIENCE`.

    The pauses grow, are random, and as long as the server's Retry-After asks. Raises what the last attempt raised.
    Within `impatiently` the end may come sooner.
    """
    global _left
    attempt, began = 0, time.monotonic()
    deadline = min(deadline or began + PATIENCE, began + _left)
    while True:
        try:
            short = httpx2.Timeout(min(10.0, max(3.0, deadline - time.monotonic())))
            get_session().timeout = TIMEOUT if _left == math.inf else short
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            pause = max(random.uniform(0.5, 1.0) * min(2**attempt, 60), asked_pause(error))
            if time.monotonic() + pause > deadline:
                _left = max(0.0, _left - (time.monotonic() - began))
                raise
            logger.info("%s: %s; again in %.0f s", what, in_a_line(error), pause)
            time.sleep(pause)
            attempt += 1


@contextlib.contextmanager
def impatiently() -> Iterator[None]:
    """In here a Hub that is away costs `PREFLIGHT` seconds in all, whatever patience its callers have.

    An answer is waited for 10 seconds at most, and 3 at least: what one question has lost is not another's fault.
    """
    global _left
    _left = PREFLIGHT
    try:
        yield
    finally:
        _left = math.inf


@contextlib.contextmanager
def plainly(where: str) -> Iterator[None]:
    """What the client raises in here becomes a UserError of one line, which begins with `where`.

    Raises:
        HubAway: the Hub cannot be asked.
        UserError: it refuses, or anything else: the client's errors share no base.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_transient(error) or isinstance(error, OfflineModeIsEnabled):
            raise HubAway(f"{where}: the Hub cannot be reached ({in_a_line(error)})") from error
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise UserError(f"{where}: the Hub does not take this token ({in_a_line(error)}). {FIX}") from error
        raise UserError(f"{where}: {in_a_line(error)}") from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it: the client wraps some of its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    for cause in causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, HfHubHTTPError | httpx2.HTTPStatusError):
            return cause.response.status_code in TRANSIENT
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            return True
    return False


def asked_pause(error: BaseException) -> float:
    """Seconds that the server asks to wait: Retry-After, or the rest of the rate limit's window."""
    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError | httpx2.HTTPStatusError):
            headers = cause.response.headers
            limit = parse_ratelimit_headers(headers) if cause.response.status_code == 429 else None
            after = headers.get("Retry-After", "")
            return max(float(after) if after.isdecimal() else 0.0, limit.reset_in_seconds if limit else 0.0)
    return 0.0


def in_a_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_repo_id(name: str) -> bool:
    """Whether `name` may be a USER/NAME of the Hub; a file or folder of this machine is none."""
    with contextlib.suppress(ValueError):
        validate_repo_id(name)
        return "/" in name and not Path(name).exists()
    return False


def newest(name: str, revision: str | None, kind: str) -> str | None:
    """The commit that a revision of a Hub repo stands for now; the revision itself for a folder, or offline."""
    if is_repo_id(name):
        with contextlib.suppress(OSError, ValueError, httpx2.HTTPError):  # offline: whatever lies in the cache
            return HfApi().repo_info(name, repo_type=kind, revision=revision).sha
    return revision


def check_write_access(name: str, kind: str = "model", token: str | None = None) -> str:
    """Whether the token may write to the repo `name` (USER/NAME, or NAME in one's own namespace), in words.

    Raises:
        UserError: no token, a wrong or read-only one, one without the right on this namespace, or somebody else's.
        HubAway: the Hub cannot be asked.
    """
    api = HfApi(token=token)
    if not (token or get_token()):
        raise UserError(f"{name}: no token. Run `hf auth login`, or set HF_TOKEN to one that may write")
    with plainly(name):
        user = retry("asking the Hub for the token's rights", api.whoami)
        repo_id = full_id(name, user)
        check_rights(user, repo_id, "repo.write")
        try:
            retry(f"looking at {repo_id}", lambda: api.auth_check(repo_id, repo_type=kind, write=True))
        except RepositoryNotFoundError:
            return f"{user['name']} may create {repo_id}"
    return f"{user['name']} may write to {repo_id}"


def check_read_access(repo_id: str) -> str:
    """Whether a pretrained model, which may be gated, can be fetched, in words.

    Raises:
        UserError: its licence was not accepted, or there is no such repo for this token.
        HubAway: the Hub cannot be asked.
    """
    api = HfApi()
    with plainly(repo_id):
        try:
            retry(f"looking at {repo_id}", lambda: api.auth_check(repo_id))
        except GatedRepoError as error:
            words = f"is gated: accept its licence on {api.endpoint}/{repo_id}, as the user of `hf auth login`"
            raise UserError(f"{repo_id} {words}") from error
        except RepositoryNotFoundError as error:
            raise UserError(f"{repo_id}: no such model, or this token may not read it (`hf auth login`)") from error
    return f"{repo_id} can be fetched"


def full_id(name: str, user: Mapping[str, Any]) -> str:
    """USER/NAME, also of a NAME alone, as the Hub reads it."""
    return name if "/" in name else f"{user['name']}/{name}"


def check_rights(user: Mapping[str, Any], where: str, permission: str) -> None:
    """Whether the token has "repo.write" or "job.write" in a namespace or on a repo, by its role and scopes.

    Raises:
        UserError: it has not.
    """
    namespace, token = where.split("/")[0], user["auth"]["accessToken"]
    ours = [user["name"], *(org["name"] for org in user.get("orgs", ()) if org.get("roleInOrg") != "read")]
    if namespace not in ours:
        raise UserError(f"{where}: {user['name']} cannot write there ({permission}), only under {', '.join(ours)}")
    if token["role"] == "read":
        raise UserError(f"{where}: the token can only read. {FIX}")
    if token["role"] == "fineGrained":
        scopes = token["fineGrained"]["scoped"]
        granted = {scope["entity"]["name"] for scope in scopes if permission in scope["permissions"]}
        if not granted & {namespace, where}:
            raise UserError(
                f"{where}: the fine-grained token has no write permission on {namespace} ({permission}). {FIX}"
            )
