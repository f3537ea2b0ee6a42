"""All boxes in flat arrays, and a border that refuses what would silently train wrong."""

import numpy as np
import packed
import pyarrow.parquet as pq
import pytest

from recipe.data import annotations
from recipe.data.annotations import describe, read, summary
from recipe.data.geometry import Geometry
from recipe.schema import UserError


def read_rows(folder, rows, shards=1):
    packed.write(folder, rows, shards=shards)
    return read([str(path) for path in sorted((folder / "data").glob("*"))], "train of X")


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
    assert len(found.first(4).boxes_xywh) == 12
    assert found.first(99).counts.tolist() == found.counts.tolist()


def test_the_whole_training_set_takes_less_than_150_mb(tmp_path):
    """Plain NumPy arrays hold no Python objects, so that forked workers share them; as dicts they take 2 GB."""
    found = read_rows(tmp_path, packed.crowd(3))
    arrays = vars(found).values()
    assert all(type(array) is np.ndarray and array.dtype != object for array in arrays)
    per_box = sum(getattr(found, name).nbytes for name in ("boxes_xywh", "labels", "area", "iscrowd")) / 12
    per_image = sum(getattr(found, name).nbytes for name in ("image_id", "width", "height")) / 3 + 8
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
        ([5, 5, 10, 10], 2, r"class id \[2\] \(allowed: 0 person, 1 head\)"),
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
    with pytest.raises(UserError, match="image_id 0, 1, 2, 3, 4 and 4 more"):
        read_rows(tmp_path, rows)


def test_repeated_ids_unequal_lists_no_size_and_no_images_are_refused(tmp_path):
    twice = [packed.row(5, 20, 20, data=b"-"), packed.row(5, 20, 20, data=b"-")]
    with pytest.raises(UserError, match="image_id 5 stands there more than once"):
        read_rows(tmp_path / "twice", twice)
    unequal = packed.row(6, 20, 20, [[1, 1, 5, 5]], data=b"-")
    unequal["objects"]["area"] = [25.0, 3.0]
    with pytest.raises(UserError, match=r"image_id 6 .*objects\.area"):
        read_rows(tmp_path / "unequal", [unequal])
    with pytest.raises(UserError, match="image_id 7 has a width or height below 1"):
        read_rows(tmp_path / "flat", [packed.row(7, 0, 20, data=b"-")])
    with pytest.raises(UserError, match="holds no images"):
        read_rows(tmp_path / "none", [])


def test_the_summary_counts_what_the_queries_cannot_hold_and_says_it(tmp_path):
    box = [1, 1, 5, 5]
    rows = [packed.row(number, 100, 160, [box] * count, data=b"-") for number, count in enumerate([2, 5, 9])]
    found = summary(read_rows(tmp_path, rows), Geometry(), num_queries=4)
    assert (found["images"], found["boxes"], found["max_boxes"]) == (3, 16, 9)
    assert (found["images_beyond_queries"], found["boxes_beyond_queries"]) == (2, 6)
    assert found["share_beyond_queries"] == 6 / 16
    assert "2 images hold more boxes than the 4 queries: 6 boxes (37.50% of all) cannot be learned" in describe(
        found, "train", 4
    )
    assert "queries" not in describe(summary(read_rows(tmp_path, rows), Geometry(), 9), "train", 9)


def test_a_class_without_any_box_in_train_is_told(tmp_path):
    rows = [packed.row(1, 100, 160, [[1, 1, 5, 5]] * 3, [0, 0, 1])]
    rows[0]["objects"]["iscrowd"] = [0, 0, 1]
    found = summary(read_rows(tmp_path, rows), Geometry(), 300)
    assert describe(found, "train", 300).endswith(" No head box: this class cannot be learned.")
    assert "No person box" not in describe(found, "train", 300)
    assert "learned" not in describe(found, "validation", 300)


def test_crowd_regions_are_no_people(tmp_path):
    rows = packed.crowd(3)
    rows[1]["objects"]["iscrowd"] = [0, 1, 0, 1]
    found = read_rows(tmp_path, rows)
    people = found.people()
    assert people.counts.tolist() == [4, 2, 4]
    np.testing.assert_array_equal(people.boxes_xywh[people.rows(1)], found.boxes_xywh[4:8:2])
    np.testing.assert_array_equal(people.labels[people.rows(2)], found.labels[8:])
    assert found.first(1).people().boxes_xywh.base is found.boxes_xywh  # nothing is copied where there are none
    assert summary(found, Geometry(), num_queries=4)["boxes"] == 10


def test_the_padded_share_is_that_of_the_canvas(tmp_path):
    rows = [
        packed.row(1, 960, 1536, data=b"-"),
        packed.row(2, 1536, 768, data=b"-"),
        packed.row(3, 400, 400, data=b"-"),
    ]
    found = summary(read_rows(tmp_path, rows), Geometry(), 300)
    expected = [0.0, 1 - 768 / 960, 1 - 960 / 1536]
    assert found["padding"] == pytest.approx(np.mean(expected))


def test_the_image_column_is_not_read_with_the_boxes(tmp_path, monkeypatch):
    """19 GB of photographs would pass through memory at every start."""
    asked = []
    original = pq.ParquetFile.iter_batches

    def iter_batches(self, size, columns):
        asked.extend(columns)
        return original(self, size, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    read_rows(tmp_path, packed.crowd(2))
    assert asked
    assert "image" not in asked


def test_images_read_in_several_portions_are_joined_in_order(tmp_path, monkeypatch):
    rows = packed.crowd(9)
    whole = read_rows(tmp_path / "whole", rows)
    monkeypatch.setattr(annotations, "_IMAGES_AT_A_TIME", 2)
    portions = read_rows(tmp_path / "portions", rows, shards=2)
    for name, array in vars(whole).items():
        np.testing.assert_array_equal(getattr(portions, name), array)
        assert getattr(portions, name).dtype == array.dtype
