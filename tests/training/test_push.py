"""A run on the Hub: nothing is lost in silence, nothing is sent twice: python -m pytest tests/training/test_push.py

The runs here are folders of small files; tests/test_end_to_end.py trains.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd
from loopback.hub import LoopbackHub
from transformers import Trainer, TrainerCallback, TrainingArguments

from recipe.cli import main
from recipe.model.checkpoint import BACKBONE_FILE, DETECTOR_FILE
from recipe.record import RUN_FILE, RunRecord
from recipe.schema import UserError
from recipe.training.checkpoints import checkpoints, last_checkpoint, seal
from recipe.training.push import BRANCH, Push, RunRepo, open_run

NAME = "alice/crowd-detr"
SETTINGS = {"learning_rate": 0.1, "seed": 42}
BACKBONE = bytes(range(256)) * 4000  # 1 MB
STEPS = 4  # per epoch


def make_run(folder: Path, epochs: int = 0, best: int | None = None) -> Path:
    """A run's folder as `recipe train` leaves it after so many epochs, without the training."""
    folder.mkdir()
    settings = {"hub_model_id": NAME, "hub_private_repo": True}
    RunRecord("run", "0123", "2026-01-01T00:00:00Z", settings, SETTINGS, {}).write(folder)
    (folder / BACKBONE_FILE).write_bytes(BACKBONE)
    for epoch in range(1, epochs + 1):
        save_epoch(folder, epoch, best)
    return folder


def save_epoch(folder: Path, epoch: float, best: int | None = None) -> Path:
    """A checkpoint; `best` is the epoch of the best model so far."""
    step = round(epoch * STEPS)
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    os.link(folder / BACKBONE_FILE, checkpoint / BACKBONE_FILE)
    index = {"weight_map": {"model.backbone.w": BACKBONE_FILE, "w": DETECTOR_FILE}}
    best_step = None if best is None else best * STEPS
    state = {"global_step": step, "epoch": epoch, "best_global_step": best_step, "log_history": [{"step": step}]}
    state["best_model_checkpoint"] = best_step and f"/somewhere/else/checkpoint-{best_step}"
    files = {"config.json": "{}", "preprocessor_config.json": "{}", "model.safetensors.index.json": json.dumps(index)}
    files |= {"trainer_state.json": json.dumps(state), "README.md": f"# Epoch {epoch}\n"}
    files |= {name: f"{name} {step}" for name in (DETECTOR_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth")}
    for name, text in files.items():
        (checkpoint / name).write_text(text)
    seal(checkpoint)
    return checkpoint


def opened(folder: Path, minutes: float = 10.0) -> RunRepo:
    return open_run(NAME, folder, "auto", minutes=minutes)


def restore(folder: Path, expected: dict[str, float] = SETTINGS) -> RunRepo:
    """What a machine does before it trains."""
    repo = opened(folder)
    repo.restore(folder, expected)
    return repo


def titles(hub: LoopbackHub) -> list[str]:
    """Commits, oldest first, without the one that creates the repo."""
    return [commit["title"] for commit in hub.repo(NAME).history("main")[::-1]][1:]


def tagged(hub: LoopbackHub) -> dict[str, str]:
    """Tag -> the detector's weights at its root."""
    there = hub.repo(NAME)
    return {tag: there.read(DETECTOR_FILE, tag).decode() for tag in sorted(there.state["tags"])}


# ---- what a push leaves there ----


def test_every_epoch_is_one_commit_with_its_model_its_state_and_its_tag(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=2)
    assert opened(folder).push(folder) == []
    assert titles(hub) == ["epoch-01, step 4", "epoch-02, step 8"]
    assert tagged(hub) == {"epoch-01": f"{DETECTOR_FILE} 4", "epoch-02": f"{DETECTOR_FILE} 8"}
    there = hub.repo(NAME)
    assert there.state["private"]
    model = {"config.json", "preprocessor_config.json", "model.safetensors.index.json", BACKBONE_FILE, DETECTOR_FILE}
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run.json", "seal.json"}
    assert set(there.snapshot("epoch-02")["files"]) == model | {"README.md", ".gitattributes"}  # and no state to fetch
    assert set(there.snapshot(BRANCH)["files"]) == {f"last-checkpoint/{name}" for name in state} | {".gitattributes"}
    assert there.read("last-checkpoint/optimizer.pt", BRANCH) == b"optimizer.pt 8"
    assert there.read("README.md", "epoch-02") == b"# Epoch 2\n"


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


def test_the_backbone_travels_once(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder)
    repo.push(folder)
    first = hub.uploaded(NAME)
    assert len(BACKBONE) < first < 1.1 * len(BACKBONE)
    since = len(hub.requests)
    save_epoch(folder, 2)
    repo.push(folder)
    assert hub.uploaded(NAME, since) < 20_000


def test_what_is_there_already_makes_no_commit(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    opened(folder).push(folder)
    since, repo = len(hub.requests), opened(folder)
    repo.step = 0  # as for a Hub that was away at the start
    assert repo.push(folder) == []
    assert len(titles(hub)) == 1
    assert not [entry for entry in hub.requests[since:] if "/commit/" in entry.path or entry.method == "PUT"]


def test_the_finished_run_puts_the_best_model_and_the_report_at_the_root(hub, tmp_path):
    folder = make_run(tmp_path / "run", epochs=2, best=1)
    best = checkpoints(folder)[0]
    for name in (DETECTOR_FILE, "config.json", "model.safetensors.index.json"):
        shutil.copy(best / name, folder / name)
    (folder / "README.md").write_text("# The best\n")
    (folder / "report").mkdir()
    (folder / "report" / "report.md").write_text("fine\n")
    assert opened(folder).push(folder, final=True) == []
    there = hub.repo(NAME)
    assert titles(hub)[-1] == "The final model and its report"
    assert there.read(DETECTOR_FILE, "main") == b"model-00002-of-00002.safetensors 4"
    assert there.read("last-checkpoint/optimizer.pt", BRANCH) == b"optimizer.pt 8"
    assert there.read("report/report.md", "main") == b"fine\n"
    assert there.read("README.md", "main") == b"# The best\n"


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


def test_every_epoch_arrives_with_a_third_of_all_requests_failing(hub, tmp_path):
    folder = make_run(tmp_path / "run")
    hub.storm(0.3, seed=1, hang=0.2)
    repo = opened(folder)
    for epoch in range(1, 3):
        save_epoch(folder, epoch)
        assert repo.push(folder) == []
    hub.heal()
    assert titles(hub) == ["epoch-01, step 4", "epoch-02, step 8"]
    assert tagged(hub) == {"epoch-01": f"{DETECTOR_FILE} 4", "epoch-02": f"{DETECTOR_FILE} 8"}


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


def test_a_token_that_was_revoked_stops_no_training(hub, tmp_path, monkeypatch, caplog):
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder)
    monkeypatch.setenv("HF_TOKEN", "hf_alice_reads")
    assert repo.push(folder) == ["checkpoint-4"]
    assert "not pushed" in caplog.text


# ---- before the training ----


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
    repo = restore(folder)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-8", "checkpoint-12"]
    assert last_checkpoint(folder) == folder / "checkpoint-12"
    assert (folder / "checkpoint-8" / DETECTOR_FILE).read_text() == f"{DETECTOR_FILE} 8"
    assert (folder / "checkpoint-12" / "optimizer.pt").read_text() == "optimizer.pt 12"
    assert (folder / "checkpoint-8" / BACKBONE_FILE).samefile(folder / BACKBONE_FILE)
    assert (folder / BACKBONE_FILE).read_bytes() == BACKBONE
    assert repo.unpushed(folder) == []
    assert {path.name for path in folder.iterdir()} == {"checkpoint-8", "checkpoint-12", BACKBONE_FILE, RUN_FILE}


def test_the_backbone_comes_down_once(lost, tmp_path):
    since = len(lost.requests)
    restore(tmp_path / "new")
    down = sum(entry.bytes_out for entry in lost.requests[since:])
    assert len(BACKBONE) < down < 1.2 * len(BACKBONE)


def test_a_machine_is_found_again_through_a_storm(lost, tmp_path, monkeypatch):
    folder = tmp_path / "new"
    monkeypatch.setattr("recipe.hub.PATIENCE", 60.0)
    lost.storm(0.3, seed=5, hang=0.2)
    restore(folder)
    assert last_checkpoint(folder) == folder / "checkpoint-12"
    assert (folder / BACKBONE_FILE).read_bytes() == BACKBONE


def test_a_download_that_was_killed_leaves_no_run_behind_and_goes_on(lost, tmp_path):
    folder = tmp_path / "new"
    lost.fail(r"resolve/[0-9a-f]+/last-checkpoint/optimizer.pt", status=403)
    with pytest.raises(UserError, match="cannot be fetched"):
        restore(folder)
    assert not (folder / RUN_FILE).exists()
    lost.heal()
    restore(folder)
    assert last_checkpoint(folder) == folder / "checkpoint-12"


def test_other_settings_are_refused_and_named_before_anything_comes_down(lost, tmp_path):
    folder, since = tmp_path / "new", len(lost.requests)
    with pytest.raises(UserError, match=r"--hub_model_id alice/crowd-detr.*learning_rate was 0.1, now 0.2"):
        restore(folder, SETTINGS | {"learning_rate": 0.2})
    assert not folder.exists()
    assert sum(entry.bytes_out for entry in lost.requests[since:]) < 20_000


def test_a_folder_that_has_come_as_far_is_left_alone_and_one_behind_catches_up(lost, tmp_path):
    folder, since = make_run(tmp_path / "here", epochs=3), len(lost.requests)
    restore(folder)
    assert not [entry for entry in lost.requests[since:] if entry.bytes_out > len(BACKBONE)]
    behind = make_run(tmp_path / "behind", epochs=1)
    restore(behind)
    assert last_checkpoint(behind) == behind / "checkpoint-12"


def test_a_folder_that_holds_something_else_is_not_touched(lost, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    restore(folder)
    assert [path.name for path in folder.iterdir()] == ["cat.jpg"]


@pytest.mark.parametrize("route", ["/branch/", f"/commit/{BRANCH}", "/commit/main", "/tag/"])
@pytest.mark.parametrize("late", [False, True])
def test_a_kill_anywhere_in_the_first_push_costs_that_epoch_at_most(hub, tmp_path, route, late):
    folder = make_run(tmp_path / "run", epochs=1)
    hub.fail(route, status=400, late=late)  # late: it was carried out, and the machine died before the answer
    assert opened(folder).push(folder) == ["checkpoint-4"]
    hub.heal()
    new = tmp_path / "new"
    repo = restore(new)
    assert not new.exists()  # trained anew
    if route in ("/commit/main", "/tag/"):  # whose repo it is was there before
        with pytest.raises(UserError, match="seed was 42, now 1"):
            restore(new, SETTINGS | {"seed": 1})
    make_run(new, epochs=1)
    assert repo.push(new) == []
    assert tagged(hub) == {"epoch-01": f"{DETECTOR_FILE} 4"}
    assert titles(hub) == ["epoch-01, step 4"]


@pytest.mark.parametrize("route", [f"/commit/{BRANCH}", "/commit/main", "/tag/"])
@pytest.mark.parametrize("late", [False, True])
def test_a_kill_between_the_commits_of_an_epoch_resumes_a_state_with_its_own_model(lost, tmp_path, route, late):
    """Fails where the state goes before the model, or where the newest model is taken for it."""
    folder = tmp_path / "one"
    repo = restore(folder)
    save_epoch(folder, 4)
    lost.fail(route, status=400, late=late)
    assert repo.push(folder) == ["checkpoint-16"]
    lost.heal()
    new = tmp_path / "new"
    repo = restore(new)
    step = 16 if late and route == f"/commit/{BRANCH}" else 12
    last = last_checkpoint(new)
    assert last == new / f"checkpoint-{step}"
    for name in (DETECTOR_FILE, "optimizer.pt"):
        assert (last / name).read_text() == f"{name} {step}"
    if step == 12:
        save_epoch(new, 4)
    assert repo.push(new) == []
    assert titles(lost)[-1] == "epoch-04, step 16"
    assert len(titles(lost)) == 4
    assert tagged(lost)["epoch-04"] == f"{DETECTOR_FILE} 16"


def test_a_repo_of_version_0_1_is_resumed_and_its_state_leaves_main(hub, tmp_path):
    """There everything lay on main, the state and a second copy of the model in last-checkpoint/."""
    folder = make_run(tmp_path / "old")
    api = hub.api("hf_alice")
    api.create_repo(NAME)
    old = {"run_name": "run", "started": "2026-01-01T00:00:00Z", "training": {}, "config": {}, "identity": SETTINGS}
    old |= {"run_id": "0123", "dataset": {}}
    for epoch in (1, 2):
        files = {path.name: path.read_bytes() for path in save_epoch(folder, epoch, best=1).iterdir()}
        model = {name for name in files if name.endswith(("config.json", ".safetensors", ".index.json", "README.md"))}
        files.pop("seal.json")
        content = {name: files[name] for name in model}
        content |= {f"last-checkpoint/{name}": files[name] for name in set(files) - {"README.md"}}
        content["last-checkpoint/run.json"] = json.dumps(old).encode()
        operations = [CommitOperationAdd(name, value) for name, value in content.items()]
        api.create_commit(NAME, operations, commit_message=f"epoch-{epoch:02d}, step {epoch * STEPS}")
    new = tmp_path / "new"
    repo = restore(new)
    assert last_checkpoint(new) == new / "checkpoint-8"
    assert (new / "checkpoint-8" / "optimizer.pt").read_text() == "optimizer.pt 8"
    assert (new / "checkpoint-4" / DETECTOR_FILE).read_text() == f"{DETECTOR_FILE} 4"
    save_epoch(new, 3)
    assert repo.push(new) == []
    assert not [name for name in hub.repo(NAME).snapshot("main")["files"] if name.startswith("last-checkpoint")]
    assert hub.repo(NAME).read("last-checkpoint/optimizer.pt", BRANCH) == b"optimizer.pt 12"
    assert last_checkpoint((restore(tmp_path / "third"), tmp_path / "third")[1]).name == "checkpoint-12"


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
    (folder / RUN_FILE).write_text(json.dumps(record | {"fixed_settings": SETTINGS | {"seed": 1}}))
    assert main(["push", str(folder)]) == 2
    assert "seed was 42, now 1" in capsys.readouterr().err


def test_recipe_push_does_not_take_the_hub_back_to_an_earlier_epoch(lost, tmp_path, caplog):
    """A machine with an epoch of its own is outrun by one that went on from the Hub."""
    folder, before = make_run(tmp_path / "run", epochs=1), titles(lost)
    (folder / "report").mkdir()
    (folder / "report" / "report.md").write_text("of a shorter run\n")
    with caplog.at_level("INFO", "recipe"):
        assert main(["push", str(folder)]) == 0
    assert f"{NAME} has come to step 12" in caplog.text
    assert titles(lost) == before
    assert lost.repo(NAME).read("last-checkpoint/optimizer.pt", BRANCH) == b"optimizer.pt 12"
    save_epoch(folder, 4)
    assert main(["push", str(folder)]) == 0
    assert titles(lost) == [*before, "epoch-04, step 16", "The final model and its report"]


def test_a_hub_that_was_away_at_the_start_is_not_taken_back_either(lost, tmp_path, monkeypatch):
    folder, before = make_run(tmp_path / "run", epochs=1), titles(lost)
    lost.stop()
    monkeypatch.setattr("recipe.hub.PATIENCE", 1.0)
    repo = opened(folder)
    lost.start()
    assert repo.push(folder) == []
    assert titles(lost) == before


def test_a_commit_of_somebody_else_to_main_is_kept(hub, tmp_path):
    """The head moves between our look and our commit: the Hub says 412, and we look again."""
    folder = make_run(tmp_path / "run", epochs=1)
    repo = opened(folder)
    hub.fail("/commit/main", delay=0.7, times=1)

    def other():
        time.sleep(0.3)
        hub.api("hf_alice").upload_file(path_or_fileobj=b"x", path_in_repo="note.txt", repo_id=NAME)

    thread = threading.Thread(target=other)
    thread.start()
    assert repo.push(folder) == []
    thread.join()
    assert "note.txt" in hub.repo(NAME).snapshot("main")["files"]
    assert [entry.status for entry in hub.requests if "/commit/main" in entry.path] == [412, 200, 200]


def test_a_machine_whose_run_was_resumed_elsewhere_stops_pushing_and_says_so(hub, tmp_path, caplog):
    """A double start, or a machine taken for lost that comes back; fails where only the step is looked at."""
    one, two = make_run(tmp_path / "one", epochs=1), make_run(tmp_path / "two", epochs=1)
    first, second = opened(one), opened(two)
    assert first.push(one) == []
    save_epoch(two, 2)
    before = titles(hub)
    assert second.push(two) == ["checkpoint-4", "checkpoint-8"]
    assert "another process has pushed to it" in caplog.text
    assert titles(hub) == before
    save_epoch(one, 2)
    assert first.push(one) == []
    resumed = restore(tmp_path / "three")
    save_epoch(tmp_path / "three", 3)
    assert resumed.push(tmp_path / "three") == []
    save_epoch(one, 3)
    assert first.push(one) == ["checkpoint-12"]


# ---- the callback ----


class Model(torch.nn.Module):
    """The least that the library's Trainer trains and saves."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": (x - self.w).square().mean()}


def test_rotation_deletes_nothing_that_the_hub_lacks_and_cleans_up_after_it(hub, tmp_path, monkeypatch):
    """Fails without the raised save_total_limit: the library deletes before `on_save` of the new checkpoint."""
    monkeypatch.setattr("recipe.training.push.is_complete", lambda path: (path / "trainer_state.json").exists())
    folder = make_run(tmp_path / "run")
    repo = opened(folder, minutes=1 / 60)
    kept = {}

    class Outage(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            kept[state.global_step] = [path.name for path in checkpoints(folder)]
            if state.global_step == 3:
                hub.heal()
                repo.limit = 60

    hub.fail("/commit/", status=403)
    flags = {"max_steps": 5, "save_steps": 1, "save_total_limit": 1, "use_cpu": True, "report_to": "none"}
    args = TrainingArguments(str(folder), per_device_train_batch_size=1, disable_tqdm=True, **flags)
    data = [{"x": torch.ones(1)}] * 5
    Trainer(Model(), args, train_dataset=data, callbacks=[Push(repo, args.save_total_limit), Outage()]).train()
    assert kept[3] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert kept[5] == ["checkpoint-5"]
    assert [title.split()[-1] for title in titles(hub)] == ["1", "2", "3", "4", "5"]
