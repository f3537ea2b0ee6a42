"""The intervals against a bootstrap by hand: the drawn images evaluated again, once for each time they were drawn."""

import numpy as np
import pytest
from crowd_images import collect, random_images

from recipe.evaluation.metrics import DetectionMetrics

KEYS = ["map", "map_50_person", "map_50_head", "mr2_person", "mr2_head"]


def by_hand(images, resamples, seed):
    images = sorted(images, key=lambda image: image["image_id"])
    draws = np.random.default_rng(seed).multinomial(len(images), np.full(len(images), 1 / len(images)), resamples)
    found = []
    for times in draws:
        drawn = [image for image, n in zip(images, times, strict=True) for _ in range(n)]
        found.append(collect([image | {"image_id": i} for i, image in enumerate(drawn)]).compute())
    return {key: np.quantile([row[key] for row in found], [0.025, 0.975]).tolist() for key in KEYS}


@pytest.mark.parametrize("crowd", [False, True])
def test_the_intervals_equal_a_bootstrap_by_hand(crowd):
    """With more than 100 detections of a class, so that the cap matters; one image is annotated with people only."""
    images = random_images(11, count=12, most_det=300, most_target=60, crowd=crowd)
    images[0]["labelled"] = [True, False]
    expected = by_hand(images, resamples=25, seed=3)
    found = collect(images).intervals(resamples=25, seed=3)
    assert set(found) == set(KEYS)
    for key in KEYS:
        assert found[key] == pytest.approx(expected[key], abs=1e-12), key
        assert found[key][0] < found[key][1]


def test_an_interval_holds_the_number_itself_and_narrows_with_more_images():
    few, many = random_images(12, count=20), random_images(12, count=320)
    widths = []
    for images in (few, many):
        metrics = collect(images)
        low, high = metrics.intervals()["map"]
        assert low < metrics.compute()["map"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # sixteen times the images: about a quarter


def test_a_class_without_targets_has_no_interval():
    people = np.zeros(2, int)
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    image = {"size": (100, 100), "pred_xyxy": boxes, "scores": np.ones(2), "labels": people}
    metrics = DetectionMetrics()
    metrics.update(1, **image, target_xyxy=boxes, target_labels=people)
    found = metrics.intervals(resamples=5)
    assert (found["map"], found["map_50_person"]) == ([1.0, 1.0], [1.0, 1.0])
    assert found["map_50_head"] is found["mr2_head"] is None
