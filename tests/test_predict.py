"""What `recipe predict` keeps and writes, and what it does with folders of any kind."""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import packed
import pyarrow.parquet as pq
import pytest
import torch
from loopback.hub import LoopbackHub
from packed import encoded, photograph
from pycocotools.coco import COCO
from small_detector import save, small_config
from transformers import pipeline

from recipe.model.detector import build_detector
from recipe.predict import predict
from recipe.prediction.files import File, dataset_ids, find_files
from recipe.prediction.results import label_name
from recipe.schema import UserError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return str(save(build_detector(small_config()), tmp_path_factory.mktemp("detector") / "checkpoint"))


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "fine.png").write_bytes(encoded(photograph(60, 90), "PNG"))
    return tmp_path / "photos"


def run(checkpoint, *paths, out, **options) -> int:
    defaults = {"threshold": 0.2, "tile": None, "overlap": 0.2, "batch_size": 4, "save": ["coco", "drawings"]}
    defaults |= {"data": None, "revision": None}
    return predict(
        Namespace(checkpoint=checkpoint, paths=[str(path) for path in paths], out=out, **defaults | options)
    )


def rows(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def failed(caplog):
    """The files that the log names as left out."""
    return [message.split(": left out")[0] for message in caplog.messages if ": left out" in message]


def test_batches_give_what_the_plain_pipeline_gives_image_by_image(checkpoint, tmp_path):
    """Four sizes, upright and lying, in batches of three; the plain pipeline cuts its boxes to integers."""
    for number, size in enumerate([(120, 200), (200, 120), (121, 201), (64, 64), (120, 200), (333, 777), (200, 120)]):
        (tmp_path / f"{number}.png").write_bytes(encoded(photograph(*size, seed=number), "PNG"))
    assert run(checkpoint, tmp_path, out=tmp_path / "out", batch_size=3, threshold=0.1) == 0
    plain = pipeline("object-detection", checkpoint, device="cpu")
    compared = 0
    for row in rows(tmp_path / "out"):
        expected = sorted(plain(row["file_name"], threshold=0.1), key=lambda found: found["score"])
        found = sorted(row["detections"], key=lambda found: found["score"])
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-4)
        for mine, theirs in zip(found, expected, strict=True):
            x, y, w, h = mine["bbox"]
            assert np.abs(np.array([x, y, x + w, y + h]) - list(theirs["box"].values())).max() < 1 + 1e-2
            compared += 1
    assert compared > 50


def test_scores_are_written_as_they_are_and_coco_reads_the_results(checkpoint, photos, tmp_path):
    assert run(checkpoint, photos, out=tmp_path / "out") == 0
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    images = json.loads((tmp_path / "out" / "images.json").read_text())
    assert images == [{"id": 0, "file_name": str(photos / "fine.png"), "height": 60, "width": 90}]
    assert results == [{"image_id": 0} | each for each in rows(tmp_path / "out")[0]["detections"]]
    assert len(results) == 12
    targets = COCO()
    targets.dataset = {"images": images, "categories": [{"id": 0}, {"id": 1}], "annotations": []}
    targets.createIndex()
    assert len(targets.loadRes(results).getAnnIds(imgIds=[0])) == 12
    assert all(np.float32(each["score"]) == each["score"] for each in results)


def test_with_data_the_ids_are_those_of_the_dataset(checkpoint, tmp_path):
    data = packed.write(tmp_path / "packed", [packed.row(40 + number, 60, 90) for number in range(3)])
    (tmp_path / "photos").mkdir()
    for number in (42, 40):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encoded(photograph(60, 90)))
    assert run(checkpoint, tmp_path / "photos", out=tmp_path / "out", data=str(data)) == 0
    assert [image["id"] for image in json.loads((tmp_path / "out" / "images.json").read_text())] == [40, 42]
    (tmp_path / "photos" / "43.jpg").write_bytes(encoded(photograph(60, 90)))
    with pytest.raises(UserError, match=r"--data .*packed: holds no image of the name .*43\.jpg"):
        run(checkpoint, tmp_path / "photos", out=tmp_path / "out", data=str(data))


def test_label_files_are_yolos(checkpoint, photos, tmp_path):
    """Beside the images in a folder of that shape they can be corrected and packed."""
    (photos / "deep").mkdir()
    (photos / "fine.png").rename(photos / "deep" / "fine.png")
    assert run(checkpoint, photos, out=tmp_path / "out", save=["yolo"]) == 0
    lines = (tmp_path / "out" / "labels" / "deep" / "fine.txt").read_text().splitlines()
    (found,) = rows(tmp_path / "out")
    assert len(lines) == len(found["detections"])
    label, cx, cy, w, h = map(float, lines[0].split())
    assert label == found["detections"][0]["category_id"]
    assert min(cx - w / 2, cy - h / 2) >= -1e-6
    assert max(cx + w / 2, cy + h / 2) <= 1 + 1e-6
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_the_ids_of_a_hub_dataset_are_read_without_its_images(tmp_path, monkeypatch):
    """The images' bytes are spoilt here, so that whoever reads them fails."""
    folder = packed.write(tmp_path / "packed", [packed.row(40 + number, 60, 90) for number in range(3)])
    (shard,) = folder.glob("data/*.parquet")
    images = pq.read_metadata(shard).row_group(0).column(0)
    assert images.path_in_schema == "image.bytes"
    data = bytearray(shard.read_bytes())
    start = images.dictionary_page_offset or images.data_page_offset
    data[start : start + 20] = b"\xff" * 20
    shard.write_bytes(data)
    with pytest.raises(OSError, match="Couldn't deserialize"):
        pq.read_table(shard, columns=["image.bytes"])
    with LoopbackHub(tmp_path / "hub", {"hf_alice": {"name": "alice", "role": "write"}}) as hub:
        api = hub.serve(monkeypatch, "hf_alice")
        api.create_repo("alice/crowd", repo_type="dataset")
        api.upload_folder(repo_id="alice/crowd", repo_type="dataset", folder_path=folder)
        assert dataset_ids("alice/crowd", [File(Path("deep/41.jpg"), "41.jpg")]) == [41]
        with pytest.raises(UserError, match=r"--data alice/none: no packed dataset here or on the Hub"):
            dataset_ids("alice/none", [])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("a.jpg", "a.txt"),
        ("train/images/a.b.jpg", "train/labels/a.b.txt"),
        ("images/deep/a.JPG", "labels/deep/a.txt"),
        ("images/images/a.png", "images/labels/a.txt"),
        ("my_images/a.png", "my_images/a.txt"),
    ],
)
def test_a_label_file_is_where_yolos_readers_look_for_it(name, label):
    assert label_name(File(Path(name), name)) == label


def test_two_images_with_one_label_file_are_refused_before_anything_is_read(photos, tmp_path):
    (photos / "fine.jpg").touch()
    with pytest.raises(UserError, match=r"--save yolo: several images would have the label file fine\.txt"):
        run("nowhere", photos, out=tmp_path / "out", save=["yolo"])


def make_video(path, frames=7, code="mp4v", size=(90, 60)):
    file = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 12.5, size)
    for number in range(frames):
        file.write(photograph(*size[::-1], seed=number))
    file.release()


@pytest.mark.parametrize(
    ("name", "code"), [("a.mp4", "mp4v"), ("b.avi", "MJPG"), ("c.MOV", "mp4v"), ("d.mkv", "MJPG")]
)
def test_a_video_gives_a_line_for_each_frame_and_an_annotated_video(checkpoint, tmp_path, name, code):
    make_video(tmp_path / name, code=code)
    assert run(checkpoint, tmp_path / name, out=tmp_path / "out") == 0
    lines = rows(tmp_path / "out")
    assert {line["file_name"] for line in lines} == {str(tmp_path / name)}
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert [line["frame"] for line in lines] == list(range(7))
    assert [line["seconds"] for line in lines] == pytest.approx([number / 12.5 for number in range(7)])
    assert all(len(line["detections"]) == 12 for line in lines)
    drawn = cv2.VideoCapture(str(tmp_path / "out" / f"00000-{name[0]}.mp4"))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (7, 12.5)


def test_a_frame_is_predicted_as_the_image_that_it_is(checkpoint, tmp_path):
    make_video(tmp_path / "a.avi", frames=3, code="MJPG")
    _, pixels = cv2.VideoCapture(str(tmp_path / "a.avi")).read()
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    assert run(checkpoint, tmp_path, out=tmp_path / "out") == 0
    image, frame, *_ = rows(tmp_path / "out")
    for one, other in zip(frame["detections"], image["detections"], strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_video_that_is_none_or_ends_early_is_named(checkpoint, photos, tmp_path, caplog):
    make_video(tmp_path / "long.avi", frames=60, code="MJPG")
    data = (tmp_path / "long.avi").read_bytes()
    (photos / "cut.avi").write_bytes(data[: len(data) // 2])
    (photos / "junk.mp4").write_bytes(b"junk" * 1000)
    (photos / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:10,\n{tmp_path / 'long.avi'}\n#EXT-X-ENDLIST\n")
    (photos / "other.mp4").write_bytes((photos / "fine.png").read_bytes())  # FFmpeg opens these, unless told not to
    assert run(checkpoint, photos, out=tmp_path / "out") == 1
    assert failed(caplog) == [str(photos / name) for name in ("cut.avi", "junk.mp4", "list.mp4", "other.mp4")]


def test_an_image_not_larger_than_a_tile_is_predicted_as_without_tiles(checkpoint, photos, tmp_path):
    for name, tile in (("plain", None), ("tiled", (60, 90))):
        assert run(checkpoint, photos, out=tmp_path / name, tile=tile) == 0
    assert rows(tmp_path / "plain") == rows(tmp_path / "tiled")


def test_a_large_image_is_predicted_in_tiles(checkpoint, photos, tmp_path):
    (photos / "fine.png").write_bytes(encoded(photograph(150, 200), "PNG"))
    assert run(checkpoint, photos, out=tmp_path / "out", tile=(64, 96)) == 0
    (found,) = rows(tmp_path / "out")
    assert len(found["detections"]) > 12


def test_images_are_read_from_under_out_but_not_from_out_itself(photos):
    assert find_files([str(photos)], photos.parent) == [File(photos / "fine.png", "fine.png")]
    with pytest.raises(UserError, match=rf"--out {photos}: holds the images.*`--out {photos}/predictions`"):
        find_files([str(photos)], photos)


def test_a_path_that_is_not_there_or_holds_no_images_is_said(photos, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        find_files([str(photos), "nowhere"], tmp_path)
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match=r"no images in .*notes; read are \.jpg, .*\.mkv"):
        find_files([str(tmp_path / "notes")], tmp_path / "out")


def test_a_second_run_does_not_predict_the_drawings_of_the_first(checkpoint, photos):
    for _ in range(2):
        assert run(checkpoint, photos, out=photos / "out") == 0
        assert len(rows(photos / "out")) == 1


def test_a_folder_of_odd_things_neither_hangs_nor_stops_the_rest(checkpoint, photos, tmp_path, caplog):
    """A name that is not UTF-8 is a segmentation fault in OpenCV; an EPS named .jpg would start Ghostscript."""
    image = (photos / "fine.png").read_bytes()
    good = [
        b"\xff\xfe.png",
        b"new\nline.png",
        b"\x1b[31m.png",
        b"x" * 251 + b".png",
        "ü☃.png".encode(),
        b"$(x).png",
    ]
    for name in good:
        (photos / os.fsdecode(name)).write_bytes(image)
    (photos / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (photos / "empty.jpg").touch()
    (photos / "cut.png").write_bytes(image[:200])
    (photos / "sparse.bmp").touch()
    os.truncate(photos / "sparse.bmp", 2**40)
    (photos / "folder.jpg").mkdir()
    (photos / "folder.jpg" / "back").symlink_to(photos)
    os.mkfifo(photos / "pipe.jpg")
    os.mkfifo(photos / "pipe.mp4")
    (photos / "nowhere.jpg").symlink_to("nothing")
    (photos / "round.jpg").symlink_to("round.jpg")
    (photos / "zero.jpg").symlink_to("/dev/zero")
    bad = [
        "cut.png",
        "empty.jpg",
        "eps.jpg",
        "folder.jpg",
        "nowhere.jpg",
        "pipe.jpg",
        "pipe.mp4",
        "round.jpg",
        "sparse.bmp",
        "zero.jpg",
    ]
    make_video(tmp_path / "v.mp4", frames=2)
    (tmp_path / "v.mp4").rename(photos / os.fsdecode(b"\xff.mp4"))
    assert run(checkpoint, photos, out=tmp_path / "out", save=["coco", "yolo", "drawings"]) == 1
    assert sorted(failed(caplog)) == [str(photos / name) for name in bad]
    assert {os.fsencode(row["file_name"]).split(b"photos/")[1] for row in rows(tmp_path / "out")} == {
        b"fine.png",
        b"\xff.mp4",
        *good,
    }
    assert len(list((tmp_path / "out").glob("*.jpg"))) == len(list((tmp_path / "out" / "labels").iterdir())) == 7
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("content", [b"", b"notes"])
def test_why_an_image_cannot_be_read_is_said_in_words(checkpoint, photos, caplog, content):
    (photos / "broken.jpg").write_bytes(content)
    assert run(checkpoint, photos, out=photos / "out") == 1
    assert "broken.jpg: left out, it cannot be read (not an image in the formats JPEG, " in caplog.text


def test_a_bomb_is_left_out_like_any_other(checkpoint, photos, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("recipe.data.images.MAX_PIXELS", 60 * 90)
    (photos / "bomb.png").write_bytes(encoded(np.zeros((300, 300, 3), np.uint8), "PNG"))
    assert run(checkpoint, photos, out=tmp_path / "out") == 1
    assert failed(caplog) == [str(photos / "bomb.png")]


def test_that_none_could_be_read_is_an_error(checkpoint, tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match="none of the 1 files could be read"):
        run(checkpoint, tmp_path / "a.jpg", out=tmp_path / "out")


def test_what_was_predicted_before_a_run_ended_is_there(checkpoint, photos, tmp_path, monkeypatch):
    (photos / "a.png").write_bytes((photos / "fine.png").read_bytes())
    (photos / "b.png").write_bytes((photos / "fine.png").read_bytes())

    there = []

    def read(path, _):
        if path.name == "b.png":
            there.extend(rows(tmp_path / "out"))  # as a kill that gives no time for anything would leave it
            raise KeyboardInterrupt
        return path.read_bytes()

    monkeypatch.setattr("recipe.predict.read_file", read)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, photos, out=tmp_path / "out", batch_size=1)
    assert [row["file_name"] for row in there] == [str(photos / "a.png")]


def test_the_last_lines_say_how_fast_it_was_and_how_many_failed(checkpoint, photos, tmp_path, capsys):
    (photos / "empty.jpg").touch()
    run(checkpoint, photos, out=tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"12 boxes in 1 images and frames, \d+\.\d a second \(thresholds: person 0\.20", lines[0])
    assert lines[1:] == ["1 of 2 files could not be read", f"results    {tmp_path / 'out'}"]


def test_nothing_is_written_through_a_link(checkpoint, photos, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("00000-fine.jpg", "predictions.jsonl", "predictions.json", "images.json"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    assert run(checkpoint, photos, out=tmp_path / "out") == 0
    assert (tmp_path / "precious").read_text() == "mine"
