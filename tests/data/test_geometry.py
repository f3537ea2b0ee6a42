"""One rule for sizes, equal to the stock processor's."""

from hypothesis import example, given
from hypothesis import strategies as st
from transformers.image_transforms import get_size_with_aspect_ratio

from recipe.config import Config
from recipe.data.geometry import Geometry, is_portrait

sides = st.one_of(st.integers(1, 40), st.integers(1, 12_000))
rules = st.sampled_from([Geometry(960, 1536), Geometry(800, 1333), Geometry(256, 416)])


@given(sides, sides, rules)
@example(1000, 1, Geometry())
@example(1, 20_000, Geometry())
@example(1537, 300, Geometry())
@example(40, 30, Geometry())
@example(4000, 6000, Geometry())
@example(960, 1536, Geometry())
@example(800, 1333, Geometry(800, 1333))
def test_the_resized_size_is_the_stock_processors_or_its_limit(height, width, rule):
    """The stock rule rounds a side to 0 (20000x1) and lets 1537x300 pass the longest edge; only there do we differ."""
    stock = get_size_with_aspect_ratio((height, width), rule.shortest_edge, rule.longest_edge)
    assert rule.resized(height, width) == tuple(min(max(side, 1), rule.longest_edge) for side in stock)


@given(sides, sides, rules)
def test_every_image_fits_its_canvas_of_whole_patches(height, width, rule):
    (h, w), (canvas_h, canvas_w) = rule.resized(height, width), rule.canvas(height, width)
    assert 1 <= h <= canvas_h
    assert 1 <= w <= canvas_w
    assert canvas_h % 16 == canvas_w % 16 == 0


def test_there_are_two_static_canvases_and_squares_lie_on_the_landscape_one():
    assert Geometry().canvas(1080, 1920) == Geometry().canvas(500, 500) == (960, 1536)
    assert Geometry().canvas(1920, 1080) == (1536, 960)
    assert Geometry(800, 1333).canvas(10, 20) == (800, 1344)
    assert is_portrait(2, 1)
    assert not is_portrait(1, 1)


def test_the_rule_without_arguments_is_the_recipes_default():
    config = Config(data="x")
    assert Geometry() == Geometry(config.shortest_edge, config.longest_edge)
