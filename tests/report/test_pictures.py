"""The pictures of the training: the first evaluated images, labels beside predictions, and never a reason to stop."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import evaluated
import pytest

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
    picture = cv2.imread(str(folder / names[1]))[26:, :, ::-1].astype(int)
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
