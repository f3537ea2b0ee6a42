"""Boxes lie where they belong, in the colours of the legend, under the file's name; no picture stops a training."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import evaluated
import numpy as np
import packed
import pytest

from recipe.report import pictures
from recipe.report.draw import COLORS
from recipe.report.pictures import Pictures


@pytest.fixture
def draw(tmp_path):
    """Draws `count` images after an evaluation at step 4; the names of the pictures and their folder."""
    data = evaluated.crowd(tmp_path / "packed")
    metrics = evaluated.evaluate(data)

    def on_evaluate(count, dataset=data, metrics=metrics, **state):
        state = SimpleNamespace(**{"is_world_process_zero": True, "global_step": 4} | state)
        Pictures(metrics, dataset, count).on_evaluate(SimpleNamespace(output_dir=str(tmp_path)), state, None)
        folder = tmp_path / "pictures"
        return sorted(path.name for path in folder.glob("*")), folder

    return on_evaluate


def test_the_first_images_are_drawn_after_each_evaluation(draw):
    names, folder = draw(2)
    assert names == ["0-step-4.jpg", "1-step-4.jpg"]
    picture = cv2.imread(str(folder / names[1]))[74:, :, ::-1].astype(int)
    for half in (picture[:, :800], picture[:, 800:]):
        for color in COLORS[:2]:
            assert (abs(half - color).max(axis=2) < 40).sum() > 100


def test_of_an_evaluation_of_a_few_images_its_first_are_drawn(draw, tmp_path):
    """--eval_images takes some of the validation images; the split's first need not be among them."""
    few = evaluated.evaluate(evaluated.crowd(tmp_path / "few"))
    images = few.images()
    few.images = lambda: {image_id: images[image_id] for image_id in (4, 2)}
    assert draw(1, metrics=few)[0] == ["2-step-4.jpg"]


def test_only_the_first_process_draws_and_none_are_wished_for(draw):
    assert draw(2, is_world_process_zero=False)[0] == []
    assert draw(0)[0] == []


def test_a_picture_that_cannot_be_written_is_one_warning(draw, tmp_path, caplog):
    (tmp_path / "pictures").write_text("a file where the folder should be")
    draw(1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "0-step-4.jpg: not drawn" in caplog.text


def test_a_damaged_photograph_is_a_warning_and_the_next_is_drawn(draw, tmp_path, caplog):
    data = evaluated.crowd(tmp_path / "damaged")
    data.source[0]["image"]["bytes"] = b"no image"
    assert draw(2, dataset=data)[0] == ["1-step-4.jpg"]
    assert len(caplog.records) == 1


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Dataset, metrics and details of an evaluation."""
    data = evaluated.crowd(tmp_path_factory.mktemp("packed"))
    metrics = evaluated.evaluate(data)
    return data, metrics, metrics.details()


def test_the_worst_images_show_hits_misses_duplicates_and_false_detections_in_the_legends_colours(crowd, tmp_path):
    data, metrics, details = crowd
    rows = details["worst_images"]
    assert all(sum(row[key] for row in rows) for key in ("hits", "misses", "duplicates", "false_positives"))
    assert pictures.worst(tmp_path / "worst.png", metrics, data)
    picture = evaluated.pixels(tmp_path / "worst.png")
    for color in pictures.KINDS.values():
        assert evaluated.colored(picture[:30], color) > 100  # the legend
        assert evaluated.colored(picture[30:], color) > 100
    assert (tmp_path / "worst.png").stat().st_size < 3_000_000


def test_images_without_a_miss_are_not_among_the_worst(crowd, tmp_path):
    data, metrics, details = crowd
    rows = [row | {"misses": 0} for row in details["worst_images"]]
    perfect = SimpleNamespace(images=metrics.images, details=lambda: details | {"worst_images": rows})
    assert not pictures.worst(tmp_path / "worst.png", perfect, data)
    assert not (tmp_path / "worst.png").exists()


def test_predictions_stand_beside_the_labels_in_the_colours_of_their_classes(crowd, tmp_path):
    assert pictures.predictions(tmp_path / "predictions.png", crowd[1], crowd[0])
    picture = evaluated.pixels(tmp_path / "predictions.png")
    assert all(evaluated.colored(picture[74:], color) > 100 for color in COLORS[:2])


def test_captions_name_file_id_and_thresholds(crowd, tmp_path):
    """Without the thresholds the pictures of the training, from a score of 0.3 on, contradict the report's."""
    rows = packed.crowd(1)
    rows[0]["image"]["path"] = "a/very/long/path/of/a/camera/in/the/north/$x_$y/\\frac.jpg"
    data = evaluated.dataset(tmp_path / "packed", rows)
    image = evaluated.evaluate(data).images()[0]
    (_, left), (_, right) = pictures.labels_beside_predictions(data, 0, image, {"person": 2, "head": 0.25}, (80, 80))
    assert (
        left
        == "path/of/a/camera/in/the/north/$x_$y/\\frac.jpg"[-36:] + f" (image_id 0)\n{len(image.targets)} labelled"
    )
    kept = int(((image.labels == 1) & (image.scores > 0.25)).sum())
    assert right == f"{kept} predicted\nperson > 2.00, head > 0.25"


def test_the_part_shown_holds_most_of_the_tiny_boxes_and_large_ones_are_seen_in_the_complete_image():
    boxes = np.array([[1500.0, 800, 1510, 808], [1530, 820, 1538, 828], [3, 3, 9, 9]])
    x0, y0, x1, y1 = pictures.crowded_part((1080, 1920), boxes)
    assert (x1 - x0, y1 - y0) == (960, 540)
    assert 0 <= x0 < 1500 < 1538 < x1 <= 1920
    assert 0 <= y0 < 800 < 828 < y1 <= 1080
    assert pictures.crowded_part((1080, 1920), np.array([[100.0, 100, 900, 1000]])) == (0, 0, 1920, 1080)


def test_boxes_lie_on_their_pixels_in_a_part_of_an_image(tmp_path):
    """A box drawn one crop off would blame the model for what it found."""
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[800:808, 1500:1510] = 255
    row = packed.row(0, 1080, 1920, [[1500, 800, 10, 8]], data=packed.encoded(image, "PNG"))
    data = evaluated.dataset(tmp_path / "packed", [row])
    pictures.worst(tmp_path / "worst.png", evaluated.evaluate(data, found=0, noise=0), data)
    picture = evaluated.pixels(tmp_path / "worst.png").astype(int)[74:]
    rows, columns = np.nonzero((picture == pictures.KINDS["MISSED"]).all(axis=2))
    inside = picture[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1]
    assert inside.min() > 150
