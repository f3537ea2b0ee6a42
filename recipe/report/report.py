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
from recipe.evaluation.metrics import DetectionMetrics
from recipe.report import gallery, plots, tables
from recipe.schema import UserError
from recipe.training.run import commit, device, read_record

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
FALSE_DETECTIONS = {  # kind: the share of the detections from which on it is worth a sentence, what to do
    "duplicate": (0.05, "are second boxes on something already found: more epochs suppress them"),
    "wrong_class": (0.05, "have the place right and the class wrong: check the labels of both classes"),
    "badly_placed": (0.1, "touch a labelled box without fitting it: try more epochs or a higher resolution"),
    "background": (0.15, "lie on nothing labelled: look at worst.png whether people are there without a label"),
}


def write_report(
    folder: Path,
    metrics: DetectionMetrics,
    dataset: CrowdDataset,
    *,
    history: Rows = (),
    record: Mapping[str, Any] | None = None,
    compare: Path | None = None,
) -> dict[str, Any]:
    """Write FOLDER/report/report.md, metrics.json and the PNGs.

    Args:
        history: rows of metrics.jsonl, for the curves; none for a bare evaluation.
        record: run.json's contents, or what `recipe evaluate` was given; FOLDER/run.json when None.
        compare: an earlier evaluation's metrics.json; UserError if it is none.

    Returns:
        What stands in metrics.json: the metrics by name, "details" (`DetectionMetrics.details()`) and "record".
    """
    earlier = read_metrics(compare) if compare is not None else None
    values, details = metrics.compute(), metrics.details()
    origin = essentials(folder, read_record(folder) if record is None else record)
    found = {**values, "details": details, "record": origin}
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    sections = [
        summary(details, origin, metrics.num_queries),
        ["## What to do next", "", *next_steps(details, history, shrinking(dataset), metrics.num_queries)],
        ["## By class", "", *tables.classes(values, details)],
        ["## All numbers", "", *tables.metrics(values)],
        ["## Against the earlier run", "", *tables.comparison(found, earlier)] if earlier is not None else [],
        ["## Against published numbers", "", *tables.published(values, details)],
    ]
    for name in draw(out, metrics, details, dataset, history):
        title, caption = PICTURES[name]
        sections.append([f"## {title}", "", f"![{title}]({name}.png)", "", caption])
    (out / "report.md").write_text("\n\n".join("\n".join(section) for section in sections if section) + "\n")
    return found


def read_metrics(path: Path) -> dict[str, Any]:
    """An earlier evaluation's metrics.json; UserError if it is none."""
    try:
        found = json.loads(path.read_text())
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
        "data": dataset.get("data"),
        "split": dataset.get("split", "validation"),
        "revision": record.get("revision"),
        "data_revision": dataset.get("revision"),
        "manifest": dataset.get("manifest"),
        "commit": record.get("commit") or commit(),
        "device": record.get("device") or device(),
    }


def draw(
    out: Path, metrics: DetectionMetrics, details: Mapping[str, Any], dataset: CrowdDataset, history: Rows
) -> list[str]:
    """All PNGs; returns the names of those that had something to show, in the order of `PICTURES`."""
    names, rows = metrics.class_names, details["worst_images"]
    images = {image.image_id: image for image in metrics.state()}
    limits = np.array(list(details["thresholds"].values()))
    jobs = {
        "errors": lambda path: plots.error_kinds(path, details),
        "where": lambda path: plots.where_it_fails(path, details),
        "worst": lambda path: gallery.worst(path, rows, images, dataset, limits),
        "predictions": lambda path: gallery.predictions(path, images, dataset, limits, names),
        "thresholds": lambda path: plots.operating_points(path, details),
        "curves": lambda path: plots.learning_curves(path, history),
        "data": lambda path: plots.histograms(path, dataset.annotations, names, metrics.num_queries),
    }
    for name in jobs:
        (out / f"{name}.png").unlink(missing_ok=True)  # of an earlier report, where there is nothing to show now
    return [name for name, job in jobs.items() if job(out / f"{name}.png")]


def summary(details: Mapping[str, Any], origin: Mapping[str, Any], num_queries: int) -> list[str]:
    """What was evaluated, and the result in a sentence per class."""
    counts = ", ".join(f"{boxes:,} {name} boxes" for name, boxes in details["boxes"].items())
    where = f"`{origin['split']}` of {origin['data'] or 'the given data'}"
    lines = [f"# Report on {origin['checkpoint']}", "", f"{details['images']:,} images with {counts} ({where}).", ""]
    for name, boxes in details["boxes"].items():
        if point := details["operating_points"][name]["best_f1"]:
            text = (
                f"{point['recall']:.0%} of the boxes are found and {point['precision']:.0%} of the detections are "
                f"right, at the threshold {point['threshold']:.2f} of best F1."
            )
        else:
            limit = details["thresholds"][name]
            text = f"no labelled box was found at any score; pictures show detections above {limit:.2f}."
            text = text if boxes else "no labelled boxes, so nothing to measure."
        lines.append(f"- **{name}**: {text}")
    lines.append(f"- With {num_queries} queries at most {details['recall_ceiling']:.1%} of the boxes can be found.")
    keys = [key for key in ("revision", "data_revision", "manifest", "commit", "device") if origin[key]]
    versions = [f"{key.replace('_', ' ')} `{origin[key]}`" for key in keys]
    return [*lines, "", " · ".join(versions)]


def shrinking(dataset: CrowdDataset) -> float:
    """By how much a typical image is scaled for the model, in width."""
    sizes = zip(dataset.annotations.height[:1000].tolist(), dataset.annotations.width[:1000].tolist(), strict=True)
    return float(np.median([dataset.geometry.resized(h, w)[1] / w for h, w in sizes]))


def next_steps(details: Mapping[str, Any], history: Rows, shrink: float, num_queries: int) -> list[str]:
    """What to do next, as a list: one weakness each with its number and what helps; limits are our own judgement."""
    errors = {name: kinds for name, kinds in details["errors"].items() if details["boxes"][name]}
    if not errors:
        return ["- The images hold no labelled boxes, so nothing can be measured: evaluate another split."]
    if not any(kinds["hits"] for kinds in errors.values()):
        return ["- Not one box was found. After few steps this is normal: train longer (`--num_train_epochs`)."]
    steps = []
    bins = [(name, row) for name in errors for row in details["by_size"][name] if row["boxes"]]
    missed = {(name, row["bin"]): row["boxes"] * (1 - row["recall_best_f1"]) for name, row in bins}
    total, (name, size) = sum(missed.values()), max(missed, key=lambda key: missed[key])
    if total >= 1:
        small = sum(count for (_, each), count in missed.items() if each in ("<8", "8-16", "16-32")) / total
        text = f"{small:.0%} of all missed boxes are below 32 pixels, most are `{name}` of {size} pixels: "
        larger = f"raise `--shortest_edge` and `--longest_edge` (images are now scaled by {shrink:.2f})."
        steps.append(text + (larger if small >= 0.5 else "see worst.png for hidden people and missing labels."))
    for name in errors:
        rows = [row for each, row in bins if each == name]
        lost = sum(row["boxes"] * (row["recall"] - row["recall_best_f1"]) for row in rows) / details["boxes"][name]
        if lost > 0.1:
            steps.append(f"Another {lost:.0%} of `{name}` boxes are found with scores below the threshold: lower "
                         "`--threshold` in `recipe predict` where a miss costs more than a false alarm.")  # fmt: skip
        detections = sum(errors[name].values()) - errors[name]["missed"]
        for kind, (limit, text) in FALSE_DETECTIONS.items():
            if errors[name][kind] > limit * detections:
                steps.append(f"{errors[name][kind] / detections:.0%} of the `{name}` detections {text}.")
    if details["recall_ceiling"] < 0.99:
        steps.append(f"{1 - details['recall_ceiling']:.1%} of the boxes cannot be found at all, because their images "
                     f"hold more than {num_queries}: raise `--num_queries`.")  # fmt: skip
    maps = [row["eval_map"] for row in history if "eval_map" in row]
    if len(maps) > 2 and maps[-1] > 1.02 * max(maps[:-1]):
        steps.append(f"mAP still rose to {maps[-1]:.3f} in the last epoch: train longer (`--num_train_epochs`).")
    elif len(maps) > 2 and maps[-1] < 0.98 * max(maps):
        steps.append(f"mAP has fallen from {max(maps):.3f} to {maps[-1]:.3f}: stop earlier, or augment more.")
    return [f"- {step}" for step in steps or ["No single weakness stands out: try more epochs or more data."]]


def print_summary(found: Mapping[str, Any]) -> None:
    """The numbers that `write_report` has returned, as a table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    details = found["details"]
    columns = [Column(name, justify="right") for name in ("all", *details["boxes"])]
    title = f"{details['images']:,} images"
    shown = Table("", *columns, box=SIMPLE_HEAD, title=title, title_justify="left")
    for row in tables.rows(found, details):
        shown.add_row(*row)
    Console().print(shown)
