"""The end of a machine's time: what is saved then, how often, and who says so."""

from __future__ import annotations

from recipe.cli import main
from recipe.config import DEADLINE_EXIT
from recipe.training.checkpoints import checkpoints
from recipe.training.deadline import Deadline
from recipe.training.trainer import CrowdTrainer


def test_an_epochs_end_is_evaluated_and_then_saved_once(tiny_flags, tmp_path, monkeypatch):
    """Fails if it is saved, and so pushed, before the evaluation too: the Hub never got the second state."""
    done, calls = [], iter(range(1, 100))

    def save(self, *args, original=CrowdTrainer._save_checkpoint):
        done.append("save")
        original(self, *args)

    def evaluate(self, *args, original=CrowdTrainer.evaluation_loop, **kwargs):
        done.append("evaluate")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CrowdTrainer, "_save_checkpoint", save)
    monkeypatch.setattr(CrowdTrainer, "evaluation_loop", evaluate)
    monkeypatch.setattr(Deadline, "_over", lambda self, args: next(calls) == 4)
    assert main(["train", *tiny_flags, "--output_dir", str(tmp_path / "run")]) == DEADLINE_EXIT
    assert done == ["evaluate", "save"]


def test_a_deadline_within_an_epoch_saves_and_evaluates_nothing(tiny_flags, tmp_path, monkeypatch):
    """Fails if the end of the stopped epoch is taken for a full one: minutes of evaluation after the time is up."""
    calls = iter(range(1, 100))
    monkeypatch.setattr(Deadline, "_over", lambda self, args: next(calls) == 2)
    monkeypatch.setattr(CrowdTrainer, "evaluation_loop", None)
    assert main(["train", *tiny_flags, "--output_dir", str(tmp_path / "run")]) == DEADLINE_EXIT
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_only_the_main_process_says_that_the_time_was_up(tiny_flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(CrowdTrainer, "is_world_process_zero", lambda self: False)
    flags = [*tiny_flags, "--max_hours", "1e-9", "--output_dir", str(tmp_path / "run")]
    assert main(["train", *flags]) == DEADLINE_EXIT
    assert "stopped" not in capsys.readouterr().out
