"""The pace of a run: measured after the first steps, kept in run.json, carried over to another GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from recipe import doctor
from recipe.cli import main
from recipe.model.detector import tiny_backbone
from recipe.pace import Pace, describe, peak_tflops
from recipe.training import logs as tracking

WORKSTATION = "1 x NVIDIA RTX 4000 SFF Ada Generation, 20 GiB"
PACE = Pace(2.0, WORKSTATION, train_images=3600, validation_images=360, epochs=10)


def test_hours_count_every_epochs_training_and_evaluation():
    assert PACE.hours_per_epoch == pytest.approx(0.55)
    assert PACE.hours == pytest.approx(5.5)
    assert PACE.record()["hours_total"] == 5.5


def test_another_gpu_is_estimated_by_the_ratio_of_the_peaks_and_an_unknown_one_not_at_all():
    there = PACE.on("1 x A10G")
    assert there.images_per_second == pytest.approx(2.0 * 70 / 76.7)
    assert PACE.on("2 x A10G").images_per_second == pytest.approx(2.0 * 140 / 76.7)
    assert PACE.on("1 x Z9000") is None
    assert Pace(2.0, "CPU (2 cores)", 1, 1, 1).on("1 x A10G") is None


def test_the_name_of_a_gpu_is_not_taken_for_that_of_its_neighbour():
    assert peak_tflops("1 x NVIDIA L4, 22 GiB") == 121
    assert peak_tflops("1 x NVIDIA L40S, 44 GiB") == 362
    assert peak_tflops("1 x NVIDIA A100-SXM4-80GB, 80 GiB") == 312
    assert peak_tflops("1 x NVIDIA A10, 22 GiB") is None  # faster than its variant A10G


def test_what_is_printed_says_that_elsewhere_is_an_estimate_and_from_what():
    words = describe(PACE, "python jobs/launch.py --flavor a10g-large")
    assert "2.00 images/s on 1 x NVIDIA RTX 4000 SFF" in words
    assert "5.5 h for all 10 epochs" in words
    assert "about 6.0 h on a10g-large, estimated by the peak bf16 TFLOPS of both (70 / 76.7)" in words
    assert words.endswith("python jobs/launch.py --flavor a10g-large")
    assert "a10g-large" not in describe(Pace(2.0, "CPU (2 cores)", 1, 1, 1), "a10g-large")


def test_the_command_for_a_job_names_no_folder_of_this_machine(tmp_path):
    """The launcher refuses one, as no job could see it."""
    flags = f"--pace-from {tmp_path} -- --data {tmp_path} --backbone=facebook/dinov3 --detr-init={tmp_path} --seed 1"
    words = describe(PACE, f"python jobs/launch.py {flags}")
    there = "--data USER/NAME --backbone facebook/dinov3 --detr-init USER/NAME --seed 1"
    assert words.endswith(f"python jobs/launch.py --pace-from {tmp_path} -- {there}")


def test_warm_up_evaluations_and_checkpoints_are_not_counted(monkeypatch, tmp_path):
    clock = [0.0]
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: clock[0])
    (tmp_path / "run.json").write_text("{}")
    log = tracking.PaceLog(train_images=3600, validation_images=360, command="")
    args = SimpleNamespace(
        per_device_train_batch_size=2, gradient_accumulation_steps=4, world_size=1, output_dir=str(tmp_path)
    )
    state = SimpleNamespace(is_world_process_zero=True, max_steps=4500)
    for step in range(1, 51):
        clock[0] += 30.0 if step <= 10 else 4.0  # kernels are chosen
        if step == 20:
            clock[0] += 1000.0
            log.on_evaluate(args, state, None)
        log.on_step_end(args, state, None, train_dataloader=range(1799))
    pace = Pace.read(tmp_path)
    assert pace.images_per_second == pytest.approx(2.0)
    assert (pace.train_images, pace.validation_images, pace.epochs) == (3600, 360, 10)


@pytest.mark.parametrize(("flags", "epochs"), [(("--num_train_epochs", "1"), 1), (("--max_steps", "3"), 0.75)])
def test_a_training_writes_its_pace_where_the_launcher_reads_it(tiny_flags, tmp_path, monkeypatch, flags, epochs):
    """transformers counts every epoch that it begins: three of an epoch's four steps would be a whole one."""
    monkeypatch.setattr(tracking.PaceLog, "WARM", 1)
    monkeypatch.setattr(tracking.PaceLog, "STEPS", 3)
    folder = tmp_path / "run"
    assert main(["train", *tiny_flags, "--output_dir", str(folder), *flags]) == 0
    pace = Pace.read(folder)
    assert pace.images_per_second > 0
    assert (pace.train_images, pace.validation_images, pace.epochs) == (8, 4, epochs)
    assert json.loads((folder / "run.json").read_text())["identity"]  # and nothing of the record is lost


def test_a_folder_without_a_pace_says_when_one_is_written(tmp_path):
    with pytest.raises(ValueError, match="after its first 50 steps"):
        Pace.read(tmp_path)


def test_the_doctor_measures_the_training_step():
    """On a CPU there is nothing worth measuring, and it says so; the step itself runs anywhere."""
    assert list(doctor.pace()) == [("pace", None, "without a GPU there is none to measure")]
    assert 0.01 < doctor.step_rate(tiny_backbone(), 64, 96, steps=3) < 1000
