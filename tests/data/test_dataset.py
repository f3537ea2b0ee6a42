"""Splits and their items: what is read, what is refused, and boxes that the stock processor turns back."""

import os
import runpy
import types
from pathlib import Path

import datasets
import numpy as np
import packed
import pyarrow.parquet as pq
import pytest
import torch
from transformers import YolosImageProcessor
from transformers.image_transforms import center_to_corners_format
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from recipe.config import Config
from recipe.data.augment import build_augmentation
from recipe.data.dataset import CrowdDataset, load_split
from recipe.data.geometry import Geometry
from recipe.schema import UserError

RULE = Geometry(64, 96)


def dataset_of(folder, rows, geometry=RULE, **options):
    source, annotations, _ = load_split(str(packed.write(folder, rows)), "train")
    return CrowdDataset(source, annotations, geometry, **options)


def test_a_split_gives_images_and_boxes_in_the_shards_order(tmp_path):
    rows = packed.crowd(7)
    folder = packed.write(tmp_path / "crowd", rows, shards=3)
    packed.write(folder, packed.crowd(2), split="validation")
    (folder / "manifest.json").write_text("{}")
    source, annotations, info = load_split(str(folder), "train")
    assert [source[index]["image"]["bytes"] for index in range(7)] == [row["image"]["bytes"] for row in rows]
    assert annotations.image_id.tolist() == list(range(7))
    assert info["revision"] is None
    assert info["manifest"].startswith("44136fa3")
    assert len(load_split(str(folder), "validation")[0]) == 2
    dataset = CrowdDataset(source, annotations, RULE)
    assert [dataset.file_name(index) for index in (0, 6)] == ["0.jpg", "6.jpg"]


def test_a_limit_samples_by_the_seed_and_keeps_the_order(tmp_path):
    """The first so many images are often all of one scene; images lie in the order of their names."""
    folder = str(packed.write(tmp_path, packed.crowd(30), shards=3))
    chosen = {}
    for seed in (1, 2):
        source, annotations, _ = load_split(folder, "train", limit=6, seed=seed)
        chosen[seed] = annotations.image_id.tolist()
        assert len(source) == len(set(chosen[seed])) == 6
        assert chosen[seed] == sorted(chosen[seed])
        names = [source[index]["image"]["path"] for index in range(6)]
        assert names == [f"{number}.jpg" for number in chosen[seed]]
        assert load_split(folder, "train", limit=6, seed=seed)[1].image_id.tolist() == chosen[seed]
        assert [number // 10 for number in chosen[seed]] == [0, 0, 1, 1, 2, 2], "each of three sources keeps its share"
    assert chosen[1] != chosen[2]
    assert len(load_split(folder, "train", limit=99)[1]) == 30


@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "use_dictionary": True, "row_group_size": 3}])
def test_photographs_are_read_from_shards_of_any_make_and_no_second_copy_is_written(tmp_path, options, monkeypatch):
    """A copy for random access would be 23 GB more on disk, and minutes before the first step."""
    rows = packed.crowd(10)
    folder = packed.write(tmp_path / "crowd", rows, shards=2)
    for path in (folder / "data").iterdir():
        pq.write_table(pq.read_table(path), path, **options)
    before = sorted(os.listdir(tmp_path)), sum(1 for _ in Path(os.environ["HF_HOME"]).rglob("*"))
    source, _, _ = load_split(str(folder), "train")
    for index in (9, 0, 5, 4, 9):
        assert source[index]["image"] == rows[index]["image"]
    assert (sorted(os.listdir(tmp_path)), sum(1 for _ in Path(os.environ["HF_HOME"]).rglob("*"))) == before


def test_a_folder_packed_anew_is_read_anew(tmp_path):
    """Bites when a copy is kept and found by the files' names alone."""
    folder = packed.write(tmp_path / "crowd", packed.crowd(3))
    load_split(str(folder), "train")
    changed = [packed.row(number, 50, 60) for number in (0, 1, 2)]
    packed.write(folder, changed)
    source, annotations, _ = load_split(str(folder), "train")
    assert source[1]["image"]["bytes"] == changed[1]["image"]["bytes"]
    assert annotations.width.tolist() == [60, 60, 60]


def test_a_hub_repo_is_downloaded_and_its_commit_is_told(tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = packed.write(tmp_path / "snapshots" / "0123abc", packed.crowd(3))
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    _, annotations, info = load_split("someone/crowd", "train", revision="v1")
    assert len(annotations) == 3
    assert info["revision"] == "0123abc"
    assert asked["repo_id"] == "someone/crowd"
    assert asked["revision"] == "v1"
    assert "data/train-*.parquet" in asked["allow_patterns"]
    assert not any("validation" in pattern for pattern in asked["allow_patterns"])


def test_a_folder_that_lacks_shards_is_refused_with_their_names(tmp_path, monkeypatch):
    """Copied or downloaded in part, it would train on part of the images without a word."""
    import huggingface_hub

    folder = packed.write(tmp_path / "crowd", packed.crowd(8), shards=4)
    assert len(load_split(str(folder), "train")[1]) == 8
    for path in sorted((folder / "data").iterdir())[2:]:
        path.unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(folder))
    for name in (str(folder), "someone/crowd"):
        said = rf"{name} holds 2 of 4 shards of train \(missing: train-00002, train-00003; splits: train\)"
        with pytest.raises(UserError, match=rf"{said}.*hf download .*data_prep pack"):
            load_split(name, "train")


@pytest.mark.parametrize("names", [["train-a.parquet", "train-b.parquet"], ["train-00000-of-00001-0a1b2c.parquet"]])
def test_a_dataset_of_others_with_other_names_is_read(tmp_path, names):
    folder = packed.write(tmp_path / "crowd", packed.crowd(4), shards=len(names))
    for path, name in zip(sorted((folder / "data").iterdir()), names, strict=True):
        path.rename(folder / "data" / name)
    assert len(load_split(str(folder), "train")[1]) == 4


def damage_footer(data):
    return data[: len(data) // 2]


def damage_pointer(data):
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def damage_boxes(data):
    return data[: len(data) - 20_000] + bytes(10_000) + data[-10_000:]


def damage_photographs(data):
    return data[:8] + bytes(1000) + data[1008:]


@pytest.mark.parametrize("damage", [damage_footer, damage_pointer, damage_boxes])
def test_a_damaged_shard_is_told_in_one_line(tmp_path, damage):
    folder = packed.write(tmp_path / "crowd", packed.crowd(40))
    (shard,) = (folder / "data").iterdir()
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=rf"{shard} cannot be read \(.*hf download.*data_prep pack") as error:
        load_split(str(folder), "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [damage_photographs, damage_pointer])
def test_a_shard_that_is_damaged_where_its_photographs_are_is_told_when_one_is_read(tmp_path, damage):
    """Or while the run goes: as a value, in one line, with the shard's name."""
    folder = packed.write(tmp_path / "crowd", packed.crowd(6))
    (shard,) = (folder / "data").iterdir()
    source, annotations, _ = load_split(str(folder), "train")
    shard.write_bytes(damage(shard.read_bytes()))
    dataset = CrowdDataset(source, annotations, RULE)
    assert f"{shard} cannot be read (" in dataset[0]["error"]
    assert "hf download" in dataset[0]["error"]
    shard.unlink()
    assert "No such file" in dataset[0]["error"]
    assert str(shard) in dataset[0]["error"]


def test_what_cannot_be_read_is_told_with_the_command_that_helps(tmp_path):
    (tmp_path / "yolo").mkdir()
    with pytest.raises(UserError, match=r"holds 0 of 1 shards of train .*splits: none.* not packed.*data_prep pack"):
        load_split(str(tmp_path / "yolo"), "train")
    with pytest.raises(UserError, match=r"neither a folder here .*data_prep pack.* nor a dataset"):
        load_split(str(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match="nor a dataset repo of the Hub"):
        load_split("someone/never-made", "train")  # the tests run offline
    folder = packed.write(tmp_path / "half", packed.crowd(2))
    with pytest.raises(UserError, match=r"shards of validation \(missing: validation-00000; splits: train\)"):
        load_split(str(folder), "validation")
    other = datasets.Dataset.from_dict({"image": ["x"], "boxes": [[1.0]]})
    (tmp_path / "other" / "data").mkdir(parents=True)
    other.to_parquet(tmp_path / "other" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="column 'objects' is missing"):
        load_split(str(tmp_path / "other"), "train")


def test_an_image_that_does_not_match_its_columns_or_is_broken_is_told_with_its_name(tmp_path):
    """`pack --verify header` lets them through."""
    turned = packed.row(5, 40, 60, data=packed.encoded(packed.photograph(60, 40)))
    broken = packed.row(6, 40, 60, data=b"\xff\xd8 no image")
    smaller = packed.row(7, 40, 60, data=packed.encoded(packed.photograph(20, 30)))
    dataset = dataset_of(tmp_path, [turned, broken, smaller])
    again = r"`python -m data_prep inspect YOLO_DIR`"
    for index, why in enumerate(("40x60, but its columns say 60x40", "", "30x20, but its")):
        name = rf"^{index + 5}\.jpg \(image_id {index + 5}\) is a bad image: {why}"
        with pytest.raises(UserError, match=rf"{name}.*{again}") as error:
            dataset.photograph(index)
        assert dataset[index] == {"error": str(error.value)}


SHAPES = {
    "landscape": (1080, 1920, [[100, 200, 300, 500], [1800, 1000, 120, 80], [0, 0, 8, 8]]),
    "portrait": (1920, 1080, [[100, 200, 300, 500], [1000, 1800, 80, 120]]),
    "square": (500, 500, [[10, 20, 100, 200]]),
    "tiny": (30, 40, [[3, 4, 10, 12], [30, 20, 10, 10]]),
    "huge": (4000, 6000, [[100, 200, 3000, 1500], [5990, 3990, 10, 10]]),
    "a column": (1000, 1, [[0, 100, 1, 200]]),
    "a row": (1, 1000, [[100, 0, 50, 1]]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_stock_post_processing_of_a_perfect_prediction_gives_the_original_boxes(tmp_path, shape):
    """Bites when boxes are normalised by the canvas: IoU 0.58 for 1920x1080, 0.38 for 640x480, 0 for a square."""
    height, width, boxes_xywh = SHAPES[shape]
    data = packed.encoded(np.zeros((height, width, 3), np.uint8))
    item = dataset_of(tmp_path, [packed.row(1, height, width, boxes_xywh, data=data)], Geometry())[0]
    assert item["pixels"].shape[:2] == item["size"] == Geometry().resized(height, width)
    logits = torch.full((1, len(boxes_xywh), 3), -20.0)
    logits[..., 0] = 20.0
    outputs = DetrObjectDetectionOutput(logits=logits, pred_boxes=torch.from_numpy(item["boxes"])[None])
    found = YolosImageProcessor().post_process_object_detection(outputs, target_sizes=[item["orig_size"]])[0]
    expected = center_to_corners_format(
        torch.tensor([[x + w / 2, y + h / 2, w, h] for x, y, w, h in boxes_xywh], dtype=torch.float32)
    )
    assert (iou(found["boxes"], expected) > 0.99).all()


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # xyxy [n, 4] -> [n]
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(0).prod(1)
    return inter / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter)


def augmentation(**changes):
    return build_augmentation(types.SimpleNamespace(**vars(Config(data="x")) | {"augmentation": None} | changes))


def test_labels_and_crowd_regions_stay_with_their_boxes_when_others_leave_the_frame(tmp_path):
    """Bites when labels are not dropped together with boxes: then a head's box would be a person's."""
    boxes = [[0, 0, 4, 4], [90, 60, 30, 40], [176, 116, 4, 4], [20, 70, 12, 12], [100, 10, 60, 50]]
    row = packed.row(1, 112, 176, [[min(x, 172), min(y, 108), w, h] for x, y, w, h in boxes], [0, 1, 0, 1, 0])
    row["objects"]["iscrowd"][4] = 1
    augment = augmentation(affine=1.0, translate=0.1, hflip=0.5)
    dataset = dataset_of(tmp_path, [row], Geometry(112, 176), augmentation=augment, seed=3)
    counts = set()
    for epoch in range(40):
        item = dataset[(epoch, 0)]
        counts.add(len(item["boxes"]))
        assert len(item["boxes"]) == len(item["class_labels"])
        for box, label in zip(item["boxes"], item["class_labels"], strict=True):
            assert label == (box[2] * 176 > 8)  # only the heads (label 1) are wider than 8 pixels
        assert (item["boxes"][:, :2] - item["boxes"][:, 2:] / 2 > -1e-6).all()
        assert (item["boxes"][:, :2] + item["boxes"][:, 2:] / 2 < 1 + 1e-6).all()
        assert item["ignored"][0, 2:] * [176, 112] == pytest.approx([60, 50], rel=0.25)
    assert counts >= {3, 4}


def test_a_crowd_region_is_nothing_to_learn_but_known_to_the_loss_and_the_metrics(tmp_path):
    """The stock processor drops it; trained as a person, it would teach boxes around groups."""
    row = packed.row(1, 120, 180, [[0, 0, 90, 60], [9, 9, 4, 4]], [0, 1])
    row["objects"]["iscrowd"] = [1, 0]
    dataset = dataset_of(tmp_path, [row])
    assert dataset[0]["class_labels"].tolist() == [1]
    assert dataset[0]["boxes"][0, 2:] * [180, 120] == pytest.approx([4, 4], abs=1e-4)
    assert dataset[0]["ignored"].tolist() == [[0.25, 0.25, 0.5, 0.5]]
    assert dataset.annotations.counts.tolist() == [1]
    assert dataset.annotations_with_crowds.targets(0)["iscrowd"].tolist() == [1, 0]


def test_an_item_says_which_classes_were_annotated(tmp_path):
    rows = packed.crowd(2)
    rows[0]["labelled"], rows[1]["labelled"] = [1], [0, 1]
    dataset = dataset_of(tmp_path, rows)
    assert dataset[0]["labelled"].tolist() == [False, True]
    assert dataset[1]["labelled"].tolist() == [True, True]


def test_a_pipeline_that_fails_on_one_image_is_told_as_a_value(tmp_path):
    dataset = dataset_of(tmp_path, packed.crowd(1), augmentation=augmentation(affine=1.0))
    dataset.augmentation.pipeline.transforms[1].rotate = None
    assert dataset[0]["error"].startswith("augmentation failed: ")


def test_a_box_a_hair_over_the_border_ends_at_it(tmp_path):
    """Float32 packing may leave it there; a target beyond 1 is one that a sigmoid cannot reach."""
    cx, cy, w, h = dataset_of(tmp_path, [packed.row(1, 120, 180, [[170, -0.4, 10.5, 121]])])[0]["boxes"][0]
    assert (cx + w / 2, cy - h / 2, cy + h / 2) == pytest.approx((1, 0, 1), abs=1e-6)


def test_evaluation_items_are_the_same_in_every_epoch(tmp_path):
    dataset = dataset_of(tmp_path, packed.crowd(2))
    np.testing.assert_array_equal(dataset[(0, 1)]["pixels"], dataset[(7, 1)]["pixels"])


def test_the_benchmark_of_the_loader_reads_what_a_run_reads(tmp_path, monkeypatch):
    """It died once of a column that its photographs lacked, and nobody was told."""
    loader = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "loader.py"))
    monkeypatch.setitem(loader["crowd"].__globals__, "build_augmentation", lambda _: None)
    assert loader["crowd"](tmp_path, 1)[(0, 0)]["pixels"].shape == (864, 1536, 3)
