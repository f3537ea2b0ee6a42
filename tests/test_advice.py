"""The advice follows from the numbers, and each rule speaks only when its number asks for it."""

from __future__ import annotations

import evaluated
import pytest

from recipe.advice import next_steps

VALUES = {"map": 0.5, "map_50": 0.8, "map_75": 0.5, "map_max300": 0.5}
SIZES = ("<8", "8-16", "16-32", "32-96", ">=96")


def details(**changes):
    """A good evaluation of 500 images: 1,000 boxes per class, few missed, few false."""
    size, density = {"boxes": 200, "recall": 0.95, "recall_best_f1": 0.9}, {"boxes": 500, "recall_best_f1": 0.9}
    errors = {"hits": 900, "missed": 100, "duplicate": 5, "wrong_class": 5, "badly_placed": 5, "background": 5}
    names = ("person", "head")
    good = {
        "images": 500,
        "boxes": dict.fromkeys(names, 1000),
        "by_size": {name: [size | {"bin": each} for each in SIZES] for name in names},
        "by_density": {name: [density | {"bin": each} for each in ("<=20", ">200")] for name in names},
        "errors": {name: dict(errors) for name in names},
        "recall_ceiling": 1.0,
    }
    return good | changes


def advice(found, values=VALUES, **options):
    return " ".join(next_steps(values, found, **options))


def test_missed_small_heads_ask_for_a_higher_resolution():
    found = details()
    found["by_size"]["head"][0]["recall_best_f1"] = 0.1
    text = advice(found, shrink=0.6)
    assert "the largest group is `head` below 8 pixels" in text
    assert "shrunk to 60%" in text
    assert "--longest_edge" in text


def test_missed_large_boxes_do_not_ask_for_a_higher_resolution():
    found = details()
    found["by_size"]["person"][4]["recall_best_f1"] = 0.0
    text = advice(found)
    assert "Size is not the main reason" in text
    assert "--longest_edge" not in text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("duplicate", "second boxes"),
        ("wrong_class", "the class wrong"),
        ("badly_placed", "without fitting it"),
        ("background", "nothing labelled"),
    ],
)
def test_each_kind_of_false_detection_is_named_once_it_is_frequent(kind, words):
    assert words not in advice(details())
    found = details()
    found["errors"]["head"][kind] = 300
    assert f"25% of the `head` detections {words}" in advice(found).replace("are second", "second").replace(
        "have the place right and the class", "the class").replace("lie on nothing", "nothing").replace(
        "touch a labelled box without", "without")  # fmt: skip


def test_a_recall_ceiling_below_99_percent_asks_for_more_queries():
    assert "--num_queries`." not in advice(details())
    assert "2.0% of the boxes cannot be found at all" in advice(details(recall_ceiling=0.98))


def test_found_boxes_with_low_scores_are_told_apart_from_unseen_ones():
    found = details()
    for row in found["by_size"]["head"]:
        row["recall_best_f1"] = 0.5
    assert "Another 45% of `head` boxes are found, but with scores below the threshold" in advice(found)


def test_crowding_is_named_where_recall_falls_with_density():
    found = details()
    found["by_density"]["person"][1]["recall_best_f1"] = 0.6
    assert "Crowding hurts `person`" in advice(found)


def test_coco_s_cap_is_named_where_it_hides_something():
    assert "0.020 of mAP" in advice(details(), VALUES | {"map_max300": 0.52})


def test_a_rising_validation_loss_asks_to_stop_earlier_and_a_rising_map_to_go_on():
    rising = [row for row in evaluated.HISTORY if "eval_map" in row]
    assert "mAP still rose by 0.100" in advice(details(), history=rising)
    losses, maps = (3.0, 2.0, 2.5), (0.1, 0.3, 0.28)
    over = [{"epoch": i + 1, "eval_loss": x, "eval_map": y} for i, (x, y) in enumerate(zip(losses, maps, strict=True))]
    text = advice(details(), history=over)
    assert "best after epoch 2 and the validation loss has risen from 2.00 to 2.50" in text


def test_nothing_found_and_nothing_to_find_give_one_sentence_each():
    nothing = details()
    for kinds in nothing["errors"].values():
        kinds["hits"] = 0
    assert next_steps(VALUES, nothing)[0].startswith("Not one box was found")
    assert "hold no labelled boxes" in next_steps(VALUES, details(boxes={"person": 0, "head": 0}))[0]


def test_a_class_without_labels_is_not_blamed_for_false_detections():
    found = details(boxes={"person": 1000, "head": 0})
    found["errors"]["head"] = dict.fromkeys(found["errors"]["head"], 0) | {"background": 50}
    assert "`head`" not in advice(found).split("largest group")[0]
    assert "`head` detections" not in advice(found)
