"""The synthetic crowds: the same bytes for a seed, every special case, boxes where people are (data_prep.sample)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep.entries import Folder
from data_prep.example import Example, read_example
from data_prep.folder import open_folder
from data_prep.sample import SIZES, draw_crowd, make_sample
from recipe.schema import UserError


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    make_sample(out, 8, 8, seed=3)
    return out


def examples_of(folder: Folder, split: str) -> list[Example]:
    return [read_example(folder, entry) for entry in folder.splits[split].entries]


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_the_same_seed_draws_the_same_bytes_and_another_seed_does_not(sample, tmp_path):
    make_sample(tmp_path / "again", 8, 1, seed=3)
    assert contents(tmp_path / "again").items() <= contents(sample).items()
    make_sample(tmp_path / "other", 1, 1, seed=4)
    name = "images/train/train_00000.jpg"
    assert contents(tmp_path / "other")[name] != contents(sample)[name]


def test_every_special_case_is_in_eight_images(sample):
    folder = open_folder(sample)
    examples = examples_of(folder, "train")
    shapes = Counter(int(np.sign(example.width - example.height)) for example in examples)
    assert min(shapes[-1], shapes[0], shapes[1]) >= 1, "portrait, square, landscape"
    assert sum(example.entry.label is None for example in examples) == 1
    empty = [e for e in examples if e.entry.label and not (folder.root / e.entry.label).read_bytes()]
    assert len(empty) == 1
    assert [p.rule for e in examples for p in e.labels.problems] == ["over_border"]
    assert max(len(example.labels.category) for example in examples) > 300, "more boxes than queries"
    stored = [Image.open(folder.root / example.entry.image) for example in examples]
    turned = [(i, e) for i, e in zip(stored, examples, strict=True) if i.getexif().get(0x0112) == 6]
    ((image, example),) = turned
    assert image.size == (example.height, example.width)


def test_the_overfull_image_is_in_train_alone(sample):
    folder = open_folder(sample)
    validation = examples_of(folder, "validation")
    assert max(len(example.labels.category) for example in validation) < 300


def test_both_classes_and_tiny_far_heads_are_there(sample):
    folder = open_folder(sample)
    labels = [example.labels for example in examples_of(folder, "train")]
    category = np.concatenate([label.category for label in labels])
    boxes = np.concatenate([label.bbox_xywh for label in labels])
    people, heads = boxes[category == 0], boxes[category == 1]
    assert 0.8 * len(people) < len(heads) <= len(people)
    assert heads[:, 3].min() < 6
    assert people[:, 3].max() > 150


def test_boxes_lie_where_something_was_drawn():
    """The same street with and without its crowd differs inside the boxes and hardly outside."""
    width, height = SIZES[0]
    crowd, boxes = draw_crowd(np.random.default_rng(5), width, height, 25)
    empty, none = draw_crowd(np.random.default_rng(5), width, height, 0)
    assert len(none) == 0
    inside = np.zeros((height, width), bool)
    for _, x1, y1, x2, y2 in boxes.astype(int):
        inside[y1:y2, x1:x2] = True
    changed = np.abs(crowd.astype(int) - empty.astype(int)).mean(axis=2)
    assert inside.any()
    assert changed[inside].mean() > 2 * changed[~inside].mean()


def test_a_head_sits_on_its_person(sample):
    """Each head lies within some person's box, in the upper third: a swapped axis or a wrong scale would break it."""
    folder = open_folder(sample)
    for example in examples_of(folder, "train"):
        boxes, category = example.labels.bbox_xywh, example.labels.category
        people = boxes[category == 0]
        for x, y, w, h in boxes[category == 1]:
            fits = (
                (people[:, 0] <= x + 1)
                & (people[:, 1] <= y + 1)
                & (x + w <= people[:, 0] + people[:, 2] + 1)
                & (y + h <= people[:, 1] + people[:, 3] + 1)
            )
            assert fits.any()


def test_the_rotated_picture_stands_upright_once_it_is_turned(sample):
    """Turned the wrong way it would have the right size and upside-down people: so compare the pixels."""
    image = Image.open(sample / "images/train/train_00004.jpg")
    assert image.getexif().get(0x0112) == 6
    rng = np.random.default_rng([3, 0, 4])
    width, height = SIZES[4]
    drawn, _ = draw_crowd(rng, width, height, int(rng.integers(6, 70)))
    turned = np.asarray(ImageOps.exif_transpose(image), float)
    assert np.abs(turned - drawn).mean() < 6
    assert np.abs(turned[::-1] - drawn).mean() > 12


def test_a_folder_in_the_way_is_not_overwritten(tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(UserError, match="not empty"):
        make_sample(tmp_path, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
