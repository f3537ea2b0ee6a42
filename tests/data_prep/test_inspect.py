"""What `inspect` says of the data: unlabelled classes, leaks between splits, settings (data_prep.inspect)."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from yolo_folder import picture, write_folder

from data_prep.__main__ import main
from data_prep.inspect import annotated_parts, leaks, recommended_settings
from data_prep.statistics import Seen, Survey

PERSON, HEAD = "0 0.5 0.5 0.5 0.5\n", "1 0.5 0.5 0.25 0.25\n"


def seen_as(*names: str, digest: bytes = b"", boxes: tuple[int, int] = (1, 1)) -> list[Seen]:
    category = np.repeat([0, 1], boxes)
    return [Seen(name, digest or os.urandom(8), category, np.full(len(category), 50)) for name in names]


def frames(film: str, numbers: range) -> list[str]:
    return [f"{film}_{number:04d}.jpg" for number in numbers]


def test_a_part_without_a_class_is_named_with_the_flag_that_says_so():
    seen = seen_as(*frames("own", range(20))) + seen_as(*frames("MOT", range(12)), boxes=(3, 0))
    seen += seen_as(*(f"heads/{n}.jpg" for n in range(11)), boxes=(0, 2))
    table, warnings = annotated_parts(seen)
    assert table[1:] == [("own*", "20", "20", "20"), ("MOT*", "12", "36", "0"), ("heads/*", "11", "0", "22")]
    assert [line.split("; ")[0] for line in warnings] == [
        "warning: 12 images MOT* have no head box",
        "warning: 11 images heads/* have no person box",
    ]
    assert "`--labelled 'MOT*=person'`" in warnings[0]
    assert "`--labelled 'heads/*=head'`" in warnings[1]
    assert len(annotated_parts(seen, [("MOT*", "person"), ("heads/*", "head")])[1]) == 0


def test_a_part_of_few_images_or_without_any_box_is_no_warning():
    few = seen_as(*frames("MOT", range(9)), boxes=(3, 0))
    empty = seen_as(*frames("street", range(30)), boxes=(0, 0))
    assert annotated_parts(few + empty)[1] == []


def test_the_same_bytes_in_two_splits_are_found_under_any_name():
    train, validation = seen_as("a.jpg", digest=b"1"), seen_as("b.jpg", digest=b"1")
    (warning,) = leaks({"train": train, "validation": validation})
    assert "1 images are in two splits, byte for byte, such as a.jpg of train and b.jpg of validation" in warning
    assert leaks({"train": train + validation, "validation": []}) == [], "twice in one split is no leak"


def test_frames_of_a_sequence_in_two_splits_are_found():
    train, validation = seen_as(*frames("film", range(0, 20, 2))), seen_as(*frames("film", range(1, 20, 2)))
    (warning,) = leaks({"train": train, "validation": validation})
    assert "1 sequences have frames in two splits, such as film_*" in warning
    assert "--val-fraction" in warning
    train, validation = seen_as(*frames("img", range(9))), seen_as(*frames("img", range(3)))
    assert leaks({"train": train, "validation": validation}) == [], "the numbers begin anew in each folder"
    train, validation = seen_as("000001.jpg", "000003.jpg"), seen_as("000002.jpg")
    assert leaks({"train": train, "validation": validation}) == [], "numbered photographs are no film"


@pytest.mark.parametrize(
    ("images", "head_side", "expected"),
    [
        ([(3, 3)] * 10, 20, []),
        ([(45, 40)] * 10, 20, ["--num_queries 900 instead of 300"]),
        ([(1, 1)] * 90 + [(300, 250)] * 10, 20, ["--num_queries 600 instead of 300"]),
        ([(3, 3)] * 10, 7, ["--shortest_edge 1120 --longest_edge 1760"]),
        ([(3, 3)] * 10, 1, ["--shortest_edge 1280 --longest_edge 2048"]),
        ([(0, 0)] * 10, 20, []),
        ([], 20, []),
    ],
)
def test_settings_are_recommended_from_the_data(images, head_side, expected):
    seen = [image for boxes in images for image in seen_as("a.jpg", boxes=boxes)]
    seen = [image._replace(side=np.where(image.category, head_side, 50)) for image in seen]
    found = recommended_settings(Survey(seen=seen))
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
