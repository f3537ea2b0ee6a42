"""The end of a machine's time: what is saved then, how often, and who says so."""

from __future__ import annotations

from recipe.cli import main
from recipe.train import DEADLINE_EXIT
from recipe.training.backlog import is_pushed, mark
from recipe.training.deadline import Deadline
from recipe.training.trainer import CrowdTrainer


def test_an_epochs_end_is_evaluated_and_then_saved_once(tiny_flags, tmp_path, monkeypatch):
    """Fails if it is saved, and so pushed, before the evaluation too: the Hub never got the second state."""
    done = []

    def save(self, *args, original=CrowdTrainer._save_checkpoint):
        done.append("save")
        original(self, *args)

    def evaluate(self, *args, original=CrowdTrainer.evaluation_loop, **kwargs):
        done.append("evaluate")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CrowdTrainer, "_save_checkpoint", save)
    monkeypatch.setattr(CrowdTrainer, "evaluation_loop", evaluate)
    monkeypatch.setattr(Deadline, "_over", lambda self: self.trainer.state.global_step == 4)
    assert main(["train", *tiny_flags, "--output_dir", str(tmp_path / "run")]) == DEADLINE_EXIT
    assert done == ["evaluate", "save"]


def test_a_checkpoint_that_is_written_again_is_sent_again(tiny_flags, tmp_path, monkeypatch):
    folder = tmp_path / "run" / "checkpoint-4"

    def save_twice(self, *args, original=CrowdTrainer._save_checkpoint):
        original(self, *args)
        mark(folder, "me/crowd", "c0ffee")
        original(self, *args)

    monkeypatch.setattr(CrowdTrainer, "_save_checkpoint", save_twice)
    assert main(["train", *tiny_flags, "--num_train_epochs", "1", "--output_dir", str(tmp_path / "run")]) == 0
    assert not is_pushed(folder, "me/crowd")


def test_only_the_main_process_says_that_the_time_was_up(tiny_flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(CrowdTrainer, "is_world_process_zero", lambda self: False)
    flags = [*tiny_flags, "--max_hours", "1e-9", "--output_dir", str(tmp_path / "run")]
    assert main(["train", *flags]) == DEADLINE_EXIT
    assert "stopped" not in capsys.readouterr().out
