"""`recipe compare`: one table, the differing settings, the curves, and whether the images were the same."""

from __future__ import annotations

import json
from argparse import Namespace

import evaluated
import pytest

from recipe.record import RunRecord
from recipe.report.compare import compare, compare_numbers
from recipe.report.report import write_report
from recipe.report.tables import escape
from recipe.schema import UserError

SETTINGS = {"learning_rate": 1e-4, "num_queries": 300, "seed": 42}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of two runs that differ in the learning rate and the number of queries."""
    data = evaluated.crowd(tmp_path_factory.mktemp("packed"))
    folder = tmp_path_factory.mktemp("outputs")
    changes = {"first": {}, "sec|ond": {"learning_rate": 5e-5, "num_queries": 900}}
    for name, other in changes.items():
        metrics = evaluated.evaluate(data, found=0.6 if name == "first" else 0.9)
        run = folder / name
        run.mkdir()
        settings = SETTINGS | other
        record = RunRecord(name, name, "now", settings, settings, {"data": "me/crowd", "manifest": "abc"})
        record.write(run)
        write_report(run, metrics, data, record=vars(record), history=evaluated.HISTORY)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluated.HISTORY) + '{"half')
    return [folder / name for name in changes]


def read(run):
    return json.loads((run / "report" / "metrics.json").read_text())


def test_runs_stand_side_by_side_with_their_curves_and_the_settings_that_differ(runs, tmp_path, capsys):
    assert compare(Namespace(runs=list(map(str, runs)), out=tmp_path / "out")) == 0
    text = (tmp_path / "out" / "compare.md").read_text()
    first, second = map(read, runs)
    assert f"| metric | {escape(runs[0])} | {escape(runs[1])} |" in text
    gain = f"{second['map'] - first['map']:+.3f} ▲"
    assert f"| `map` | {first['map']:.3f} | {second['map']:.3f} ({gain}) |" in text
    assert "| `learning_rate` | 0.0001 | 5e-05 |" in text
    assert "| `num_queries` | 300 | 900 |" in text
    assert "`seed`" not in text
    assert "All were evaluated on the same images." in text
    assert evaluated.pixels(tmp_path / "out" / "compare.png").shape[1] > 1000
    assert "compare.md" in capsys.readouterr().out


def test_a_metrics_json_and_a_bare_evaluation_may_stand_for_runs_too(runs, tmp_path):
    bare = tmp_path / "evaluation"
    (bare / "report").mkdir(parents=True)
    (bare / "report" / "metrics.json").write_text(json.dumps(read(runs[1])))
    files = [runs[0] / "report" / "metrics.json", bare, runs[1]]
    assert compare(Namespace(runs=files, out=tmp_path / "out")) == 0
    text = (tmp_path / "out" / "compare.md").read_text()
    assert f"| metric | {' | '.join(map(escape, files))} |" in text


@pytest.mark.filterwarnings("error::UserWarning")  # of a legend that leaves no room for the plot
def test_runs_of_one_name_are_told_apart_by_their_paths(runs, tmp_path):
    assert compare(Namespace(runs=[runs[0], runs[0] / ".." / "first"], out=tmp_path / "out")) == 0
    text = (tmp_path / "out" / "compare.md").read_text()
    assert f"| metric | {escape(runs[0])} |" in text
    assert text.split("## Settings that differ\n\n")[1].startswith("None that is known.")


def test_each_change_has_an_arrow_up_where_it_is_better(runs):
    """MR-2 is better when it falls: the arrow follows the meaning, not the sign."""
    found = read(runs[0])
    changes = {"map": -0.1, "ji_head": 0.2, "mr2_head": 0.05, "mr2_person": -0.05}
    earlier = found | {key: found[key] + change for key, change in changes.items()} | {"map_small": -1.0}
    lines = compare_numbers({"before": earlier, "now": found})
    for key, change in (
        ("map", "+0.100 ▲"),
        ("ji_head", "-0.200 ▼"),
        ("mr2_head", "-0.050 ▲"),
        ("mr2_person", "+0.050 ▼"),
        ("map_75", "+0.000 ="),
    ):
        assert f"| `{key}` | {earlier[key]:.3f} | {found[key]:.3f} ({change}) |" in lines
    assert f"| `map_small` | – | {found['map_small']:.3f} |" in lines


def test_a_comparison_across_other_images_says_so(runs):
    found = read(runs[0])
    other = {**found, "record": {**found["record"], "manifest": "another"}}
    fewer = {**found, "details": {**found["details"], "images": 3}}
    for others in (other, fewer):
        assert "not evaluated on the same images" in compare_numbers({"before": others, "now": found})[-1]


@pytest.mark.parametrize("content", [None, "no json", "[1]", '{"loss": 1}'])
def test_a_run_without_a_report_is_refused_by_name_with_the_command_that_helps(runs, tmp_path, content):
    path = tmp_path / "report" / "metrics.json"
    if content is not None:
        path.parent.mkdir()
        path.write_text(content)
    with pytest.raises(UserError, match=f"{path}: .*recipe evaluate"):
        compare(Namespace(runs=[runs[0], tmp_path], out=tmp_path / "out"))
