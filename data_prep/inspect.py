"""Show what is in a YOLO folder before anything is trained on it: `python -m data_prep inspect YOLO_DIR`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.labels import Problem, listing
from data_prep.statistics import LONGEST, SHORTEST, Tally, table
from data_prep.yolo import open_folder, progress, scan
from recipe.schema import UserError


def inspect(yolo_dir: Path, json_file: Path | None = None, *, workers: int = 2) -> int:
    """Print statistics and problems, write both to `json_file`. Returns 1 when `pack` would refuse the folder, else 0.

    Raises:
        UserError: what `open_folder` refuses; `json_file` cannot be written.
    """
    folder = open_folder(yolo_dir)
    if json_file:
        try:
            json_file.touch()  # before minutes of reading, not after
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"cannot write {json_file}: {reason}; give --json a file in a folder that exists"
            ) from error
    problems: list[Problem] = []
    tallies = {name: Tally.of_split(split) for name, split in folder.splits.items()}
    for name, split in folder.splits.items():
        problems += split.problems
        with progress(len(split.entries), f"reading {name}") as advance:
            for example in scan(folder, split.entries, workers):
                tallies[name].add(example)
                problems += example.labels.problems
                advance(1)
    summaries = {name: tally.summary() for name, tally in tallies.items()}
    if json_file:
        report = {"splits": summaries, "problems": [problem._asdict() for problem in problems]}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console = Console(width=None if Console().is_terminal else 119, highlight=False)
    header, *rows = table(summaries)
    shown = Table(
        *header, caption=f"box sizes: sqrt(area) after the training resize to {SHORTEST}, at most {LONGEST} px"
    )
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for (action, rule), count in sorted(Counter((problem.action, problem.rule) for problem in problems).items()):
        console.print(f"{action:8} {rule}: {count:,}")
    for name, boxes in summaries["train"]["boxes_per_class"].items():
        if not boxes:
            console.print(f"note: no {name} box in train: this class cannot be learned")
    refused = listing(problems)
    command = f"python -m data_prep pack {yolo_dir} --out OUT"
    verdict = f"`pack` accepts this folder; next: {command}"
    if refused:
        verdict = (
            f"`pack` would refuse this folder: mend what is listed, or leave it out with `{command} --on-bad skip`"
        )
    console.print("\n".join([*refused, verdict]), markup=False, soft_wrap=True)
    return int(bool(refused))
