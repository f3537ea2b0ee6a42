"""MR-2, JI, bins, operating points and error kinds against cases worked out by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask
from scipy.optimize import linear_sum_assignment

from recipe.evaluation.breakdown import (
    BACKGROUND,
    BADLY_PLACED,
    DUPLICATE,
    HIT,
    IGNORED,
    SIZE_NAMES,
    UNUSED,
    WRONG_CLASS,
    name_errors,
    operating_points,
)
from recipe.evaluation.crowd import log_average_miss_rate
from recipe.evaluation.metrics import DetectionMetrics
from recipe.evaluation.ranking import Ranked

PERSON, HEAD = 0, 1
SIZE = (1000, 1000)


def square(x, y, side=10.0):
    return [x, y, x + side, y + side]


def add(metrics, image_id, found, targets, crowd=None):
    """`found`: (box, score, label), `targets`: (box, label)."""
    metrics.update(
        image_id,
        size=SIZE,
        pred_xyxy=np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in found], np.float32),
        labels=np.array([label for *_, label in found], int),
        target_xyxy=np.array([box for box, _ in targets], np.float32).reshape(-1, 4),
        target_labels=np.array([label for _, label in targets], int),
        iscrowd=crowd,
    )
    return metrics


def ranked(scores, hit, targets, images=1):
    """All in the first image."""
    nothing, hit = np.zeros(len(scores), int), np.array(hit, int)
    found = np.array(scores, np.float32), nothing, nothing, np.array([[hit], [nothing]])
    return Ranked(*found, targets=np.array([[targets] + [0] * (images - 1)]), times=np.ones(images, int))


# ---- MR-2


def test_mr2_of_a_curve_worked_out_by_hand():
    """Ten images, four targets: hit, false, hit, false x 3, hit. The curve of false positives per image and miss rate:
    (0, .75) (.1, .75) (.1, .5) (.2, .5) (.3, .5) (.4, .5) (.4, .25). First points at or beyond the nine counts:
    0.01 ... 0.1 -> .75 (five of them), 0.1778 -> .5, 0.3162 -> .5, and for 0.5623 and 1 the curve's end -> .25."""
    hit = [1, 0, 1, 0, 0, 0, 1]
    rate = log_average_miss_rate(ranked(np.linspace(0.9, 0.1, 7), hit, targets=4, images=10))
    assert rate == pytest.approx((0.75**5 * 0.5**2 * 0.25**2) ** (1 / 9))


def test_mr2_is_one_without_detections_and_undefined_without_targets():
    assert log_average_miss_rate(ranked([], [], targets=4)) == 1.0
    assert log_average_miss_rate(ranked([], [], targets=0)) == log_average_miss_rate(ranked([0.5], [0], 0)) == -1.0


def test_mr2_leaves_out_detections_in_crowd_regions():
    """A hit and a false detection; the best score lies in the region and would be the first false one."""
    people = [(square(0, 0), PERSON), (square(50, 50), PERSON), ([100, 100, 200, 200], PERSON)]
    found = [(square(120, 120), 0.9, PERSON), (square(0, 0), 0.8, PERSON), (square(400, 400), 0.7, PERSON)]
    assert add(DetectionMetrics(), 1, found, people, crowd=[0, 0, 1]).compute()["mr2_person"] == pytest.approx(0.5)


def test_mr2_counts_images_without_people():
    """The best score is a false positive on the empty one of two images: (0.5 per image, miss rate 1), then the hit
    (0.5, 0). Seven counts are reached by the first point, 0.5623 and 1 by none: they take the curve's end."""
    metrics = add(DetectionMetrics(), 1, [(square(10, 10), 0.5, PERSON)], [(square(10, 10), PERSON)])
    add(metrics, 2, [(square(50, 50), 0.9, PERSON)], [])
    assert metrics.compute()["mr2_person"] == pytest.approx((1e-10**2) ** (1 / 9))


def test_crowd_metrics_clip_boxes_to_the_image_and_coco_does_not():
    """A person cut by the border, found with a box that sticks out: IoU 1/3 as it is, 1 inside the image."""
    metrics = add(DetectionMetrics(), 1, [([-20, 0, 10, 10], 0.8, PERSON)], [(square(0, 0), PERSON)])
    numbers = metrics.compute()
    assert numbers["map_person"] == 0.0
    assert numbers["ji_person"] == 1.0
    assert numbers["mr2_person"] == pytest.approx(1e-10)


# ---- JI


def test_ji_is_the_mean_over_images_at_the_best_threshold():
    """Image 1: two targets, both found (.95, .35), one false (.25). Image 2: one target, found at .65, and two false.
    Image 3 is empty and does not count. Best above 0.3: 2/2 and 1/3, mean 2/3; all boxes in one pot would give 3/5."""
    metrics = DetectionMetrics()
    people = [(square(0, 0), PERSON), (square(50, 50), PERSON)]
    found = [(square(0, 0), 0.95, PERSON), (square(50, 50), 0.35, PERSON), (square(80, 80), 0.25, PERSON)]
    add(metrics, 1, found, people)
    false = [(square(300, 0), 0.65, PERSON), (square(400, 0), 0.65, PERSON)]
    add(metrics, 2, [(square(0, 0), 0.65, PERSON), *false], people[:1])
    add(metrics, 3, [], [])
    assert metrics.compute()["ji_person"] == pytest.approx(2 / 3)
    ratios = {image.image_id: image.jaccard[PERSON] for image in metrics.state()}
    assert ratios[1] == pytest.approx([2 / 3] * 3 + [2 / 2] + [1 / 2] * 6)
    assert ratios[2] == pytest.approx([1 / 3] * 7 + [0.0] * 3)
    assert np.isnan(ratios[3]).all()


def test_ji_matches_both_people_where_greedy_matching_loses_one():
    """The better score overlaps both people and takes the one that the other detection needs (IoU 9/11 over 8/12)."""
    people = [([0, 0, 10, 10], PERSON), ([3, 0, 13, 10], PERSON)]
    found = [([1, 0, 11, 10], 0.9, PERSON), ([-1, 0, 9, 10], 0.8, PERSON)]
    metrics = add(
        DetectionMetrics(),
        1,
        [([20 + a, b, 20 + c, d], s, k) for (a, b, c, d), s, k in found],
        [([20 + a, b, 20 + c, d], k) for (a, b, c, d), k in people],
    )
    assert metrics.compute()["ji_person"] == 1.0
    assert metrics.compute()["mr2_person"] > 0.1


def test_ji_leaves_out_what_lies_in_a_crowd_region():
    """In the region: an unfound person, a false detection, and a found person, who does count."""
    region = ([100, 100, 200, 200], PERSON)
    people = [(square(0, 0), PERSON), (square(150, 150), PERSON), (square(180, 180), PERSON), region]
    places = [square(0, 0), square(180, 180), square(120, 120), square(400, 400)]
    metrics = add(DetectionMetrics(), 1, [(box, 0.95, PERSON) for box in places], people, crowd=[0, 0, 0, 1])
    assert metrics.compute()["ji_person"] == pytest.approx(2 / 3)  # 2 hits; the box at 400 is false


def test_ji_is_zero_when_all_people_hide_in_crowd_regions():
    """No image counts then, and a mean over nothing would be NaN."""
    people = [([100, 100, 200, 200], PERSON), (square(150, 150), PERSON)]
    assert add(DetectionMetrics(), 1, [], people, crowd=[1, 0]).compute()["ji_person"] == 0.0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_ji_equals_one_assignment_over_the_whole_image(seed):
    """People in a heap, so that components have three and more on each side; the shortcut for small ones must not
    change the count."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (40, 2))
    targets = np.hstack([corner, corner + rng.uniform(20, 40, (40, 2))])
    boxes = (targets[rng.integers(0, 40, 80)] + rng.normal(0, 4, (80, 4))).astype(np.float32).clip(0, 1000)
    scores = rng.random(80).astype(np.float32)
    metrics = add(
        DetectionMetrics(),
        1,
        [(box, score, PERSON) for box, score in zip(boxes, scores, strict=True)],
        [(box, PERSON) for box in targets.astype(np.float32)],
    )
    expected = []
    a, b = (np.hstack([x[:, :2], x[:, 2:] - x[:, :2]]).astype(np.float64) for x in (boxes, targets.astype(np.float32)))
    iou = mask.iou(a, b, np.zeros(40))
    for threshold in np.arange(10) * 0.1:
        weight = np.where(iou > 0.5, iou, 0)[scores > threshold]
        k = (weight[linear_sum_assignment(weight, maximize=True)] > 0).sum()
        expected.append(k / ((scores > threshold).sum() + 40 - k))
    assert metrics.state()[0].jaccard[PERSON] == pytest.approx(expected)


# ---- operating points and curves


def test_the_best_f1_and_the_wished_precision_lie_between_two_scores():
    """Hits after 1, 2, 3, 4 of 5 detections: 1, 2, 2, 3, 3 of 4 targets. F1: 2/5, 4/6, 4/7, 6/8, 6/9."""
    points = operating_points(ranked([0.9, 0.8, 0.6, 0.5, 0.1], [1, 1, 0, 1, 0], 4))
    assert points["best_f1"] == pytest.approx({"threshold": 0.3, "precision": 3 / 4, "recall": 3 / 4, "f1": 6 / 8})
    assert points["precision_90"] == pytest.approx({"threshold": 0.7, "precision": 1.0, "recall": 0.5, "f1": 4 / 6})


def test_equal_scores_are_kept_or_dropped_together():
    points = operating_points(ranked([0.8, 0.8, 0.2], [1, 0, 0], 1))
    assert points["best_f1"] == pytest.approx({"threshold": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3})
    assert points["precision_90"] is None


def test_without_hits_there_is_no_operating_point():
    assert operating_points(ranked([0.8], [0], 3)) == {"best_f1": None, "precision_90": None}


def test_threshold_curves_count_scores_above_the_threshold():
    metrics = add(
        DetectionMetrics(),
        1,
        [(square(0, 0), 0.5, PERSON), (square(90, 90), 0.25, PERSON)],
        [(square(0, 0), PERSON), (square(40, 40), PERSON)],
    )
    curve = metrics.details()["threshold_curves"]["person"]
    at = {round(threshold * 100): i for i, threshold in enumerate(curve["threshold"])}
    assert [curve["precision"][at[percent]] for percent in (0, 24, 25, 49, 50)] == [0.5, 0.5, 1.0, 1.0, None]
    assert [curve["recall"][at[percent]] for percent in (0, 49, 50)] == [0.5, 0.5, 0.0]
    assert curve["f1"][at[49]] == pytest.approx(2 / 3)


# ---- where it fails


def test_heads_are_counted_in_bins_of_their_size():
    """Two heads of 7 px, one found; a head of exactly 8 px belongs to 8-16; a false box of 7 px hurts only its bin."""
    heads = [(square(0, 0, 7), HEAD), (square(40, 40, 7), HEAD), (square(90, 90, 8), HEAD), (square(200, 0, 96), HEAD)]
    found = [(heads[0][0], 0.5, HEAD), (square(500, 500, 7), 0.9, HEAD), (heads[2][0], 0.4, HEAD)]
    rows = add(DetectionMetrics(), 1, found, heads).details()["by_size"]["head"]
    assert [row["bin"] for row in rows] == list(SIZE_NAMES)
    assert [row["boxes"] for row in rows] == [2, 1, 0, 0, 1]
    assert [row["recall"] for row in rows] == [0.5, 1.0, -1.0, -1.0, 0.0]
    assert rows[0]["ap_50"] == pytest.approx(51 / 101 / 2)  # precision 1/2 up to recall 0.5
    assert rows[1]["ap"] == pytest.approx(1.0)
    assert rows[2]["ap"] == -1.0


def test_density_bins_count_the_boxes_of_both_classes():
    """An image of 11 people and 10 heads has 21 boxes; one of 20 is in the first bin."""
    metrics = DetectionMetrics()
    for image_id, people in ((1, 11), (2, 10)):
        boxes = [(square(20 * i, 0), PERSON) for i in range(people)] + [(square(20 * i, 50), HEAD) for i in range(10)]
        found = [(box, 0.9, label) for box, label in boxes] if image_id == 1 else []
        add(metrics, image_id, found, boxes)
    add(metrics, 3, [], [])
    rows = metrics.details()["by_density"]["person"]
    assert [(row["images"], row["boxes"], row["recall"]) for row in rows[:2]] == [(2, 10, 0.0), (1, 11, 1.0)]
    assert (rows[1]["ap"], rows[1]["recall_best_f1"]) == (pytest.approx(1.0), 1.0)
    assert rows[2]["ap"] == -1.0


def test_the_recall_ceiling_counts_boxes_beyond_the_queries():
    """Trap: 420 boxes and 300 queries lose 120 boxes silently."""
    metrics = DetectionMetrics(num_queries=300)
    add(metrics, 1, [], [(square(2 * i, 0), PERSON) for i in range(420)])
    add(metrics, 2, [], [(square(0, 0), HEAD)])
    assert metrics.details()["recall_ceiling"] == pytest.approx(301 / 421)


def one_of_each_kind():
    """A hit, its duplicate, a head called person, a box pushed aside, background (a fifth of it
    in the crowd region), one in the crowd region, one below the threshold. Targets: the person found, a head, the
    person under the pushed box, the region."""
    people = [(square(0, 0), PERSON), (square(100, 0), HEAD), (square(200, 0), PERSON), ([300, 0, 400, 100], PERSON)]
    found = [
        (square(0, 1), 0.80, PERSON),
        (square(0, 0), 0.70, PERSON),
        (square(100, 0), 0.75, PERSON),
        (square(206, 0), 0.90, PERSON),
        (square(292, 0), 0.95, PERSON),
        (square(350, 50), 0.99, PERSON),
        (square(200, 0), 0.10, PERSON),
    ]
    return add(DetectionMetrics(), 7, found, people, crowd=[0, 0, 0, 1])


def test_every_detection_gets_its_kind():
    (image,) = one_of_each_kind().state()
    kind, target, missed = name_errors(image, np.array([0.5, 0.5]))
    # Best score first: in the region, background, pushed aside, the hit, the head, the duplicate, below the threshold.
    assert kind.tolist() == [IGNORED, BACKGROUND, BADLY_PLACED, HIT, WRONG_CLASS, DUPLICATE, UNUSED]
    assert target.tolist() == [-1, -1, -1, 0, -1, -1, -1]
    assert missed.tolist() == [1, 2]


def test_errors_are_counted_per_class_at_the_best_f1():
    """The best F1 is at the hit below the threshold of the other test (2 of 6 counted): everything is kept."""
    metrics = one_of_each_kind()
    details = metrics.details()
    assert details["thresholds"] == {"person": pytest.approx(0.05), "head": 0.5}
    assert details["errors"] == {
        "person": {"hits": 2, "missed": 0, "duplicate": 1, "wrong_class": 1, "badly_placed": 1, "background": 1},
        "head": {"hits": 0, "missed": 1, "duplicate": 0, "wrong_class": 0, "badly_placed": 0, "background": 0},
    }
    assert details["worst_images"] == [
        {"image_id": 7, "boxes": 3, "hits": 2, "misses": 1, "duplicates": 1, "false_positives": 3}
    ]


def test_the_worst_images_are_the_twelve_with_most_missed_boxes():
    metrics = DetectionMetrics()
    for image_id in range(15):
        add(metrics, image_id, [], [(square(20 * i, 0), PERSON) for i in range(image_id % 14)])
    worst = metrics.details()["worst_images"]
    assert [row["misses"] for row in worst] == [13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2]


def test_details_are_json_even_with_nothing_to_find():
    for metrics in (
        one_of_each_kind(),
        add(DetectionMetrics(), 1, [], []),
        add(DetectionMetrics(), 1, [(square(0, 0), 0.5, HEAD)], []),
    ):
        text = json.dumps(metrics.details(), allow_nan=False)
        assert json.loads(text)["images"] == 1
        assert all(math.isfinite(value) for value in metrics.compute().values())
