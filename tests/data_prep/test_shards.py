"""Packing: columns, conservation, the same bytes always, interruptions, and what is refused (data_prep.shards)."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yolo_folder import picture, write_folder

from data_prep import example, parquet
from data_prep.shards import pack
from recipe.schema import UserError, check_dataset, features

GOOD = "0 0.5 0.5 0.2 0.2\n1 0.5 0.45 0.1 0.1\n"


def crowd(images: int, **more: tuple[bytes, str | None]) -> dict[str, tuple[bytes, str | None]]:
    return {f"{i:03d}.jpg": (picture(seed=i), GOOD) for i in range(images)} | more


def hashes(out: Path) -> dict[str, str]:
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and ".pack" not in path.parts]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(out: Path, split: str = "train") -> list[dict]:
    return [row for path in sorted(out.glob(f"data/{split}-*")) for row in pq.read_table(path).to_pylist()]


def problems_of(out: Path) -> list[dict]:
    with (out / "problems.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_load_dataset_reads_splits_columns_classes_and_the_untouched_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = picture(orientation=6)
    write_folder(tmp_path / "in", {"a.jpg": (data, "1 0.5 0.5 0.5 0.25\n"), "b.jpg": (picture(), None)})
    pack(tmp_path / "in", tmp_path / "out")
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: split.num_rows for name, split in found.items()} == {"train": 2, "validation": 1}
    check_dataset(found["train"].features, "out")
    assert found["train"].features == features()
    row = found["train"].cast_column("image", datasets.Image(decode=False))[0]
    assert row["image"] == {"bytes": data, "path": "a.jpg"}
    assert (row["width"], row["height"]) == (48, 64)
    assert row["objects"]["bbox"] == [[12.0, 24.0, 24.0, 16.0]]
    assert row["objects"]["area"] == [24.0 * 16.0]
    assert found["train"].features["objects"]["category"].feature.int2str(row["objects"]["category"]) == ["head"]
    assert found["train"][1]["objects"] == {"id": [], "bbox": [], "area": [], "category": [], "iscrowd": []}


def test_ids_are_unique_over_both_splits_and_start_at_one_for_boxes(tmp_path):
    """pycocotools takes an annotation with id 0 for unmatched."""
    write_folder(tmp_path / "in", crowd(3))
    pack(tmp_path / "in", tmp_path / "out")
    rows = rows_of(tmp_path / "out") + rows_of(tmp_path / "out", "validation")
    assert [row["image_id"] for row in rows] == [0, 1, 2, 3]
    ids = [number for row in rows for number in row["objects"]["id"]]
    assert len(set(ids)) == len(ids) == 7
    assert min(ids) == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 1), *[st.floats(-0.2, 1.2, allow_subnormal=False)] * 2, *[st.floats(0, 1.5)] * 2),
        max_size=12,
    )
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_packed_box_and_its_yolo_line_agree_within_a_hundredth_of_a_pixel(tmp_path_factory, lines):
    root = tmp_path_factory.mktemp("agree")
    width, height = 1920, 1080
    text = "".join(" ".join(map(repr, line)) + "\n" for line in lines)
    write_folder(root / "in", {"a.jpg": (FULL_HD, text)})
    manifest = pack(root / "in", root / "out", workers=1)
    (row,) = rows_of(root / "out")
    expected = []
    for category, cx, cy, w, h in dict.fromkeys(lines):
        x1, x2 = np.clip([(cx - w / 2) * width, (cx + w / 2) * width], 0, width)
        y1, y2 = np.clip([(cy - h / 2) * height, (cy + h / 2) * height], 0, height)
        if min(x2 - x1, y2 - y1) > 0.01:
            expected.append((category, x1, y1, x2 - x1, y2 - y1))
    packed = row["objects"]
    found = [(c, *box) for c, box in zip(packed["category"], packed["bbox"], strict=True)]
    np.testing.assert_allclose(np.reshape(found, (-1, 5)), np.reshape(expected, (-1, 5)), atol=0.01)
    train = manifest["splits"]["train"]
    assert train["boxes_in"] == len(lines) == train["boxes"] + train["boxes_dropped"]


FULL_HD = picture(1920, 1080)


def test_shards_are_the_same_bytes_for_any_number_of_workers(tmp_path):
    write_folder(tmp_path / "in", crowd(40))
    found = []
    for workers in (1, 2, 3):
        pack(tmp_path / "in", tmp_path / f"out{workers}", workers=workers, shard_size=20_000)
        found.append(hashes(tmp_path / f"out{workers}"))
    assert found[0] == found[1] == found[2]
    assert len([name for name in found[0] if name.startswith("data/train")]) > 3


def test_what_went_in_came_out_or_is_listed(tmp_path):
    bad = {
        "cut.jpg": (picture()[:800], GOOD),
        "over.jpg": (picture(), "0 0.95 0.5 0.2 0.2\n0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1\nnonsense\n0 2 2 0.1 0.1\n"),
    }
    write_folder(tmp_path / "in", crowd(2, **bad))
    (tmp_path / "in/labels/train/gone.txt").write_text(GOOD)
    manifest = pack(tmp_path / "in", tmp_path / "out", on_bad="skip", shard_size=5000)
    train = manifest["splits"]["train"]
    assert (train["images_in"], train["images"], train["images_left_out"]) == (4, 3, 1)
    assert train["boxes_dropped"] == 7
    assert train["boxes_in"] == 13 == train["boxes"] + 7
    assert sum(len(row["objects"]["id"]) for row in rows_of(tmp_path / "out")) == train["boxes"] == 6
    listed = [(row["file"], row["line"], row["rule"], row["action"]) for row in problems_of(tmp_path / "out")]
    assert listed == [
        ("labels/train/gone.txt", "0", "label_without_image", "ignored"),
        ("images/train/cut.jpg", "0", "unreadable_image", "left out"),
        ("labels/train/over.txt", "1", "over_border", "clipped"),
        ("labels/train/over.txt", "3", "duplicate", "dropped"),
        ("labels/train/over.txt", "4", "malformed", "left out"),
        ("labels/train/over.txt", "5", "outside", "dropped"),
    ]
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest


def test_a_box_lost_on_the_way_is_noticed(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", crowd(3))
    honest = example.read_labels

    def forgetful(*args, **options):
        labels = honest(*args, **options)
        return labels._replace(
            bbox_xywh=labels.bbox_xywh[1:], category=labels.category[1:], iscrowd=labels.iscrowd[1:]
        )

    monkeypatch.setattr(example, "read_labels", forgetful)
    with pytest.raises(RuntimeError, match="boxes were lost in train"):
        pack(tmp_path / "in", tmp_path / "out")


def test_bad_input_fails_with_every_problem_and_nothing_is_written(tmp_path):
    bad = {f"bad{i:02d}.jpg": (picture(), f"{GOOD}9 0.5 0.5 0.1 0.1\n") for i in range(40)}
    write_folder(tmp_path / "in", crowd(3, **bad, cut=(b"", None)) | {"cut.jpg": (picture()[:900], GOOD)})
    with pytest.raises(UserError) as error:
        pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    message = str(error.value)
    assert "41 lines or images" in message
    assert "labels/train/bad00.txt:3" in message
    assert "11 more" in message
    assert "inspect" in message
    assert not (tmp_path / "out").exists()


def test_a_refused_update_leaves_the_packed_dataset_as_it_was(tmp_path):
    write_folder(tmp_path / "in", crowd(3))
    pack(tmp_path / "in", tmp_path / "out")
    before = hashes(tmp_path / "out")
    (tmp_path / "in/labels/train/000.txt").write_text("nonsense")
    with pytest.raises(UserError):
        pack(tmp_path / "in", tmp_path / "out")
    assert hashes(tmp_path / "out") == before


SLOW = """
import pathlib, sys, time
from data_prep import parquet
from data_prep.__main__ import main
read = parquet.read_example
def slowly(folder, entry):
    if entry.name.startswith("slow"):
        pathlib.Path(sys.argv[3]).touch()
        time.sleep(60)
    return read(folder, entry)
parquet.read_example = slowly
sys.exit(main(["pack", sys.argv[1], "--out", sys.argv[2], "--workers", "2"]))
"""


@pytest.fixture
def slow_pack(tmp_path):
    """`pack` in a process group of its own: one worker sleeps over an image, the other has nothing left to do."""
    write_folder(tmp_path / "in", crowd(9, **{"slow.jpg": (picture(), GOOD)}))
    # a test suite that was started in the background ignores SIGINT, and so would its children
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler){SLOW}"
    command = [sys.executable, "-c", code, *map(str, (tmp_path / "in", tmp_path / "out", tmp_path / "asleep"))]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        wait_for((tmp_path / "asleep").exists)
        yield process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_after_a_kill_no_process_goes_on_and_the_same_command_ends_with_the_same_bytes(tmp_path, slow_pack):
    slow_pack.send_signal(signal.SIGKILL)
    slow_pack.wait()
    wait_for(lambda: group_is_gone(slow_pack.pid))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".pack"]
    pack(tmp_path / "in", tmp_path / "out")
    pack(tmp_path / "in", tmp_path / "fresh")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")
    assert not (tmp_path / "out/.pack").exists()


def test_after_ctrl_c_no_process_goes_on_and_nothing_is_left(tmp_path, slow_pack):
    os.killpg(slow_pack.pid, signal.SIGINT)  # as a terminal does it
    errors = slow_pack.communicate(timeout=30)[1]
    assert slow_pack.returncode == 130
    lines = [line for line in errors.splitlines() if not line.startswith("read: ")]
    assert lines == ["interrupted; run the same command again"]
    assert group_is_gone(slow_pack.pid)
    assert not (tmp_path / "out").exists()


def test_a_pack_that_was_cut_off_while_it_moved_its_files_is_begun_again(tmp_path, monkeypatch):
    """The manifest comes last: without it OUT is incomplete, and still ours."""
    write_folder(tmp_path / "in", crowd(3))
    pack(tmp_path / "in", tmp_path / "fresh")
    move = Path.replace

    def cut_off(self, target):
        if target.name == "problems.csv":
            raise KeyboardInterrupt
        return move(self, target)

    monkeypatch.setattr(Path, "replace", cut_off)
    for before in range(2):
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path / "in", tmp_path / "out")
        assert not (tmp_path / "out/manifest.json").exists(), before
    monkeypatch.undo()
    pack(tmp_path / "in", tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")
    assert not (tmp_path / "out/.pack").exists()


def test_two_packs_into_one_folder_are_kept_apart(tmp_path, slow_pack):
    write_folder(tmp_path / "other", crowd(2))
    with pytest.raises(UserError, match="another pack"):
        pack(tmp_path / "other", tmp_path / "out")
    assert (tmp_path / "out/.pack/new/data").is_dir()


def test_a_killed_worker_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", crowd(3))
    monkeypatch.setattr(parquet, "read_example", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"killed \(out of memory\?\).*fewer --workers"):
        pack(tmp_path / "in", tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_progress_is_told_and_fills_no_log(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "in", crowd(29))
    pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    assert capsys.readouterr().err == "read: 30 of 30 images\n"
    monkeypatch.setattr(parquet, "PAUSE", 0.0)
    pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 3
    assert lines[-1] == "read: 30 of 30 images"


def test_other_shard_sizes_leave_no_shard_of_before(tmp_path):
    write_folder(tmp_path / "in", crowd(30))
    pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    pack(tmp_path / "in", tmp_path / "out")
    pack(tmp_path / "in", tmp_path / "fresh")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")


def test_something_else_in_the_way_is_not_overwritten(tmp_path):
    write_folder(tmp_path / "in", crowd(2))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/data").write_text("kept")
    for out in ("kept", "in"):
        before = hashes(tmp_path / out)
        with pytest.raises(UserError, match="another --out"):
            pack(tmp_path / "in", tmp_path / out)
        assert hashes(tmp_path / out) == before


def test_row_groups_are_small_and_have_a_page_index(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_ROWS", 10)
    write_folder(tmp_path / "in", crowd(25))
    pack(tmp_path / "in", tmp_path / "out")
    (shard,) = (tmp_path / "out/data").glob("train-*")
    with pq.ParquetFile(shard) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        assert [group.num_rows for group in groups] == [10, 10, 5]
        assert all(group.column(0).has_offset_index for group in groups)


def test_a_split_whose_images_are_all_left_out_is_refused(tmp_path):
    write_folder(tmp_path / "in", crowd(2), {"v.jpg": (b"", None)})
    with pytest.raises(UserError, match="every image of the validation split"):
        pack(tmp_path / "in", tmp_path / "out", on_bad="skip")
    assert not (tmp_path / "out").exists()
