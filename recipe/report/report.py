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

from recipe.data.dataset import CrowdDataset
from recipe.evaluation.bootstrap import bootstrap
from recipe.evaluation.metrics import DetectionMetrics
from recipe.record import RunRecord
from recipe.report import gallery, plots, tables
from recipe.report.advice import next_steps
from recipe.report.coco_table import check_with_torchmetrics
from recipe.report.compare import compare_numbers, read_metrics
from recipe.report.tables import escape, number
from recipe.version import commit

Rows = Sequence[Mapping[str, Any]]

PICTURES = {  # name of the PNG: title, caption
    "errors": ("Kinds of errors", "At the threshold of best F1; a badly placed box has an IoU of 0.1 to 0.5."),
    "where": (
        "Where it fails",
        "A pale bar far above its dark one asks for better scores, a low one for more pixels.",
    ),
    "worst": ("The images with most missed boxes", "Each picture shows where most missed boxes, filled orange, lie."),
    "predictions": ("Labels and predictions", "Labels on the left, predictions above the best-F1 threshold beside."),
    "thresholds": ("Choosing a threshold", "A curve for IoU 0.75 far below the other: boxes are only loosely placed."),
    "curves": ("The training", "Validation loss rising while training loss falls is over-fitting; mAP should rise."),
    "data": ("The evaluated images", "Boxes per image and their sizes: below 8 pixels there is little to see."),
}
ON_TRAIN = "The detector was trained on these images: the numbers say how well it knows them, not how well it works."
ON_VALIDATION = (
    "Thresholds and best epoch were chosen on these very images, so on others expect a little less. Where the data "
    "has a test split, `recipe evaluate RUN --data DATA --split test` measures it."
)
ON_OTHERS = "The thresholds were chosen on these very images, so at them expect a little less on others."


def write_report(
    folder: Path,
    metrics: DetectionMetrics,
    dataset: CrowdDataset,
    *,
    history: Rows = (),
    record: RunRecord | Mapping[str, Any] | None = None,
    compare: Path | None = None,
) -> dict[str, Any]:
    """Write FOLDER/report/report.md, metrics.json and the PNGs.

    Args:
        history: rows of metrics.jsonl, for the curves; none for a bare evaluation.
        record: what made the model, or what `recipe evaluate` was given; FOLDER/run.json when None.
        compare: an earlier evaluation's metrics.json; UserError if it is none.

    Returns:
        What stands in metrics.json: the metrics by name, "details" (`DetectionMetrics.details()`, with the names of
        the files and 95 % "intervals") and "record".
    """
    earlier = read_metrics(compare) if compare is not None else None
    values, rows = metrics.compute(), gallery.rows_by_id(dataset)
    worst = [
        {"file_name": dataset.file_name(rows[row["image_id"]])} | row for row in metrics.details()["worst_images"]
    ]
    details = metrics.details() | {"worst_images": worst, "intervals": bootstrap(metrics)}
    origin = origin_of(folder, RunRecord.read(folder) if record is None else record)
    found = {**values, "details": details, "record": origin}
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    steps = next_steps(values, details, history, shrink=typical_scale(dataset), num_queries=metrics.num_queries)
    ignored_regions = any(image.crowd.any() for image in metrics.images().values())
    sections = [
        overview(details, origin, metrics.num_queries),
        ["## What to do next", "", *steps],
        ["## By class", "", *tables.class_table(values, details)],
        ["## All numbers", "", *all_numbers(metrics)],
        ["## Against published numbers", "", *tables.published(values, details, ignored_regions)],
    ]
    if earlier is not None:
        name = (earlier.get("record") or {}).get("checkpoint") or "before"
        both = {f"before: {name}": earlier, f"now: {origin['checkpoint']}": found}
        sections.insert(4, ["## Against the earlier run", "", *compare_numbers(both)])
    for name in draw_pictures(out, metrics, dataset, history):
        title, caption = PICTURES[name]
        sections.append([f"## {title}", "", f"![{title}]({name}.png)", "", caption])
        if name == "worst":
            sections[-1] += ["", *worst_list(details)]
    (out / "report.md").write_text("\n\n".join("\n".join(section) for section in sections) + "\n")
    return found


def origin_of(folder: Path, record: RunRecord | Mapping[str, Any] | None) -> dict[str, Any]:
    """What metrics.json says of its origin: enough to repeat the evaluation."""
    known: Mapping[str, Any] = vars(record) if isinstance(record, RunRecord) else record or {}
    dataset = known.get("dataset") or {}
    return {
        "checkpoint": known.get("checkpoint") or known.get("run_name") or folder.resolve().name,
        "revision": known.get("revision"),
        "data": dataset.get("data"),
        "data_revision": dataset.get("revision"),
        "manifest": dataset.get("manifest"),
        "split": dataset.get("split", "validation"),
        "commit": known.get("commit") or commit(),
        "device": known.get("device"),
    }


def draw_pictures(out: Path, metrics: DetectionMetrics, dataset: CrowdDataset, history: Rows) -> list[str]:
    """All PNGs; returns the names of those that had something to show."""
    details, names = metrics.details(), metrics.class_names
    jobs = {
        "errors": lambda path: plots.error_kinds(path, details),
        "where": lambda path: plots.where_it_fails(path, details),
        "worst": lambda path: gallery.worst(path, metrics, dataset),
        "predictions": lambda path: gallery.predictions(path, metrics, dataset),
        "thresholds": lambda path: plots.operating_points(path, details),
        "curves": lambda path: plots.learning_curves(path, {"run": history}),
        "data": lambda path: plots.histograms(path, dataset.annotations, names, metrics.num_queries),
    }
    for name in jobs:
        (out / f"{name}.png").unlink(missing_ok=True)  # of an earlier report, where there is nothing to show now
    return [name for name, draw in jobs.items() if draw(out / f"{name}.png")]


def overview(details: Mapping[str, Any], origin: Mapping[str, Any], num_queries: int) -> list[str]:
    """What was evaluated, the result in a sentence per class, and what was chosen on these images."""
    counts = ", ".join(f"{boxes:,} {name} boxes" for name, boxes in details["boxes"].items())
    where = f"{escape(origin['split'])} of {escape(origin['data'] or 'the given data')}"
    lines = [
        f"# Report on {escape(origin['checkpoint'])}",
        "",
        f"{details['images']:,} images with {counts} ({where}).",
    ]
    lines.append("")
    for name, boxes in details["boxes"].items():
        text = "no labelled box was found at any score." if boxes else "no labelled boxes, so nothing to measure."
        if point := details["operating_points"][name]["best_f1"]:
            text = f"{point['recall']:.0%} of the boxes are found and {point['precision']:.0%} of the detections are "
            text += f"right, at the threshold {point['threshold']:.2f} of best F1."
        lines.append(f"- **{name}**: {text}")
    lines.append(f"- With {num_queries} queries at most {details['recall_ceiling']:.1%} of the boxes can be found.")
    lines += ["", {"train": ON_TRAIN, "validation": ON_VALIDATION}.get(origin["split"], ON_OTHERS)]
    keys = [key for key in ("revision", "data_revision", "manifest", "commit", "device") if origin[key]]
    return [*lines, "", " · ".join(f"{key.replace('_', ' ')} {escape(origin[key])}" for key in keys)]


def all_numbers(metrics: DetectionMetrics) -> list[str]:
    """Every number that is not of one class, beside torchmetrics' own, with its meaning."""
    values = metrics.compute()
    checked, words = check_with_torchmetrics(metrics)
    rows = [[f"`{key}`", number(values[key]), number(checked.get(key)), text]
            for key, text in tables.MEANINGS.items()]  # fmt: skip
    return [*tables.table(["metric", "value", "torchmetrics", "meaning"], rows, "lrrl"), "", words]


def worst_list(details: Mapping[str, Any]) -> list[str]:
    """The images with most missed boxes, by the names of their files."""
    head = {"file_name": "file", "image_id": "image_id", "boxes": "boxes", "misses": "missed",
            "duplicates": "found twice", "false_positives": "other false"}  # fmt: skip
    rows = [[escape(row[key]) for key in head] for row in details["worst_images"] if row["misses"]]
    return tables.table(list(head.values()), rows, "lrrrrr")


def typical_scale(dataset: CrowdDataset) -> float:
    """By how much a typical image is scaled for the model, in width."""
    sizes = zip(dataset.annotations.height[:1000].tolist(), dataset.annotations.width[:1000].tolist(), strict=True)
    return float(np.median([dataset.geometry.resized(h, w)[1] / w for h, w in sizes]))


def print_numbers(found: Mapping[str, Any]) -> None:
    """The numbers that `write_report` has returned, as a table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    columns = [Column(name, justify="right") for name in ("all", *found["details"]["boxes"])]
    shown = Table("", *columns, box=SIMPLE_HEAD, title=f"{found['details']['images']:,} images", title_justify="left")
    for row in tables.class_rows(found, found["details"]):
        shown.add_row(*row)
    Console().print(shown)
