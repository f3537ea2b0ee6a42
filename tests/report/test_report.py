"""The report says what metrics.json says, compares fairly, and stands any input."""

from __future__ import annotations

import json
import re

import evaluated
import packed
import pytest

from recipe.cli import main
from recipe.report import tables
from recipe.report.report import next_steps, print_summary, write_report
from recipe.schema import UserError

COCO = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100", "mar_small",
        "mar_medium", "mar_large", "map_max300", "mar_300"]  # fmt: skip
KEYS = [*COCO, *(f"{key}_{name}" for key in ("map", "mar_100", "mr2", "ji") for name in ("person", "head"))]
RECORD = {"checkpoint": "outputs/run", "dataset": {"data": "me/crowd", "revision": "c0ffee", "manifest": "abc"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return evaluated.crowd(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    """The folder of a full report, and what `write_report` returned."""
    folder = tmp_path_factory.mktemp("run")
    metrics = evaluated.evaluate(data)
    return folder, metrics, write_report(folder, metrics, data, history=evaluated.HISTORY, record=RECORD)


def test_metrics_json_holds_the_contracts_keys_as_plain_numbers_with_details_and_origin(written):
    folder, metrics, returned = written
    found = json.loads((folder / "report" / "metrics.json").read_text())
    assert set(found) == {*KEYS, "details", "record"}
    assert all(isinstance(found[key], float) for key in KEYS)
    assert {key: found[key] for key in KEYS} == metrics.compute()
    assert found["details"] == json.loads(json.dumps(metrics.details()))
    assert found == json.loads(json.dumps(returned))
    origin = {"checkpoint": "outputs/run", "data": "me/crowd", "data_revision": "c0ffee", "manifest": "abc"}
    assert origin.items() <= found["record"].items()
    assert found["record"]["commit"]
    assert found["record"]["device"]


def test_every_number_in_the_report_is_the_one_in_metrics_json(written):
    folder, _, found = written
    text = (folder / "report" / "report.md").read_text()
    for key in COCO:
        shown = f"{found[key]:.3f}" if found[key] >= 0 else "–"
        assert f"| `{key}` | {shown} |" in text
    lines = {
        "AP, IoU 0.50 to 0.95 (map)": (f"{found['map']:.3f}", "map"),
        "AR, 100 detections (mar_100)": (f"{found['mar_100']:.3f}", "mar_100"),
        "MR-2 (lower is better)": ("", "mr2"),
        "JI": ("", "ji"),
    }
    for word, (every, key) in lines.items():
        assert f"| {word} | {every} | {found[f'{key}_person']:.3f} | {found[f'{key}_head']:.3f} |" in text
    for name in ("person", "head"):
        point = found["details"]["operating_points"][name]["best_f1"]
        assert f"**{name}**: {point['recall']:.0%} of the boxes are found and {point['precision']:.0%}" in text
        assert (
            f"| **this evaluation** | {name} | {100 * tables.average_precision_50(found['details'], name):.1f} |"
            in text
        )


def test_every_picture_of_the_report_exists_and_every_png_is_shown_with_a_caption(written):
    folder, _, _ = written
    text = (folder / "report" / "report.md").read_text()
    shown = re.findall(r"!\[.+\]\((.+\.png)\)\n\n(.+)", text)
    assert {name for name, _ in shown} == {path.name for path in (folder / "report").glob("*.png")}
    assert len(shown) == 7
    assert all(len(caption) > 30 for _, caption in shown)


def test_the_comparison_shows_each_difference_and_which_way_is_better(written):
    """MR-2 is better when it falls: the arrow follows the meaning, not the sign."""
    found = written[2]
    changes = {"map": -0.1, "ji_head": 0.2, "mr2_head": 0.05, "mr2_person": -0.05}
    earlier = found | {key: found[key] + change for key, change in changes.items()} | {"map_small": -1.0}
    lines = tables.comparison(found, earlier)
    for key, change, word in (
        ("map", "+0.100", "▲ better"),
        ("ji_head", "-0.200", "▼ worse"),
        ("mr2_head", "-0.050", "▲ better"),
        ("mr2_person", "+0.050", "▼ worse"),
        ("map_75", "+0.000", "="),
    ):
        assert f"| `{key}` | {earlier[key]:.3f} | {found[key]:.3f} | {change} | {word} |" in lines
    assert f"| `map_small` | – | {found['map_small']:.3f} | – |  |" in lines
    assert lines[-1].endswith("Both were evaluated on the same images.")


def test_a_comparison_across_other_images_says_so(written):
    _, _, found = written
    other = {**found, "record": {**found["record"], "manifest": "another"}}
    assert "not evaluated on the same images" in tables.comparison(found, other)[-1]
    fewer = {**found, "details": {"images": 3}}
    assert "not evaluated on the same images" in tables.comparison(found, fewer)[-1]


@pytest.mark.parametrize("content", [None, "no json", "[1]", '{"loss": 1}'])
def test_a_file_to_compare_with_that_holds_no_metrics_is_refused_by_name(written, data, tmp_path, content):
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"--compare {re.escape(str(path))}"):
        write_report(tmp_path, written[1], data, compare=path)


def test_a_mistyped_file_to_compare_with_is_found_before_anything_is_loaded(tmp_path, capsys):
    """After the evaluation it would have cost an hour."""
    typo = str(tmp_path / "typo.json")
    assert main(["evaluate", str(tmp_path / "no-model"), "--data", "nowhere", "--compare", typo]) == 2
    assert f"--compare {typo}" in capsys.readouterr().err


def test_the_published_numbers_are_cited_and_their_difference_is_said(written):
    text = (written[0] / "report" / "report.md").read_text()
    for paper in ("arXiv:2003.09163", "arXiv:2203.07669", "doi:10.1007/s11760-023-02896-2", "arXiv:2304.10765"):
        assert paper in text
    assert "full bodies" in text
    assert "it is not `map`" in text


def test_the_worst_images_stand_in_the_order_of_their_missed_boxes(written):
    rows = written[2]["details"]["worst_images"]
    assert [row["misses"] for row in rows] == sorted((row["misses"] for row in rows), reverse=True)
    assert rows[0]["misses"] > 0


@pytest.mark.parametrize("case", ["no detections", "no boxes", "persons only"])
def test_a_degenerate_evaluation_gives_a_report_with_dashes_and_no_nan(case, tmp_path):
    boxes = [] if case == "no boxes" else [[10, 10, 20, 40], [50, 20, 30, 60]]
    data = evaluated.dataset(tmp_path / "packed", [packed.row(7, 120, 180, boxes)])
    metrics = evaluated.evaluate(data, found=float(case == "persons only"), noise=4 * (case != "no detections"))
    found = write_report(tmp_path, metrics, data, history=evaluated.HISTORY[:2])
    text = (tmp_path / "report" / "report.md").read_text()
    assert not re.search(r"\bnan\b|None|-1\.0|\binf\b", text)
    assert "NaN" not in (tmp_path / "report" / "metrics.json").read_text()
    assert re.search(r"\| MR-2 \(lower is better\) \|  \| .+ \| – \|", text)
    assert "**head**: no labelled boxes" in text
    nothing = "**person**: no labelled box was found at any score; pictures show detections above 0.50."
    assert (nothing in text) == (case == "no detections")
    assert found["details"]["images"] == 1
    print_summary(found)


def test_a_bare_evaluation_beside_an_earlier_one(data, written, tmp_path):
    """No history: no training curves, not even those of an earlier report. The origin is read from run.json."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "curves.png").write_bytes(b"of an earlier report")
    (tmp_path / "run.json").write_text(json.dumps({"run_name": "crowd-7", "commit": "c1", "device": "a GPU"}))
    earlier = written[0] / "report" / "metrics.json"
    found = write_report(tmp_path, written[1], data, compare=earlier)
    text = (tmp_path / "report" / "report.md").read_text()
    assert not (tmp_path / "report" / "curves.png").exists()
    assert "(curves.png)" not in text
    assert "\n".join(tables.comparison(found, json.loads(earlier.read_text()))) in text
    assert "Before: outputs/run." in text
    assert found["record"]["checkpoint"] == "crowd-7"
    assert (found["record"]["commit"], found["record"]["device"]) == ("c1", "a GPU")


def test_the_summary_on_the_terminal_shows_the_reports_numbers(written, capsys):
    found = written[2]
    print_summary(found)
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "(map)" in line)
    assert line.split()[-3:] == [f"{found[key]:.3f}" for key in ("map", "map_person", "map_head")]
    assert max(map(len, out.splitlines())) <= 80


SIZES = ("<8", "8-16", "16-32", "32-96", ">=96")


def details(**changes):
    """A good evaluation: 1,000 boxes per class, few missed, few false."""
    size = {"boxes": 200, "recall": 0.95, "recall_best_f1": 0.9}
    errors = {"hits": 900, "missed": 100, "duplicate": 5, "wrong_class": 5, "badly_placed": 5, "background": 5}
    good = {
        "boxes": {"person": 1000, "head": 1000},
        "by_size": {name: [size | {"bin": each} for each in SIZES] for name in ("person", "head")},
        "errors": {name: dict(errors) for name in ("person", "head")},
        "recall_ceiling": 1.0,
    }
    return good | changes


def advice(found, history=()):
    return " ".join(next_steps(found, history, shrink=0.6, num_queries=300))


def test_missed_small_heads_ask_for_a_higher_resolution_and_large_ones_do_not():
    found = details()
    found["by_size"]["head"][0]["recall_best_f1"] = 0.1
    text = advice(found)
    assert "most are `head` of <8 pixels" in text
    assert "`--longest_edge` (images are now scaled by 0.60)" in text
    found = details()
    found["by_size"]["person"][4]["recall_best_f1"] = 0.0
    assert "missing labels" in advice(found)
    assert "--longest_edge" not in advice(found)


def test_found_boxes_with_low_scores_are_told_apart_from_unseen_ones():
    found = details()
    for row in found["by_size"]["head"]:
        row["recall_best_f1"] = 0.5
    assert "Another 45% of `head` boxes are found with scores below the threshold" in advice(found)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("duplicate", "are second boxes"),
        ("wrong_class", "have the place right and the class wrong"),
        ("badly_placed", "touch a labelled box"),
        ("background", "lie on nothing labelled"),
    ],
)
def test_each_kind_of_false_detection_is_named_once_it_is_frequent(kind, words):
    assert words not in advice(details())
    found = details()
    found["errors"]["head"][kind] = 300
    assert f"25% of the `head` detections {words}" in advice(found)


def test_a_recall_ceiling_below_99_percent_asks_for_more_queries():
    assert "--num_queries" not in advice(details())
    assert "2.0% of the boxes cannot be found at all" in advice(details(recall_ceiling=0.98))


def test_a_rising_map_asks_to_go_on_and_a_falling_one_to_stop_earlier():
    rising, falling, flat = (
        [{"eval_map": x} for x in maps] for maps in ((0.1, 0.2, 0.3), (0.1, 0.3, 0.2), (0.3,) * 3)
    )
    assert "train longer" in advice(details(), rising)
    assert "fallen from 0.300 to 0.200: stop earlier" in advice(details(), falling)
    assert "mAP" not in advice(details(), flat)


def test_nothing_found_and_nothing_to_find_give_one_sentence_each():
    nothing = details()
    for kinds in nothing["errors"].values():
        kinds["hits"] = 0
    assert advice(nothing).startswith("- Not one box was found")
    assert "hold no labelled boxes" in advice(details(boxes={"person": 0, "head": 0}))


def test_a_class_without_labels_is_not_blamed_for_false_detections():
    found = details(boxes={"person": 1000, "head": 0})
    found["errors"]["head"] = dict.fromkeys(found["errors"]["head"], 0) | {"background": 50}
    assert "`head` detections" not in advice(found)
