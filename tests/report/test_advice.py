"""The advice names the weakness that comes first: too little training before resolution, queries and labels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from recipe.report import advice as room
from recipe.report.advice import Outlook, expect, next_steps, outlook

SIZES = ("<8", "8-16", "16-32", "32-96", ">=96")


def details(**changes):
    """A good evaluation: 1,000 boxes per class, few missed, few false."""
    size = {"boxes": 200, "recall": 0.95, "recall_best_f1": 0.9}
    errors = {"hits": 900, "missed": 100, "duplicate": 5, "wrong_class": 5, "badly_placed": 5, "background": 5}
    good = {
        "boxes": {"person": 1000, "head": 1000},
        "by_size": {name: [size | {"bin": each} for each in SIZES] for name in ("person", "head")},
        "errors": {name: dict(errors) for name in ("person", "head")},
        "recall_ceiling": 1.0,
    }
    return good | changes


def advice(found, history=(), level=0.4):
    return " ".join(next_steps({"map": level}, found, history, num_queries=300))


def test_missed_small_heads_ask_for_a_higher_resolution_and_large_ones_do_not():
    found = details()
    found["by_size"]["head"][0]["recall_best_f1"] = 0.1
    text = advice(found)
    assert "most are `head` of <8: raise `--shortest_edge` and `--longest_edge`" in text
    found = details()
    found["by_size"]["person"][4]["recall_best_f1"] = 0.0
    assert "missing labels" in advice(found)
    assert "--longest_edge" not in advice(found)


def test_found_boxes_with_low_scores_are_told_apart_from_unseen_ones():
    found = details()
    for row in found["by_size"]["head"]:
        row["recall_best_f1"] = 0.5
    assert "Another 45% of `head` boxes are found with scores below the threshold" in advice(found)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("duplicate", "are second boxes"),
        ("wrong_class", "have the place right and the class wrong"),
        ("badly_placed", "touch a labelled box"),
        ("background", "lie on nothing labelled"),
    ],
)
def test_each_kind_of_false_detection_is_named_once_it_is_frequent(kind, words):
    assert words not in advice(details())
    found = details()
    found["errors"]["head"][kind] = 300
    assert f"25% of the `head` detections {words}" in advice(found)


def test_a_recall_ceiling_below_99_percent_asks_for_more_queries():
    assert "--num_queries" not in advice(details())
    assert "2.0% of the boxes cannot be found at all" in advice(details(recall_ceiling=0.98))


def curve(*maps):
    """The rows of a run's log with these mAPs, one epoch each."""
    return [{"eval_map": value, "epoch": float(epoch)} for epoch, value in enumerate(maps, 1)]


def test_a_rising_map_asks_for_more_epochs_and_a_falling_one_to_stop_earlier():
    assert "still rose in the last epoch, from 0.200 to 0.300" in advice(details(), curve(0.1, 0.2, 0.3))
    assert "fallen from 0.300 to 0.200: stop earlier" in advice(details(), curve(0.1, 0.3, 0.2))
    assert "mAP" not in advice(details(), curve(0.3, 0.3, 0.3))


@pytest.mark.parametrize(
    ("history", "level"),
    [((), 0.02), (curve(0.01), 0.01), (curve(0.2, 0.3), 0.3), (curve(0.1, 0.2, 0.3, 0.4), 0.4)],
    ids=["little learned", "first epoch", "few epochs", "still rising"],
)
def test_an_undertrained_run_is_told_to_train_longer_and_not_to_raise_its_resolution(history, level):
    """After one epoch everything small is missed: a user who raises the resolution for it pays for nothing."""
    found = details(recall_ceiling=0.9)
    found["by_size"]["head"][0]["recall_best_f1"] = 0.0
    found["errors"]["head"]["background"] = 900
    text = advice(found, history, level)
    assert "Train longer: more `--num_train_epochs`" in text
    assert "--init_from" in text
    assert "--longest_edge" not in text
    assert "labelled" not in text
    assert text.index("Train longer") < text.index("--num_queries")  # no training mends too few of them


def test_the_level_comes_first_then_the_slope_then_the_epochs():
    text = advice(details(), curve(0.01, 0.02), 0.02)
    assert text.startswith("- mAP is 0.020: the detector has learned little so far")
    assert text.index("learned little") < text.index("still rose") < text.index("It has seen 2.0 epochs")


def test_a_low_map_that_no_longer_rises_is_not_told_to_train_longer():
    text = advice(details(), curve(0.02, 0.02, 0.02, 0.02), 0.02)
    assert "Train longer" not in text
    assert "--detr_init" in text


def test_resolution_comes_before_queries_and_these_before_labels():
    found = details(recall_ceiling=0.9)
    found["by_size"]["head"][0]["recall_best_f1"] = 0.0
    found["errors"]["head"]["background"] = 900
    text = advice(found)
    assert text.index("--longest_edge") < text.index("--num_queries") < text.index("without a label")


def test_nothing_found_and_nothing_to_find_are_said():
    nothing = details()
    for kinds in nothing["errors"].values():
        kinds.update(dict.fromkeys(kinds, 0), missed=1000)
    assert advice(nothing, level=0.0).startswith("- mAP is 0.000")
    assert "hold no labelled boxes" in advice(details(boxes={"person": 0, "head": 0}), level=-1.0)


def test_a_class_without_labels_is_not_blamed_for_false_detections():
    found = details(boxes={"person": 1000, "head": 0})
    found["errors"]["head"] = dict.fromkeys(found["errors"]["head"], 0) | {"background": 50}
    assert "`head` detections" not in advice(found)


def rows(*maps):
    """A log's evaluations, an epoch each; the loss falls as 10 / epoch."""
    return [row | {"eval_loss": 10 / row["epoch"]} for row in curve(*maps)]


def test_while_it_trains_a_run_is_told_where_its_own_curve_leads_and_which_epoch_was_best():
    """1 - mAP falls as epoch^-0.2, which it will go on to do."""
    power = rows(*(1 - 0.95 * epoch**-0.2 for epoch in (1, 2, 3, 4)))
    assert expect(power, "eval_map", True, 10) == pytest.approx(1 - 0.95 * 10**-0.2)
    assert outlook(power, "eval_map", True, 10) == (
        "epoch 4.00 of 10: eval_map 0.2800, the best so far. By its own curve it ends near 0.4006, eval_loss 1."
    )
    text = outlook(rows(0.1, 0.3, 0.2), "eval_map", True, 10)
    assert text.startswith("epoch 3.00 of 10: eval_map 0.2000, best so far 0.3000 at epoch 2.00. By its own curve")
    assert "best so far 0.2000 at epoch 1.00" in outlook(
        [{"eval_mr2_person": value} | row for value, row in zip((0.2, 0.3), rows(0.1, 0.1), strict=True)],
        "eval_mr2_person", False, 10,
    )  # fmt: skip


def test_one_evaluation_is_no_curve_and_a_finished_run_has_nothing_ahead():
    assert "Numbers near 0 are normal this early" in outlook(rows(0.0), "eval_map", True, 10)
    assert outlook(rows(0.1, 0.2), "eval_map", True, 2) == "epoch 2.00 of 2: eval_map 0.2000, the best so far."
    assert 0 <= expect(rows(0.5, 0.1), "eval_map", True, 100) < expect(rows(0.1, 0.9), "eval_map", True, 100) <= 1


def test_each_evaluation_is_one_line_with_the_hours_left_since_a_run_was_resumed(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(room.time, "perf_counter", lambda: clock[0])
    args = SimpleNamespace(metric_for_best_model="eval_map", greater_is_better=True)
    state = SimpleNamespace(global_step=450, max_steps=4500, epoch=2.0, is_world_process_zero=True,
                            log_history=rows(0.1, 0.2))  # fmt: skip
    says = Outlook()
    with caplog.at_level("INFO", "recipe"):
        says.on_train_begin(args, state, None)  # only the steps since then tell the pace
        clock[0], state.global_step = 3600.0, 900
        says.on_evaluate(args, state, None, metrics={"eval_map": 0.2})
        says.on_evaluate(args, state, None, metrics={"eval_all_map": 0.5})  # of all images
    (line,) = caplog.messages
    assert line.startswith("epoch 2.00 of 10: eval_map 0.2000, the best so far. By its own curve it ends near 0.3")
    assert line.endswith("About 8.0 h left.")
