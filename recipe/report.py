"""The report on an evaluation: report.md, metrics.json and pictures that tell what to do next.

    write_report(Path("outputs/run"), metrics, dataset, history=read_log(Path("outputs/run")))

`recipe train` and `recipe evaluate` end with it. The numbers in report.md are those in metrics.json, rounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipe import gallery, plots, tables
from recipe.advice import next_steps
from recipe.data import CrowdDataset
from recipe.metrics import DetectionMetrics
from recipe.run import RUN_FILE, commit, device
from recipe.schema import UserError

FIGURES = {
    "errors": "Above: labelled boxes, found or missed at IoU 0.5. Below: what the detections above the threshold of"
    " best F1 are; a duplicate is a second box on something found already, a badly placed one has an IoU "
    "of 0.1 to 0.5.",
    "where": "Dark bars: found above the threshold of best F1; pale bars: found at any score; a dash: no such "
    "boxes. A pale bar far above its dark one asks for better scores, a low pale bar for better sight.",
    "worst": "Filled orange boxes were missed; each picture shows the part of its image where most of them lie.",
    "predictions": "Labels on the left, predictions on the right, from an image found well to one found badly.",
    "pr_curves": "Each point is one threshold; nearer to the top right corner is better. A dashed curve far below the "
    "solid one means that boxes are found but loosely placed.",
    "thresholds": "Vertical lines are the operating points: the best balance (best F1), and the lowest threshold at "
    "which 90% of the detections are right.",
    "curves": "All losses should fall and flatten, the last decoder layer lowest; validation loss rising while "
    "training loss falls is over-fitting; average precision should rise.",
    "data": "Left: how crowded the images are, against the boxes the model can give (its queries). Right: how "
    "large the boxes are; below 8 pixels any detector has little to go by.",
}
TITLES = {
    "errors": "Kinds of errors",
    "where": "Where it fails",
    "worst": "The images with most missed boxes",
    "predictions": "Labels and predictions",
    "pr_curves": "Precision and recall",
    "thresholds": "Choosing a threshold",
    "curves": "The training",
    "data": "The evaluated images",
}
ORIGIN = ("revision", "data_revision", "manifest", "commit", "device")


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
        record: run.json's contents, or what `recipe evaluate` was given; FOLDER/run.json when None.
        compare: an earlier evaluation's metrics.json.

    Returns:
        What stands in metrics.json: the metrics by name, "details" (`DetectionMetrics.details()`) and "record".

    Raises:
        UserError: `compare` is no metrics.json.
    """
    earlier = read_metrics(compare) if compare is not None else None
    if record is None:
        record = json.loads((folder / RUN_FILE).read_text()) if (folder / RUN_FILE).exists() else {}
    values, details = metrics.compute(), metrics.details()
    found = {**values, "details": details, "record": essentials(folder, record)}
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    drawn = draw(out, metrics, details, dataset, history)
    queries = metrics.num_queries
    steps = next_steps(values, details, history=history, shrink=shrinking(dataset), num_queries=queries)
    sections = [
        summary(found, queries),
        ["## What to do next", "", *(f"- {sentence}" for sentence in steps)],
        ["## By class", "", *tables.classes(values, details)],
        ["## All numbers", "", *tables.metrics(values)],
        ["## Against the earlier run", "", *tables.comparison(found, earlier)] if earlier is not None else [],
        ["## Against published numbers", "", *tables.published(values, details)],
        *([f"## {TITLES[name]}", "", f"![{TITLES[name]}]({name}.png)", "", FIGURES[name]] for name in drawn),
    ]
    (out / "report.md").write_text("\n\n".join("\n".join(section) for section in sections if section) + "\n")
    return found


def read_metrics(path: Path) -> dict[str, Any]:
    """An earlier evaluation's metrics.json.

    Raises:
        UserError: there is none, or it holds something else.
    """
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--compare {path}: cannot be read ({error}); give the metrics.json of a report") from error
    if not isinstance(found, dict) or not isinstance(found.get("map"), float | int):
        raise UserError(f"--compare {path}: holds no metrics; give FOLDER/report/metrics.json of an earlier run")
    return found


def essentials(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.json says of its origin: enough to repeat the evaluation."""
    dataset = record.get("dataset") or {}
    return {
        "checkpoint": record.get("checkpoint") or record.get("run_name") or folder.resolve().name,
        "revision": record.get("revision"),
        "data": dataset.get("data"),
        "split": dataset.get("split", "validation"),
        "data_revision": dataset.get("revision"),
        "manifest": dataset.get("manifest"),
        "commit": record.get("commit") or commit(),
        "device": record.get("device") or device(),
    }


def shrinking(dataset: CrowdDataset) -> float:
    """By how much a typical image is scaled for the model, in width."""
    notes = dataset.annotations
    sizes = np.stack([notes.height, notes.width], axis=1)[:1000].tolist()
    return float(np.median([dataset.geometry.resized(h, w)[1] / w for h, w in sizes]))


def draw(
    out: Path,
    metrics: DetectionMetrics,
    details: Mapping[str, Any],
    dataset: CrowdDataset,
    history: Sequence[Mapping[str, Any]],
) -> list[str]:
    """All PNGs; returns the names of those that had something to show, in the order of `FIGURES`."""
    names = metrics.class_names
    images = {image.image_id: image for image in metrics.state()}
    limits = np.array([operating_thresholds(details)[name] for name in names])
    notes, rows = dataset.annotations, details["worst_images"]
    jobs = {
        "errors": lambda path: plots.error_kinds(path, details),
        "where": lambda path: plots.where_it_fails(path, details),
        "worst": lambda path: gallery.worst(path, rows, images, dataset, limits),
        "predictions": lambda path: gallery.predictions(path, images, dataset, limits, names),
        "pr_curves": lambda path: plots.precision_recall(path, details),
        "thresholds": lambda path: plots.thresholds(path, details),
        "curves": lambda path: plots.learning_curves(path, history),
        "data": lambda path: plots.histograms(path, notes, names, metrics.num_queries),
    }
    for name in jobs:
        (out / f"{name}.png").unlink(missing_ok=True)  # of an earlier report, where there is nothing to show now
    return [name for name, job in jobs.items() if job(out / f"{name}.png")]


def operating_thresholds(details: Mapping[str, Any]) -> dict[str, float]:
    """The score threshold of best F1 per class; 0.5 where there is none."""
    points = {name: found["best_f1"] for name, found in details["operating_points"].items()}
    return {name: float(point["threshold"]) if point else 0.5 for name, point in points.items()}


def summary(found: Mapping[str, Any], num_queries: int) -> list[str]:
    """What was evaluated, and the result in a sentence per class."""
    details, record = found["details"], found["record"]
    counts = ", ".join(f"{boxes:,} {name} boxes" for name, boxes in details["boxes"].items())
    lines = [
        f"# Report on {record['checkpoint']}",
        "",
        f"Evaluated on {details['images']:,} image{'s' * (details['images'] != 1)} with {counts} "
        f"(`{record['split']}` of {record['data'] or 'the given data'}).",
        "",
    ]
    for name, boxes in details["boxes"].items():
        point = details["operating_points"][name]["best_f1"]
        if point:
            lines.append(
                f"- **{name}**: {point['recall']:.0%} of the boxes are found and {point['precision']:.0%} of the "
                f"detections are right, at the threshold {point['threshold']:.2f} of best F1."
            )
        else:
            lines.append(
                f"- **{name}**: " + ("no box was found." if boxes else "no labelled boxes, so nothing to measure.")
            )
    ceiling = details["recall_ceiling"]
    lines.append(f"- With {num_queries} queries the model could find {ceiling:.1%} of the boxes at best.")
    origin = {key: value for key, value in record.items() if value and key in ORIGIN}
    return [*lines, "", " · ".join(f"{key.replace('_', ' ')} `{value}`" for key, value in origin.items())]


def print_summary(folder: Path, metrics: DetectionMetrics) -> None:
    """The numbers as a table on stdout, from the report that `write_report` has just written into `folder`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    found = read_metrics(folder / "report" / "metrics.json")
    names = metrics.class_names
    shown = Table(
        "", "all", *names, box=SIMPLE_HEAD, title=f"{found['details']['images']:,} images", title_justify="left"
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in tables.rows(found, found["details"]):
        shown.add_row(*row)
    Console().print(shown)
