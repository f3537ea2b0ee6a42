"""Every picture of the report shows something, in the colours that its legend names."""

from __future__ import annotations

import re
from contextlib import contextmanager

import evaluated
import numpy as np
import packed
import pytest
from PIL import Image

from recipe.report import gallery, plots
from recipe.report.draw import COLORS, VERDICT_COLORS, draw_boxes, hex_color, side_by_side


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Dataset, images by id, details and thresholds of an evaluation."""
    data = evaluated.crowd(tmp_path_factory.mktemp("packed"))
    metrics = evaluated.evaluate(data)
    details = metrics.details()
    limits = np.array(list(details["thresholds"].values()))
    return data, {image.image_id: image for image in metrics.state()}, details, limits


def pixels(path):
    """A PNG as [h, w, 3]; fails when it is blank."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.std() > 5
    return picture


def colored(picture, rgb):
    """How many pixels have exactly this colour."""
    return int((picture == np.array(rgb, np.uint8)).all(axis=2).sum())


@pytest.mark.parametrize("name", ["operating_points", "where_it_fails", "error_kinds"])
def test_each_plot_of_the_details_is_drawn_in_its_colours(crowd, tmp_path, name):
    assert getattr(plots, name)(tmp_path / "plot.png", crowd[2])
    picture = pixels(tmp_path / "plot.png")
    assert all(colored(picture, color) > 50 for color in COLORS.values())
    assert 300 < picture.shape[0] < 1200
    assert 800 < picture.shape[1] < 2000


def test_the_split_s_histograms_are_drawn_with_and_without_boxes(crowd, tmp_path):
    empty = evaluated.dataset(tmp_path / "packed", [packed.row(0, 60, 90)]).annotations
    for notes, classes in ((crowd[0].annotations, 2), (empty, 0)):
        assert plots.histograms(tmp_path / "data.png", notes, ("person", "head"), 300)
        picture = pixels(tmp_path / "data.png")
        assert sum(colored(picture, color) > 50 for color in COLORS.values()) >= classes


@pytest.fixture
def panels(monkeypatch):
    """The axes that a plot drew on."""
    panels = []
    sheet = plots.sheet

    @contextmanager
    def watched(*args, **options):
        with sheet(*args, **options) as axes:
            panels.extend(axes)
            yield axes

    monkeypatch.setattr(plots, "sheet", watched)
    return panels


def lines(axes):
    """The lines of a panel by their words in its legend."""
    return {line.get_label(): line for line in axes.get_lines()}


@pytest.mark.parametrize("epochs", [1, 3])
def test_learning_curves_are_drawn_from_a_single_epoch_on(tmp_path, panels, epochs):
    """One evaluation is one point: as a line without a marker it would not be seen."""
    assert plots.learning_curves(tmp_path / "curves.png", evaluated.HISTORY[: 2 * epochs])
    pixels(tmp_path / "curves.png")
    loss, layers, precision = map(lines, panels)
    assert set(loss) == {"training", "validation"}
    assert set(layers) == {"layer 1", "layer 2", "layer 3 (last)"}
    assert set(precision) == {"map", "map_person", "map_head"}
    for line in (*loss.values(), *layers.values(), *precision.values()):
        assert len(line.get_xdata()) == epochs
        assert epochs > 1 or line.get_marker() != "None"
    assert len({line.get_marker() for line in precision.values()}) == len(precision)  # at 0 they all lie on one point
    assert precision["map_person"].get_color() == hex_color(COLORS[0])


def test_a_long_run_is_drawn_by_its_averages(tmp_path, panels):
    """A run of ten epochs logs 14,000 rows: as they are, they would be one solid band."""
    losses = np.random.default_rng(0).normal(5, 1, 5000)
    rows = [{"epoch": i / 1000, "loss": loss} for i, loss in enumerate(losses.tolist())]
    plots.learning_curves(tmp_path / "curves.png", rows)
    line = lines(panels[0])["training"]
    assert len(line.get_xdata()) == plots.MOST_POINTS
    assert np.mean(line.get_ydata()) == pytest.approx(losses.mean())
    assert np.std(line.get_ydata()) < 0.4


def test_an_average_precision_of_zero_is_drawn_and_an_undefined_one_is_not(tmp_path, panels):
    """The pilot's detector finds nothing: its first report would show an empty panel."""
    plots.learning_curves(tmp_path / "curves.png", [{"epoch": 1, "eval_map": 0.0, "eval_map_50": -1.0}])
    assert set(lines(panels[2])) == {"map"}


def test_no_two_curves_of_precision_look_alike(tmp_path, panels):
    rows = [row | {"eval_map_50": 0.4} if "eval_map" in row else row for row in evaluated.HISTORY]
    plots.learning_curves(tmp_path / "curves.png", rows)
    assert len({line.get_color() for line in lines(panels[2]).values()}) == 4


def test_no_box_size_lies_under_the_legend_or_beyond_the_axis(crowd, tmp_path, panels):
    plots.histograms(tmp_path / "data.png", crowd[0].annotations, ("person", "head"), 30)
    for axes in panels:
        axes.figure.draw_without_rendering()
        assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
    assert panels[1].get_xticks().tolist() == [2, 4, 8, 16, 32, 64, 96, 128]
    assert panels[1].get_xlim()[1] == pytest.approx(128)


@pytest.mark.parametrize("share", [0, 0.6])
def test_every_panel_of_where_it_fails_names_its_axis_and_says_when_nothing_was_found(crowd, tmp_path, panels, share):
    found = evaluated.evaluate(crowd[0], found=share, noise=0).details()
    plots.where_it_fails(tmp_path / "where.png", found)
    assert [axes.get_xlabel().split(" (")[0] for axes in panels] == 2 * ["size in pixels", "boxes per image"]
    said = [any("no labelled box was found" in text.get_text() for text in axes.texts) for axes in panels]
    assert said == [share == 0] * 4


def test_a_class_without_a_hit_has_no_curves(crowd, tmp_path):
    points = {"person": {"best_f1": None}, "head": {"best_f1": None}}
    assert not plots.operating_points(tmp_path / "plot.png", crowd[2] | {"operating_points": points})


def test_without_history_there_is_no_plot(tmp_path):
    assert not plots.learning_curves(tmp_path / "curves.png", [{"train_runtime": 3.0}])
    assert not (tmp_path / "curves.png").exists()


def test_the_worst_images_show_hits_misses_duplicates_and_false_detections_in_the_legends_colours(crowd, tmp_path):
    data, images, details, limits = crowd
    rows = details["worst_images"]
    assert all(sum(row[key] for row in rows) for key in ("hits", "misses", "duplicates", "false_positives"))
    assert gallery.worst(tmp_path / "worst.png", rows, images, data, limits)
    picture = pixels(tmp_path / "worst.png")
    for color in VERDICT_COLORS.values():
        assert colored(picture[:40], color) > 100  # the legend
        assert colored(picture[40:], color) > 100
    assert (tmp_path / "worst.png").stat().st_size < 3_000_000


def test_images_without_a_miss_are_not_among_the_worst(crowd, tmp_path):
    data, images, details, limits = crowd
    rows = [row | {"misses": 0} for row in details["worst_images"]]
    assert not gallery.worst(tmp_path / "worst.png", rows, images, data, limits)
    assert not (tmp_path / "worst.png").exists()


def test_predictions_stand_beside_the_labels_in_the_colours_of_their_classes(crowd, tmp_path):
    data, images, _, limits = crowd
    assert gallery.predictions(tmp_path / "predictions.png", images, data, limits, ("person", "head"))
    picture = pixels(tmp_path / "predictions.png")
    assert all(colored(picture[40:], color) > 100 for color in COLORS.values())


def test_each_picture_of_predictions_names_its_thresholds(crowd, tmp_path, monkeypatch):
    """Without them the pictures of the training, drawn from a score of 0.3, contradict the report's."""
    data, images, _, _ = crowd
    texts = []
    monkeypatch.setattr(gallery, "_photograph", lambda _axes, _pixels, _part, text: texts.append(text))
    gallery.predictions(tmp_path / "predictions.png", images, data, np.array([0.25, 2]), ("person", "head"))
    assert all(re.fullmatch(r"\d+ predicted: person > 0\.25, head > 2\.00", text) for text in texts[1::2])


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
        gallery._boxes(axes, box, VERDICT_COLORS["hit"])
        axes.axis("off")
    picture = pixels(tmp_path / "part.png").astype(int)
    rows, columns = np.nonzero((picture == VERDICT_COLORS["hit"]).all(axis=2))
    inside = picture[rows.min() + 5 : rows.max() - 4, columns.min() + 5 : columns.max() - 4]
    assert inside.min() > 200


def test_drawing_changes_a_copy_and_two_pictures_stand_under_their_captions():
    base = np.zeros((40, 60, 3), np.uint8)
    drawn = draw_boxes(base, np.array([[5.2, 5, 20, 30]]), [1])
    assert not base.any()
    assert tuple(drawn[5, 10]) == COLORS[1]
    pair = side_by_side(base, drawn, ("left", "right"), width=120)
    assert pair.shape == (26 + 40, 120, 3)
    assert (pair[26:, 60:] == drawn).all()
    assert all(pair[:26, half].min() < 128 for half in (slice(0, 60), slice(60, 120)))
