"""Reading a YOLO folder: what is accepted, cut, dropped and refused (data_prep.yolo, example)."""

from __future__ import annotations

import contextlib
import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from yolo_folder import picture, write_folder

from data_prep.example import image_size, read_example, read_labels
from data_prep.folder import open_folder
from recipe.schema import UserError

BOTH = {0: 0, 1: 1}
share = st.floats(0, 1, allow_subnormal=False)


def labels_of(text: str | bytes, width: int = 100, height: int = 200):
    return read_labels(text if isinstance(text, bytes) else text.encode(), "a.txt", BOTH, width, height)


def dropped_boxes(problems):
    dropped = Counter()
    for problem in problems:
        dropped[problem.rule] += problem.boxes
    return +dropped


def examples_of(root):
    folder = open_folder(root)
    return [read_example(folder, entry) for entry in folder.splits["train"].entries]


def example_of(tmp_path, data: bytes, text: str | None = "0 0.5 0.5 0.2 0.2\n"):
    folder = open_folder(write_folder(tmp_path, {"a.jpg": (data, text)}))
    return read_example(folder, folder.splits["train"].entries[0])


# --- label lines ---------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 1), share, share, share, share), max_size=8), st.integers(1, 5000))
@settings(deadline=None)
def test_every_box_lies_inside_the_image_and_none_is_lost(rows, width):
    """Boxes in = boxes kept + boxes dropped, whatever the numbers."""
    labels = labels_of(
        "".join(f"{row[0]} {row[1]:.6f} {row[2]:.6f} {row[3]:.6f} {row[4]:.6f}\n" for row in rows), width
    )
    x, y, w, h = labels.bbox_xywh.T
    assert labels.boxes_in == len(rows) == len(labels.category) + dropped_boxes(labels.problems).total()
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (w > 0).all()
    assert (h > 0).all()
    assert (x + w <= width + 1e-6).all()
    assert (y + h <= 200 + 1e-6).all()


def test_a_box_over_the_border_is_clipped_and_counted():
    labels = labels_of("1 0.95 0.5 0.2 1.5\n")
    np.testing.assert_allclose(labels.bbox_xywh, [[85, 0, 15, 200]])
    assert [(p.line, p.rule, p.action) for p in labels.problems] == [(1, "over_border", "clipped")]


def test_an_overstep_from_rounding_to_six_digits_is_clipped_but_not_reported():
    """A label writer that rounds to six digits oversteps the border by a trifle in half of its border boxes."""
    labels = labels_of("0 0.0500004 0.5 0.100001 0.5\n")
    assert labels.bbox_xywh[0, 0] >= 0
    assert labels.problems == []


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("0 0.5 0.5 0.2", "malformed"),
        ("0 0.5 0.5 0.2 0.2 0.9", "malformed"),
        ("0 a 0.5 0.2 0.2", "malformed"),
        ("0 0,5 0,5 0,2 0,2", "malformed"),
        ("0 0.1 0.1 0.9 0.1 0.5 0.9", "polygon"),
        ("2 0.5 0.5 0.2 0.2", "class"),
        ("-1 0.5 0.5 0.2 0.2", "class"),
        ("0.5 0.5 0.5 0.2 0.2", "class"),
        ("0 nan 0.5 0.2 0.2", "not_normalised"),
        ("0 0.5 0.5 inf 0.2", "not_normalised"),
        ("nan 0.5 0.5 0.2 0.2", "class"),
        ("0 0.5 0.5 -0.2 0.2", "negative_size"),
        ("0 512 300 80 120", "not_normalised"),
    ],
)
def test_a_line_that_cannot_be_trusted_is_refused_alone(line, rule):
    labels = labels_of(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    assert [(p.line, p.rule, p.action) for p in labels.problems] == [(2, rule, "refused")]
    assert len(labels.category) == 1
    assert dropped_boxes(labels.problems) == {rule: 1}


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("0 0.5 0.5 0 0.2", "zero_size"),
        ("0 1.5 0.5 0.2 0.2", "outside"),
        ("0 1.1 0.5 0.2 0.2", "outside"),
        ("1 0.5 0.5 0.4 0.4", "duplicate"),
    ],
)
def test_a_box_without_area_or_written_twice_is_dropped_and_counted(line, rule):
    labels = labels_of(f"1.0 0.5 0.5 0.4 0.4\n{line}\n")
    assert [(p.line, p.rule, p.action) for p in labels.problems] == [(2, rule, "dropped")]
    assert dropped_boxes(labels.problems) == {rule: 1}


def test_the_same_box_for_another_class_is_no_duplicate():
    assert len(labels_of("0 0.5 0.5 0.4 0.4\n1 0.5 0.5 0.4 0.4\n").category) == 2


@pytest.mark.parametrize("encode", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_byte_order_marks_line_endings_tabs_and_exponents_are_read(encode, newline):
    text = newline.join(["0\t0.5 5e-1  0.2 2E-1 ", "", "1.0 0.25 0.25 0.5 0.5", ""])
    labels = labels_of(text.encode(encode))
    np.testing.assert_allclose(labels.bbox_xywh, [[40, 80, 20, 40], [0, 0, 50, 100]])
    assert labels.category.tolist() == [0, 1]
    assert not labels.problems


def test_bytes_that_are_no_text_are_malformed_lines_not_a_crash():
    labels = labels_of(b"0 0.5 0.5 0.2 0.2\n\xff\xfa\x80 \x00\n")
    assert [(p.line, p.rule) for p in labels.problems] == [(2, "malformed")]


# --- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(9))
def test_width_and_height_are_those_after_the_orientation(form, orientation):
    """Labels are shares of the turned image; Pillow itself turns TIFFs, so turning them again would be wrong."""
    data = picture(64, 48, form=form, orientation=orientation)
    assert image_size(data) == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_grey_and_cmyk_jpegs_are_whole(mode):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture())).convert(mode).save(buffer, "JPEG")
    assert image_size(buffer.getvalue()) == (64, 48)


@pytest.mark.parametrize("mode", ["I;16", "LA", "RGBA", "1", "P"])
def test_png_modes_are_whole(mode):
    buffer = io.BytesIO()
    Image.new(mode, (1000, 1)).save(buffer, "PNG")
    assert image_size(buffer.getvalue()) == (1000, 1)


def test_overwritten_pixels_are_found_by_decoding_strictly():
    """Pillow and OpenCV read a JPEG whose scan was overwritten, and truncated ones pass Pillow's verify()."""
    data = bytearray(picture(256, 256))
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    Image.open(io.BytesIO(bytes(data))).load()
    with pytest.raises(ValueError, match=r".+"):
        image_size(bytes(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_truncated_image_is_refused_with_all_its_boxes(tmp_path, form):
    data = picture(256, 256, form=form)
    example = example_of(tmp_path, data[: len(data) // 2], "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.1 0.1\n")
    assert [(p.file, p.line, p.rule, p.action) for p in example.labels.problems] == [
        ("images/train/a.jpg", 0, "unreadable_image", "refused")
    ]
    assert not example.data
    assert (example.labels.boxes_in, dropped_boxes(example.labels.problems)) == (2, {"unreadable_image": 2})


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"no image at all", picture()[:40]])
def test_what_is_no_image_is_refused_with_a_reason(tmp_path, data):
    (problem,) = example_of(tmp_path, data).labels.problems
    assert problem.rule == "unreadable_image"
    assert problem.detail


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(form, monkeypatch):
    """A JPEG of 40,000 x 40,000 is 15 MB on disk, and 6.4 GB in each worker that trains on it."""
    monkeypatch.setattr("data_prep.example.MAX_PIXELS", 64 * 48 - 1)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    monkeypatch.setattr("simplejpeg.decode_jpeg", None)
    with pytest.raises(ValueError, match="64 x 48 pixels, at most 3,071"):
        image_size(picture(form=form))


@pytest.mark.parametrize("form", ["EPS", "GIF", "PPM", "ICO", "PDF"])
def test_no_other_decoder_is_started(form):
    """Pillow goes by the bytes, not the name: an EPS named x.jpg would start Ghostscript."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, form)
    with pytest.raises(ValueError, match="not an image in the formats JPEG, PNG"):
        image_size(buffer.getvalue())


def test_a_jpeg_of_a_billion_pixels_is_refused():
    data = picture()
    start = data.index(b"\xff\xc0") + 5
    huge = data[:start] + b"\x9c\x40\x9c\x40" + data[start + 4 :]
    with pytest.raises(ValueError, match="pixels"):
        image_size(huge)


@given(st.binary(max_size=200), st.integers(0, 600))
@settings(deadline=None)
def test_no_bytes_crash_the_image_check(junk, at):
    data = picture()
    broken = data[:at] + junk + data[at + len(junk) :]
    with contextlib.suppress(ValueError):
        assert min(image_size(broken)) > 0


# --- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["images/{split}", "{split}/images"])
def test_both_layouts_are_read_in_sorted_order(tmp_path, layout):
    text = "0 0.5 0.5 0.2 0.2\n"
    train = {"b.JPG": (picture(), text), "a.png": (picture(form="PNG"), text), "deep/c.jpeg": (picture(), text)}
    examples = examples_of(write_folder(tmp_path, train, layout=layout))
    assert [example.entry.name for example in examples] == ["a.png", "b.JPG", "deep/c.jpeg"]
    assert [len(example.labels.category) for example in examples] == [1, 1, 1]
    assert list(open_folder(tmp_path).splits) == ["train", "validation"]


def test_linked_folders_are_read_but_not_round_in_a_circle(tmp_path):
    """os.walk passes over a link to a folder in silence."""
    text = "0 0.5 0.5 0.2 0.2\n"
    write_folder(tmp_path / "other", {"a.jpg": (picture(), text), "deep/b.jpg": (picture(), text)})
    root = write_folder(tmp_path / "in", {"c.jpg": (picture(), text)})
    for kind in ("images", "labels"):
        (root / kind / "train/more").symlink_to(tmp_path / "other" / kind / "train")
        (root / kind / "train/again").symlink_to(root / kind)
        (tmp_path / "other" / kind / "train/back").symlink_to(root / kind / "train")
    examples = examples_of(root)
    assert [example.entry.name for example in examples] == ["c.jpg", "more/a.jpg", "more/deep/b.jpg"]
    assert [len(example.labels.category) for example in examples] == [1, 1, 1]
    looped = [problem.file for problem in open_folder(root).splits["train"].problems if problem.rule == "not_read"]
    assert looped == [f"{kind}/train/{name}" for kind in ("images", "labels") for name in ("again", "more/back")]


@pytest.mark.parametrize("text", [None, ""])
def test_a_missing_or_empty_label_file_is_an_image_without_boxes(tmp_path, text):
    example = example_of(tmp_path, picture(), text)
    assert example.data
    assert example.labels.bbox_xywh.shape == (0, 4)
    assert not example.labels.problems


def test_labels_follow_the_names_in_the_yaml_not_the_order(tmp_path):
    folder = open_folder(write_folder(tmp_path, {"a.jpg": (picture(), "0 0.5 0.5 0.2 0.2\n")}, names="[head, person]"))
    assert read_example(folder, folder.splits["train"].entries[0]).labels.category.tolist() == [1]


def test_a_subset_of_the_names_refuses_the_other_class(tmp_path):
    write_folder(tmp_path, {"a.jpg": (picture(), "1 0.5 0.5 0.2 0.2\n")}, names="{0: person}")
    folder = open_folder(tmp_path)
    (problem,) = read_example(folder, folder.splits["train"].entries[0]).labels.problems
    assert (problem.rule, problem.action) == ("class", "refused")


def test_two_images_with_one_label_file_are_refused(tmp_path):
    train = {"a.jpg": (picture(), "0 0.5 0.5 0.2 0.2\n"), "a.png": (picture(form="PNG"), None)}
    with pytest.raises(UserError, match=r"a.jpg and images/train/a.png in .* share the label file labels/train/a.txt"):
        open_folder(write_folder(tmp_path, train))


def test_files_that_belong_to_no_image_are_listed(tmp_path):
    write_folder(tmp_path, {"a.jpg": (picture(), "0 0.5 0.5 0.2 0.2\n"), "film.mp4": (b"x", None)})
    (tmp_path / "labels/train/gone.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n")
    (tmp_path / "labels/train/classes.txt").write_text("person\nhead\n")
    split = open_folder(tmp_path).splits["train"]
    assert [(p.file, p.rule, p.action) for p in split.problems] == [
        ("images/train/film.mp4", "not_read", "ignored"),
        ("labels/train/gone.txt", "label_without_image", "ignored"),
    ]
    assert dropped_boxes(split.problems) == {"label_without_image": 2}


def test_a_folder_called_images_above_the_dataset_does_not_mislead(tmp_path):
    """Only the part below the dataset's root is turned from images into labels."""
    root = write_folder(tmp_path / "images" / "crowd", {"a.jpg": (picture(), "0 0.5 0.5 0.2 0.2\n")}, layout="{split}")
    (root / "train/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (entry,) = open_folder(root).splits["train"].entries
    assert entry.label == "train/a.txt"


def test_a_path_from_another_machine_falls_back_to_the_yaml_folder(tmp_path):
    write_folder(tmp_path, {"a.jpg": (picture(), None)})
    yaml = (tmp_path / "data.yaml").read_text()
    (tmp_path / "data.yaml").write_text("path: /nowhere/datasets/crowd\n" + yaml)
    assert open_folder(tmp_path).root == tmp_path


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\nval: images/val\nnames: [car, person]\n", "car, person"),
        ("train: images/train\nval: images/val\nnames: [person, person]\n", "each once"),
        ("train: images/train\nval: images/val\n", "needs `names"),
        ("train: images/train\nnames: [person]\n", "`val:`"),
        ("train: images/nowhere\nval: images/val\nnames: [person]\n", "nowhere"),
        ("train: images/empty\nval: images/val\nnames: [person]\n", "has no images"),
        ("train: bare\nval: images/val\nnames: [person]\n", "has no images"),
        ("just a text", "must hold the keys"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused_in_one_sentence(tmp_path, yaml, message):
    write_folder(tmp_path, {"a.jpg": (picture(), None)})
    for name in ("images/empty", "labels/empty", "bare"):
        (tmp_path / name).mkdir()
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(UserError, match=message) as error:
        open_folder(tmp_path)
    assert "\n" not in str(error.value)
