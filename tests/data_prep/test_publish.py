"""The dataset on the Hub: what changed travels, once, and privately (data_prep.publish)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_yolo
from loopback.hub import LoopbackHub

from data_prep import publish as room
from data_prep.__main__ import main
from data_prep.publish import upload
from recipe.schema import UserError

NAME = "alice/crowd"
SHARD = bytes(range(256)) * 800  # 200 kB


def make_packed(folder: Path, shards: int = 4, changed: int | None = None) -> Path:
    """A packed folder; the shard `changed` holds other bytes."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(shards):
        name = f"train-{number:05d}-of-{shards:05d}.parquet"
        (folder / "data" / name).write_bytes(SHARD + f"{number} {number == changed} {shards}".encode())
        files.append({"name": name})
    (folder / "manifest.json").write_text(json.dumps({"splits": {"train": {"files": files}}, "changed": changed}))
    (folder / "README.md").write_text("---\nlicense: other\n---\n# Crowd\n")
    (folder / "problems.csv").write_text("file\nphotos/of/people.jpg\n")
    return folder


def uploads(hub: LoopbackHub, since: int = 0) -> list[str]:
    """The shards' sums whose bytes were sent."""
    return [entry.path.rsplit("/", 1)[1] for entry in hub.requests[since:] if "lfs-storage" in entry.path]


def files(hub: LoopbackHub) -> set[str]:
    return set(hub.repo(NAME, "datasets").snapshot("main")["files"]) - {".gitattributes"}


def test_shards_card_and_manifest_go_up_privately(hub, tmp_path):
    commit = upload(make_packed(tmp_path / "packed"), NAME)
    assert files(hub) == {f"data/train-0000{n}-of-00004.parquet" for n in range(4)} | {"README.md", "manifest.json"}
    repo = hub.repo(NAME, "datasets")
    assert repo.state["private"]
    assert repo.resolve("main") == commit


def test_public_is_asked_for(hub, tmp_path):
    upload(make_packed(tmp_path / "packed"), NAME, private=False)
    assert not hub.repo(NAME, "datasets").state["private"]


def test_photographs_stay_out_of_a_repo_that_was_public_before(hub, tmp_path):
    """create_repo leaves an existing repo as it was, whatever is asked of it."""
    hub.api("hf_alice").create_repo(NAME, repo_type="dataset", private=False)
    with pytest.raises(UserError, match=f"{NAME}: is public, .*--public.*another repo"):
        upload(make_packed(tmp_path / "packed"), NAME)
    assert files(hub) == set()
    upload(make_packed(tmp_path / "packed"), NAME, private=False)
    assert len(files(hub)) == 6


def test_unchanged_data_makes_no_commit_and_sends_nothing(hub, tmp_path):
    folder = make_packed(tmp_path / "packed")
    first, since = upload(folder, NAME), len(hub.requests)
    assert upload(make_packed(tmp_path / "again"), NAME) == first
    assert uploads(hub, since) == []
    assert not [entry for entry in hub.requests[since:] if "/commit/" in entry.path]


def test_a_changed_image_sends_its_shard_alone(hub, tmp_path):
    upload(make_packed(tmp_path / "packed"), NAME)
    since = len(hub.requests)
    upload(make_packed(tmp_path / "packed", changed=2), NAME)
    assert len(uploads(hub, since)) == 1


def test_shards_of_an_earlier_packing_go_in_the_same_commit(hub, tmp_path):
    """Else `data/train-*` would match both packings and every image would be there twice."""
    upload(make_packed(tmp_path / "four"), NAME)
    upload(make_packed(tmp_path / "two", shards=2), NAME)
    assert {name for name in files(hub) if name.startswith("data/")} == {
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    }
    assert len(hub.repo(NAME, "datasets").history("main")) == 3


def test_an_upload_that_was_killed_goes_on_without_sending_a_shard_twice(hub, tmp_path):
    """SIGKILL while the third shard is on its way."""
    folder = make_packed(tmp_path / "packed")
    hub.fail("lfs-storage", delay=0.5)
    code = "import sys, pathlib; from data_prep.publish import upload; upload(pathlib.Path(sys.argv[1]), sys.argv[2])"
    env = hub.env("hf_alice", tmp_path / "home") | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), NAME], env=env, stderr=subprocess.DEVNULL)
    while sum(entry.status == 200 for entry in hub.requests if "lfs-storage" in entry.path) < 2:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.heal()
    time.sleep(1)  # what was on its way arrives or breaks
    there = {path.name for path in (hub.repo(NAME, "datasets").folder / "objects").iterdir()}
    since = len(hub.requests)
    upload(folder, NAME)
    assert len(there & set(uploads(hub))) >= 2
    assert not there & set(uploads(hub, since))
    assert len(files(hub)) == 6


def test_a_bad_day_is_sat_out(hub, tmp_path):
    hub.storm(0.3, seed=4, hang=0.1)
    upload(make_packed(tmp_path / "packed"), NAME)
    assert len(files(hub)) == 6


def test_a_repo_that_holds_something_else_is_refused(hub, tmp_path):
    api = hub.api("hf_alice")
    api.create_repo(NAME, repo_type="dataset")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="other.csv", repo_id=NAME, repo_type="dataset")
    with pytest.raises(UserError, match="holds something else"):
        upload(make_packed(tmp_path / "packed"), NAME)


def test_a_hub_that_stays_away_is_an_error_that_says_how_to_go_on(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PATIENCE", 1.0)
    hub.stop()
    with pytest.raises(UserError, match="the same command resumes"):
        upload(make_packed(tmp_path / "packed"), NAME)


# ---- the command line ----


def test_pack_with_a_repo_id_is_what_load_dataset_reads(hub, tmp_path, capsys):
    make_yolo(tmp_path / "yolo", train=3, val=2)
    command = ["pack", str(tmp_path / "yolo"), "--out", str(tmp_path / "packed"), "--repo-id", NAME]
    assert main(command) == 0
    head = hub.repo(NAME, "datasets").resolve("main")
    assert f"{NAME} holds it, in commit {head}" in capsys.readouterr().out
    assert main(command) == 0
    assert hub.repo(NAME, "datasets").resolve("main") == head
    assert f'load_dataset("{NAME}")' in hub.repo(NAME, "datasets").read("README.md", "main").decode()
    code = f"import datasets; print({{k: len(v) for k, v in datasets.load_dataset('{NAME}').items()}})"
    env = hub.env("hf_alice", tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "{'train': 3, 'validation': 2}"


def test_a_token_that_only_reads_is_found_before_anything_is_packed(hub, tmp_path, monkeypatch, capsys):
    make_yolo(tmp_path / "yolo", train=1, val=1)
    monkeypatch.setenv("HF_TOKEN", "hf_alice_reads")
    assert main(["pack", str(tmp_path / "yolo"), "--out", str(tmp_path / "packed"), "--repo-id", NAME]) == 2
    assert "the token can only read" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()
