"""torchmetrics' numbers stand beside the streaming ones; a difference is said loudly, that it is of a part too."""

from __future__ import annotations

import evaluated
import numpy as np
import packed
import pytest
import torchmetrics

from recipe.evaluation.metrics import DetectionMetrics
from recipe.report import tables
from recipe.report.tables import check_with_torchmetrics, coco_numbers

COCO = {"map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100", "mar_small",
        "mar_medium", "mar_large", "map_person", "map_head", "mar_100_person", "mar_100_head"}  # fmt: skip


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """An evaluation with a crowd region, an image without boxes, equal scores, and more than 100 detections."""
    rows = packed.crowd(4, size=(240, 360), boxes=60)
    rows[1]["objects"]["iscrowd"][:3] = [1, 1, 1]
    rows.append(packed.row(9, 60, 90))
    metrics = evaluated.evaluate(evaluated.dataset(tmp_path_factory.mktemp("packed"), rows), noise=150)
    image = metrics.images()[0]
    assert len(image.scores) > 100
    return metrics


def test_every_coco_number_and_those_by_class_agree(metrics):
    checked, words = check_with_torchmetrics(metrics)
    values = metrics.compute()
    assert set(checked) == COCO
    assert max(abs(checked[key] - values[key]) for key in COCO) < 1e-6
    assert "agrees to 1e-06 on all of them" in words
    assert 0 < checked["mar_1"] < checked["mar_10"] < checked["mar_100"]


def test_a_class_that_is_nowhere_and_no_detections_at_all(tmp_path):
    rows = [packed.row(1, 120, 180, [[10, 10, 20, 40]])]
    nothing = evaluated.evaluate(evaluated.dataset(tmp_path / "one", rows), found=0.0, noise=0)
    checked, words = check_with_torchmetrics(nothing)
    assert "agrees" in words
    assert (checked["map"], checked["map_person"]) == (0, 0)


def test_a_difference_is_an_error_in_the_log_and_bold_in_the_report(metrics, monkeypatch, caplog):
    values = metrics.compute()
    monkeypatch.setattr(metrics, "compute", lambda: values | {"map_75": values["map_75"] + 2e-6})
    _, words = check_with_torchmetrics(metrics)
    assert words.startswith("**THE NUMBERS DISAGREE WITH TORCHMETRICS")
    assert "map_75 " in words
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_of_many_images_the_first_are_compared_and_the_report_says_so(metrics, monkeypatch):
    """torchmetrics keeps every box: at 12,000 images it would take 9 GB at the end of a long run."""
    monkeypatch.setattr(tables, "MOST_IMAGES", 2)
    checked, words = check_with_torchmetrics(metrics)
    assert checked == {}
    assert "agrees to 1e-06 on all of them, compared on the first 2 images" in words


def test_only_the_main_process_computes(metrics, monkeypatch):
    """With several processes torchmetrics would wait for the others, which have gone on, until the end of time."""
    asked = []
    sync = torchmetrics.Metric.sync
    monkeypatch.setattr(
        torchmetrics.Metric, "sync", lambda self, *a, **k: (asked.append(k["should_sync"]), sync(self, *a, **k))
    )
    assert np.isfinite(coco_numbers(metrics)["map"])
    assert asked == [False]


def test_a_recall_that_is_reached_exactly_counts_in_both():
    """torchmetrics' own recall points are float32: some lie a little above the recall k / 50 that they stand for."""
    boxes = np.array([[10.0 * i, 10, 10 * i + 9, 60] for i in range(50)])
    metrics = DetectionMetrics()
    metrics.update(
        1,
        size=(600, 600),
        pred_xyxy=np.stack([boxes, boxes + 300], axis=1).reshape(-1, 4),  # each hit is followed by a false one
        scores=np.linspace(0.9, 0.1, 100),
        labels=np.zeros(100, int),
        target_xyxy=boxes,
        target_labels=np.zeros(50, int),
    )
    assert "agrees" in check_with_torchmetrics(metrics)[1]
