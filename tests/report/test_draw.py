"""Boxes, their words and the pairs of pictures."""

from __future__ import annotations

import numpy as np

from recipe.report.draw import COLORS, draw_boxes, grid


def test_drawing_changes_a_copy_and_pictures_stand_in_rows_under_their_captions_and_a_legend():
    base = np.zeros((40, 60, 3), np.uint8)
    drawn = draw_boxes(base, np.array([[5.2, 5, 20, 30]]), [1])
    assert not base.any()
    assert tuple(drawn[5, 10]) == COLORS[1]
    sheet = grid([(drawn, "left"), (base[:20], "right\n2 boxes"), (base, "below")], 2, {"head": COLORS[1]})
    assert sheet.shape == (30 + 2 * (44 + 48), 2 * 68, 3)
    assert (sheet[74:114, 8:68] == drawn).all()
    assert all(sheet[30:74, half].min() < 128 for half in (slice(0, 68), slice(68, 136)))
    assert (sheet[:30] == COLORS[1]).all(axis=2).sum() > 100


def test_a_legend_wider_than_its_only_picture_goes_on_below():
    legend = {f"kind {number}": COLORS[number] for number in range(4)}
    sheet = grid([(np.zeros((40, 400, 3), np.uint8), "one")], 1, legend)
    assert all((sheet[:52] == color).all(axis=2).sum() > 100 for color in legend.values())


def words(picture, box, label):
    """How many pixels within a box are filled with its colour: the ground that its words stand on."""
    x0, y0, x1, y1 = (int(value) for value in box)
    return int((picture[y0 + 3 : y1 - 2, x0 + 3 : x1 - 2] == COLORS[label]).all(axis=2).sum())


def test_class_and_score_stand_on_boxes_that_have_room_for_them():
    base = np.zeros((200, 400, 3), np.uint8)
    boxes = np.array([[10.0, 20, 180, 180], [200, 20, 220, 50]])
    picture = draw_boxes(base, boxes, [0, 1], [0.9, 0.8])
    assert words(picture, boxes[0], 0) > 300
    assert words(picture, boxes[1], 1) == 0
    assert words(draw_boxes(base, boxes, [0, 1]), boxes[0], 0) == 0


def test_no_words_are_written_over_those_of_a_better_score():
    base = np.zeros((200, 400, 3), np.uint8)
    boxes = np.array([[10.0, 20, 180, 180], [14, 24, 184, 184]])
    picture = draw_boxes(base, boxes, [0, 1], [0.5, 0.9])
    assert words(picture, boxes[1], 1) > 100
    assert words(picture, boxes[0], 0) < 30


def test_boxes_over_the_border_and_a_third_class_s_colour_are_drawn():
    base = np.zeros((60, 90, 3), np.uint8)
    boxes = np.array([[-20.0, -10, 200, 100], [80, 50, 120, 90]])
    assert draw_boxes(base, boxes, [1, 0], np.array([0.5, 0.6], np.float32)).any()
    assert (draw_boxes(base, boxes[:1] + 25, [len(COLORS)]) == COLORS[0]).all(axis=2).any()
    assert not draw_boxes(base, np.zeros((0, 4)), [], []).any()
