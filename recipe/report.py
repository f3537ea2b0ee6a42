"""The report on an evaluation: report.md, metrics.json and pictures that tell what to do next.

    write_report(Path("outputs/run"), metrics, dataset, history=read_log(Path("outputs/run")))

`recipe train` and `recipe evaluate` end with it. Numbers stand in report.md as they stand in metrics.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipe import gallery, plots
from recipe.data import CrowdDataset
from recipe.metrics import DetectionMetrics

# file, title, how to read it
FIGURES = {
    "curves": ("Training", "Training loss should fall and flatten; validation loss that rises again while the training loss falls means "
               "over-fitting; the last decoder layers should lie lowest."),
    "data": ("The evaluated split", "Left: how crowded the images are, against the boxes the model can give. Right: how "
             "large the boxes are; dotted lines are the edges of the size bins below."),
    "pr_curves": ("Precision and recall", "Each point is one threshold; the nearer to the top right corner, the better. A dashed curve far "
                  "below the solid one means that boxes are found but placed loosely."),
    "thresholds": ("Choosing a threshold", "The vertical lines are the operating points: the best balance, and the lowest threshold at "
                   "which 90 % of the detections are right."),
    "where": ("Where it fails", "Dark bars: found above the threshold of best F1; pale bars: found at any score; dashes: "
              "no such boxes. A pale bar well above its dark one asks for better scores, a low pale bar for better sight."),
    "errors": ("Kinds of errors", "Above: labelled boxes found and missed. Below: what the detections above the threshold are."),
    "predictions": ("Predictions", "Labelled boxes at the left, predicted ones at the right; from the image found best to the worst."),
    "worst": ("The images with most missed boxes", "Filled orange-red boxes were missed. Most of them small and far: raise the resolution; most "
              "of them half hidden: the crowd is the problem."),
}  # fmt: skip


def write_report(
    folder: Path,
    metrics: DetectionMetrics,
    dataset: CrowdDataset,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    record: Mapping[str, Any] | None = None,
    compare: Path | None = None,
) -> dict[str, Any]:
    """Write FOLDER/report/report.md, metrics.json and the PNGs.

    Args:
        dataset: the evaluated split, for its photographs and statistics.
        history: rows of metrics.jsonl, for the curves; none for a bare evaluation.
        record: run.json of the run, or what `recipe evaluate` was given.
        compare: an earlier run's metrics.json.

    Returns:
        What stands in metrics.json: the metrics, "details" and "record".
    """
    values, details = metrics.compute(), metrics.details()
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    found = {**values, "details": details, "record": dict(record or {})}
    (out / "metrics.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    drawn = draw(out, metrics, details, dataset, history)
    text = ["# Report", "", *headline(values), ""]
    for name in drawn:
        title, caption = FIGURES[name]
        text += [f"## {title}", "", f"![{title}]({name}.png)", "", caption, ""]
    (out / "report.md").write_text("\n".join(text) + "\n")
    return found


def draw(
    out: Path,
    metrics: DetectionMetrics,
    details: Mapping[str, Any],
    dataset: CrowdDataset,
    history: Sequence[Mapping[str, Any]],
) -> list[str]:
    """All PNGs; returns the names of those that had something to show."""
    names = metrics.class_names
    images = {image.image_id: image for image in metrics.state()}
    limits = np.array([operating_thresholds(details)[name] for name in names])
    jobs = {
        "curves": lambda path: plots.learning_curves(path, history),
        "data": lambda path: plots.histograms(path, dataset.annotations, names, metrics.num_queries),
        "pr_curves": lambda path: plots.precision_recall(path, details),
        "thresholds": lambda path: plots.thresholds(path, details),
        "where": lambda path: plots.where_it_fails(path, details),
        "errors": lambda path: plots.error_kinds(path, details),
        "predictions": lambda path: gallery.predictions(path, images, dataset, limits, names),
        "worst": lambda path: gallery.worst(path, details["worst_images"], images, dataset, limits),
    }
    for name in jobs:
        (out / f"{name}.png").unlink(missing_ok=True)
    return [name for name, job in jobs.items() if job(out / f"{name}.png")]


def operating_thresholds(details: Mapping[str, Any]) -> dict[str, float]:
    """The score threshold of best F1 per class; 0.5 where there is none."""
    points = {name: found["best_f1"] for name, found in details["operating_points"].items()}
    return {name: point["threshold"] if point else 0.5 for name, point in points.items()}


def number(value: float | None, digits: int = 3) -> str:
    """A number as the report writes it; a dash for what is undefined."""
    return "–" if value is None or not math.isfinite(value) or value < 0 else f"{value:.{digits}f}"


def headline(values: Mapping[str, float]) -> list[str]:
    """The numbers as a table."""
    return ["| metric | value |", "|---|---:|", *(f"| {key} | {number(value)} |" for key, value in values.items())]


def print_summary(folder: Path, metrics: DetectionMetrics) -> None:
    """The numbers as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    values = metrics.compute()
    table = Table("metric", "value")
    for key, value in values.items():
        table.add_row(key, number(value))
    Console().print(table)
