"""`recipe compare RUN RUN ...`: several runs in one table, their curves in one picture, the settings that differ.

recipe compare outputs/first outputs/second --out outputs/comparison

A RUN is a run's folder, the folder of a `recipe evaluate`, or a metrics.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from recipe.record import RunRecord, read_log
from recipe.report.plots import learning_curves
from recipe.report.tables import escape, number, table
from recipe.schema import UserError


def compare(options: argparse.Namespace) -> int:
    """Write compare.md and compare.png on `options.runs` into `options.out`; UserError for a run without a report."""
    runs = {str(run): Path(run) for run in options.runs}
    files = {name: run / "report" / "metrics.json" if run.is_dir() else run for name, run in runs.items()}
    found = {name: read_metrics(path) for name, path in files.items()}
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Comparison", *compare_numbers(found), "", "## Settings that differ", "", *compare_settings(runs)]
    if learning_curves(out / "compare.png", {name: read_log(run) for name, run in runs.items()}):
        lines += ["", "## Training", "", "![Curves of all runs](compare.png)"]
    (out / "compare.md").write_text("\n".join(lines) + "\n")
    console = Console()
    console.print(Markdown("\n".join(lines)))
    console.print(f"comparison {out / 'compare.md'}", soft_wrap=True)
    return 0


def read_metrics(path: Path) -> dict[str, Any]:
    """A report's metrics.json. Raises UserError if it is none."""
    try:
        found = json.loads(path.read_text())
        found["map"], found["details"]["images"], found["record"]["checkpoint"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read as the numbers of a report ({error!r}); "
            "`recipe evaluate RUN --data DATA` writes RUN/evaluation-validation/report/metrics.json"
        ) from error
    return found


def compare_numbers(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row per metric, a column per run; each later run with its change, and an arrow up where that is better."""
    first, *later = found.values()
    rows = []
    for key in [key for key, value in first.items() if isinstance(value, float)]:
        changes = [change(key, first[key], each.get(key, -1)) for each in later]
        rows.append([f"`{key}`", number(first[key]), *changes])
    images = {(each["details"]["images"], *map(each["record"].get, ("manifest", "data_revision", "split")))
              for each in found.values()}  # fmt: skip
    different = "**The runs were not evaluated on the same images**, so the differences are not the models' alone."
    text = "All were evaluated on the same images." if len(images) == 1 else different
    return [*table(["metric", *map(escape, found)], rows), "", text]


def change(key: str, before: float, now: float) -> str:
    """A number with its difference from the first run's; MR-2 is better when it falls."""
    if not (before >= 0 and now >= 0):
        return number(now)
    gain = before - now if key.startswith("mr2_") else now - before
    arrow = "=" if abs(gain) < 0.0005 else "▲" if gain > 0 else "▼"
    return f"{number(now)} ({now - before:+.3f} {arrow})"


def compare_settings(runs: Mapping[str, Path]) -> list[str]:
    """The settings that decide the weights, where the runs differ in them."""
    records = {name: RunRecord.read(run) for name, run in runs.items()}
    known = {name: record.fixed_settings for name, record in records.items() if record is not None}
    keys = dict.fromkeys(key for settings in known.values() for key in settings)
    rows = [[f"`{key}`", *(escape(settings.get(key, "–")) for settings in known.values())] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return table(["setting", *map(escape, known)], rows) if rows else ["None that is known."]
