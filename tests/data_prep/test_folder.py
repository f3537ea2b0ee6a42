"""Data as people have it: mapped classes, lists, flat folders, polygons, CrowdHuman (data_prep.folder)."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from yolo_folder import picture, write_folder

from data_prep.__main__ import main
from data_prep.entries import ReadOptions
from data_prep.folder import open_folder, sequence_of
from data_prep.shards import pack
from recipe.schema import UserError, check_dataset, features

GOOD = "0 0.5 0.5 0.2 0.2\n1 0.5 0.45 0.1 0.1\n"


def rows_of(out, split="train"):
    return [row for path in sorted(out.glob(f"data/{split}-*")) for row in pq.read_table(path).to_pylist()]


def names_of(folder, split="train"):
    return [entry.name for entry in folder.splits[split].entries]


def write_yaml(root, text):
    (root / "data.yaml").write_text(text)
    return root


def run(*words):
    return main([str(word) for word in words])


# --- classes -------------------------------------------------------------------------------------------------------


def test_classes_are_mapped_and_dropped_in_any_capitals(tmp_path):
    text = "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.3 0.3\n2 0.5 0.5 0.4 0.4\n3 0.5 0.5 0.5 0.5\n"
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), text)}, names="[Pedestrian, Head, BICYCLE, rider]")
    flags = ("--map", "pedestrian=person", "--map", "Rider=person", "--drop", "bicycle")
    assert run("pack", root, "--out", tmp_path / "out", *flags) == 0
    assert rows_of(tmp_path / "out")[0]["objects"]["category"] == [0, 1, 0]
    assert "labels/train/a.txt,3,class_dropped,dropped," in (tmp_path / "out/problems.csv").read_text()
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["splits"]["train"]["boxes_dropped"] == 1


def test_a_star_drops_every_other_class(tmp_path):
    root = write_folder(tmp_path, {"a.jpg": (picture(), "2 0.5 0.5 0.2 0.2\n")}, names="[car, dog, person]")
    assert dict(open_folder(root, ReadOptions(drop=("*",))).classes) == {0: None, 1: None, 2: 0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "names the classes pedestrian, head; .*`--map NAME=person`.*`--drop NAME`"),
        (["--map", "walker=person", "--drop", "pedestrian"], "--map or --drop walker: .* names only pedestrian, head"),
    ],
)
def test_other_classes_and_flags_that_fit_none_are_refused_with_the_flag_that_helps(tmp_path, capsys, flags, message):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), GOOD)}, names="[Pedestrian, head]")
    assert run("inspect", root, *flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(UserError, match=message):
        raise UserError(said)


@pytest.mark.parametrize(
    "flags", [["--map", "a=b"], ["--map", "person"], ["--labelled", "=head"], ["--val-fraction", "1"], ["--seed", "x"]]
)
def test_a_wrong_value_gives_exit_code_2(flags):
    with pytest.raises(SystemExit) as error:
        run("pack", "in", "--out", "out", *flags)
    assert error.value.code == 2


# --- what was annotated --------------------------------------------------------------------------------------------


def test_images_say_which_classes_were_annotated_where_that_is_told(tmp_path):
    train = {"MOT_1.jpg": (picture(), GOOD[:18]), "own_1.jpg": (picture(seed=1), GOOD)}
    root = write_folder(tmp_path / "in", train)
    assert run("pack", root, "--out", tmp_path / "out", "--labelled", "MOT_*=person") == 0
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    check_dataset(found["train"].features, "out")
    assert found["train"].features == features(labelled=True)
    assert found["train"]["labelled"][:] == [[0], [0, 1]]
    assert found["validation"]["labelled"][:] == [[0, 1]]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["labelled"] == ["MOT_*=person"]


def test_labelled_that_fits_no_image_is_refused(tmp_path, capsys):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), GOOD)})
    assert run("pack", root, "--out", tmp_path / "out", "--labelled", "MOT*=person") == 2
    assert "--labelled MOT*=person: no image has such a name" in capsys.readouterr().err


def test_a_dataset_with_and_without_the_column_is_ours_and_another_type_is_not(tmp_path):
    for labelled in (False, True):
        check_dataset(features(labelled), "here")
    wrong = features(labelled=True)
    wrong["labelled"] = wrong["image_id"]
    with pytest.raises(UserError, match="column 'labelled' is"):
        check_dataset(wrong, "here")


# --- splits and lists ----------------------------------------------------------------------------------------------


def test_a_test_split_is_packed_where_there_is_one(tmp_path):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), GOOD)})
    write_folder(root, {}, {"t.jpg": (picture(seed=5), GOOD)}, layout="more/{split}/images")
    write_yaml(root, "train: images/train\nval: images/val\ntest: more/val/images\nnames: [person, head]\n")
    pack(root, tmp_path / "out")
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: split.num_rows for name, split in found.items()} == {"train": 1, "validation": 1, "test": 1}
    assert [row["image_id"] for row in rows_of(tmp_path / "out", "test")] == [2]


def test_lists_of_folders_txt_lists_and_nested_folders_are_read(tmp_path):
    root = write_folder(tmp_path, {"a.jpg": (picture(), GOOD), "cam/b.jpg": (picture(), GOOD)})
    write_folder(root, {"c.jpg": (picture(), GOOD)}, {}, layout="site/cam2/images/{split}")
    (root / "lists").mkdir()
    (root / "lists/train.txt").write_text("../images/train/a.jpg\r\n./../images/train/nowhere.jpg\n\n../readme.md\n")
    rest = "val: images/val\nnames: [person, head]\n"
    folder = open_folder(write_yaml(root, f"train: [images/train/cam, site]\n{rest}"))
    assert names_of(folder) == ["images/train/cam/b.jpg", "site/cam2/images/train/c.jpg"]
    labels = [entry.label for entry in folder.splits["train"].entries]
    assert labels == ["labels/train/cam/b.txt", "site/cam2/labels/train/c.txt"]
    assert not folder.splits["train"].problems
    folder = open_folder(write_yaml(root, f"train: lists/train.txt\n{rest}"))
    assert names_of(folder) == ["images/train/a.jpg", "images/train/nowhere.jpg"]
    assert [entry.label for entry in folder.splits["train"].entries] == ["labels/train/a.txt", None]
    assert [problem.file for problem in folder.splits["train"].problems] == ["readme.md"]
    with pytest.raises(UserError, match=r"nowhere\.jpg  unreadable_image: No such file"):
        pack(root, tmp_path / "out")


def test_frames_of_a_sequence_are_held_out_together(tmp_path):
    films = {f"{film}_{frame:03d}.jpg": (picture(), None) for film in "abcdefghij" for frame in range(5)}
    root = write_folder(tmp_path, films, {})
    write_yaml(root, "train: images/train\nnames: [person, head]\n")
    found = {}
    for seed in (0, 0, 1):
        folder = open_folder(root, ReadOptions(val_fraction=0.2, seed=seed))
        sequences = [{sequence_of(name) for name in names_of(folder, split)} for split in ("train", "validation")]
        assert len(names_of(folder, "validation")) == 10
        assert not sequences[0] & sequences[1]
        assert found.setdefault(seed, sequences) == sequences
    assert found[0] != found[1]


def test_one_long_sequence_gives_its_end(tmp_path):
    root = write_folder(tmp_path, {f"IMG_{n}.jpg": (picture(), None) for n in range(10, 30)}, {})
    write_yaml(root, "train: images/train\nnames: [person]\n")
    folder = open_folder(root, ReadOptions(val_fraction=0.5))
    assert names_of(folder, "validation") == [f"IMG_{n}.jpg" for n in range(20, 30)]


def test_a_flat_folder_with_classes_txt_needs_no_data_yaml(tmp_path, capsys):
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(picture(seed=number))
        (tmp_path / f"{number}.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("head\nperson\n")
    assert run("inspect", tmp_path) == 2
    assert "`--val-fraction 0.1`" in capsys.readouterr().err
    folder = open_folder(tmp_path, ReadOptions(val_fraction=0.1))
    assert [len(split.entries) for split in folder.splits.values()] == [9, 1]
    assert dict(folder.classes) == {0: 1, 1: 0}


def test_a_fraction_is_refused_where_there_is_a_validation_split_or_nothing_would_be_left(tmp_path):
    root = write_folder(tmp_path, {"a.jpg": (picture(), GOOD)})
    with pytest.raises(UserError, match=r"--val-fraction 0\.1: .* names images for validation already"):
        open_folder(root, ReadOptions(val_fraction=0.1))
    write_yaml(root, "train: images/train\nnames: [person, head]\n")
    with pytest.raises(UserError, match=r"--val-fraction 0\.1: of 1 images none would be left"):
        open_folder(root, ReadOptions(val_fraction=0.1))


# --- polygons ------------------------------------------------------------------------------------------------------


def test_polygons_become_boxes_when_asked(tmp_path, capsys):
    text = "0 0.1 0.2 0.5 0.2 0.5 0.6 0.3 0.7\n1 0.5 0.5 0.2 0.2\n"
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(100, 100), text)})
    assert run("pack", root, "--out", tmp_path / "out") == 2
    assert "`--polygons boxes`" in capsys.readouterr().err
    assert run("pack", root, "--out", tmp_path / "out", "--polygons", "boxes") == 0
    assert rows_of(tmp_path / "out")[0]["objects"]["bbox"][0] == pytest.approx([10, 20, 40, 50])


@pytest.mark.parametrize(
    "line", ["0 0.1 0.2 0.5 0.2 0.5 0.6 0.3", "0 0.1 0.2 0.5 0.2 0.5 nan", "0 0.1 0.2 9 99 0.5 0.6"]
)
def test_a_polygon_that_cannot_be_trusted_is_refused(tmp_path, line):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), line)})
    with pytest.raises(UserError, match=r"a\.txt:1  (malformed|not_normalised)"):
        pack(root, tmp_path / "out", ReadOptions(polygons="boxes"))


# --- CrowdHuman -------------------------------------------------------------------------------------------


def crowdhuman(root, lines_of):
    (root / "Images").mkdir(parents=True)
    for number, (split, lines) in enumerate(lines_of.items()):
        for line in lines:
            (root / f"Images/{line['ID']}.jpg").write_bytes(picture(100, 80, seed=number))
        (root / f"annotation_{split}.odgt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


PERSON = {
    "tag": "person",
    "fbox": [10, 10, 20, 40],
    "vbox": [10, 10, 20, 30],
    "hbox": [15, 10, 8, 9],
    "head_attr": {"ignore": 0, "occ": 0, "unsure": 0},
    "extra": {"box_id": 0, "occ": 0},
}


def test_crowdhuman_is_read_with_its_ignored_boxes(tmp_path):
    hidden_head = PERSON | {"fbox": [-10, 50, 30, 60], "head_attr": {"ignore": 1}}
    ignored = PERSON | {"fbox": [60, 10, 20, 40], "hbox": [65, 10, 8, 8], "extra": {"ignore": 1}}
    mask = {"tag": "mask", "fbox": [50, 50, 40, 20], "hbox": [50, 50, 5, 5], "extra": {"ignore": 1}}
    train = [{"ID": "1,a", "gtboxes": [PERSON, hidden_head, ignored, mask]}, {"ID": "2,b", "gtboxes": []}]
    root = crowdhuman(tmp_path / "in", {"train": train, "val": [{"ID": "3,c", "gtboxes": [PERSON]}]})
    manifest = pack(root, tmp_path / "out")
    first, second = rows_of(tmp_path / "out")
    assert first["image"]["path"] == "Images/1,a.jpg"
    objects = first["objects"]
    assert list(zip(objects["category"], objects["iscrowd"], strict=True)) == [
        *((0, 0), (1, 0)),
        *((0, 0), (1, 1)),
        *((0, 1), (1, 0)),
        *((0, 1), (1, 1)),
    ]
    assert objects["bbox"][:3] == [[10, 10, 20, 40], [15, 10, 8, 9], [0, 50, 20, 30]]
    assert second["objects"]["bbox"] == []
    counts = manifest["splits"]["train"]
    assert (counts["boxes_in"], counts["boxes"], counts["ignored_regions"]) == (8, 4, 4)
    assert (counts["person_boxes"], counts["head_boxes"]) == (2, 2)
    assert "annotation_train.odgt,1,over_border,clipped" in (tmp_path / "out/problems.csv").read_text()


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", '{"ID": "a"}', '{"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, NaN, 4]}]}', "[" * 9999],
)
def test_an_odgt_line_that_is_none_is_one_line(tmp_path, capsys, line):
    root = crowdhuman(tmp_path / "in", {"train": [], "val": []})
    (root / "annotation_train.odgt").write_text(line + "\n")
    assert run("inspect", root) == 2
    said = capsys.readouterr().err
    assert "annotation_train.odgt is not as CrowdHuman writes it" in said
    assert said.count("\n") == 1


def test_an_image_that_crowdhuman_names_and_nobody_has_is_refused(tmp_path):
    root = crowdhuman(tmp_path / "in", {"train": [{"ID": "1", "gtboxes": [PERSON]}], "val": []})
    (root / "Images/1.jpg").unlink()
    with pytest.raises(UserError, match=r"Images/1\.jpg  unreadable_image: No such file"):
        pack(root, tmp_path / "out")


def test_a_sequence_is_what_precedes_the_trailing_digits():
    assert sequence_of("a/frame_0012.jpg") == "a/frame_"
    assert sequence_of("film/0012.jpg") == "film/"
    assert sequence_of("0012.jpg") == "0012.jpg", "numbered photographs are no film"


# --- COCO ----------------------------------------------------------------------------------------------------------

CATEGORIES = [{"id": 0, "name": "crowd-1"}, {"id": 3, "name": "Head"}, {"id": 7, "name": "pedestrian"}]
MAPPED = ("--map", "pedestrian=person")


def coco(path, images_in, boxes_of, **of_box):
    """An annotation file for images of 100 x 80 pixels: {file name: [(category id, x, y, w, h, iscrowd)]}."""
    images, annotations = [], []
    for number, (name, boxes) in enumerate(boxes_of.items(), 10):
        images.append({"id": number, "file_name": name, "width": 100, "height": 80})
        (images_in / name).parent.mkdir(parents=True, exist_ok=True)
        (images_in / name).write_bytes(picture(100, 80, seed=number))
        for category, *bbox, crowd in boxes:
            box = {"id": len(annotations), "image_id": number, "category_id": category, "bbox": bbox, "iscrowd": crowd}
            annotations.append(box | of_box)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))


BOXES = [(7, 10, 10, 20, 40, 0), (3, 15, 10, 8, 9, 0), (7, 90, 60, 30, 30, 1), (7, 200, 0, 5, 5, 0)]


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("{}/_annotations.coco.json", "{}"),
        ("annotations/instances_{}.json", "{}"),
        ("annotations/instances_{}.json", "images/{}"),
        ("annotations/instances_{}.json", "images"),
        ("annotations/{}.json", "."),
    ],
)
def test_coco_files_are_read_in_the_layouts_that_people_have(tmp_path, file, images):
    root = tmp_path / "in"
    for split, name in (("train2017", "b.jpg"), ("valid", "v.jpg"), ("test", "t.jpg")):
        boxes_of = {name: BOXES} | ({"cam/a.jpg": []} if split == "train2017" else {})
        coco(root / file.format(split), root / images.format(split), boxes_of)
    assert run("pack", root, "--out", tmp_path / "out", *MAPPED) == 0
    first, second = rows_of(tmp_path / "out")
    assert [first["image"]["path"], second["image"]["path"]] == ["b.jpg", "cam/a.jpg"]
    assert first["objects"]["bbox"] == [[10, 10, 20, 40], [15, 10, 8, 9], [90, 60, 10, 20]]
    assert first["objects"]["category"] == [0, 1, 0]
    assert first["objects"]["iscrowd"] == [0, 0, 1]
    assert second["objects"]["bbox"] == []
    splits = json.loads((tmp_path / "out/manifest.json").read_text())["splits"]
    assert [(split, counts["boxes_in"], counts["boxes"]) for split, counts in splits.items()] == [
        ("train", 4, 2),
        ("validation", 4, 2),
        ("test", 4, 2),
    ]
    assert (splits["train"]["ignored_regions"], splits["train"]["boxes_dropped"]) == (1, 1)
    problems = (tmp_path / "out/problems.csv").read_text()
    assert "b.jpg,0,over_border,clipped,by up to 20.00 px" in problems
    assert "b.jpg,0,outside,dropped," in problems


def test_coco_shards_are_the_same_bytes_for_any_order_in_the_file_and_any_workers(tmp_path):
    root, found = tmp_path / "in", []
    for workers, names in ((1, "abcd"), (3, "dbca")):
        coco(root / "train/_annotations.coco.json", root / "train", {f"{name}.jpg": BOXES for name in names})
        for number, name in enumerate("abcd"):
            (root / f"train/{name}.jpg").write_bytes(picture(100, 80, seed=number))
        out = tmp_path / f"out{workers}"
        assert run("pack", root, "--out", out, *MAPPED, "--val-fraction", "0.3", "--workers", workers) == 0
        found.append({path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "names the classes pedestrian, head; .*`--map NAME=person`"),
        (MAPPED, "no validation split: .*`--val-fraction 0.1`"),
        ((*MAPPED, "--drop", "rider"), "--map or --drop rider: .* names only pedestrian, head"),
    ],
)
def test_a_coco_folder_is_refused_with_the_flag_that_helps(tmp_path, capsys, flags, message):
    coco(tmp_path / "annotations/instances_default.json", tmp_path / "images", {"a.jpg": BOXES, "b.jpg": BOXES})
    assert run("inspect", tmp_path, *flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(UserError, match=message):
        raise UserError(said)


def test_classes_that_coco_names_are_dropped_and_counted(tmp_path):
    coco(tmp_path / "in/train/_annotations.coco.json", tmp_path / "in/train", {"a.jpg": BOXES, "b.jpg": BOXES[1:2]})
    flags = ("--drop", "pedestrian", "--val-fraction", "0.5")
    assert run("pack", tmp_path / "in", "--out", tmp_path / "out", *flags) == 0
    splits = json.loads((tmp_path / "out/manifest.json").read_text())["splits"].values()
    assert sum(split["boxes_in"] for split in splits) == 5
    assert sum(split["head_boxes"] for split in splits) == 2
    assert sum(split["problems"].get("dropped: class_dropped", 0) for split in splits) == 3


def test_boxes_without_an_image_and_images_of_another_size_are_left_out_and_counted(tmp_path):
    """Tools that turn a photograph by its EXIF data, and those that do not, write boxes for different pixels."""
    file = tmp_path / "in/train/_annotations.coco.json"
    coco(file, file.parent, {"a.jpg": BOXES[:1], "b.jpg": BOXES[:2], "c.jpg": BOXES[:1]})
    coco(tmp_path / "in/valid/_annotations.coco.json", tmp_path / "in/valid", {"v.jpg": []})
    (file.parent / "b.jpg").write_bytes(picture(80, 100))
    found = json.loads(file.read_text())
    del found["images"][2]
    file.write_text(json.dumps(found))
    assert run("inspect", tmp_path / "in", *MAPPED) == 1
    assert run("pack", tmp_path / "in", "--out", tmp_path / "out", *MAPPED, "--on-bad", "skip") == 0
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["splits"]["train"]
    assert (counts["images_in"], counts["images"], counts["boxes_in"], counts["boxes"]) == (3, 1, 4, 1)
    problems = (tmp_path / "out/problems.csv").read_text()
    assert "train/b.jpg,0,other_size,left out," in problems
    assert "train/image_id 12,0,unreadable_image,left out," in problems


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        "[" * 9999,
        '{"images": [{"id": 1, "file_name": "a.jpg", "width": 1, "height": 1}], "annotations": '
        '[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}], "categories": []}',
        '{"images": [{"id": 1, "file_name": "a.jpg", "width": 1, "height": 1}], "annotations": '
        '[{"image_id": 1, "category_id": 2, "bbox": [1, 2, NaN, 4]}], "categories": [{"id": 2, "name": "head"}]}',
    ],
)
def test_a_json_that_is_no_coco_file_is_one_line(tmp_path, capsys, text):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text(text)
    assert run("inspect", tmp_path) == 2
    said = capsys.readouterr().err
    assert "train.json is not as COCO writes it" in said
    assert said.count("\n") == 1


def test_two_annotation_files_for_one_split_are_refused(tmp_path, capsys):
    for name in ("train_a", "train_b"):
        coco(tmp_path / f"annotations/instances_{name}.json", tmp_path / "images", {"a.jpg": BOXES})
    assert run("inspect", tmp_path, *MAPPED) == 2
    assert "two files for train, instances_train_a.json and instances_train_b.json" in capsys.readouterr().err
