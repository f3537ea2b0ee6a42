"""The pace of a run: measured after the first steps, kept in run.json, carried over to another GPU."""

from __future__ import annotations

import pytest

from recipe.cli import main
from recipe.pace import MS_PER_IMAGE, Pace, computed_rate, pace_in_words
from recipe.record import RunRecord
from recipe.training import logs as tracking

WORKSTATION = "1 x NVIDIA RTX 4000 SFF Ada Generation, 20 GiB"
PACE = Pace(2.0, WORKSTATION, train_images=3600, validation_images=360, epochs=10)


def test_hours_count_every_epochs_training_and_evaluation():
    assert PACE.hours == pytest.approx(5.5)


def test_another_gpu_is_estimated_by_the_ratio_of_computed_times_and_an_unknown_one_not_at_all():
    """By their peaks an A10G (70 TFLOPS) would be slower than a card of 70 W (76.7)."""
    assert PACE.on("1 x A10G").images_per_second == pytest.approx(2.0 * 183 / 153)
    assert PACE.on("2 x A10G").images_per_second == pytest.approx(2.0 * 2 * 183 / 153)
    assert PACE.on("1 x Z9000") is None
    assert Pace(2.0, "CPU (2 cores)", 1, 1, 1).on("1 x A10G") is None


def test_without_a_measured_pace_that_of_a_known_gpu_can_be_computed():
    assert Pace.computed(WORKSTATION, 55442, 12065, 10).hours == pytest.approx(34, abs=1)
    assert Pace.computed("CPU (2 cores)", 55442, 12065, 10) is None


def test_the_name_of_a_gpu_is_not_taken_for_that_of_its_neighbour():
    assert computed_rate("1 x NVIDIA L4, 22 GiB") == 1000 / MS_PER_IMAGE["L4"]
    assert computed_rate("1 x NVIDIA L40S, 44 GiB") == 1000 / MS_PER_IMAGE["L40S"]
    assert computed_rate("1 x NVIDIA A100-SXM4-80GB, 80 GiB") == 1000 / MS_PER_IMAGE["A100"]
    assert computed_rate("1 x NVIDIA A10, 22 GiB") is None  # faster than its variant A10G


def test_what_is_printed_says_that_elsewhere_is_an_estimate_and_from_what():
    words = pace_in_words(PACE, "python jobs/launch.py --flavor a10g-large")
    assert "2.00 images/s on 1 x NVIDIA RTX 4000 SFF" in words
    assert "5.5 h for all 10 epochs" in words
    assert "about 4.6 h on a10g-large, by the arithmetic for both GPUs: python" in words
    assert words.endswith("python jobs/launch.py --flavor a10g-large")
    assert "a10g-large" not in pace_in_words(Pace(2.0, "CPU (2 cores)", 1, 1, 1), "a10g-large")


@pytest.mark.parametrize(("flags", "epochs"), [(("--num_train_epochs", "1"), 1), (("--max_steps", "3"), 0.75)])
def test_a_training_writes_its_pace_where_the_launcher_reads_it(tiny_flags, tmp_path, monkeypatch, flags, epochs):
    """transformers counts every epoch that it begins: three of an epoch's four steps would be a whole one."""
    monkeypatch.setattr(tracking.PaceLog, "WARM", 1)
    monkeypatch.setattr(tracking.PaceLog, "STEPS", 3)
    folder = tmp_path / "run"
    assert main(["train", *tiny_flags, "--output_dir", str(folder), *flags]) == 0
    record = RunRecord.read(folder)
    pace = Pace.read(record.pace)
    assert pace.images_per_second > 0
    assert (pace.train_images, pace.validation_images, pace.epochs) == (8, 4, epochs)
    assert record.fixed_settings  # and nothing of the record is lost


def test_a_run_without_a_pace_has_none():
    assert Pace.read(None) is None
    assert Pace.read(vars(PACE) | {"hours_total": 5.5}) == PACE  # as version 0.1 wrote it
