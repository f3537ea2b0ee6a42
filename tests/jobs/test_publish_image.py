"""jobs/publish_image.py against the loopback Hub, which builds nothing but plays the stages of a build."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from loopback.hub import LoopbackHub
from loopback.spaces import break_build

from jobs import publish_image
from recipe.record import commit

ROOT = Path(__file__).parents[2]
USERS = {"hf_alice": {"name": "alice"}, "hf_reads": {"name": "alice", "role": "read"}}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub", USERS, build_seconds=0.3) as hub:
        hub.serve(monkeypatch, "hf_alice")
        monkeypatch.setattr(publish_image, "POLL", 0.05)
        monkeypatch.setattr(publish_image, "GRACE", 1.0)
        yield hub


def files_of(hub):
    repo = hub.repo("alice/recipe", "spaces")
    return {name: repo.read(name) for name in repo.snapshot("main")["files"]}


@pytest.mark.parametrize("name", ["alice/recipe", "recipe"])
def test_the_build_is_sent_and_waited_for_and_the_space_is_private(hub, capsys, name):
    assert publish_image.main([name]) == 0
    said = capsys.readouterr()
    assert "sent to" in said.err
    assert "--image hf.co/spaces/alice/recipe" in said.out
    assert hub.repo("alice/recipe", "spaces").state["private"]


def test_the_space_holds_all_that_the_dockerfile_copies(hub):
    publish_image.main(["alice/recipe"])
    names = set(files_of(hub))
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for source in " ".join(copied).split():
        assert "*" in source or any(name == source or name.startswith(f"{source}/") for name in names), source
    listed = subprocess.run(["git", "ls-files", "recipe"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= names


def test_the_image_knows_its_commit_and_the_space_answers_on_its_port(hub):
    """The Hub passes no build arguments: without this a job's run.json would say "unknown"."""
    publish_image.main(["alice/recipe"])
    files = files_of(hub)
    assert f"ARG COMMIT={commit()}\n" in files["Dockerfile"].decode()
    assert "unknown" not in files["Dockerfile"].decode()
    assert files["README.md"].startswith(b"---\ntitle: Recipe\nsdk: docker\n")
    assert b"7860" in files["Dockerfile"].splitlines()[-1]


def test_a_second_time_sends_nothing_and_a_stale_file_is_removed(hub, capsys):
    publish_image.main(["alice/recipe"])
    publish_image.main(["alice/recipe"])
    assert "nothing new" in capsys.readouterr().err
    api = hub.api("hf_alice")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="recipe/old.py", repo_id="alice/recipe", repo_type="space")
    publish_image.main(["alice/recipe"])
    assert "recipe/old.py" not in files_of(hub)


def test_after_a_lost_answer_the_build_is_waited_for(hub, capsys):
    """Else the stage of the build before, RUNNING, would be taken for that of the new one."""
    hub.fail(r"/commit/", drop=True, late=True, times=1)
    assert publish_image.main(["alice/recipe"]) == 0
    assert "sent to" in capsys.readouterr().err


def test_the_log_of_a_failed_build_is_printed(hub, capsys):
    api = hub.api("hf_alice")
    api.create_repo("alice/recipe", repo_type="space", space_sdk="docker", private=True)
    break_build(hub, "alice/recipe", "no space left on device")
    assert publish_image.main(["alice/recipe"]) == 1
    said = capsys.readouterr().err
    assert "--> ERROR: no space left on device" in said
    assert "ended as BUILD_ERROR" in said


def test_a_server_with_a_bad_moment_is_asked_again(hub):
    hub.fail(r"/api/spaces/alice/recipe/runtime", status=503, times=2)
    hub.fail(r"/commit/", status=500, times=1)
    assert publish_image.main(["alice/recipe"]) == 0


def test_where_a_private_space_is_refused_none_is_made_public_in_its_place(hub, capsys):
    hub.fail(r"/api/repos/create", status=403)
    assert publish_image.main(["alice/recipe"]) == 2
    assert "creating alice/recipe as a private Space" in capsys.readouterr().err


def test_a_token_that_only_reads_is_refused(hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    assert publish_image.main(["alice/recipe"]) == 2
    assert "can only read" in capsys.readouterr().err
