"""A token's rights, a Hub with bad days, and requests that end: python -m pytest tests/test_hub.py"""

from __future__ import annotations

import socket
import time

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from recipe import hub as recipe_hub
from recipe.hub import check_write_access, is_repo_id, send_files, short_timeouts, with_retries
from recipe.schema import UserError

NAME = "alice/crowd-detr"


def test_a_file_that_cannot_be_is_not_tried_for_ever():
    calls = []

    def fails():
        calls.append(1)
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        with_retries("trying", fails, time.monotonic() + 60)
    assert len(calls) == 1


def seconds_for_an_answer() -> float:
    """Of a request that sets no timeout, sent by the client's own session."""
    request = httpx2.Request("GET", "http://127.0.0.1/", extensions={"timeout": httpx2.Timeout(None).as_dict()})
    for hook in get_session().event_hooks["request"]:
        hook(request)
    return request.extensions["timeout"]["read"]


def test_a_preflight_loses_little_time_to_a_hub_that_is_away(hub, monkeypatch):
    """And after it a run is as patient as ever."""
    monkeypatch.setattr("recipe.hub.PREFLIGHT", 3.0)
    asked = []

    def away():
        asked.append(time.monotonic())
        raise ConnectionError("no route")

    began = time.monotonic()
    with short_timeouts():
        with pytest.raises(ConnectionError):
            with_retries("trying", away, began + 60)
        assert seconds_for_an_answer() == 3.0
    assert time.monotonic() - began < 3
    assert len(asked) >= 2
    assert seconds_for_an_answer() == 120.0


def test_no_question_waits_for_ever_for_a_server_that_says_nothing(hub, monkeypatch):
    """Some calls of the Hub's client ask for no timeout, past that of its session; fails by hanging."""
    monkeypatch.setitem(recipe_hub.TIMEOUTS, "read", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(httpx2.TimeoutException):
        HfApi(endpoint=f"http://127.0.0.1:{server.getsockname()[1]}").repo_info("alice/crowd")


@pytest.mark.parametrize(
    ("token", "name", "says"),
    [
        ("hf_alice_reads", NAME, "can only read"),
        ("hf_alice_fine", NAME, "no write permission on alice"),
        ("hf_bob", NAME, "bob cannot write there"),
        ("hf_nobody", NAME, "does not take this token"),
        (None, NAME, "no token"),
        ("hf_alice_fine", "alice/other", None),
        ("hf_alice", "acme/crowd", None),
        ("hf_alice", "crowd", None),
    ],
)
def test_the_tokens_rights_are_looked_at_first(hub, monkeypatch, tmp_path, token, name, says):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    hub.storm(0.3, seed=3, hang=0.1)
    if says is None:
        assert "may" in check_write_access(name)
    else:
        with pytest.raises(UserError, match=says):
            check_write_access(name)


def test_what_names_a_folder_or_no_repo_is_told_from_user_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice" / "here").mkdir(parents=True)
    others = ["crowd", "./alice/crowd", "/data/crowd", "../crowd", "alice/crowd/data", "alice/c d", "alice/here"]
    assert is_repo_id("alice/Crowd_2.1-x")
    assert [name for name in others if is_repo_id(name)] == []


def test_a_private_repo_of_somebody_else_in_ones_organisation_is_found_unwritable(hub):
    hub.api("hf_alice").create_repo("acme/secret", private=True)
    with pytest.raises(UserError, match="cannot write there"):
        check_write_access("acme/secret", token="hf_bob")


def test_the_clients_offline_mode_still_holds(hub, monkeypatch):
    """Its own hooks are kept beside ours: without them every request would go out."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    since = len(hub.requests)
    with pytest.raises(OfflineModeIsEnabled):
        HfApi(endpoint=hub.url).whoami()
    assert len(hub.requests) == since


def test_a_branch_gets_its_own_commit_and_main_stays_as_it_is(hub, tmp_path):
    api = hub.api("hf_alice")
    api.create_repo(NAME)
    api.create_branch(NAME, branch="state")
    (tmp_path / "a.txt").write_text("a")
    before = hub.repo(NAME).resolve("main")
    sent = send_files(api, NAME, {"x/a.txt": tmp_path / "a.txt"}, "one", time.monotonic() + 60, revision="state")
    assert hub.repo(NAME).resolve("state") == sent
    assert hub.repo(NAME).read("x/a.txt", "state") == b"a"
    assert hub.repo(NAME).resolve("main") == before
    again = send_files(api, NAME, {"x/a.txt": tmp_path / "a.txt"}, "two", time.monotonic() + 60, revision="state")
    assert again == sent
    send_files(api, NAME, {}, "three", time.monotonic() + 60, revision="state", delete=["x/a.txt", "x/b.txt"])
    assert "x/a.txt" not in hub.repo(NAME).snapshot("state")["files"]


def test_the_pauses_between_attempts_grow_to_a_minute_and_are_as_long_as_the_server_asks(monkeypatch):
    pauses, now = [], [0.0]

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    def away():
        raise ConnectionError("no route")

    monkeypatch.setattr(recipe_hub.time, "sleep", sleep)
    monkeypatch.setattr(recipe_hub.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(recipe_hub.random, "uniform", lambda least, most: most)
    with pytest.raises(ConnectionError):
        with_retries("asking", away, 600.0)
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert sum(pauses) <= 600
    pauses.clear()
    monkeypatch.setattr(recipe_hub, "asked_pause", lambda error: 100.0)
    with pytest.raises(ConnectionError):
        with_retries("asking", away, now[0] + 350)
    assert pauses == [100, 100, 100]
