"""The report says what metrics.json says, compares fairly, and stands any input."""

from __future__ import annotations

import json
import re

import evaluated
import packed
import pytest

from recipe.record import RunRecord
from recipe.report import tables
from recipe.report.report import print_numbers, write_report

COCO = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100", "mar_small",
        "mar_medium", "mar_large", "map_max300", "mar_300"]  # fmt: skip
KEYS = [*COCO, *(f"{key}_{name}" for key in ("map", "map_50", "mar_100", "mr2", "ji") for name in ("person", "head"))]
RECORD = {
    "checkpoint": "outputs/run",
    "device": "a GPU",
    "dataset": {"data": "me/crowd", "revision": "c0ffee", "manifest": "abc"},
}


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
    assert found == json.loads(json.dumps(returned))
    details = json.loads(json.dumps(metrics.details()))
    named = [{"file_name": f"{row['image_id']}.jpg"} | row for row in details["worst_images"]]
    assert found["details"].pop("intervals").keys() <= set(KEYS)
    assert found["details"] == details | {"worst_images": named}
    origin = {"checkpoint": "outputs/run", "data": "me/crowd", "data_revision": "c0ffee", "manifest": "abc"}
    assert origin.items() <= found["record"].items()
    assert found["record"]["commit"]
    assert found["record"]["device"]


def test_every_number_in_the_report_is_the_one_in_metrics_json(written):
    folder, _, found = written
    text = (folder / "report" / "report.md").read_text()
    for key in KEYS:
        shown = f"{found[key]:.3f}" if found[key] >= 0 else "–"
        checked = "–" if re.match("map_max300|mar_300|map_50_|mr2|ji", key) else shown
        assert f"| `{key}` | {shown} | {checked} |" in text
    lines = {
        "AR, 100 detections (mar_100)": (f"{found['mar_100']:.3f}", "mar_100"),
        "JI": ("", "ji"),
    }
    for word, (every, key) in lines.items():
        assert f"| {word} | {every} | {found[f'{key}_person']:.3f} | {found[f'{key}_head']:.3f} |" in text
    assert f"{found['mr2_person']:.3f}" in re.search(r"MR-2 \(lower is better\) \|  \| (.+)", text)[1]


def test_every_picture_of_the_report_exists_and_every_png_is_shown_with_a_caption(written):
    folder, _, _ = written
    text = (folder / "report" / "report.md").read_text()
    shown = re.findall(r"!\[.+\]\((.+\.png)\)\n\n(.+)", text)
    assert {name for name, _ in shown} == {path.name for path in (folder / "report").glob("*.png")}
    assert len(shown) == 5
    assert all(len(caption) > 30 for _, caption in shown)


def test_the_words_on_what_was_chosen_fit_the_split(data, written, tmp_path):
    text = (written[0] / "report" / "report.md").read_text()
    assert "Thresholds and best epoch were chosen on these very images" in text
    for split, words in (
        ("test", "The thresholds were chosen on these very images"),
        ("train", "was trained on these"),
    ):
        record = {"checkpoint": "me/model", "dataset": {"split": split}}
        write_report(tmp_path / split, written[1], data, record=record)
        text = (tmp_path / split / "report" / "report.md").read_text()
        assert words in text
        assert "best epoch" not in text


def test_intervals_stand_beside_their_numbers(written):
    folder, metrics, found = written
    low, high = found["details"]["intervals"]["map"]
    text = (folder / "report" / "report.md").read_text()
    assert f"| {found['map']:.3f} ({low:.3f} to {high:.3f}) |" in text
    assert "In brackets: 95 % intervals" in text
    assert "95 %" not in "\n".join(tables.class_table(found, metrics.details()))  # the card of a checkpoint has none


def test_only_an_evaluation_with_ignored_regions_may_stand_beside_the_papers(written, tmp_path):
    """The papers leave detections in ignored regions out: without them the same detector looks worse."""
    assert "may not be compared with published rows" in (written[0] / "report" / "report.md").read_text()
    rows = packed.crowd(2, size=(240, 360), boxes=24)
    rows[0]["objects"]["iscrowd"][0] = 1
    data = evaluated.dataset(tmp_path / "packed", rows)
    write_report(tmp_path, evaluated.evaluate(data), data, record=RECORD)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "may not be compared" not in text
    assert "may stand beside published rows" in text


def test_the_worst_images_are_listed_by_their_files_most_missed_boxes_first(written):
    folder, _, found = written
    rows = found["details"]["worst_images"]
    assert rows[0]["misses"] > 0
    assert [row["misses"] for row in rows] == sorted((row["misses"] for row in rows), reverse=True)
    lines = [f"| {row['file_name']} | {row['image_id']} | {row['boxes']} | {row['misses']} |" for row in rows]
    text = (folder / "report" / "report.md").read_text()
    places = [text.index(line) for line in lines]
    assert places == sorted(places)


def test_a_file_name_injects_neither_html_nor_markdown(tmp_path):
    rows = packed.crowd(1)
    rows[0]["image"]["path"] = "<img src=x>|[a](b)`\n# c.jpg"
    data = evaluated.dataset(tmp_path / "packed", rows)
    record = {"checkpoint": "<b>x", "dataset": {"data": "a|b"}}
    write_report(tmp_path, evaluated.evaluate(data, found=0.3), data, record=record)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "<" not in text.replace("<8", "").replace("<br>", "")
    assert "| &lt;img src=x&gt;\\|\\[a\\]\\(b\\)\\` \\# c.jpg | 0 |" in text
    assert "a\\|b" in text


@pytest.mark.parametrize("case", ["no detections", "no boxes", "persons only"])
def test_a_degenerate_evaluation_gives_a_report_with_dashes_and_no_nan(case, tmp_path):
    boxes = [] if case == "no boxes" else [[10, 10, 20, 40], [50, 20, 30, 60]]
    data = evaluated.dataset(tmp_path / "packed", [packed.row(7, 120, 180, boxes)])
    metrics = evaluated.evaluate(data, found=float(case == "persons only"), noise=4 * (case != "no detections"))
    found = write_report(tmp_path, metrics, data, record=RECORD, history=evaluated.HISTORY[:2])
    text = (tmp_path / "report" / "report.md").read_text()
    assert not re.search(r"\bnan\b|None|-1\.0|\binf\b", text)
    assert "NaN" not in (tmp_path / "report" / "metrics.json").read_text()
    assert re.search(r"\| MR-2 \(lower is better\) \|  \| .+ \| – \|", text)
    assert found["details"]["images"] == 1
    print_numbers(found)


def test_a_bare_evaluation_has_no_training_curves(data, written, tmp_path):
    """No history: no training curves, not even those of an earlier report."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "curves.png").write_bytes(b"of an earlier report")
    record = RunRecord("crowd-7", "7", "now", {}, {}, {"data": "me/crowd"}, commit="c1", device="a GPU")
    found = write_report(tmp_path, written[1], data, record=vars(record))
    text = (tmp_path / "report" / "report.md").read_text()
    assert not (tmp_path / "report" / "curves.png").exists()
    assert "(curves.png)" not in text
    assert found["record"]["checkpoint"] == "crowd-7"
    assert (found["record"]["commit"], found["record"]["device"]) == ("c1", "a GPU")


def test_the_summary_on_the_terminal_shows_the_reports_numbers(written, capsys):
    found = written[2]
    print_numbers(found)
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "(map)" in line)
    assert line.split()[-3:] == [f"{found[key]:.3f}" for key in ("map", "map_person", "map_head")]
    assert max(map(len, out.splitlines())) <= 80
