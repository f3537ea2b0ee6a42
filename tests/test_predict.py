"""What `recipe predict` keeps, and the form it writes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packed import encoded, photograph
from PIL import Image
from model.test_detector import config, save

from recipe.cli import main
from recipe.data.augment import Transform
from recipe.data.batches import collate, normalise
from recipe.data.geometry import Geometry
from recipe.data.images import render
from recipe.model.detector import build_model, build_processor, freeze
from recipe.predict import class_thresholds, coco_results, detect, find_images
from recipe.schema import UserError


class Recorder:
    """A model that keeps what it is fed."""

    device = "cpu"

    def __call__(self, **inputs):
        self.inputs = inputs


@pytest.mark.parametrize("size", [(120, 200), (200, 120), (64, 64), (20, 97), (300, 1)])
def test_an_image_is_fed_to_the_model_as_in_training(size):
    """The last two are corners in which the stock rule for sizes leaves its own limits."""
    pixels, rule, processor = photograph(*size), Geometry(64, 96), build_processor(64, 96)
    sample = {"pixels": render(pixels, rule.resized(*size), Transform()), "size": rule.resized(*size), "image_id": 1}
    sample |= {"boxes": np.zeros((0, 4)), "class_labels": np.zeros(0), "orig_size": size, "canvas": rule.canvas(*size)}
    expected, model = normalise(collate([sample])), Recorder()
    processor.post_process_object_detection = lambda *_, **__: [
        {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=int)}
    ]
    detect(model, processor, pixels, [0.5, 0.5])
    torch.testing.assert_close(model.inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=0)
    assert torch.equal(model.inputs["pixel_mask"].bool(), expected["pixel_mask"])


def test_a_score_is_kept_above_its_class_s_threshold_as_the_metrics_count_it():
    """The carried threshold lies between two scores; at a wished 0.5 the library and the metrics drop 0.5 itself."""
    scores, labels = torch.tensor([0.5, 0.75, 0.5, 0.75]), torch.tensor([0, 0, 1, 1])
    found = {"scores": scores, "labels": labels, "boxes": torch.zeros(4, 4)}

    processor = build_processor(64, 96)
    processor.post_process_object_detection = lambda *_, **__: [found]
    kept = detect(Recorder(), processor, np.zeros((60, 90, 3), np.uint8), [0.5, 0.25])
    assert kept["labels"].tolist() == [0, 1, 1]
    assert kept["scores"].tolist() == [0.75, 0.5, 0.75]


def test_a_threshold_is_as_wished_else_the_checkpoints_else_one_half():
    model = SimpleNamespace(config=SimpleNamespace(detection_thresholds={"head": 0.25}))
    assert class_thresholds(model, None) == [0.5, 0.25]
    assert class_thresholds(model, 0.0) == [0.0, 0.0]
    assert class_thresholds(SimpleNamespace(config=SimpleNamespace()), None) == [0.5, 0.5]


def test_a_file_that_is_a_decompression_bomb_is_left_out_like_any_other(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 90)
    for name, size in (("bomb", (300, 300)), ("fine", (60, 90))):
        (tmp_path / f"{name}.png").write_bytes(encoded(np.zeros((*size, 3), np.uint8), "PNG"))
    checkpoint = save(freeze(build_model(config())), tmp_path / "checkpoint")
    assert main(["predict", str(checkpoint), str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "bomb.png: left out" in caplog.text
    assert [image["id"] for image in json.loads((tmp_path / "out" / "images.json").read_text())] == [1]


@pytest.fixture
def checkpoint(tmp_path):
    return str(save(freeze(build_model(config())), tmp_path / "detector" / "checkpoint"))


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "fine.png").write_bytes(encoded(photograph(60, 90), "PNG"))
    return tmp_path / "photos"


def test_a_second_run_does_not_predict_the_drawings_of_the_first(checkpoint, photos):
    for _ in range(2):
        assert main(["predict", checkpoint, str(photos), "--out", str(photos / "out")]) == 0
        assert len(json.loads((photos / "out" / "images.json").read_text())) == 1


def test_images_are_read_from_under_out_but_not_from_out_itself(photos):
    assert find_images([str(photos)], photos.parent) == [photos / "fine.png"]
    with pytest.raises(UserError, match=rf"--out {photos}: holds the images.*`--out {photos}/predictions`"):
        find_images([str(photos)], photos)


def test_a_file_that_was_named_is_never_left_out_without_a_word(photos, caplog):
    (photos / "h.heic").touch()
    (photos / "notes.txt").touch()
    assert find_images([str(photos / "h.heic"), str(photos)], photos / "out") == [photos / "fine.png"]
    assert "h.heic: left out, read are .bmp, .jpeg, .jpg" in caplog.text
    assert "notes.txt" not in caplog.text


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "the file is empty"), (b"notes", "not an image in any format that Pillow reads")]
)
def test_why_an_image_cannot_be_read_is_said_in_words(checkpoint, photos, caplog, content, words):
    (photos / "broken.jpg").write_bytes(content)
    assert main(["predict", checkpoint, str(photos), "--out", str(photos / "out")]) == 0
    assert f"broken.jpg: left out, it cannot be read ({words})" in caplog.text


def test_a_drawing_that_could_not_be_written_is_said(checkpoint, photos, capsys):
    (photos / "out" / "00000-fine.jpg").mkdir(parents=True)
    assert main(["predict", checkpoint, str(photos), "--out", str(photos / "out")]) == 2
    assert "00000-fine.jpg: cannot be written" in capsys.readouterr().err


def test_results_are_cocos_boxes_as_plain_numbers():
    found = {"boxes": np.array([[1.0, 2, 4, 8]], np.float32), "scores": np.array([0.9], np.float32),
             "labels": np.array([1])}  # fmt: skip
    expected = [{"image_id": 3, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.9}]
    assert coco_results(3, found) == expected
