"""Thresholds and batches of `recipe predict`."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from packed import photograph
from small_detector import small_config

from recipe.model.backbone import tiny_backbone
from recipe.model.detector import build_processor
from recipe.prediction.predictor import Predictor, class_thresholds
from recipe.schema import UserError


class Planted:
    """A model that keeps what it is fed and finds what it is given."""

    device = torch.device("cpu")

    def __call__(self, pixel_values):
        self.pixel_values = pixel_values


def predictor(model=None, thresholds=(0.5, 0.5), **options) -> Predictor:
    return Predictor(model or Planted(), build_processor(small_config(), tiny_backbone()), thresholds, **options)


def test_a_score_is_kept_above_its_class_s_threshold_as_the_metrics_count_it():
    """The carried threshold lies between two scores; at a wished 0.5 the library and the metrics drop 0.5 itself."""
    scores, labels = torch.tensor([0.5, 0.75, 0.5, 0.75]), torch.tensor([0, 0, 1, 1])
    detect = predictor(thresholds=(0.5, 0.25))
    found = {"scores": scores, "labels": labels, "boxes": torch.zeros(4, 4)}
    detect.processor.post_process_object_detection = lambda *_, **__: [found]
    ((_, _, kept),) = detect.detect([(0, np.zeros((60, 90, 3), np.uint8))])
    assert kept.labels.tolist() == [0, 1, 1]
    assert kept.scores.tolist() == [0.75, 0.5, 0.75]


def test_a_threshold_is_as_wished_else_the_checkpoints_else_one_half():
    model = SimpleNamespace(config=SimpleNamespace(detection_thresholds={"head": 0.25}))
    assert class_thresholds(model, None) == [0.5, 0.25]
    assert class_thresholds(model, 0.0) == [0.0, 0.0]
    assert class_thresholds(SimpleNamespace(config=SimpleNamespace()), None) == [0.5, 0.5]


@pytest.mark.parametrize("size", [(120, 200), (200, 120), (20, 97), (1600, 10), (1, 1)])
def test_an_image_is_shown_to_the_model_at_the_size_of_its_training(size):
    """The stock processor would resize 1600x10 to a side of 0."""
    detect = predictor()
    detect.processor.post_process_object_detection = lambda *_, **__: [
        dict.fromkeys(("boxes", "scores", "labels"), torch.zeros(0, dtype=int))
    ]
    list(detect.detect([(0, photograph(*size))]))
    assert detect.model.pixel_values.shape[-2:] == detect.size(photograph(*size))


def test_a_batch_is_of_neighbours_of_one_size_and_no_image_is_read_before_its_time(monkeypatch):
    sizes = [(60, 90), (30, 45), (64, 96), (60, 90), (90, 60), (60, 90)]  # the first three are resized to one size
    read, batches = [], []

    def images():
        for number, size in enumerate(sizes):
            read.append(number)
            yield number, np.zeros((*size, 3), np.uint8)

    def detect_batch(_, pixels):
        batches.append(len(pixels))
        return [()] * len(pixels)

    monkeypatch.setattr(Predictor, "_batch", detect_batch)
    for number, pixels, _ in predictor(batch_size=2).detect(images()):
        assert pixels.shape[:2] == sizes[number]
        assert read[-1] - number <= 2
    assert batches == [2, 2, 1, 1]


def test_more_than_the_gpu_holds_is_said_with_the_flag_that_helps():
    def full(_):
        raise torch.cuda.OutOfMemoryError

    full.device = torch.device("cpu")
    with pytest.raises(UserError, match="--batch_size 4: more than this GPU's memory holds"):
        list(predictor(full).detect([(0, photograph(60, 90))]))


class Blobs:
    """Finds red blobs, one box each, in whatever it is shown: a detector that is always right."""

    device = torch.device("cpu")

    def __call__(self, pixel_values):
        logits, boxes = (
            torch.tensor([-9.0, -9, 9]).repeat(len(pixel_values), 30, 1),
            torch.zeros(len(pixel_values), 30, 4),
        )
        for number, image in enumerate(pixel_values):
            height, width = image.shape[-2:]
            _, _, stats, _ = cv2.connectedComponentsWithStats((image[0] > 1).numpy().astype(np.uint8), connectivity=4)
            for query, (x, y, w, h, _) in enumerate(stats[1:]):
                logits[number, query, 0] = 18
                boxes[number, query] = torch.tensor([x + w / 2, y + h / 2, w, h]) / torch.tensor([width, height] * 2)
        return SimpleNamespace(logits=logits, pred_boxes=boxes)


def test_tiles_find_what_a_view_of_the_complete_image_is_too_coarse_for():
    """Small blobs and one larger than a tile, in an image of 9 times the detector's size: each once, to the pixel."""
    rng = np.random.default_rng(1)
    pixels = np.zeros((600, 900, 3), np.uint8)
    cells = rng.permutation(54)[:24]
    boxes = [(300, 0, 420, 290)]
    boxes += [(x, y, x + 22, y + 15) for cell in cells if (x := cell % 9 * 100 + 40) and (y := cell // 9 * 100 + 50)
              and not (260 < x < 440 and y < 310)]  # fmt: skip
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1, 0] = 255
    ((_, _, plain),) = predictor(Blobs()).detect([(0, pixels)])
    ((_, _, tiled),) = predictor(Blobs(), tile=(64, 96), overlap=0.25).detect([(0, pixels)])
    assert len(tiled.scores) == len(boxes)
    coarse, fine = (np.abs(found.boxes_xyxy[:, None] - np.array(boxes)).max(2).min(0) for found in (plain, tiled))
    assert coarse[1:].min() > 2
    assert fine[1:].max() < 1
    assert fine[0] == coarse[0]
