"""What `inspect` says of the data: unlabelled classes, leaks between splits, settings (data_prep.advice)."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from yolo_folder import picture, write_folder

from data_prep.__main__ import main
from data_prep.advice import Seen, annotated_parts, leaks, recommended_settings
from data_prep.statistics import Tally

PERSON, HEAD = "0 0.5 0.5 0.5 0.5\n", "1 0.5 0.5 0.25 0.25\n"


def seen_as(split: str, *names: str, digest: bytes = b"", boxes: tuple[int, int] = (1, 1)) -> list[Seen]:
    return [Seen(split, name, digest or name.encode() + split.encode(), boxes) for name in names]


def frames(film: str, numbers: range) -> list[str]:
    return [f"{film}_{number:04d}.jpg" for number in numbers]


def test_a_part_without_a_class_is_named_with_the_flag_that_says_so():
    seen = seen_as("train", *frames("own", range(20))) + seen_as("train", *frames("MOT", range(12)), boxes=(3, 0))
    seen += seen_as("train", *(f"heads/{n}.jpg" for n in range(11)), boxes=(0, 2))
    table, warnings = annotated_parts(seen)
    assert table[1:] == [("own*", "20", "20", "20"), ("MOT*", "12", "36", "0"), ("heads/*", "11", "0", "22")]
    assert [line.split(". ")[0] for line in warnings] == [
        "warning: 12 images MOT* have no head box",
        "warning: 11 images heads/* have no person box",
    ]
    assert "`--labelled 'MOT*=person'`" in warnings[0]
    assert "`--labelled 'heads/*=head'`" in warnings[1]
    assert len(annotated_parts(seen, [("MOT*", "person"), ("heads/*", "head")])[1]) == 0


def test_a_part_of_few_images_or_without_any_box_is_no_warning():
    few = seen_as("train", *frames("MOT", range(9)), boxes=(3, 0))
    empty = seen_as("train", *frames("street", range(30)), boxes=(0, 0))
    assert annotated_parts(few + empty)[1] == []


def test_the_same_bytes_in_two_splits_are_found_under_any_name():
    seen = seen_as("train", "a.jpg", digest=b"1") + seen_as("validation", "b.jpg", digest=b"1")
    (warning,) = leaks(seen)
    assert "1 images are in two splits, byte for byte, such as a.jpg of train and b.jpg of validation" in warning
    assert leaks(seen_as("train", "a.jpg", "b.jpg", digest=b"1")) == [], "twice in one split is no leak"


def test_frames_of_a_sequence_in_two_splits_are_found():
    seen = seen_as("train", *frames("film", range(0, 20, 2))) + seen_as("validation", *frames("film", range(1, 20, 2)))
    (warning,) = leaks(seen)
    assert "1 sequences have frames in two splits, such as film_*" in warning
    assert "--val-fraction" in warning
    again = seen_as("train", *frames("img", range(9))) + seen_as("validation", *frames("img", range(3)))
    assert leaks(again) == [], "the numbers begin anew in each folder"
    numbered = seen_as("train", "000001.jpg", "000003.jpg") + seen_as("validation", "000002.jpg")
    assert leaks(numbered) == [], "numbered photographs are no film"


@pytest.mark.parametrize(
    ("crowds", "sides", "expected"),
    [
        ({(3, 3): 10}, {(0, 50): 30, (1, 20): 30}, []),
        ({(45, 40): 10}, {(0, 50): 450, (1, 20): 400}, ["--num_queries 900 instead of 300"]),
        ({(1, 1): 90, (300, 250): 10}, {(0, 50): 10, (1, 20): 10}, ["--num_queries 600 instead of 300"]),
        ({(3, 3): 10}, {(0, 50): 30, (1, 7): 30}, ["--shortest_edge 1120 --longest_edge 1760"]),
        ({(3, 3): 10}, {(0, 50): 30, (1, 1): 30}, ["--shortest_edge 1280 --longest_edge 2048"]),
        ({(0, 0): 10}, {}, []),
        ({}, {}, []),
    ],
)
def test_settings_are_recommended_from_the_data(crowds, sides, expected):
    found = recommended_settings(Tally(crowds=Counter(crowds), sides=Counter(sides)))
    assert [line.removeprefix("recommended: ").split(" (")[0] for line in found] == expected


def test_inspect_prints_and_writes_all_of_it(tmp_path, capsys):
    train = {f"MOT_{n}.jpg": (picture(seed=n), PERSON) for n in range(10)} | {"own_1.jpg": (picture(), PERSON + HEAD)}
    train["own_1.jpg"] = (picture(seed=50), PERSON + HEAD)
    root = write_folder(tmp_path / "in", train, {"copy.jpg": (picture(seed=3), PERSON)})
    assert main(["inspect", str(root), "--json", str(tmp_path / "report.json")]) == 0
    said = capsys.readouterr().out
    for words in ("MOT*", "10 images MOT* have no head box", "such as MOT_3.jpg of train and copy.jpg of validation"):
        assert words in said
    assert len(json.loads((tmp_path / "report.json").read_text())["advice"]) == 2
    assert main(["inspect", str(root), "--labelled", "MOT*=person"]) == 0
    assert "have no head box" not in capsys.readouterr().out
