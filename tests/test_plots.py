"""Every picture of the report shows something, in the colours that its legend names."""

from __future__ import annotations

from contextlib import contextmanager

import evaluated
import numpy as np
import packed
import pytest
from PIL import Image

from recipe import gallery, plots
from recipe.draw import COLORS, VERDICT_COLORS, draw_boxes, grid, legend


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Dataset, images by id, details and thresholds of an evaluation."""
    data = evaluated.crowd(tmp_path_factory.mktemp("packed"))
    metrics = evaluated.evaluate(data)
    details = metrics.details()
    limits = np.array([details["operating_points"][name]["best_f1"]["threshold"] for name in metrics.class_names])
    return data, {image.image_id: image for image in metrics.state()}, details, limits


def pixels(path):
    """A PNG as [h, w, 3]; fails when it is blank."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.std() > 5
    return picture


def colored(picture, rgb):
    """How many pixels have exactly this colour."""
    return int((picture == np.array(rgb, np.uint8)).all(axis=2).sum())


@pytest.mark.parametrize("name", ["precision_recall", "thresholds", "where_it_fails", "error_kinds"])
def test_each_plot_of_the_details_is_drawn_in_its_colours(crowd, tmp_path, name):
    assert getattr(plots, name)(tmp_path / "plot.png", crowd[2])
    picture = pixels(tmp_path / "plot.png")
    wanted = COLORS.values() if name != "error_kinds" else list(VERDICT_COLORS.values())[:3]
    assert all(colored(picture, color) > 50 for color in wanted)
    assert 300 < picture.shape[0] < 1200
    assert 800 < picture.shape[1] < 2000


def test_the_split_s_histograms_are_drawn_with_and_without_boxes(crowd, tmp_path):
    empty = evaluated.dataset(tmp_path / "packed", [packed.row(0, 60, 90)]).annotations
    for notes, classes in ((crowd[0].annotations, 2), (empty, 0)):
        assert plots.histograms(tmp_path / "data.png", notes, ("person", "head"), 300)
        picture = pixels(tmp_path / "data.png")
        assert sum(colored(picture, color) > 50 for color in COLORS.values()) >= classes


@pytest.fixture
def drawn(monkeypatch):
    """The axes that a plot drew on, by what it drew: [{legend word: line}] per panel."""
    panels = []
    sheet = plots.sheet

    @contextmanager
    def watched(*args, **options):
        with sheet(*args, **options) as axes:
            yield axes
            panels.extend({line.get_label(): line for line in each.get_lines()} for each in axes)

    monkeypatch.setattr(plots, "sheet", watched)
    return panels


@pytest.mark.parametrize("epochs", [1, 3])
def test_learning_curves_are_drawn_from_a_single_epoch_on(tmp_path, drawn, epochs):
    """One evaluation is one point: as a line without a marker it would not be seen."""
    assert plots.learning_curves(tmp_path / "curves.png", evaluated.HISTORY[: 2 * epochs])
    pixels(tmp_path / "curves.png")
    loss, layers, precision = drawn
    assert set(loss) == {"training", "validation"}
    assert set(layers) == {"layer 1", "layer 2", "layer 3 (last)"}
    assert set(precision) == {"map", "map_person", "map_head"}
    for line in (*loss.values(), *layers.values(), *precision.values()):
        assert len(line.get_xdata()) == epochs
        assert epochs > 1 or line.get_marker() == "o"
    assert precision["map_person"].get_color() == plots.hex_color(COLORS[0])


def test_a_long_run_is_drawn_by_its_averages(tmp_path, drawn):
    """A run of ten epochs logs 14,000 rows: as they are, they would be one solid band."""
    losses = np.random.default_rng(0).normal(5, 1, 5000)
    rows = [{"epoch": i / 1000, "loss": loss} for i, loss in enumerate(losses.tolist())]
    plots.learning_curves(tmp_path / "curves.png", rows)
    line = drawn[0]["training"]
    assert len(line.get_xdata()) == plots.MOST_POINTS
    assert np.mean(line.get_ydata()) == pytest.approx(losses.mean())
    assert np.std(line.get_ydata()) < 0.4


def test_an_average_precision_of_zero_is_drawn_and_an_undefined_one_is_not(tmp_path, drawn):
    """The pilot's detector finds nothing: its first report would show an empty panel."""
    plots.learning_curves(tmp_path / "curves.png", [{"epoch": 1, "eval_map": 0.0, "eval_map_50": -1.0}])
    assert set(drawn[2]) == {"map"}


def test_a_class_without_a_hit_has_no_curves(crowd, tmp_path):
    points = {"person": {"best_f1": None}, "head": {"best_f1": None}}
    for plot in (plots.precision_recall, plots.thresholds):
        assert not plot(tmp_path / "plot.png", crowd[2] | {"operating_points": points})


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


def test_predictions_go_from_the_image_found_best_to_the_one_found_worst(crowd, tmp_path):
    data, images, _, limits = crowd
    spread = gallery._spread(images, limits)
    scores = [f1 for _, f1 in spread]
    assert scores == sorted(scores, reverse=True)
    assert {image_id for image_id, _ in spread} <= set(images)
    assert gallery.predictions(tmp_path / "predictions.png", images, data, limits, ("person", "head"))
    picture = pixels(tmp_path / "predictions.png")
    assert all(colored(picture[40:], color) > 100 for color in COLORS.values())


def test_a_view_enlarges_tiny_boxes_and_moves_them_with_their_pixels():
    """A box drawn one crop off would blame the model for what it found."""
    pixels = np.zeros((1080, 1920, 3), np.uint8)
    pixels[800:808, 1500:1510] = 255
    boxes = np.array([[1500.0, 800, 1510, 808], [1530, 820, 1538, 828]])
    part = gallery.view((1080, 1920), (528, 396), boxes)
    assert part.zoom == pytest.approx(gallery.MOST_ZOOM)
    x0, y0, x1, y1 = part.boxes(boxes)[0].round().astype(int)
    picture = part.render(pixels)
    assert picture.shape[0] <= 396
    assert picture.shape[1] <= 528
    inside = picture[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
    assert inside.min() > 200
    assert picture.sum() < 2 * inside.sum() + 255 * 3 * 4 * 40


def test_large_boxes_are_seen_in_the_whole_image():
    part = gallery.view((1080, 1920), (528, 396), np.array([[100.0, 100, 900, 1000]]))
    assert part.zoom == 1
    assert (part.corner, part.extent) == ((0, 0), (1920, 1080))


def test_drawing_changes_a_copy_and_grids_keep_their_tiles():
    base = np.zeros((40, 60, 3), np.uint8)
    drawn = draw_boxes(base, np.array([[5.2, 5, 20, 30]]), [1])
    assert not base.any()
    assert tuple(drawn[5, 10]) == COLORS[1]
    sheet = grid([drawn, base, drawn], columns=2, gap=4)
    assert sheet.shape == (88, 124, 3)
    assert (sheet[44:84, :60] == drawn).all()
    assert colored(legend({"person": COLORS[0]}, 200), COLORS[0]) > 50
