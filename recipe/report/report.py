"""The report on an evaluation: report.md, metrics.json and pictures that tell what to do next.

    write_report(Path("outputs/run"), metrics, dataset, record=vars(record), history=read_log(Path("outputs/run")))

`recipe train` and `recipe evaluate` end with it. The numbers in report.md are those in metrics.json, rounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.data.dataset import CrowdDataset
from recipe.evaluation.metrics import DetectionMetrics
from recipe.record import commit
from recipe.report import pictures, plots, tables
from recipe.report.advice import next_steps
from recipe.report.tables import escape

PICTURES = {  # name of the PNG: title, caption
    "where": (
        "Where it fails",
        "A dotted line far above its full one asks for better scores, a low one for more pixels.",
    ),
    "worst": ("The images with most missed boxes", "Each picture is the part of its image that holds most of them."),
    "predictions": ("Labels and predictions", "Labels on the left, predictions above the best-F1 threshold beside."),
    "thresholds": ("Choosing a threshold", "A curve for IoU 0.75 far below the other: boxes are only loosely placed."),
    "curves": ("The training", "Validation loss rising while training loss falls is over-fitting; mAP should rise."),
}
CHOSEN = {  # split: what the numbers on it may be taken for
    "train": "It was trained on these images: the numbers say how well it knows them, not how well it works.",
    "validation": "Thresholds and best epoch were chosen on these very images, so on others expect a little less. "
    "Where the data has a test split, `recipe evaluate RUN --data DATA --split test` measures it.",
    "test": "The thresholds were chosen on these very images, so at them expect a little less on others.",
}


def write_report(
    folder: Path,
    metrics: DetectionMetrics,
    dataset: CrowdDataset,
    *,
    record: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write FOLDER/report/report.md, metrics.json and the PNGs; returns what stands in metrics.json.

    That is the metrics by name, "details" (of `DetectionMetrics`, with the names of the files and 95 % "intervals")
    and "record". `record` is what made the model (the fields of run.json), or what `recipe evaluate` was given.
    """
    values, rows = metrics.compute(), pictures.rows_by_id(dataset)
    details = metrics.details() | {"intervals": metrics.intervals()}
    details["worst_images"] = [
        {"file_name": dataset.file_name(rows[row["image_id"]])} | row for row in details["worst_images"]
    ]
    data = record["dataset"]
    origin = {"checkpoint": record.get("checkpoint") or record.get("run_name"), "revision": record.get("revision"),
              "data": data.get("data"), "data_revision": data.get("revision"), "manifest": data.get("manifest"),
              "split": data.get("split", "validation"), "commit": record.get("commit") or commit(),
              "device": record.get("device")}  # fmt: skip
    found = {**values, "details": details, "record": origin}
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    for path in out.glob("*.png"):
        path.unlink()  # of an earlier report, where there may be nothing to show now
    drawn = {
        "where": plots.where_it_fails(out / "where.png", details),
        "worst": pictures.worst(out / "worst.png", metrics, dataset),
        "predictions": pictures.predictions(out / "predictions.png", metrics, dataset),
        "thresholds": plots.operating_points(out / "thresholds.png", details),
        "curves": plots.learning_curves(out / "curves.png", {"run": history}),
    }
    origin_line = ", ".join(f"{key} {value}" for key, value in origin.items() if value)
    ignored = any(image.crowd.any() for image in metrics.images().values())
    sections = {
        f"# Report on {escape(origin['checkpoint'])}": [
            f"{details['images']:,} images; {escape(origin_line)}\n",
            CHOSEN[origin["split"]],
        ],
        "## What to do next": next_steps(values, details, history, num_queries=metrics.num_queries),
        "## By class": tables.class_table(values, details),
        "## Kinds of errors at the thresholds of best F1": tables.error_table(details["errors"]),
        "## All numbers": tables.number_table(metrics),
        "## Against published numbers": [tables.PUBLISHED if ignored else tables.NOT_COMPARABLE],
    }
    for name in (name for name, shown in drawn.items() if shown):
        title, caption = PICTURES[name]
        sections[f"## {title}"] = [f"![{title}]({name}.png)\n", caption]
        if name == "worst":
            sections[f"## {title}"] += ["", *tables.worst_table(details["worst_images"])]
    text = "\n\n".join("\n".join([title, "", *lines]) for title, lines in sections.items())
    (out / "report.md").write_text(text + "\n")
    return found


def print_numbers(found: Mapping[str, Any]) -> None:
    """The numbers that `write_report` has returned, as a table on stdout."""
    from rich.console import Console
    from rich.markdown import Markdown

    details = {key: value for key, value in found["details"].items() if key != "intervals"}  # too wide
    Console().print(Markdown("\n".join(tables.class_rows(found, details))))
