"""`python -m data_prep` as a user meets it: sample, inspect, pack, and one readable line for each mistake."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from yolo_folder import picture, write_folder

from data_prep.__main__ import main, megabytes
from data_prep.entries import Entry
from data_prep.example import Example, read_labels
from data_prep.statistics import Seen, Survey, see

HEAVY = ("numpy", "pyarrow", "datasets", "torch", "cv2", "PIL", "rich", "yaml", "pandas")


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_sample_inspect_and_pack_follow_one_another(tmp_path, capsys):
    assert run("sample", tmp_path / "in", "--train", 2, "--val", 1) == 0
    assert run("inspect", tmp_path / "in", "--json", tmp_path / "report.json") == 0
    assert run("pack", tmp_path / "in", "--out", tmp_path / "out", "--shard-size", "1MB") == 0
    said = capsys.readouterr().out
    assert f"`pack` accepts this folder; next: python -m data_prep pack {tmp_path / 'in'} --out OUT\n" in said
    assert said.endswith(f"next: recipe train --data {tmp_path / 'out'}\n")
    report = json.loads((tmp_path / "report.json").read_text())
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    boxes = manifest["splits"]["train"]["boxes"]
    assert report["splits"]["train"]["boxes"] == boxes
    del manifest["splits"]["train"]["files"]
    assert manifest["splits"]["train"] == report["splits"]["train"]
    for text in (said, (tmp_path / "out/README.md").read_text()):
        rows = {name.strip(): int(number) for name, number in re.findall(r"\| ([a-z ]+) \| (\d+) ", text)}
        assert rows["images in"] == 2 == rows["images"] + rows["images left out"]
        assert rows["boxes in"] == boxes == rows["boxes"] + rows["boxes dropped"]


def test_help_imports_nothing_heavy():
    """`--help` must answer in under 0.3 s: a library imported at the top of a module is what makes it slow."""
    code = "import sys; from data_prep.__main__ import parser; parser(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(ast.literal_eval(done.stdout))


def test_packing_never_imports_torch(tmp_path):
    write_folder(tmp_path / "in", {"a.jpg": (picture(), None)})
    code = (
        "import sys; from data_prep.__main__ import main\n"
        f"assert main(['pack', {str(tmp_path / 'in')!r}, '--out', {str(tmp_path / 'out')!r}]) == 0\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_inspect_says_when_pack_would_refuse_and_lists_why(tmp_path, capsys):
    write_folder(tmp_path / "in", {"a.jpg": (picture(), "0 0.5 0.5 0.2 0.2\nnonsense\n"), "b.jpg": (b"", None)})
    assert run("inspect", tmp_path / "in", "--json", tmp_path / "report.json") == 1
    said = capsys.readouterr().out
    assert "labels/train/a.txt:2  malformed" in said
    assert "images/train/b.jpg  unreadable_image: the file is empty" in said
    assert f"leave it out with `python -m data_prep pack {tmp_path / 'in'} --out OUT --on-bad skip`\n" in said
    problems = json.loads((tmp_path / "report.json").read_text())["problems"]
    assert [(problem["file"], problem["line"]) for problem in problems] == [
        ("labels/train/a.txt", 2),
        ("images/train/b.jpg", 0),
    ]


def test_names_that_are_no_utf8_are_refused_by_inspect_and_pack_alike(tmp_path, capsys):
    """Old zips hold them; a Parquet column and problems.csv cannot."""
    name = os.fsdecode(b"caf\xe9")
    write_folder(
        tmp_path / "in", {f"{name}.jpg": (picture(), "0 0.5 0.5 0.2 0.2\nnonsense\n"), "b.jpg": (picture(), "")}
    )
    write_folder(tmp_path / "in", {f"{name}.{name}": (b"", None)})
    (tmp_path / f"in/labels/train/{name}s.txt").write_text("")
    assert run("inspect", tmp_path / "in", "--json", tmp_path / "report.json") == 1
    line = (
        r"images/train/caf\xe9.jpg  file_name: its name is not UTF-8 or not printable: rename it, and its label file"
    )
    said = capsys.readouterr().out
    said.encode()
    assert line in said
    assert run("pack", tmp_path / "in", "--out", tmp_path / "out") == 2
    assert line in capsys.readouterr().err
    assert run("pack", tmp_path / "in", "--out", tmp_path / "out", "--on-bad", "skip") == 0
    problems = (tmp_path / "out/problems.csv").read_text(encoding="utf-8")
    assert all(rf"train/caf\xe9{rest}," in problems for rest in (".jpg", r".caf\xe9", "s.txt", ".txt"))


def test_a_reader_that_stops_and_a_folder_that_is_no_utf8_cost_nothing(tmp_path):
    write_folder(tmp_path / os.fsdecode(b"caf\xe9"), {"a.jpg": (picture(), None)})
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": "1"}
    for end in ("| head -n 1", "| cat"):
        command = f"set -o pipefail; {sys.executable} -m data_prep inspect caf* {end}"
        bash = ["bash", "-c", command]
        done = subprocess.run(bash, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), end


def test_inspect_says_which_class_cannot_be_learned(tmp_path, capsys):
    text = "0 0.5 0.5 0.2 0.2\n"
    write_folder(tmp_path / "in", {"a.jpg": (picture(), text)}, {"v.jpg": (picture(seed=1), text)})
    assert run("inspect", tmp_path / "in") == 0
    assert capsys.readouterr().out.count("note: no head box in train: this class cannot be learned\n") == 1
    write_folder(tmp_path / "in", {"a.jpg": (picture(), text + "1 0.5 0.5 0.2 0.2\n")})
    assert run("inspect", tmp_path / "in") == 0
    assert "cannot be learned" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pack", "{tmp}/nowhere", "--out", "{tmp}/out"], "there is no folder"),
        (["inspect", "{tmp}"], "no data.yaml"),
        (["pack", "{tmp}/in", "--out", "{tmp}/in/data.yaml"], "File exists"),
        (["pack", "{tmp}/in", "--out", "{tmp}/in/data.yaml/out"], "Not a directory"),
        (["pack", "{tmp}/in", "--out", "{tmp}/in"], "give another --out"),
        (["inspect", "{tmp}/in", "--json", "{tmp}/nowhere/report.json"], "No such file"),
        (["sample", "{tmp}/in"], "is not empty"),
        (["sample", "{tmp}/in/data.yaml/out"], "Not a directory"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(tmp_path, capsys, words, message):
    write_folder(tmp_path / "in", {"a.jpg": (picture(), None)})
    assert run(*(word.format(tmp=tmp_path) for word in words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_train_and_val_in_one_folder_are_refused_in_one_line(tmp_path, capsys):
    """The best epoch would be chosen on the images that were trained on."""
    write_folder(tmp_path / "in", {"a.jpg": (picture(), None)})
    for where in ("images/train", "images", "./images/val/../train"):
        (tmp_path / "in/data.yaml").write_text(f"train: images/train\nval: {where}\nnames: [person, head]\n")
        assert run("pack", tmp_path / "in", "--out", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert "share images" in said
        assert said.count("\n") == 1


def test_flags_are_read_with_underscores_too(tmp_path):
    """As those of `recipe`; what follows a flag is left as it is."""
    write_folder(tmp_path / "in_1", {"a.jpg": (picture(), None), "b.jpg": (b"", None)})
    assert run("pack", tmp_path / "in_1", "--out", tmp_path / "o_ut", "--on_bad", "skip", "--shard_size=1MB") == 0
    assert (tmp_path / "o_ut/manifest.json").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["pack", "x"],
        ["pack", "x", "--out", "y", "--workers", "0"],
        ["pack", "x", "--out", "y", "--shard-size", "12kB"],
        ["sample"],
        ["move"],
    ],
)
def test_a_wrong_flag_gives_exit_code_2(words):
    with pytest.raises(SystemExit) as error:
        run(*words)
    assert error.value.code == 2


@pytest.mark.parametrize(("text", "expected"), [("256MB", 256_000_000), ("1000", 10**9)])
def test_sizes_are_read_as_people_write_them(text, expected):
    assert megabytes(text) == expected


def test_boxes_beyond_the_queries_are_counted():
    def image(*boxes):
        category = np.repeat([0, 1], boxes)
        return Seen("a.jpg", b"", category, np.full(len(category), 10))

    found = Survey(seen=[image(0, 0), image(150, 20), image(250, 150), image(310, 0)]).counts()
    assert (found["images"], found["boxes"], found["most_boxes"]) == (4, 880, 400)
    assert (found["person_boxes"], found["head_boxes"]) == (710, 170)
    assert found["images_beyond_300_queries"] == 2


def test_box_sizes_are_measured_after_the_training_resize():
    lines = "".join(f"1 0.5 0.5 {side / 1920} {side / 1080}\n" for side in (9, 10.1, 60))
    labels = read_labels(lines.encode(), "a.txt", {1: 1}, 1920, 1080)
    example = Example(Entry("a.jpg", "a.jpg", "a.txt"), b"complete", 1920, 1080, labels)
    found = Survey(seen=[see(example)]).counts()
    assert [found[f"head_share_below_{side}_px"] for side in (8, 16, 32)] == [0.3333, 0.6667, 0.6667]
