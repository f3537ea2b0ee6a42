"""Folders of odd and hostile files: never a hang, never a traceback, and each file accounted for."""

from __future__ import annotations

import csv
import os
import socket

import pytest
from yolo_folder import picture, write_folder

from data_prep import example, yolo
from data_prep.__main__ import main
from data_prep.folder import open_folder
from data_prep.shards import pack
from recipe.files import printable, read_file
from recipe.schema import UserError

GOOD = "0 0.5 0.5 0.2 0.2\n"
LONG = "x" * 251


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    at, here = socket.socket(socket.AF_UNIX), os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 108 bytes
    at.bind(path.name)
    os.chdir(here)
    at.close()


def link_to(target):
    return lambda path: path.symlink_to(target)


KINDS = {
    "a pipe": make_fifo,
    "a socket": make_socket,
    "an endless device": link_to("/dev/zero"),
    "a link to nowhere": link_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
}


def problems_of(out):
    with (out / "problems.csv").open(newline="", encoding="utf-8") as file:
        return {(row["file"], row["rule"], row["action"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_or_label_that_is_no_regular_file_is_left_out_and_listed(tmp_path, kind, capsys):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), GOOD), "b.jpg": (picture(), None)})
    KINDS[kind](root / "images/train/odd.jpg")
    KINDS[kind](root / "images/train/odd.txt")
    KINDS[kind](root / "labels/train/b.txt")
    KINDS[kind](root / "labels/train/orphan.txt")
    assert main(["pack", str(root), "--out", str(tmp_path / "out"), "--on-bad", "skip"]) == 0
    assert problems_of(tmp_path / "out") == {
        ("images/train/odd.jpg", "unreadable_image", "left out"),
        ("images/train/odd.txt", "not_read", "ignored"),
        ("images/train/b.jpg", "unreadable_label", "left out"),
        ("labels/train/orphan.txt", "label_without_image", "ignored"),
    }
    capsys.readouterr()
    assert main(["inspect", str(root)]) == 1
    assert "images/train/odd.jpg  unreadable_image: " in capsys.readouterr().out


def test_names_are_escaped_when_shown_and_hidden_files_are_listed(tmp_path, capsys):
    names = ["new\nline", "red\x1b[31m", "quote\"'`,", os.fsdecode(b"caf\xe9"), "\u202ertl", LONG, ".hidden", "日本 é"]
    root = write_folder(tmp_path / "in", {f"{name}.jpg": (picture(), GOOD) for name in names})
    assert main(["pack", str(root), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"images/train/new\nline.jpg  file_name" in said
    assert main(["pack", str(root), "--out", str(tmp_path / "out"), "--on-bad", "skip"]) == 0
    text = (tmp_path / "out/problems.csv").read_text(encoding="utf-8")
    assert text.replace("\n", "").isprintable()
    left_out = [r"new\nline", r"red\x1b[31m", r"caf\xe9", r"\u202ertl"]
    assert problems_of(tmp_path / "out") == {
        *((f"images/train/{name}.jpg", "file_name", "left out") for name in left_out),
        ("images/train/.hidden.jpg", "not_read", "ignored"),
        ("labels/train/.hidden.txt", "not_read", "ignored"),
    }


def test_a_hidden_folder_is_listed_and_not_read(tmp_path):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), GOOD), ".trash/b.jpg": (picture(), GOOD)})
    found = [(problem.file, problem.rule) for problem in open_folder(root).splits["train"].problems]
    assert found == [("images/train/.trash", "not_read"), ("labels/train/.trash", "not_read")]


def test_files_over_the_limit_are_refused_unread(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), GOOD * 100), "b.jpg": (picture(), GOOD)})
    monkeypatch.setattr(example, "LABEL_BYTES", 1000)
    with pytest.raises(UserError, match=r"a\.jpg  unreadable_label: 1,800 bytes, at most 1,000 are read"):
        pack(root, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(example, "IMAGE_BYTES", 1000)
    with pytest.raises(UserError, match=r"b\.jpg  unreadable_image: .* bytes, at most 1,000 are read"):
        pack(root, tmp_path / "out")


def test_a_regular_file_is_read_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"123")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link", 3) == b"123"


@pytest.mark.parametrize(("text", "shown"), [("a\tb", r"a\tb"), (os.fsdecode(b"\xff"), r"\xff"), ("é 日本", "é 日本")])
def test_printable(text, shown):
    assert printable(text) == shown


PATHS = "train: images/train\nval: images/val\n"
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [
        f"a0: &a0 [x]\n{BOMB}names: *a11\n",
        "names: &loop [*loop]\n",
        f"{PATHS}names: {{.inf: person}}\n",
        f"{PATHS}names: {{.nan: person}}\n",
        f"{PATHS}names: {{2026-99-99: person}}\n",
        f"{PATHS}names: {{? [a, b] : person}}\n",
        f"{PATHS}names: {{0: [person]}}\n",
        f"{PATHS}names: " + "[" * 3_000,
        f"{PATHS}names: !!python/object/apply:os.system [touch hacked]\n",
        f"{PATHS}names: !!binary aGk=\n",
        f"{PATHS}names: 2026-11-24\n",
        f"{PATHS}names: [a\x1bb, person]\n",
        f'{PATHS}names: ["a\\eb", person]\n',
        "names: [person]\ntrain: [[images/train]]\nval: images/val\n",
        "names: [person]\ntrain: {a: b}\nval: images/val\n",
        'names: [person]\ntrain: "im\\0ages"\nval: images/val\n',
        f"names: [person]\ntrain: {'x' * 5000}\nval: images/val\n",
        "names: [person]\npath: [1]\ntrain: images/val\nval: images/val\n",
        "\x00",
        "- 1\n- 2\n",
        "# comment\n" * 40_000,
    ],
)
def test_a_data_yaml_that_is_odd_or_hostile_is_one_line_and_exit_code_2(tmp_path, capsys, text):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), GOOD)})
    (root / "data.yaml").write_text(text)
    assert main(["inspect", str(root)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert len(said) < 6000
    assert said.strip().isprintable()


def test_a_date_or_a_number_as_a_class_or_folder_name_is_text(tmp_path):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), GOOD)}, layout="images/{split}/2026-11-24")
    assert list(open_folder(root).splits) == ["train", "validation"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a link to nowhere"])
def test_a_data_yaml_that_is_no_regular_file_is_one_line(tmp_path, capsys, kind):
    root = write_folder(tmp_path / "in", {"a.jpg": (picture(), GOOD)})
    (root / "data.yaml").unlink()
    KINDS[kind](root / "data.yaml")
    assert main(["inspect", str(root)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_limits_hold_what_people_have():
    assert example.LABEL_BYTES > 10_000 * 40
    assert yolo.YAML_BYTES > 100_000
