"""Every plot of the report shows something, in the colours that its legend names."""

from __future__ import annotations

from contextlib import contextmanager

import evaluated
import numpy as np
import pytest

from recipe.report import plots
from recipe.report.draw import COLORS

CLASS_COLORS = COLORS[:2]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Dataset, metrics and details of an evaluation."""
    data = evaluated.crowd(tmp_path_factory.mktemp("packed"))
    metrics = evaluated.evaluate(data)
    return data, metrics, metrics.details()


@pytest.mark.parametrize("name", ["operating_points", "where_it_fails"])
def test_each_plot_of_the_details_is_drawn_in_its_colours(crowd, tmp_path, name):
    assert getattr(plots, name)(tmp_path / "plot.png", crowd[2])
    picture = evaluated.pixels(tmp_path / "plot.png")
    assert all(evaluated.colored(picture, color) > 50 for color in CLASS_COLORS)
    assert 300 < picture.shape[0] < 1200
    assert 800 < picture.shape[1] < 2000


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
    assert plots.learning_curves(tmp_path / "curves.png", {"run": evaluated.HISTORY[: 2 * epochs]})
    evaluated.pixels(tmp_path / "curves.png")
    loss, precision = map(lines, panels)
    assert set(loss) == {"run, training", "run, validation"}
    assert set(precision) == {"run, map"}
    for line in (*loss.values(), *precision.values()):
        assert len(line.get_xdata()) == epochs
        assert line.get_marker() != "None"
    assert len({line.get_linestyle() for line in loss.values()}) == 2


def test_a_long_run_is_drawn_by_its_averages(tmp_path, panels):
    """A run of ten epochs logs 14,000 rows: as they are, they would be one solid band."""
    losses = np.random.default_rng(0).normal(5, 1, 5000)
    rows = [{"epoch": i / 1000, "loss": loss} for i, loss in enumerate(losses.tolist())]
    plots.learning_curves(tmp_path / "curves.png", {"run": rows})
    line = lines(panels[0])["run, training"]
    assert len(line.get_xdata()) == plots.MOST_POINTS
    assert np.mean(line.get_ydata()) == pytest.approx(losses.mean())
    assert np.std(line.get_ydata()) < 0.4


def test_an_average_precision_of_zero_is_drawn_and_an_undefined_one_is_not(tmp_path, panels):
    """The pilot's detector finds nothing: its first report would show an empty panel."""
    plots.learning_curves(tmp_path / "curves.png", {"run": [{"epoch": 1, "eval_map": 0.0, "eval_map_50": -1.0}]})
    assert set(lines(panels[1])) == {"run, map"}


def test_every_panel_of_where_it_fails_names_its_axis(crowd, tmp_path, panels):
    nothing = evaluated.evaluate(crowd[0], found=0, noise=0).details()
    assert plots.where_it_fails(tmp_path / "where.png", nothing)
    assert [axes.get_xlabel().split(";")[0] for axes in panels] == ["size in pixels", "boxes per image"]


def test_a_class_without_a_hit_has_no_curves(crowd, tmp_path):
    points = {"person": {"best_f1": None}, "head": {"best_f1": None}}
    assert not plots.operating_points(tmp_path / "plot.png", crowd[2] | {"operating_points": points})


def test_without_history_there_is_no_plot(tmp_path):
    assert not plots.learning_curves(tmp_path / "curves.png", {"run": [{"train_runtime": 3.0}]})
    assert not (tmp_path / "curves.png").exists()


def test_the_curves_of_several_runs_stand_in_one_picture_by_their_names(tmp_path, panels):
    """A name with two $ is no formula: matplotlib would stop at it."""
    histories = {"first": evaluated.HISTORY, "$\\bad$": evaluated.HISTORY[:4], "without a log": []}
    assert plots.learning_curves(tmp_path / "curves.png", histories)
    evaluated.pixels(tmp_path / "curves.png")
    assert set(lines(panels[1])) == {"first, map", "\\$\\bad\\$, map"}
    assert len({line.get_color() for line in lines(panels[1]).values()}) == 2
