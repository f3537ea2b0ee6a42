"""One rule for sizes, equal to the saved processor's."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import YolosImageProcessor
from transformers.models.yolos.image_processing_yolos import get_size_with_aspect_ratio_yolos

from recipe.config import Config
from recipe.data.geometry import Geometry

sides = st.one_of(st.integers(1, 40), st.integers(1, 12_000), st.integers(1, 300_000))
rules = st.sampled_from([Geometry(960, 1536), Geometry(800, 1333), Geometry(256, 416), Geometry(65, 65)])


@given(sides, sides, rules)
@example(1000, 1, Geometry())
@example(1, 20_000, Geometry())
@example(16, 1580, Geometry())
@example(1580, 16, Geometry())
@example(1537, 300, Geometry())
@example(40, 30, Geometry())
@example(4000, 6000, Geometry())
@example(960, 1536, Geometry())
@example(800, 1333, Geometry(800, 1333))
def test_the_resized_size_is_the_saved_processors_and_16_where_that_gives_nothing(height, width, rule):
    """A size of one's own cuts pixels off at the patch embedding: AP 0.255 by `evaluate`, 0.083 by the pipeline."""
    stock = get_size_with_aspect_ratio_yolos((height, width), rule.shortest_edge, rule.longest_edge)
    assert rule.resized(height, width) == tuple(max(side, 16) for side in stock)


def test_a_large_grid_of_sizes_agrees_too():
    for height, width in np.random.default_rng(0).integers(1, 8000, (20_000, 2)).tolist():
        stock = get_size_with_aspect_ratio_yolos((height, width), 960, 1536)
        assert Geometry().resized(height, width) == tuple(max(side, 16) for side in stock)


@pytest.mark.parametrize("size", [(667, 1000), (333, 777), (777, 333), (100, 100), (16, 1580), (20, 1500)])
def test_the_processor_itself_makes_images_of_that_size(size):
    processor = YolosImageProcessor(size={"shortest_edge": 96, "longest_edge": 1536})
    pixels = processor(np.zeros((*size, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape[2:] == Geometry(96, 1536).resized(*size)


@given(sides, sides, rules)
def test_both_sides_are_patches_and_only_a_panorama_passes_the_longest_edge(height, width, rule):
    resized = rule.resized(height, width)
    assert all(side >= 16 and side % 16 == 0 for side in resized)
    assert max(resized) <= rule.longest_edge or width > 16 * height


def test_the_rule_without_arguments_is_the_recipes_default():
    config = Config(data="x")
    assert Geometry() == Geometry(config.shortest_edge, config.longest_edge)


def test_the_rule_needs_no_torch():
    """`data_prep inspect` and the launcher ask it."""
    code = "import sys, recipe.data.geometry; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
