"""Show what is in a YOLO folder before anything is trained on it: `python -m data_prep inspect YOLO_DIR`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_prep.image import Verify
from data_prep.labels import Problem
from data_prep.parquet import Tally
from data_prep.progress import watched
from data_prep.statistics import MAX_DETECTIONS, QUERIES, SIDES, Statistics
from data_prep.yolo import open_folder, scan
from recipe.schema import CLASS_NAMES, UserError

SHOWN = 30  # refused lines and images on the screen; --json has them all


def inspect(yolo_dir: Path, json_file: Path | None = None, *, workers: int = 2, verify: Verify = "full") -> int:
    """Print statistics and problems, write both to `json_file`. Returns 1 when `pack` would refuse the folder, else 0.

    Raises:
        UserError: what `open_folder` refuses; `json_file` cannot be written.
    """
    folder = open_folder(yolo_dir)
    problems: list[Problem] = []
    report: dict[str, dict[str, Any]] = {}
    for name, split in folder.splits.items():
        tally, statistics = Tally(), Statistics()
        problems += split.problems
        examples = scan(folder, split.entries, workers, verify)
        for example in watched(examples, len(split.entries), f"reading {name}"):
            tally.add(example)
            problems += example.labels.problems
            if example.data:
                statistics.add(example.width, example.height, example.labels.bbox_xywh, example.labels.category)
        report[name] = {"statistics": statistics.summary(), "in_and_out": tally.counts()}
    if json_file:
        _write_json(json_file, report, problems)
    console = Console(width=None if Console().is_terminal else 119, highlight=False)
    console.print(statistics_table({name: found["statistics"] for name, found in report.items()}))
    return _print_problems(console, problems)


def statistics_table(splits: dict[str, dict[str, Any]]) -> Table:
    """One column per split, one line per thing that a trainer needs to know."""
    table = Table(*("", *splits))
    for column in table.columns[1:]:
        column.justify = "right"
    columns = [_lines(summary) for summary in splits.values()]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns), end_section=label in SECTION_ENDS)
    return table


SECTION_ENDS = (
    "images without any box",
    "boxes in the fullest image",
    f"{CLASS_NAMES[-1]} boxes below {SIDES[-1]} px",
)


def _lines(s: dict[str, Any]) -> dict[str, str]:
    beyond, per_image = s["beyond"], s["boxes_per_image"]
    lines = {
        "images": f"{s['images']:,}",
        "of them landscape or square": f"{s['landscape']:,}",
        "of them portrait": f"{s['portrait']:,}",
        "images without any box": f"{s['images_without_boxes']:,}",
        "boxes": f"{s['boxes']:,}",
        **{f"of them {name}": f"{count:,}" for name, count in s["boxes_per_class"].items()},
        "boxes per image, mean": f"{per_image['mean']:.1f}",
        "95 % of the images have at most": f"{per_image['p95']:.0f} boxes",
        "boxes in the fullest image": f"{per_image['max']:,}",
    }
    for name, shares in s["box_sizes"].items():
        for side in SIDES:
            lines[f"{name} boxes below {side} px"] = f"{shares[f'below_{side}_px']:.1%}"
    lines[f"images with more boxes than {QUERIES} queries"] = f"{beyond['queries']['images']:,}"
    lines["boxes that no query is left for"] = f"{beyond['queries']['boxes']:,}"
    lines["so recall can reach at most"] = f"{s['recall_ceiling']:.2%}"
    for cap in MAX_DETECTIONS:
        found = beyond[f"max_detections_{cap}"]
        lines[f"images with over {cap} boxes of one class (maxDets {cap})"] = f"{found['images']:,}"
        lines[f"boxes that COCO's maxDets {cap} cannot count"] = f"{found['boxes']:,}"
    return lines


def _print_problems(console: Console, problems: list[Problem]) -> int:
    console.print(
        "Box sizes: sqrt(width x height) in pixels after the training resize, shortest side 960, longest at most 1536."
    )
    refused = [problem for problem in problems if problem.action == "refused"]
    for (action, rule), count in sorted(Counter((problem.action, problem.rule) for problem in problems).items()):
        console.print(f"{action:8} {rule}: {count:,}")
    for problem in refused[:SHOWN]:
        line = f":{problem.line}" if problem.line else ""
        console.print(f"  {problem.file}{line}  {problem.rule}: {problem.detail}", markup=False, soft_wrap=True)
    if len(refused) > SHOWN:
        console.print(f"  and {len(refused) - SHOWN:,} more: `--json FILE` writes all")
    if refused:
        console.print(f"`pack` would refuse this folder: {len(refused):,} lines or images to mend, or `--on-bad skip`")
    else:
        console.print("`pack` accepts this folder")
    return int(bool(refused))


def _write_json(file: Path, report: dict[str, Any], problems: list[Problem]) -> None:
    try:
        text = json.dumps({"splits": report, "problems": [problem._asdict() for problem in problems]}, indent=2)
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error.strerror or error}; give --json a file in a folder that exists"
        ) from error
