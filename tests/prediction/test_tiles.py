"""Tiles cover an image, and what was found in several of them is found once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.prediction.tiles import merge, tile_image


@given(*[st.integers(1, 2000)] * 2, *[st.integers(64, 2000)] * 2, st.floats(0, 0.8))
@settings(max_examples=200, deadline=None)
def test_tiles_have_one_size_and_cover_the_image_with_the_wished_overlap(height, width, tall, wide, overlap):
    tiles = tile_image(height, width, (tall, wide), overlap)
    for axis, length, side in ((0, width, wide), (1, height, tall)):
        starts, ends = np.unique(tiles[:, axis]), np.unique(tiles[:, axis + 2])
        assert set(ends - starts) == {min(length, side)}
        assert (starts[0], ends[-1]) == (0, length)
        assert (ends[:-1] - starts[1:] >= int(overlap * min(length, side)) - 1).all()


def test_an_image_not_larger_than_a_tile_is_the_one_tile():
    assert tile_image(960, 1536, (960, 1536), 0.2).tolist() == [[0, 0, 1536, 960]]
    assert len(tile_image(3000, 4000, (960, 1536), 0.2)) == 16


def look(boxes, labels, scores, views, rng, share=0.4):
    """What a detector with eyes of one pixel finds in each view: the part of each box that lies in it, if enough."""
    view, found, kind, score, source = [], [], [], [], []
    for number, (x0, y0, x1, y1) in enumerate(views):
        for row, (label, sure, box) in enumerate(zip(labels, scores, boxes, strict=True)):
            part = np.clip(box, [x0, y0, x0, y0], [x1, y1, x1, y1])
            if (part[2:] - part[:2]).clip(0).prod() < share * (box[2:] - box[:2]).prod():
                continue
            view.append(number)
            found.append(np.clip(part + rng.normal(0, 0.4, 4), [x0, y0, x0, y0], [x1, y1, x1, y1]))
            kind.append(label)
            score.append(sure - rng.uniform(0, 0.05))
            source.append(row)
    return np.array(view), np.array(found, np.float32), np.array(score), np.array(kind), np.array(source)


@pytest.mark.parametrize("seed", range(6))
def test_a_dense_crowd_in_tiles_is_found_once_each(seed):
    """100 people and their heads, many of whom overlap by more than half, and none larger than the overlap."""
    rng = np.random.default_rng(seed)
    size = rng.uniform([25, 60], [60, 110], (100, 2))
    corner = rng.uniform(0, np.array([1000, 700]) - size)
    corner[50:] = np.minimum(
        corner[:50] + size[:50] * rng.uniform(0.15, 0.3, (50, 2)), np.array([1000, 700]) - size[50:]
    )
    people = np.hstack([corner, corner + size])
    heads = np.hstack([corner + size * [0.3, 0], corner + size * [0.7, 0.2]])
    boxes, labels = np.concatenate([people, heads]), np.repeat([0, 1], 100)
    views = tile_image(700, 1000, (400, 400), 0.3)
    view, *found, source = look(boxes, labels, rng.uniform(0.5, 1, 200), views, rng)
    kept = merge(views, view, *found)
    assert sorted(source[kept]) == list(range(200))
    for row in kept:  # and of each, the box that no border cuts
        assert np.abs(found[0][row] - boxes[source[row]]).max() < 3


def test_what_is_larger_than_a_tile_is_taken_from_the_complete_image():
    views = np.concatenate([[(0, 0, 1000, 700)], tile_image(700, 1000, (400, 400), 0.2)])
    box = np.array([[100.0, 50, 900, 650]])
    view, *found, _ = look(box, [0], [0.9], views, np.random.default_rng(0), share=0.05)
    assert len(view) > 4
    kept = merge(views, view, *found)
    assert len(kept) == 1
    assert view[kept[0]] == 0


def test_two_boxes_of_one_view_are_never_merged():
    """A detector gives no box twice; two people who hug have an IoU of 0.8."""
    boxes = np.array([[10, 10, 50, 100], [14, 10, 54, 100]], np.float32)
    kept = merge(np.array([[0, 0, 100, 100], [50, 0, 150, 100]]), np.zeros(2, int), boxes, np.array([0.6, 0.9]),
                 np.zeros(2, int))  # fmt: skip
    assert kept.tolist() == [1, 0]


def test_a_head_that_fills_its_persons_box_stays():
    boxes = np.array([[60, 10, 90, 50], [60, 10, 90, 50]], np.float32)
    views = np.array([[0, 0, 100, 100], [50, 0, 150, 100]])
    assert len(merge(views, np.array([0, 1]), boxes, np.array([0.6, 0.9]), np.array([0, 1]))) == 2
    assert len(merge(views, np.array([0, 1]), boxes, np.array([0.6, 0.9]), np.array([1, 1]))) == 1


def test_a_box_at_the_images_own_border_is_not_cut():
    views = np.array([[0, 0, 100, 100], [80, 0, 180, 100]])
    boxes = np.array([[0, 0, 30, 100], [0, 20, 29, 60]], np.float32)  # a child before its parent, at the left border
    assert len(merge(views, np.array([0, 0]), boxes, np.array([0.9, 0.8]), np.zeros(2, int))) == 2


def test_nothing_found_is_nothing_merged():
    assert len(merge(np.array([[0, 0, 9, 9]]), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))) == 0
