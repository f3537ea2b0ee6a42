"""The Hub as it is: a token that may or may not write, a server with bad days, and one commit at a time.

check_write_access("USER/NAME")                                  before hours are spent, not at the first upload
with_retries("reading the repo", lambda: api.repo_info("USER/NAME"), time.monotonic() + 600)
send_files(api, "USER/NAME", {"model.safetensors": path}, "epoch-03", time.monotonic() + 600)
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, set_client_factory
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import get_session, parse_ratelimit_headers, validate_repo_id

from recipe.schema import UserError

logger = logging.getLogger(__name__)

TRANSIENT = {408, 412, 425, 429, 500, 502, 503, 504}  # 412: somebody else committed in between, so look again
PATIENCE = 180.0  # seconds for each question, where nothing else is said
PREFLIGHT = 10.0  # seconds for each question, and for its answer, within `short_timeouts`
TIMEOUTS = {"connect": 20.0, "read": 120.0, "write": 120.0, "pool": 120.0}  # where a request sets none itself
LOGIN = "run `hf auth login`, or set HF_TOKEN (a container gets it by `docker run -e HF_TOKEN`)"
FIX = f"Make one that may write on the Hub's settings page (Access Tokens) and {LOGIN}"
Result = TypeVar("Result")

_longest = math.inf  # seconds: `PREFLIGHT` within `short_timeouts`
_client_hooks = get_session().event_hooks["request"]  # the client's own: its offline mode and request ids


class HubAway(UserError):
    """The Hub did not answer, or only with errors of its own, for as long as we were ready to wait."""


def _set_timeout(request: httpx2.Request) -> None:
    """No request waits for ever: some calls of the client ask for `timeout=None`, past that of its session."""
    asked = request.extensions.get("timeout", {})
    limits = {name: asked.get(name) or min(limit, _longest) for name, limit in TIMEOUTS.items()}
    request.extensions["timeout"] = limits


set_client_factory(
    lambda: httpx2.Client(event_hooks={"request": [*_client_hooks, _set_timeout]}, follow_redirects=True, timeout=None)
)


def with_retries(what: str, call: Callable[[], Result], deadline: float | None = None) -> Result:
    """`call()`, and again after each passing failure, until time.monotonic() reaches `deadline`; default: `PATIENCE`.

    The pauses grow, are random, and as long as the server's Retry-After asks. Raises what the last attempt raised.
    """
    attempt, began = 0, time.monotonic()
    deadline = min(deadline or began + PATIENCE, began + _longest)
    while True:
        try:
            return call()
        except Exception as error:
            pause = max(random.uniform(0.5, 1.0) * min(2**attempt, 60), asked_pause(error))
            if not is_transient(error) or time.monotonic() + pause > deadline:
                raise
            logger.info("%s: %s; again in %.0f s", what, first_line(error), pause)
            time.sleep(pause)
            attempt += 1


@contextlib.contextmanager
def short_timeouts() -> Iterator[None]:
    """In here a question to a Hub that is away costs `PREFLIGHT` seconds at most."""
    global _longest
    _longest = PREFLIGHT
    try:
        yield
    finally:
        _longest = math.inf


@contextlib.contextmanager
def as_user_errors(where: str) -> Iterator[None]:
    """What the client raises in here becomes a UserError of one line, which begins with `where`.

    HubAway where the Hub cannot be asked. Anything is caught: the client's errors share no base.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = first_line(error)
        if is_transient(error) or isinstance(error, OfflineModeIsEnabled):
            raise HubAway(f"{where}: the Hub cannot be reached ({words})") from error
        if isinstance(error, GatedRepoError):
            words = f"is gated: accept its licence on its page and {LOGIN}"
        elif isinstance(error, RepositoryNotFoundError):
            words = f"no such repo, or this token may not read it; {LOGIN}"
        elif isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            words = f"the Hub does not take this token ({words}). {FIX}"
        raise UserError(f"{where}: {words}") from error


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
    answers = (getattr(cause, "response", None) for cause in causes(error))
    headers: Mapping[str, str] = next((answer.headers for answer in answers if answer is not None), {})
    after, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers)
    asked = limit.reset_in_seconds if limit is not None and limit.remaining == 0 else 0
    return float(max(int(after) if after.isdecimal() else 0, asked))


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_repo_id(name: str) -> bool:
    """Whether `name` may be a USER/NAME of the Hub; a file or folder of this machine is none."""
    with contextlib.suppress(ValueError):
        validate_repo_id(name)
        return "/" in name and not Path(name).exists()
    return False


def full_id(name: str, user: Mapping[str, Any]) -> str:
    """USER/NAME, also of a NAME alone, as the Hub reads it."""
    return name if "/" in name else f"{user['name']}/{name}"


def newest_commit(name: str, revision: str | None, kind: str) -> str | None:
    """The commit that a revision of a Hub repo stands for now; the revision itself for a folder, or offline."""
    if is_repo_id(name):
        with contextlib.suppress(OSError, ValueError, httpx2.HTTPError):  # offline: whatever lies in the cache
            return HfApi().repo_info(name, repo_type=kind, revision=revision).sha
    return revision


def own_token(token: str | None = None) -> str:
    """The token given, or that of this machine. Raises UserError where there is none."""
    if not (found := token or get_token()):
        raise UserError(f"no token. {FIX}")
    return found


def check_write_access(name: str, kind: str = "model", token: str | None = None) -> str:
    """That the token may write to a repo (USER/NAME, or NAME of one's own), in words. Raises UserError where not."""
    api = HfApi(token=own_token(token))
    with as_user_errors(name):
        user = with_retries("asking the Hub for the token's rights", api.whoami)
        repo_id = full_id(name, user)
        check_rights(user, repo_id, "repo.write")
        try:
            with_retries(f"looking at {repo_id}", lambda: api.auth_check(repo_id, repo_type=kind, write=True))
        except RepositoryNotFoundError:
            return f"{user['name']} may create {repo_id}"
    return f"{user['name']} may write to {repo_id}"


def check_read_access(repo_id: str) -> str:
    """That a pretrained model, which may be gated, can be fetched, in words. Raises UserError where it cannot."""
    with as_user_errors(repo_id):
        with_retries(f"looking at {repo_id}", lambda: HfApi().auth_check(repo_id))
    return f"{repo_id} can be fetched"


def check_rights(user: Mapping[str, Any], where: str, permission: str) -> None:
    """Raises UserError unless the token's role and scopes give "repo.write" or "job.write" in a namespace or repo."""
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
            raise UserError(f"{where}: the token has no write permission on {namespace} ({permission}). {FIX}")


def send_files(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, Path],
    title: str,
    deadline: float | None = None,
    *,
    kind: str = "model",
    delete: Collection[str] = (),
    revision: str | None = None,
) -> str:
    """Make a branch hold `files` (path in the repo -> file here) and none of `delete`, in one commit.

    Tries until time.monotonic() reaches `deadline`. Only what differs travels, and nothing that arrived once is sent
    again. Returns the new commit; the newest where the branch holds all that already, as after a lost answer.
    """
    where: dict[str, Any] = {"repo_type": kind, "revision": revision}

    def attempt() -> str:
        head = api.repo_info(repo_id, **where)
        # New ones for each attempt: only such are compared with what the branch holds, and left out where it is equal.
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in sorted(files_of(head) & {*delete})]
        return api.create_commit(repo_id, operations, commit_message=title, parent_commit=head.sha, **where).oid

    return with_retries(f"pushing {title!r}", attempt, deadline)


def files_of(info: Any) -> set[str]:
    """The paths in a repo, of what `repo_info` says of it."""
    return {file.rfilename for file in info.siblings or ()}
