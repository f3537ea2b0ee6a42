"""`recipe compare RUN RUN ...`: several runs in one table, their curves in one picture, the settings that differ.

recipe compare outputs/first outputs/second --out outputs/comparison

A RUN is a run's folder, the folder of a `recipe evaluate`, or a metrics.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from recipe.record import RunRecord
from recipe.report.plots import learning_curves
from recipe.report.tables import escape, number, table
from recipe.schema import UserError

SAME_IMAGES = ("manifest", "data_revision", "split")  # of a report's record: what says which images they were


def compare(options: argparse.Namespace) -> int:
    """Write compare.md and compare.png on `options.runs` into `options.out`; UserError for a run without a report."""
    names = [Path(run).resolve().name for run in options.runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in options.runs]
    runs = dict(zip(names, map(Path, options.runs), strict=True))
    found = {name: read_metrics(path / "report" / "metrics.json" if path.is_dir() else path)
             for name, path in runs.items()}  # fmt: skip
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    sections = ["# Comparison", *compare_numbers(found), "", "## Settings that differ", "", *compare_settings(runs)]
    if learning_curves(out / "compare.png", {name: read_history(path) for name, path in runs.items()}):
        sections += ["", "## Training", "", "![Curves of all runs](compare.png)"]
    text = "\n".join(sections) + "\n"
    (out / "compare.md").write_text(text)
    console = Console()
    console.print(Markdown(text))
    console.print(f"comparison {out / 'compare.md'}", soft_wrap=True)
    return 0


def read_metrics(path: Path) -> dict[str, Any]:
    """A report's metrics.json. Raises UserError if it is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as the numbers of a report ({error}); "
            "`recipe evaluate RUN --data DATA` writes RUN/evaluation-validation/report/metrics.json"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("map"), float | int):
        raise UserError(f"{path}: holds no metrics; give a run's folder or the metrics.json of its report")
    return found


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none where there is no such file."""
    rows: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):  # a killed process may leave half a line at the end
        for line in (path / "metrics.jsonl").read_text().splitlines():
            rows.append(json.loads(line))
    return rows


def compare_numbers(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row per metric, a column per run; each later run with its change, and an arrow up where that is better."""
    first = next(iter(found.values()))
    rows = []
    for key in [key for key, value in first.items() if isinstance(value, int | float)]:
        values = [each.get(key, -1) for each in found.values()]
        rows.append([f"`{key}`", number(values[0]), *(change(key, values[0], value) for value in values[1:])])
    lines = table(["metric", *map(escape, found)], rows, "l" + "r" * len(found))
    origins = [[(each.get("record") or {}).get(key) for key in SAME_IMAGES] for each in found.values()]
    images = [(each.get("details") or {}).get("images") for each in found.values()]
    if all(each == origins[0] for each in origins) and len(set(images)) == 1:
        return [*lines, "", "All were evaluated on the same images."]
    text = "**The runs were not evaluated on the same images**, so the differences are not the models' alone."
    return [*lines, "", text]


def change(key: str, before: float, now: float) -> str:
    """A number with its difference from the first run's; MR-2 is better when it falls."""
    if not (before >= 0 and now >= 0):
        return number(now)
    gain = before - now if key.startswith("mr2_") else now - before
    arrow = "=" if abs(gain) < 0.0005 else "▲" if gain > 0 else "▼"
    return f"{number(now)} ({now - before:+.3f} {arrow})"


def compare_settings(runs: Mapping[str, Path]) -> list[str]:
    """The settings that decide the weights, where the runs differ in them."""
    records = {name: RunRecord.read(path) for name, path in runs.items() if path.is_dir()}
    known = {name: record.fixed_settings for name, record in records.items() if record is not None}
    rows = []
    for key in dict.fromkeys(key for settings in known.values() for key in settings):
        values = [str(settings.get(key, "–")) for settings in known.values()]
        if len(set(values)) > 1:
            rows.append([f"`{key}`", *map(escape, values)])
    if not rows:
        return ["None is known." if len(known) < len(runs) else "None."]
    return table(["setting", *map(escape, known)], rows, "l" * (1 + len(known)))
