"""The photographs of the report: boxes lie where they belong, in the colours of the legend, under the file's name."""

from __future__ import annotations

import re
from types import SimpleNamespace

import evaluated
import numpy as np
import packed
import pytest

from recipe.report import gallery, plots
from recipe.report.draw import COLORS

ERROR_COLORS = (gallery.FOUND, gallery.MISSED, gallery.TWICE, gallery.FALSE)


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
    assert gallery.worst(tmp_path / "worst.png", metrics, data)
    picture = evaluated.pixels(tmp_path / "worst.png")
    for color in ERROR_COLORS:
        assert evaluated.colored(picture[:40], color) > 100  # the legend
        assert evaluated.colored(picture[40:], color) > 100
    assert (tmp_path / "worst.png").stat().st_size < 3_000_000


def test_images_without_a_miss_are_not_among_the_worst(crowd, tmp_path):
    data, metrics, details = crowd
    rows = [row | {"misses": 0} for row in details["worst_images"]]
    perfect = SimpleNamespace(images=metrics.images, details=lambda: details | {"worst_images": rows})
    assert not gallery.worst(tmp_path / "worst.png", perfect, data)
    assert not (tmp_path / "worst.png").exists()


def test_predictions_stand_beside_the_labels_in_the_colours_of_their_classes(crowd, tmp_path):
    assert gallery.predictions(tmp_path / "predictions.png", crowd[1], crowd[0])
    picture = evaluated.pixels(tmp_path / "predictions.png")
    assert all(evaluated.colored(picture[40:], color) > 100 for color in COLORS[:2])


@pytest.fixture
def titles(monkeypatch):
    """What stands over the photographs; they are not drawn."""
    texts = []
    monkeypatch.setattr(gallery, "_photograph", lambda _axes, _pixels, _part, text: texts.append(text))
    return texts


def test_each_picture_of_predictions_names_its_thresholds(crowd, tmp_path, titles):
    """Without them the pictures of the training, drawn from a score of 0.3, contradict the report's."""
    data, metrics, details = crowd
    gallery.predictions(tmp_path / "predictions.png", metrics, data)
    above = ", ".join(f"{name} > {limit:.2f}" for name, limit in details["thresholds"].items())
    assert all(re.fullmatch(rf"\d+ predicted\n{re.escape(above)}", text) for text in titles[1::2])


def test_every_photograph_is_named_by_its_file_and_its_id(crowd, tmp_path, titles):
    data, metrics, details = crowd
    gallery.worst(tmp_path / "worst.png", metrics, data)
    assert [title.split("\n")[0] for title in titles] == [
        f"{row['image_id']}.jpg (image_id {row['image_id']})" for row in details["worst_images"]
    ]


def test_a_file_name_is_no_formula_and_a_long_one_shows_its_end(tmp_path):
    """matplotlib reads what stands between two $ as mathematics, and raises at most of it."""
    rows = packed.crowd(1)
    rows[0]["image"]["path"] = "a/very/long/path/of/a/camera/in/the/north/$x_$y/\\frac.jpg"
    data = evaluated.dataset(tmp_path / "packed", rows)
    assert gallery.title(data, 0).startswith("…")
    assert gallery.title(data, 0).endswith("north/$x_$y/\\frac.jpg (image_id 0)")
    assert gallery.predictions(tmp_path / "predictions.png", evaluated.evaluate(data), data)


def test_a_view_enlarges_tiny_boxes_and_holds_them():
    boxes = np.array([[1500.0, 800, 1510, 808], [1530, 820, 1538, 828]])
    (x0, y0, x1, y1), zoom = gallery.view((1080, 1920), boxes)
    assert zoom == f", zoom {gallery.MOST_ZOOM:.1f}"
    assert 0 <= x0 < 1500 < 1538 < x1 <= 1920
    assert 0 <= y0 < 800 < 828 < y1 <= 1080


def test_large_boxes_are_seen_in_the_whole_image():
    assert gallery.view((1080, 1920), np.array([[100.0, 100, 900, 1000]])) == ((0, 0, 1920, 1080), "")


def test_boxes_lie_on_their_pixels_in_a_part_of_an_image(tmp_path):
    """A box drawn one crop off would blame the model for what it found."""
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[800:808, 1500:1510] = 255
    box = np.array([[1500.0, 800, 1510, 808]])
    with plots.sheet(tmp_path / "part.png", 1) as (axes,):
        gallery._photograph(axes, image, (1450, 750, 1550, 850), "")
        gallery._boxes(axes, box, gallery.FOUND)
        axes.axis("off")
    picture = evaluated.pixels(tmp_path / "part.png").astype(int)
    rows, columns = np.nonzero((picture == gallery.FOUND).all(axis=2))
    inside = picture[rows.min() + 5 : rows.max() - 4, columns.min() + 5 : columns.max() - 4]
    assert inside.min() > 200
