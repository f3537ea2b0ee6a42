"""A run on the Hub: nothing is lost in silence, nothing is sent twice: python -m pytest tests/test_hub.py

The runs here are folders of small files; tests/test_end_to_end.py trains.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import get_session
from loopback.hub import LoopbackHub

from recipe.cli import main
from recipe.hub import check_write_access, impatiently, is_repo_id, retry
from recipe.model.checkpoint import SHARDS
from recipe.schema import UserError
from recipe.training.backlog import PUSHED, backlog
from recipe.training.push import RunRepo, open_run
from recipe.training.run import RUN_FILE, checkpoints, claim, last_checkpoint

USERS = {
    "hf_alice": {"name": "alice", "role": "write", "orgs": ["acme"]},
    "hf_alice_reads": {"name": "alice", "role": "read"},
    "hf_alice_fine": {"name": "alice", "role": "fineGrained", "scopes": {"alice/other": ["repo.write"]}},
    "hf_bob": {"name": "bob"},
}
NAME = "alice/crowd-detr"
IDENTITY = {"learning_rate": 0.1, "seed": 42}
BACKBONE = bytes(range(256)) * 4000  # 1 MB
STEPS = 4  # per epoch


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that the clients in this process use, with alice's token."""
    with LoopbackHub(tmp_path / "hub", USERS) as hub:
        hub.serve(monkeypatch, "hf_alice")
        monkeypatch.setattr("recipe.hub.PATIENCE", 20.0)
        yield hub


def make_run(folder: Path, epochs: int = 0, best: int | None = None) -> Path:
    """A run's folder as `recipe train` leaves it after so many epochs, without the training."""
    folder.mkdir()
    record = {"run_name": "run", "started": "2026-01-01T00:00:00Z", "identity": IDENTITY}
    record["training"] = {"hub_model_id": NAME, "hub_private_repo": True}
    (folder / RUN_FILE).write_text(json.dumps(record))
    (folder / SHARDS[True]).write_bytes(BACKBONE)
    for epoch in range(1, epochs + 1):
        save_epoch(folder, epoch, best)
    return folder


def save_epoch(folder: Path, epoch: float, best: int | None = None) -> Path:
    """A checkpoint; `best` is the epoch of the best model so far."""
    step = round(epoch * STEPS)
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    os.link(folder / SHARDS[True], checkpoint / SHARDS[True])
    index = {"weight_map": {"model.backbone.w": SHARDS[True], "w": SHARDS[False]}}
    best_step = None if best is None else best * STEPS
    state = {"global_step": step, "epoch": epoch, "best_global_step": best_step, "log_history": [{"step": step}]}
    state["best_model_checkpoint"] = best_step and f"/somewhere/else/checkpoint-{best_step}"
    files = {"config.json": "{}", "preprocessor_config.json": "{}", "model.safetensors.index.json": json.dumps(index)}
    files |= {"trainer_state.json": json.dumps(state), "README.md": f"# Epoch {epoch}\n"}
    files |= {name: f"{name} {step}" for name in (SHARDS[False], "optimizer.pt", "scheduler.pt", "rng_state.pth")}
    for name, text in files.items():
        (checkpoint / name).write_text(text)
    return checkpoint


def opened(folder: Path, **settings: float) -> RunRepo:
    return open_run(NAME, folder, "auto", **settings)


def titles(hub: LoopbackHub) -> list[str]:
    """Commits, oldest first, without the one that creates the repo."""
    return [commit["title"] for commit in hub.repo(NAME).history("main")[::-1]][1:]


def tagged(hub: LoopbackHub) -> dict[str, str]:
    """Tag -> the detector's weights at its root."""
    repo = hub.repo(NAME)
    return {tag: repo.read(SHARDS[False], tag).decode() for tag in sorted(repo.state["tags"])}


# ---- what a push leaves there ----


def test_every_epoch_is_one_commit_with_its_model_its_state_and_its_tag(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=2)
    assert opened(folder).push(folder) == []
    assert titles(hub) == ["epoch-01, step 4", "epoch-02, step 8"]
    assert tagged(hub) == {"epoch-01": f"{SHARDS[False]} 4", "epoch-02": f"{SHARDS[False]} 8"}
    repo = hub.repo(NAME)
    assert repo.state["private"]
    files = set(repo.snapshot("epoch-02")["files"]) - {".gitattributes"}
    model = {"config.json", "preprocessor_config.json", "model.safetensors.index.json", *SHARDS.values()}
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run.json"}
    assert files == model | {"README.md"} | {f"last-checkpoint/{name}" for name in model | state}
    assert repo.read("last-checkpoint/optimizer.pt", "epoch-01") == b"optimizer.pt 4"
    assert repo.read("README.md", "epoch-02") == b"# Epoch 2\n"


def test_an_evaluation_within_a_checkpoint_stays_here_and_hinders_no_push(hub, tmp_path):
    """`recipe evaluate RUN/checkpoint-N` writes into the checkpoint, where no other --out is given."""
    folder = make_run(tmp_path / "run", epochs=1)
    (checkpoints(folder)[0] / "evaluation-validation").mkdir()
    assert opened(folder).push(folder) == []
    assert not [name for name in hub.repo(NAME).snapshot("main")["files"] if "evaluation" in name]


def test_a_checkpoint_within_an_epoch_is_pushed_without_a_tag(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    save_epoch(folder, 1.25)
    assert opened(folder).push(folder) == []
    assert titles(hub) == ["epoch-01, step 4", "Within an epoch, step 5"]
    assert list(tagged(hub)) == ["epoch-01"]


def test_the_backbone_travels_once_and_a_file_under_two_names_once(hub, tmp_path):
    """Fails without the deduplication in RunRepo._send_files: the client sends a new file once per name."""
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder)
    repo.push(folder)
    first = hub.uploaded(NAME)
    assert len(BACKBONE) < first < 1.1 * len(BACKBONE)
    since = len(hub.requests)
    save_epoch(folder, 2)
    repo.push(folder)
    assert hub.uploaded(NAME, since) < 20_000


def test_the_backbone_is_hashed_once(hub, tmp_path, monkeypatch):
    hashed = []
    original = "huggingface_hub.lfs.sha_fileobj"
    monkeypatch.setattr(original, lambda file: hashed.append(Path(file.name).name) or sha(file))
    from huggingface_hub.utils.sha import sha_fileobj as sha

    folder = make_run(tmp_path / "run", epochs=3)
    opened(folder).push(folder)
    assert hashed.count(SHARDS[True]) == 1


def test_what_is_there_already_makes_no_commit(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    opened(folder).push(folder)
    (checkpoints(folder)[0] / PUSHED).unlink()  # killed before it was noted
    since = len(hub.requests)
    assert opened(folder).push(folder) == []
    assert len(titles(hub)) == 1
    assert not [entry for entry in hub.requests[since:] if "/commit/" in entry.path or "lfs" in entry.path]


def test_the_finished_run_puts_the_best_model_and_the_report_at_the_root(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=2, best=1)
    best = checkpoints(folder)[0]
    for name in (SHARDS[False], "config.json", "model.safetensors.index.json"):
        shutil.copy(best / name, folder / name)
    (folder / "README.md").write_text("# The best\n")
    (folder / "report").mkdir()
    (folder / "report" / "report.md").write_text("fine\n")
    assert opened(folder).push(folder, final=True) == []
    repo = hub.repo(NAME)
    assert titles(hub)[-1] == "The final model and its report"
    assert repo.read(SHARDS[False], "main") == b"model-00002-of-00002.safetensors 4"
    assert repo.read("last-checkpoint/optimizer.pt", "main") == b"optimizer.pt 8"
    assert repo.read("report/report.md", "main") == b"fine\n"
    assert repo.read("README.md", "main") == b"# The best\n"


@pytest.mark.parametrize("private", [True, False])
def test_photographs_stay_out_of_a_repo_that_was_public_before(hub, tmp_path, private):
    """Fails if the flag is asked, which says private: create_repo leaves an existing repo as it was."""
    hub.api("hf_alice").create_repo(NAME, private=private)
    folder = make_run(tmp_path / "run", epochs=1)
    (folder / "report").mkdir()
    for name in ("report.md", "worst.png", "curves.png"):
        (folder / "report" / name).write_text(name)
    assert opened(folder).push(folder, final=True) == []
    sent = set(hub.repo(NAME).snapshot("main")["files"])
    assert {"report/report.md", "report/curves.png"} <= sent
    assert ("report/worst.png" in sent) == private


# ---- bad days ----


def test_a_lost_answer_of_a_commit_makes_no_second_commit(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder)
    fault = hub.fail("/commit/", drop=True, late=True, times=1)
    assert repo.push(folder) == []
    assert fault.hits == 1
    assert titles(hub) == ["epoch-01, step 4"]
    assert list(tagged(hub)) == ["epoch-01"]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_refused_commit_is_sent_again(hub, tmp_path, status):
    """Fails with the client's own create_commit, which gives up at the first 500."""
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder)
    hub.fail("/commit/", status=status, times=2)
    assert repo.push(folder) == []
    assert titles(hub) == ["epoch-01, step 4"]


def test_retry_after_is_waited_for(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder)
    hub.fail("/commit/", status=429, times=1, retry_after=3)
    started = time.monotonic()
    assert repo.push(folder) == []
    assert 3 <= time.monotonic() - started < 10


def test_a_file_that_cannot_be_is_not_tried_for_ever():
    calls = []

    def fails():
        calls.append(1)
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        retry("trying", fails, time.monotonic() + 60)
    assert len(calls) == 1


def test_a_preflight_loses_no_more_time_than_its_own_to_a_hub_that_is_away(hub, monkeypatch):
    """All its questions together; after it a run is as patient as ever."""
    monkeypatch.setattr("recipe.hub.PREFLIGHT", 3.0)
    asked = []

    def away():
        asked.append(time.monotonic())
        raise ConnectionError("no route")

    began = time.monotonic()
    with impatiently():
        for _ in range(4):
            with pytest.raises(ConnectionError):
                retry("trying", away, began + 60)
        assert retry("trying", lambda: get_session().timeout.read) == 3.0
    assert time.monotonic() - began < 4
    assert len(asked) >= 6
    assert retry("trying", lambda: get_session().timeout.read) == 120.0


def test_every_epoch_arrives_with_a_third_of_all_requests_failing(hub, tmp_path):
    folder = make_run(tmp_path / "run")
    hub.storm(0.3, seed=1, hang=0.2)
    repo = opened(folder)
    for epoch in range(1, 3):
        save_epoch(folder, epoch)
        assert repo.push(folder) == []
    hub.heal()
    assert titles(hub) == ["epoch-01, step 4", "epoch-02, step 8"]
    assert tagged(hub) == {"epoch-01": f"{SHARDS[False]} 4", "epoch-02": f"{SHARDS[False]} 8"}


def test_what_a_dead_hub_missed_follows_in_order_each_epoch_with_its_own_commit(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder, minutes=2 / 60)
    hub.stop()
    assert repo.push(folder) == ["checkpoint-4"]
    save_epoch(folder, 2)
    assert repo.push(folder) == ["checkpoint-4", "checkpoint-8"]
    hub.start()
    save_epoch(folder, 3)
    repo.limit = 60
    assert repo.push(folder) == []
    assert titles(hub) == ["epoch-01, step 4", "epoch-02, step 8", "epoch-03, step 12"]
    assert list(tagged(hub)) == ["epoch-01", "epoch-02", "epoch-03"]


def test_a_silent_hub_holds_a_push_no_longer_than_its_limit_and_the_upload_goes_on_beside(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder, minutes=1 / 60)
    hub.fail("/commit/", delay=2.5, times=1)
    started = time.monotonic()
    assert repo.push(folder) == ["checkpoint-4"]
    assert time.monotonic() - started < 2
    repo.limit = 60
    save_epoch(folder, 2)
    assert repo.push(folder) == []
    assert titles(hub) == ["epoch-01, step 4", "epoch-02, step 8"]


def test_no_question_waits_for_ever_for_a_server_that_says_nothing(hub, monkeypatch):
    """Some calls of the Hub's client ask for no timeout, past the one of its session; fails by hanging."""
    monkeypatch.setattr(get_session(), "timeout", httpx2.Timeout(0.5))
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(httpx2.TimeoutException):
        HfApi(endpoint=f"http://127.0.0.1:{server.getsockname()[1]}").repo_info("alice/crowd")


def test_a_token_that_was_revoked_stops_no_training(hub, tmp_path, monkeypatch, caplog):
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder)
    monkeypatch.setenv("HF_TOKEN", "hf_alice_reads")
    assert repo.push(folder) == ["checkpoint-4"]
    assert "not pushed" in caplog.text


# ---- before the training ----


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


def test_a_repo_that_holds_something_else_is_refused(hub, tmp_path):
    api = hub.api("hf_alice")
    api.create_repo(NAME)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=NAME)
    with pytest.raises(UserError, match="holds something else"):
        open_run(NAME, tmp_path / "new", "auto")


def test_resume_never_refuses_to_overwrite_the_run_that_is_there(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    open_run(NAME, folder, "never").push(folder)
    with pytest.raises(UserError, match="holds the run run of 2026-01-01"):
        open_run(NAME, tmp_path / "new", "never")


def test_without_the_hub_a_run_goes_on_and_a_new_one_does_not_start(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("recipe.hub.PATIENCE", 1.0)
    hub.stop()
    with pytest.raises(UserError, match="cannot be reached"):
        open_run(NAME, tmp_path / "new", "auto")
    assert open_run(NAME, make_run(tmp_path / "run"), "auto").record is None


# ---- a lost machine ----


@pytest.fixture
def lost(hub, tmp_path):
    """A run of three epochs, the second the best, whose machine is gone."""
    folder = make_run(tmp_path / "lost")
    repo = opened(folder)
    for epoch in range(1, 4):
        save_epoch(folder, epoch, best=min(epoch, 2))
        assert repo.push(folder) == []
    shutil.rmtree(folder)
    return hub


def test_an_empty_machine_gets_the_last_and_the_best_checkpoint_whole(lost, tmp_path):
    folder = tmp_path / "new"
    opened(folder).restore(folder, IDENTITY)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-8", "checkpoint-12"]
    assert claim(folder, IDENTITY, "auto") == folder / "checkpoint-12"
    assert (folder / "checkpoint-8" / SHARDS[False]).read_text() == f"{SHARDS[False]} 8"
    assert (folder / "checkpoint-12" / "optimizer.pt").read_text() == "optimizer.pt 12"
    state = json.loads((folder / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(folder / "checkpoint-8")
    assert (folder / "checkpoint-8" / SHARDS[True]).samefile(folder / SHARDS[True])
    assert (folder / SHARDS[True]).read_bytes() == BACKBONE
    assert backlog(folder, NAME) == []
    assert {path.name for path in folder.iterdir()} == {"checkpoint-8", "checkpoint-12", SHARDS[True], RUN_FILE}


def test_the_backbone_comes_down_once(lost, tmp_path):
    since = len(lost.requests)
    opened(tmp_path / "new").restore(tmp_path / "new", IDENTITY)
    down = sum(entry.bytes_out for entry in lost.requests[since:])
    assert len(BACKBONE) < down < 1.2 * len(BACKBONE)


def test_a_machine_is_found_again_through_a_storm(lost, tmp_path):
    folder = tmp_path / "new"
    lost.storm(0.3, seed=5, hang=0.2)
    opened(folder).restore(folder, IDENTITY)
    assert claim(folder, IDENTITY, "auto") == folder / "checkpoint-12"
    assert (folder / SHARDS[True]).read_bytes() == BACKBONE


def test_a_download_that_was_killed_leaves_no_run_behind_and_goes_on(lost, tmp_path):
    folder = tmp_path / "new"
    lost.fail(r"resolve/[0-9a-f]+/last-checkpoint/optimizer.pt", status=403)
    with pytest.raises(UserError, match="cannot be fetched"):
        opened(folder).restore(folder, IDENTITY)
    assert not (folder / RUN_FILE).exists()
    lost.heal()
    opened(folder).restore(folder, IDENTITY)
    assert claim(folder, IDENTITY, "auto") == folder / "checkpoint-12"


def test_other_settings_are_refused_and_named_before_anything_comes_down(lost, tmp_path):
    folder, since = tmp_path / "new", len(lost.requests)
    with pytest.raises(UserError, match=r"--hub_model_id alice/crowd-detr.*learning_rate was 0.1, now 0.2"):
        opened(folder).restore(folder, IDENTITY | {"learning_rate": 0.2})
    assert not folder.exists()
    assert sum(entry.bytes_out for entry in lost.requests[since:]) < 20_000


def test_a_folder_that_has_come_as_far_is_left_alone_and_one_behind_catches_up(lost, tmp_path):
    folder = make_run(tmp_path / "here", epochs=3)
    opened(folder).restore(folder, IDENTITY)
    assert backlog(folder, NAME) == checkpoints(folder)
    behind = make_run(tmp_path / "behind", epochs=1)
    opened(behind).restore(behind, IDENTITY)
    assert last_checkpoint(behind) == behind / "checkpoint-12"


def test_a_folder_that_holds_something_else_is_not_touched(lost, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    opened(folder).restore(folder, IDENTITY)
    assert [path.name for path in folder.iterdir()] == ["cat.jpg"]


def test_a_machine_that_died_between_commit_and_tag_gets_its_tag(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    hub.fail("/tag/", status=403)
    assert opened(folder).push(folder) == ["checkpoint-4"]
    hub.heal()
    opened(tmp_path / "new").restore(tmp_path / "new", IDENTITY)
    assert list(tagged(hub)) == ["epoch-01"]
    assert len(titles(hub)) == 1


# ---- recipe push ----


def test_recipe_push_sends_what_the_hub_has_missed_and_says_what_it_could_not(hub, tmp_path, caplog, monkeypatch):
    folder = make_run(tmp_path / "run", epochs=2)
    fault = hub.fail("/commit/", status=403)
    assert main(["push", str(folder)]) == 3
    assert "not pushed: checkpoint-4, checkpoint-8" in caplog.text
    assert f"recipe push {folder}" in caplog.text
    assert fault.hits == 1
    hub.heal()
    assert main(["push", str(folder)]) == 0
    assert list(tagged(hub)) == ["epoch-01", "epoch-02"]
    assert main(["push", str(tmp_path)]) == 2


def test_recipe_push_does_not_overwrite_another_run(lost, tmp_path, capsys):
    folder = make_run(tmp_path / "run", epochs=1)
    record = json.loads((folder / RUN_FILE).read_text())
    (folder / RUN_FILE).write_text(json.dumps(record | {"identity": IDENTITY | {"seed": 1}}))
    assert main(["push", str(folder)]) == 2
    assert "seed was 42, now 1" in capsys.readouterr().err


def test_recipe_push_does_not_take_the_hub_back_to_an_earlier_epoch(lost, tmp_path, caplog):
    """A machine with an epoch of its own is outrun by one that went on from the Hub."""
    folder, before = make_run(tmp_path / "run", epochs=1), titles(lost)
    with caplog.at_level("INFO", "recipe"):
        assert main(["push", str(folder)]) == 0
    assert f"checkpoint-4 is not sent: {NAME} has come to step 12" in caplog.text
    assert titles(lost) == before
    assert lost.repo(NAME).read("last-checkpoint/optimizer.pt", "main") == b"optimizer.pt 12"
    save_epoch(folder, 4)
    assert main(["push", str(folder)]) == 0
    assert titles(lost) == [*before, "epoch-04, step 16"]


def test_a_hub_that_was_away_at_the_start_is_not_taken_back_either(lost, tmp_path, monkeypatch):
    folder, before = make_run(tmp_path / "run", epochs=1), titles(lost)
    lost.stop()
    monkeypatch.setattr("recipe.hub.PATIENCE", 1.0)
    repo = opened(folder)
    lost.start()
    assert repo.push(folder) == []
    assert titles(lost) == before


def test_a_push_from_two_machines_keeps_both_commits(hub, tmp_path):
    """The head moves between our look and our commit: the Hub says 412, and we look again."""
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder)
    hub.fail("/commit/", delay=0.7, times=1)

    def other():
        time.sleep(0.3)
        hub.api("hf_alice").upload_file(path_or_fileobj=b"x", path_in_repo="note.txt", repo_id=NAME)

    thread = threading.Thread(target=other)
    thread.start()
    assert repo.push(folder) == []
    thread.join()
    assert "note.txt" in hub.repo(NAME).snapshot("main")["files"]
    assert [entry.status for entry in hub.requests if "/commit/" in entry.path] == [412, 200, 200]
