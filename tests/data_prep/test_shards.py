"""Packing: columns, conservation, the same bytes always, restart, and what is refused (data_prep.shards)."""

from __future__ import annotations

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

from data_prep import parquet, shards, yolo
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
    assert train["boxes_in"] == len(lines) == train["boxes"] + sum(train["boxes_dropped"].values())


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
    assert train["boxes_dropped"] == {
        "duplicate": 1,
        "label_without_image": 2,
        "malformed": 1,
        "outside": 1,
        "unreadable_image": 2,
    }
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
    honest = yolo.read_labels

    def forgetful(*args):
        labels = honest(*args)
        return labels._replace(bbox_xywh=labels.bbox_xywh[1:], category=labels.category[1:])

    monkeypatch.setattr(yolo, "read_labels", forgetful)
    with pytest.raises(RuntimeError, match="boxes were lost in train"):
        pack(tmp_path / "in", tmp_path / "out")


def test_bad_input_fails_with_every_problem_and_nothing_is_written(tmp_path):
    bad = {f"bad{i:02d}.jpg": (picture(), f"{GOOD}9 0.5 0.5 0.1 0.1\n") for i in range(40)}
    write_folder(tmp_path / "in", crowd(3, **bad, cut=(b"", None)) | {"cut.jpg": (picture()[:900], GOOD)})
    with pytest.raises(UserError) as error:
        pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    message = str(error.value)
    assert "41 lines or images" in message
    assert "40 class" in message
    assert "1 unreadable_image" in message
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


def test_after_a_kill_the_same_command_goes_on_and_gives_the_same_bytes(tmp_path):
    """Killed for good in the middle of a shard; the finished shards must not be written again."""
    write_folder(tmp_path / "in", crowd(60))
    pack(tmp_path / "in", tmp_path / "whole", shard_size=20_000)
    slow = (
        "import time, pathlib, sys; from data_prep import parquet, shards\n"
        "table = parquet._table\n"
        "def slowly(*args):\n    time.sleep(0.2)\n    return table(*args)\n"
        "parquet._table = slowly\n"
        "shards.pack(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), shard_size=20_000)\n"
    )
    command = [sys.executable, "-c", slow, str(tmp_path / "in"), str(tmp_path / "out")]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.getcwd()}) as process:
        work = tmp_path / "out/.pack"
        deadline = time.monotonic() + 30
        while len(list(work.glob("*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finished = {(path.stat().st_ino, path.stat().st_mtime_ns) for path in work.glob("*.parquet")}
    records = len(list(work.glob("*.json")))
    assert 2 <= records < 8
    assert not (tmp_path / "out/data").exists()
    pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    kept = {(path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "out/data").iterdir()}
    assert len(finished & kept) >= records


def test_after_ctrl_c_no_process_goes_on(tmp_path):
    """One process is in the middle of the train shard, the other has written the validation shard and is idle."""
    write_folder(tmp_path / "in", crowd(9))
    slow = (
        "import time, sys; from data_prep import parquet; from data_prep.__main__ import main\n"
        "table = parquet._table\n"
        "parquet._table = lambda rows, schema: time.sleep(60) if len(rows) > 1 else table(rows, schema)\n"
        "sys.exit(main(['pack', sys.argv[1], '--out', sys.argv[2]]))\n"
    )
    command = [sys.executable, "-c", slow, str(tmp_path / "in"), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "out/.pack/validation-00000.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    lines = [line for line in errors.splitlines() if not line.startswith("packing: ")]
    assert lines == ["interrupted; the same command goes on where it stopped"]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_after_a_killed_process_the_finished_shards_stay_and_are_taken_over(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", crowd(30))
    table = parquet._table

    def deadly(rows, schema):
        return os.kill(os.getpid(), signal.SIGKILL) if rows[0][0] >= 15 else table(rows, schema)

    monkeypatch.setattr(parquet, "_table", deadly)
    with pytest.raises(UserError, match=r"killed \(out of memory\?\).*fewer --workers"):
        pack(tmp_path / "in", tmp_path / "out", workers=1, shard_size=20_000)
    monkeypatch.undo()
    finished = {path.stat().st_ino for path in (tmp_path / "out/.pack").glob("*.parquet")}
    assert len(finished) >= 2
    pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    assert finished < {path.stat().st_ino for path in (tmp_path / "out/data").iterdir()}


def test_progress_is_told_while_a_shard_is_written(tmp_path, monkeypatch, capsys):
    """A dataset of one shard, on a slow disk, would show nothing until it is done."""
    monkeypatch.setattr(yolo, "PAUSE", 0.0)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 10)
    table = parquet._table
    monkeypatch.setattr(parquet, "_table", lambda rows, schema: time.sleep(0.7) or table(rows, schema))
    write_folder(tmp_path / "in", crowd(29))
    pack(tmp_path / "in", tmp_path / "out", workers=1)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 10
    assert lines[-1] == "packing: 30 of 30 images"


def test_progress_fills_no_log(capsys):
    with yolo.progress(1000, "reading") as advance:
        for _ in range(1000):
            advance(1)
        advance(0)
    assert capsys.readouterr().err == "reading: 1,000 of 1,000 images\n"


def test_a_changed_image_rewrites_its_shard_alone(tmp_path):
    write_folder(tmp_path / "in", crowd(30))
    pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    before = hashes(tmp_path / "out")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/data").iterdir()}
    (tmp_path / "in/labels/train/012.txt").write_text("0 0.4 0.4 0.2 0.2\n" * 1 + GOOD)
    pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    after = hashes(tmp_path / "out")
    changed = [name for name in before if name.startswith("data/") and before[name] != after[name]]
    rewritten = [
        path.name for path in (tmp_path / "out/data").iterdir() if path.stat().st_mtime_ns != times[path.name]
    ]
    assert len(changed) == 1
    assert changed == [f"data/{name}" for name in rewritten]


def test_a_header_check_is_told_and_a_full_one_after_it_starts_anew(tmp_path):
    data = bytearray(picture(256, 256))
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    write_folder(tmp_path / "in", crowd(3, **{"broken.jpg": (bytes(data), GOOD)}))
    manifest = pack(tmp_path / "in", tmp_path / "out", verify="header")
    assert (manifest["verify"], manifest["splits"]["train"]["images"]) == ("header", 4)
    assert "only the header read" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(UserError, match=r"broken\.jpg"):
        pack(tmp_path / "in", tmp_path / "out")


def test_a_damaged_shard_is_written_again(tmp_path):
    write_folder(tmp_path / "in", crowd(6))
    pack(tmp_path / "in", tmp_path / "out")
    before = hashes(tmp_path / "out")
    (shard,) = (tmp_path / "out/data").glob("train-*")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    pack(tmp_path / "in", tmp_path / "out")
    assert hashes(tmp_path / "out") == before


def test_other_shard_sizes_leave_no_shard_of_before(tmp_path):
    write_folder(tmp_path / "in", crowd(30))
    pack(tmp_path / "in", tmp_path / "out", shard_size=20_000)
    pack(tmp_path / "in", tmp_path / "out")
    pack(tmp_path / "in", tmp_path / "fresh")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")


def test_another_dataset_in_the_way_is_not_overwritten(tmp_path):
    write_folder(tmp_path / "in", crowd(2))
    write_folder(tmp_path / "other", crowd(2))
    pack(tmp_path / "in", tmp_path / "out")
    before = hashes(tmp_path / "out")
    with pytest.raises(UserError, match="another --out"):
        pack(tmp_path / "other", tmp_path / "out")
    with pytest.raises(UserError, match="another --out"):
        pack(tmp_path / "other", tmp_path / "other")
    assert hashes(tmp_path / "out") == before


def test_two_packs_into_one_folder_are_kept_apart(tmp_path):
    write_folder(tmp_path / "in", crowd(2))
    with shards._claimed(tmp_path / "out", tmp_path / "in"), pytest.raises(UserError, match="another pack"):
        pack(tmp_path / "in", tmp_path / "out")


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
