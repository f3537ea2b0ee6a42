"""All boxes in flat arrays, and a border that refuses what would silently train wrong."""

import numpy as np
import packed
import pyarrow.parquet as pq
import pytest

from recipe.data.annotations import read_annotations, split_statistics, statistics_in_words
from recipe.data.geometry import Geometry
from recipe.schema import UserError


@pytest.fixture(autouse=True, params=[2, 4096])
def images_at_once(request, monkeypatch):
    """Every test reads its few images in one piece, and in several."""
    monkeypatch.setattr("recipe.data.annotations.IMAGES_AT_ONCE", request.param)


def read_rows(folder, rows, shards=1, only=None):
    packed.write(folder, rows, shards=shards)
    return read_annotations([str(path) for path in sorted((folder / "data").glob("*"))], "train of X", only)


def test_the_arrays_hold_every_row_of_every_shard_in_order(tmp_path):
    rows = packed.crowd(7)
    rows[3]["objects"] = packed.row(3, 10, 10, data=b"-")["objects"]  # an image without boxes
    found = read_rows(tmp_path, rows, shards=2)
    assert len(found) == 7
    for index, expected in enumerate(rows):
        objects, place = expected["objects"], found.rows(index)
        np.testing.assert_allclose(found.boxes_xywh[place], np.reshape(objects["bbox"], (-1, 4)), rtol=1e-6)
        np.testing.assert_array_equal(found.labels[place], objects["category"])
        np.testing.assert_allclose(found.area[place], objects["area"], rtol=1e-6)
        assert found.image_id[index] == expected["image_id"]
        assert (found.height[index], found.width[index]) == (expected["height"], expected["width"])
    assert found.counts.tolist() == [4, 4, 4, 0, 4, 4, 4]
    assert found.labelled.all()


def test_selected_images_keep_their_own_boxes(tmp_path):
    rows = packed.crowd(5)
    rows[3]["objects"] = packed.row(3, 10, 10, data=b"-")["objects"]
    found = read_rows(tmp_path, rows, shards=2)
    chosen = read_rows(tmp_path, rows, shards=2, only=np.array([1, 3, 4]))
    assert chosen.image_id.tolist() == [1, 3, 4]
    assert chosen.counts.tolist() == [4, 0, 4]
    for name in ("boxes_xywh", "labels", "area", "iscrowd"):
        expected = np.concatenate([getattr(found, name)[found.rows(row)] for row in (1, 3, 4)])
        np.testing.assert_array_equal(getattr(chosen, name), expected)


def test_the_classes_that_were_annotated_are_read_where_they_are_told(tmp_path):
    """Without the column every class was; a row without a list says nothing, an empty list says none."""
    rows = packed.crowd(4)
    for row, labelled in zip(rows, ([0], [1, 0], None, []), strict=True):
        row["labelled"] = labelled
    found = read_rows(tmp_path, rows, shards=2)
    assert found.labelled.tolist() == [[True, False], [True, True], [True, True], [False, False]]
    assert read_rows(tmp_path, rows, shards=2, only=np.array([3])).labelled.tolist() == [[False, False]]
    assert found.targets(0)["labelled"].tolist() == [True, False]


def test_the_whole_training_set_takes_less_than_150_mb(tmp_path):
    """Plain NumPy arrays hold no Python objects, so that forked workers share them; as dicts they take 2 GB."""
    found = read_rows(tmp_path, packed.crowd(3))
    arrays = vars(found).values()
    assert all(type(array) is np.ndarray and array.dtype != object for array in arrays)
    per_box = sum(getattr(found, name).nbytes for name in ("boxes_xywh", "labels", "area", "iscrowd")) / 12
    per_image = sum(getattr(found, name).nbytes for name in ("image_id", "width", "height", "labelled")) / 3 + 8
    assert 55_442 * (85 * per_box + per_image) < 150e6


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([5, 5, 0, 10], 0, "zero, negative or NaN size"),
        ([5, 5, 10, -1], 0, "zero, negative or NaN size"),
        ([5, 5, float("nan"), 10], 0, "zero, negative or NaN size"),
        ([float("nan"), 5, 10, 10], 0, "outside the image"),
        ([5, 5, float("inf"), 10], 0, "outside the image"),
        ([175, 5, 10, 10], 0, "outside the image"),
        ([-3, 5, 10, 10], 0, "outside the image"),
        ([5, 5, 10, 10], 2, r"class id \[2\] \(allowed: {0: 'person', 1: 'head'}\)"),
        ([5, 5, 10, 10], -1, r"class id \[-1\]"),
    ],
)
def test_a_bad_box_or_class_is_refused_with_its_image_id(tmp_path, box, label, message):
    """DETR takes class 2 for no-object without a word, and 3 for an IndexError hours later."""
    rows = [*packed.crowd(4), packed.row(77, 120, 180, [[1, 1, 9, 9], box], [0, label], data=b"-")]
    with pytest.raises(UserError, match=f"image_id 77 .*{message}.*data_prep pack"):
        read_rows(tmp_path, rows)


def test_a_box_a_hair_over_the_border_is_float_rounding_and_welcome(tmp_path):
    assert len(read_rows(tmp_path, [packed.row(1, 120, 180, [[170, 5, 10.5, 10]], data=b"-")])) == 1


def test_many_bad_images_are_counted_and_the_first_named(tmp_path):
    rows = [packed.row(number, 20, 20, [[5, 5, 0, 1]], data=b"-") for number in range(9)]
    with pytest.raises(UserError, match=r"image_id 0, 1(, 2, 3, 4 and 4 more)? has"):
        read_rows(tmp_path, rows)


def test_repeated_ids_unequal_lists_no_size_and_no_images_are_refused(tmp_path):
    twice = [packed.row(5, 20, 20, data=b"-"), packed.row(5, 20, 20, data=b"-")]
    with pytest.raises(UserError, match="image_id 5 stands there more than once"):
        read_rows(tmp_path / "twice", twice)
    unequal = packed.row(6, 20, 20, [[1, 1, 5, 5]], data=b"-")
    unequal["objects"]["area"] = [25.0, 3.0]
    with pytest.raises(UserError, match=r"image_id 6 has lists of unequal length"):
        read_rows(tmp_path / "unequal", [unequal])
    with pytest.raises(UserError, match="image_id 7 has a width or height below 1"):
        read_rows(tmp_path / "flat", [packed.row(7, 0, 20, data=b"-")])
    with pytest.raises(UserError, match="holds no images"):
        read_rows(tmp_path / "none", [])


def test_the_statistics_count_what_the_queries_cannot_hold_and_says_it(tmp_path):
    box = [1, 1, 5, 5]
    rows = [packed.row(number, 100, 160, [box] * count, data=b"-") for number, count in enumerate([2, 5, 9])]
    found = split_statistics(read_rows(tmp_path, rows), Geometry(), num_queries=4)
    assert (found["images"], found["boxes"], found["max_boxes"]) == (3, 16, 9)
    assert (found["images_beyond_queries"], found["boxes_beyond_queries"]) == (2, 6)
    said = statistics_in_words(found, "train", 4)
    assert "2 images beyond queries, 6 boxes beyond queries. 37.50% of the boxes cannot be learned" in said
    assert "raise --num_queries 4" in said
    enough = split_statistics(read_rows(tmp_path, rows), Geometry(), 9)
    assert "--num_queries" not in statistics_in_words(enough, "train", 9)


def test_a_class_without_any_box_in_train_is_told(tmp_path):
    rows = [packed.row(1, 100, 160, [[1, 1, 5, 5]] * 3, [0, 0, 1])]
    rows[0]["objects"]["iscrowd"] = [0, 0, 1]
    found = split_statistics(read_rows(tmp_path, rows), Geometry(), 300)
    assert statistics_in_words(found, "train", 300).endswith(". No head box: this class cannot be learned")
    assert "No person box" not in statistics_in_words(found, "train", 300)
    assert "learned" not in statistics_in_words(found, "validation", 300)


def test_crowd_regions_are_no_people(tmp_path):
    rows = packed.crowd(3)
    rows[1]["objects"]["iscrowd"] = [0, 1, 0, 1]
    found = read_rows(tmp_path, rows)
    people = found.people()
    assert people.counts.tolist() == [4, 2, 4]
    np.testing.assert_array_equal(people.boxes_xywh[people.rows(1)], found.boxes_xywh[4:8:2])
    np.testing.assert_array_equal(people.labels[people.rows(2)], found.labels[8:])
    one = read_rows(tmp_path, rows, only=np.array([0]))
    assert one.people() is one  # nothing is copied where there are none
    assert split_statistics(found, Geometry(), num_queries=4)["boxes"] == 10


def test_the_statistics_count_the_different_sizes_that_images_are_resized_to(tmp_path):
    """Batches hold images of one size: many sizes on a small set make small batches."""
    shapes = [(960, 1536), (1920, 3072), (1536, 960), (400, 400)]
    found = read_rows(tmp_path, [packed.row(number, *shape, data=b"-") for number, shape in enumerate(shapes)])
    assert found.sizes(Geometry()).tolist() == [[960, 1536], [960, 1536], [1536, 960], [960, 960]]
    statistics = split_statistics(found, Geometry(), 300)
    assert (statistics["sizes"], statistics["portrait_images"]) == (3, 1)
    assert "4 images, 1 portrait images, 3 sizes" in statistics_in_words(statistics, "train", 300)


def test_the_image_column_is_not_read_with_the_boxes(tmp_path, monkeypatch):
    """19 GB of photographs would pass through memory at every start."""
    asked = []
    original = pq.ParquetFile.iter_batches

    def read(file, images, columns):
        asked.extend(columns)
        return original(file, images, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", read)
    read_rows(tmp_path, packed.crowd(2))
    assert asked
    assert not any(name.startswith("image.") or name == "image" for name in asked)
