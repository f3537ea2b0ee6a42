"""Real trainings against a loopback Hub, with the real clients: python -m pytest tests/test_end_to_end.py

Each test trains a tiny detector; `python benchmarks/lost_machine.py` kills more often.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import packed as rows
import pytest
import torch
from conftest import TINY
from loopback.hub import LoopbackHub
from small_detector import save, small_config
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DetrForObjectDetection,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
)

from data_prep.publish import upload
from recipe.cli import main
from recipe.config import DEADLINE_EXIT, Config
from recipe.data.dataset import load_split
from recipe.model.backbone import BACKBONE_PREFIX, tiny_backbone
from recipe.model.checkpoint import BACKBONE_FILE, DETECTOR_FILE
from recipe.model.detector import build_detector, detector_config
from recipe.record import read_log
from recipe.training.checkpoints import checkpoints

TOKEN = "hf_token_of_alice_0123456789"
USERS = {TOKEN: {"name": "alice"}, "hf_reads": {"name": "alice", "role": "read"}}
NAME = "alice/crowd-detr"
EPOCHS = ["epoch-01", "epoch-02", "epoch-03"]


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def hub(tmp_path_factory, patch):
    """A Hub that the clients in this process use."""
    with LoopbackHub(tmp_path_factory.mktemp("hub"), USERS) as hub:
        hub.serve(patch, TOKEN)
        yield hub


@pytest.fixture(scope="module")
def flags(packed) -> list[str]:
    return ["train", "--data", str(packed), *TINY, "--num_train_epochs", "3"]


@pytest.fixture(scope="module")
def whole(hub, flags, tmp_path_factory) -> Path:
    """A run of three epochs that nothing disturbed, pushed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*flags, "--output_dir", str(folder), "--hub_model_id", NAME]) == 0
    return folder


def tags(hub: LoopbackHub, name: str) -> list[str]:
    return sorted(hub.repo(name).state["tags"])


def titles(hub: LoopbackHub, name: str) -> list[str]:
    return [commit["title"] for commit in hub.repo(name).history("main")[::-1]][1:]


# ---- three epochs ----


def test_three_epochs_are_on_the_hub_and_the_best_at_the_root(hub, whole):
    assert tags(hub, NAME) == EPOCHS
    assert titles(hub, NAME) == [*(f"epoch-0{n}, step {4 * n}" for n in (1, 2, 3)), "The final model and its report"]
    for epoch, checkpoint in zip(EPOCHS, checkpoints(whole), strict=True):
        assert hub.repo(NAME).read(DETECTOR_FILE, epoch) == (checkpoint / DETECTOR_FILE).read_bytes()
    repo = hub.repo(NAME)
    assert repo.read(DETECTOR_FILE, "main") == (whole / DETECTOR_FILE).read_bytes()
    assert repo.read("README.md", "main") == (whole / "README.md").read_bytes()
    assert repo.read("README.md", "epoch-01") != repo.read("README.md", "epoch-02")
    assert repo.state["private"]


def test_a_tag_downloads_as_a_plain_model_with_that_epochs_metrics(hub, whole, packed, tmp_path):
    command = ["hf", "download", NAME, "--revision", "epoch-02", "--local-dir", str(tmp_path / "epoch-02")]
    subprocess.run(command, env=hub.env(TOKEN, tmp_path / "home"), check=True, capture_output=True, timeout=120)
    folder = tmp_path / "epoch-02"
    model, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    AutoImageProcessor.from_pretrained(folder)
    assert isinstance(model, DetrForObjectDetection)
    assert (
        main(["evaluate", str(folder), "--data", str(packed), "--out", str(tmp_path / "out"), "--workers", "0"]) == 0
    )
    found = json.loads((tmp_path / "out" / "report" / "metrics.json").read_text())
    logged = next(row for row in read_log(whole) if row["step"] == 8 and "eval_map" in row)
    for key, value in logged.items():
        if key.startswith(("eval_ma", "eval_mr2", "eval_ji")):
            assert found[key.removeprefix("eval_")] == pytest.approx(value, abs=1e-6), key


def test_after_the_first_epoch_only_the_detector_and_its_optimizer_travel(hub, whole):
    checkpoint = checkpoints(whole)[1]
    commits = [entry for entry in hub.requests if entry.repo == NAME and "/commit/main" in entry.path]
    first, second = (hub.requests.index(commit) for commit in commits[:2])
    sent = sum(entry.bytes_in for entry in hub.requests[first + 1 : second + 1] if entry.repo == NAME)
    needed = sum((checkpoint / name).stat().st_size for name in (DETECTOR_FILE, "optimizer.pt"))
    assert needed < sent < needed + 150_000  # states, card and base64 of small files
    assert (checkpoint / BACKBONE_FILE).stat().st_size > 1_000_000


def test_an_epoch_of_the_full_model_sends_less_than_250_mb_by_arithmetic():
    vit_l = DINOv3ViTConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    with torch.device("meta"):
        model = DetrForObjectDetection(detector_config(Config(data="x"), vit_l))
    trainable = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(BACKBONE_PREFIX))
    frozen = sum(value.numel() for name, value in model.named_parameters() if name.startswith(BACKBONE_PREFIX))
    assert frozen > 300e6
    assert 200e6 < trainable * 4 * 3 < 240e6  # weights and AdamW's two moments, fp32


# ---- bad days ----


def test_every_epoch_arrives_through_a_storm(hub, flags, tmp_path):
    storm = hub.storm(0.3, seed=7, hang=0.2)
    command = [*flags, "--num_train_epochs", "2", "--hub_model_id", "alice/stormy"]
    assert main([*command, "--output_dir", str(tmp_path / "run")]) == 0
    hub.heal()
    assert storm.hits > 10
    assert tags(hub, "alice/stormy") == EPOCHS[:2]
    assert len(titles(hub, "alice/stormy")) == 3


def test_a_hub_that_stays_away_costs_no_epoch_and_recipe_push_sends_the_backlog(hub, whole, flags, tmp_path, caplog):
    """Also with two checkpoints to keep: rotation must spare what is still to be sent."""
    folder, name = tmp_path / "run", "alice/later"
    hub.fail("alice/later/commit/", status=503)
    settings = ["--push_minutes", "0.02", "--save_total_limit", "2"]
    assert main([*flags, *settings, "--output_dir", str(folder), "--hub_model_id", name]) == 3
    assert "checkpoint-4, checkpoint-8, checkpoint-12, the final model and its report" in caplog.text
    assert f"recipe push {folder}" in caplog.text
    assert tags(hub, name) == []
    hub.heal()
    assert main(["push", str(folder)]) == 0
    assert tags(hub, name) == EPOCHS
    assert titles(hub, name) == titles(hub, NAME)
    for epoch in EPOCHS:
        assert hub.repo(name).read(DETECTOR_FILE, epoch) == hub.repo(NAME).read(DETECTOR_FILE, epoch)


def test_a_deadline_says_what_the_hub_lacks(hub, flags, tmp_path, caplog):
    hub.fail("alice/late/commit/", status=503)
    command = [*flags, "--max_hours", "1e-9", "--push_minutes", "0.02", "--hub_model_id", "alice/late"]
    assert main([*command, "--output_dir", str(tmp_path / "run")]) == DEADLINE_EXIT
    hub.heal()
    assert "not pushed: checkpoint-1" in caplog.text
    assert f"recipe push {tmp_path / 'run'}" in caplog.text


def test_a_token_that_only_reads_is_found_before_anything_is_loaded(hub, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    monkeypatch.setattr("recipe.train.load_splits", None)
    assert main([*flags, "--output_dir", str(tmp_path / "run"), "--hub_model_id", NAME]) == 2
    assert "the token can only read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resume_never_does_not_overwrite_the_run_in_the_repo(hub, whole, flags, tmp_path, capsys):
    command = [*flags, "--output_dir", str(tmp_path / "run"), "--hub_model_id", NAME, "--resume", "never"]
    assert main(command) == 2
    assert "holds the run run of" in capsys.readouterr().err


def test_other_settings_are_refused_by_name(hub, whole, flags, tmp_path, capsys):
    command = [*flags, "--output_dir", str(tmp_path / "run"), "--hub_model_id", NAME, "--learning_rate", "2e-3"]
    assert main(command) == 2
    assert "learning_rate was 0.001, now 0.002" in capsys.readouterr().err


# ---- lost machines ----


class Machine:
    """An empty machine that runs the training command in a folder of its own; it can be lost at any moment."""

    def __init__(self, hub: LoopbackHub, home: Path, command: list[str], **extra: str) -> None:
        home.mkdir()
        self.folder = home / "run"
        env = hub.env(TOKEN, home) | {"PYTHONPATH": os.getcwd()} | extra
        command = [sys.executable, "-m", "recipe.cli", *command, "--output_dir", "run"]
        with (home / "log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log)

    def lose(self, when: Callable[[], bool]) -> None:
        """SIGKILL as soon as `when()`."""
        while not when():
            assert self.process.poll() is None, (self.folder.parent / "log").read_text()[-2000:]
            time.sleep(0.002)
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL

    def rows(self) -> int:
        return len(read_log(self.folder))


def test_machines_lost_at_any_moment_end_in_the_weights_of_a_run_never_stopped(hub, whole, flags, tmp_path):
    """Before the first push; with an epoch uploaded but not committed; committed but not tagged; within an epoch."""
    name = "alice/lost"
    command = [*flags, "--hub_model_id", name]
    first = Machine(hub, tmp_path / "one", command)
    first.lose(lambda: first.rows() >= 2)
    assert titles(hub, name) == []

    for place in ("commit", "tag"):  # asked for, not yet carried out
        since = len(hub.requests)
        hub.fail(f"{name}/{place}/", delay=60)
        machine = Machine(hub, tmp_path / place, command)
        machine.lose(lambda since=since, place=place: any(f"{name}/{place}/" in e.path for e in hub.requests[since:]))
        hub.heal()
        assert titles(hub, name) == ([] if place == "commit" else ["epoch-01, step 4"])
        assert tags(hub, name) == []

    third = Machine(hub, tmp_path / "three", command)
    third.lose(lambda: third.rows() >= 8)
    assert titles(hub, name)[0] == "epoch-01, step 4"
    assert tags(hub, name)[0] == "epoch-01"

    last = Machine(hub, tmp_path / "last", command)
    assert last.process.wait(300) == 0, (tmp_path / "last" / "log").read_text()[-2000:]
    assert titles(hub, name) == titles(hub, NAME)
    assert tags(hub, name) == EPOCHS
    for revision in (*EPOCHS, "main"):
        assert hub.repo(name).read(DETECTOR_FILE, revision) == hub.repo(NAME).read(DETECTOR_FILE, revision)
    assert (last.folder / DETECTOR_FILE).read_bytes() == (whole / DETECTOR_FILE).read_bytes()
    assert [values(row) for row in read_log(last.folder)] == [values(row) for row in read_log(whole)]


def values(row: dict[str, float]) -> dict[str, float]:
    """A row without what a clock says, and without Trainer's mean loss, which is that of the last process alone."""
    clock = ("runtime", "per_second", "train_loss")
    return {name: value for name, value in row.items() if not any(part in name for part in clock)}


def test_a_finished_run_on_an_empty_machine_ends_with_its_best_model(hub, whole, flags, tmp_path):
    assert main([*flags, "--output_dir", str(tmp_path / "run"), "--hub_model_id", NAME]) == 0
    assert (tmp_path / "run" / DETECTOR_FILE).read_bytes() == (whole / DETECTOR_FILE).read_bytes()
    assert tags(hub, NAME) == EPOCHS


def test_data_and_backbone_stay_those_of_the_first_day(hub, packed, tmp_path):
    """Both repos move on; a new machine resumes with the commits that run.json names."""
    api = hub.api(TOKEN)
    data = upload(packed, "alice/data")
    api.create_repo("alice/backbone")
    DINOv3ViTBackbone(tiny_backbone()).save_pretrained(tmp_path / "backbone")
    backbone = api.upload_folder(repo_id="alice/backbone", folder_path=tmp_path / "backbone").oid
    flags = ["train", "--data", "alice/data", *TINY, "--backbone", "alice/backbone", "--num_train_epochs", "1"]
    flags += ["--hub_model_id", "alice/pinned", "--output_dir"]
    for machine in ("one", "two"):
        assert main([*flags, str(tmp_path / machine)]) == 0
        record = json.loads((tmp_path / machine / "run.json").read_text())
        assert record["dataset"]["revision"] == data
        assert record["settings"]["backbone_revision"] == backbone
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="manifest.json", repo_id="alice/data", repo_type="dataset")
        api.upload_file(path_or_fileobj=b"new", path_in_repo="notes.txt", repo_id="alice/backbone")


def test_both_splits_are_of_one_commit(hub, packed, tmp_path, monkeypatch):
    """The dataset gets a commit between the two downloads."""
    data, asked = upload(packed, "alice/race"), []

    def load(name, split, *, revision, **options):
        asked.append(revision)
        found = load_split(name, split, revision=revision, **options)
        hub.api(TOKEN).upload_file(
            path_or_fileobj=b"{}", path_in_repo="manifest.json", repo_id="alice/race", repo_type="dataset"
        )
        return found

    monkeypatch.setattr("recipe.training.splits.load_split", load)
    assert main(["train", "--data", "alice/race", *TINY, "--output_dir", str(tmp_path / "run")]) == 0
    assert asked == [data, data]


# ---- secrets ----


def test_no_token_is_in_anything_that_the_run_writes(hub, flags, tmp_path):
    secret = "write_token_of_the_dashboard_987654"
    board = {"TRACKIO_SERVER_URL": f"http://127.0.0.1:9/?write_token={secret}"}
    command = [*flags, "--hub_model_id", "alice/secret", "--report_to", "trackio", "--hub_token", TOKEN]
    machine = Machine(hub, tmp_path / "machine", command, **board)
    local = Machine(hub, tmp_path / "local", [*command[:-2], "--hub_model_id", "alice/local"])
    assert machine.process.wait(300) == 0, (tmp_path / "machine" / "log").read_text()[-2000:]
    assert "recipe sync" in (tmp_path / "machine" / "log").read_text()
    assert local.process.wait(300) == 0
    assert list((tmp_path / "local").rglob("crowd-detr.db"))
    for root in (tmp_path, hub.root):
        files = [path for path in root.rglob("*") if path.is_file()]
        assert len(files) > 20
        for path in files:
            content = path.read_bytes()
            assert TOKEN.encode() not in content, path
            assert secret.encode() not in content, path


def test_evaluate_and_predict_take_the_revision_that_is_asked_for(hub, tmp_path):
    """Two tags with other weights: the truth is what the first one predicts, and the second one does not."""
    name, api = "alice/two-tags", hub.api(TOKEN)
    api.create_repo(name)
    for seed, tag in enumerate(("first", "second")):
        torch.manual_seed(seed)
        checkpoint = save(build_detector(small_config()), tmp_path / tag)
        api.upload_folder(repo_id=name, folder_path=checkpoint)
        api.create_tag(name, tag=tag)
    image = rows.row(7, 120, 180)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "7.jpg").write_bytes(image["image"]["bytes"])

    def predicted(*flags: str) -> list[dict]:
        out = tmp_path / "-".join(("predicted", *flags)).replace("/", "-")
        command = ["predict", *flags, str(tmp_path / "photos"), "--out", str(out), "--threshold", "0"]
        assert main(command) == 0
        return json.loads((out / "predictions.json").read_text())

    found = {tag: predicted(name, "--revision", tag) for tag in ("first", "second")}
    assert found["first"] != found["second"]
    best = max(found["first"], key=lambda box: box["score"])
    truth = rows.row(7, 120, 180, [best["bbox"]], [best["category_id"]], image["image"]["bytes"])
    data = rows.write(tmp_path / "data", [truth], "validation")
    scores = {}
    for tag in found:
        command = ["evaluate", name, "--revision", tag, "--data", str(data), "--workers", "0"]
        assert main([*command, "--out", str(tmp_path / f"evaluated-{tag}")]) == 0
        scores[tag] = json.loads((tmp_path / f"evaluated-{tag}" / "report" / "metrics.json").read_text())["map"]
    assert scores["first"] == pytest.approx(1)
    assert scores["second"] < 0.9
