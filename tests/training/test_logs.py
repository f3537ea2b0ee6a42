"""Every row is in the run's folder, once; the pace leaves out what is no training: tests/training/test_logs.py"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from recipe.pace import Pace
from recipe.record import LOG_FILE, RunRecord, read_log
from recipe.training import logs as tracking
from recipe.training.logs import MetricsLog, PaceLog


def settings(folder):
    """What the callbacks read of the library's arguments."""
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "world_size": 1}
    return SimpleNamespace(**batch, output_dir=str(folder))


def state(step: int = 0, **others):
    known = {"is_world_process_zero": True, "max_steps": 4500, "epoch": step / 450}
    return SimpleNamespace(global_step=step, **known | others)


@pytest.fixture
def folder(tmp_path):
    RunRecord("run", "0123", "2026-01-01T00:00:00Z", {"seed": 1}, {"seed": 1}, {"data": "crowd"}).write(tmp_path)
    return tmp_path


def test_a_resumed_run_cuts_the_rows_back_to_its_checkpoint_and_writes_each_once(folder):
    log, args = MetricsLog(), settings(folder)
    log.on_train_begin(args, state(log_history=[]), None)
    for step in (1, 2, 3):
        log.on_log(args, state(step), None, logs={"loss": 1 / step})
    history = read_log(folder)[:2]
    log.on_train_begin(args, state(2, log_history=history), None)
    log.on_log(args, state(3), None, logs={"loss": 0.5})
    assert [(row["step"], row["loss"]) for row in read_log(folder)] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_a_line_that_a_killed_process_left_unfinished_is_dropped(folder):
    (folder / LOG_FILE).write_text('{"loss": 1.0, "step": 1}\n{"loss": 0.5, "st')
    assert read_log(folder) == [{"loss": 1.0, "step": 1}]


def test_the_other_processes_write_nothing(folder):
    log = MetricsLog()
    log.on_log(settings(folder), state(1, is_world_process_zero=False), None, logs={"loss": 1.0})
    assert read_log(folder) == []


def test_warm_up_evaluations_and_checkpoints_are_not_counted_and_the_record_keeps_the_rest(monkeypatch, folder):
    clock = [0.0]
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: clock[0])
    log, args = PaceLog(train_images=3600, validation_images=360, command=""), settings(folder)
    for step in range(1, 51):
        clock[0] += 30.0 if step <= 10 else 4.0  # kernels are chosen
        if step in (20, 30):
            clock[0] += 1000.0
            (log.on_evaluate if step == 20 else log.on_save)(args, state(step), None, metrics={})
        log.on_step_end(args, state(step), None, train_dataloader=range(1799))
    record = RunRecord.read(folder)
    pace = Pace.read(record.pace)
    assert pace.images_per_second == pytest.approx(2.0)
    assert (pace.train_images, pace.validation_images, pace.epochs) == (3600, 360, 10)
    assert (record.run_id, record.settings, record.dataset) == ("0123", {"seed": 1}, {"data": "crowd"})


def test_rows_are_plain_json_lines(folder):
    MetricsLog().on_log(settings(folder), state(7), None, logs={"eval_map": 0.5})
    assert json.loads((folder / LOG_FILE).read_text()) == {"eval_map": 0.5, "step": 7}
