"""Show what is in a YOLO folder before anything is trained on it: `python -m data_prep inspect YOLO_DIR`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.advice import Seen, annotated_parts, leaks, recommended_settings
from data_prep.entries import AS_WRITTEN, Entry, Folder, ReadOptions
from data_prep.example import read_example
from data_prep.files import printable
from data_prep.folder import open_folder
from data_prep.labels import Problem, refused_lines
from data_prep.processes import in_processes
from data_prep.statistics import Tally, counts_table
from recipe.config import Config
from recipe.schema import CLASS_NAMES, UserError

AT_ONCE = 64  # images that a process reads before it hands their counts over


def inspect(
    yolo_dir: Path, options: ReadOptions = AS_WRITTEN, json_file: Path | None = None, *, workers: int = 2
) -> int:
    """Print statistics and problems, write both to `json_file`. Returns 1 when `pack` would refuse the folder, else 0.

    Raises:
        UserError: what `open_folder` refuses; `json_file` cannot be written.
    """
    folder = open_folder(yolo_dir, options)
    if json_file:
        _write_text(json_file, "")  # before minutes of reading, not after
    problems: list[Problem] = []
    tallies: dict[str, Tally] = {}
    seen: list[Seen] = []
    for name, split in folder.splits.items():
        problems += split.problems
        tallies[name] = Tally.of_split(split)
        jobs = [split.entries[first : first + AT_ONCE] for first in range(0, len(split.entries), AT_ONCE)]
        read = partial(_read, folder=replace(folder, splits={}), split=name)
        for tally, new_problems, new_seen in in_processes(read, jobs, workers, f"reading {name}"):
            tallies[name] += tally
            problems += new_problems
            seen += new_seen
    counts = {name: tally.split_counts() for name, tally in tallies.items()}
    parts, warnings = annotated_parts(seen, folder.options.labelled)
    advice = [*warnings, *leaks(seen), *recommended_settings(tallies["train"])]
    if json_file:
        report = {"splits": counts, "advice": advice, "problems": [problem._asdict() for problem in problems]}
        _write_text(json_file, json.dumps(report, indent=2) + "\n")
    _print(yolo_dir, counts, parts, advice, problems)
    return int(any(problem.action == "refused" for problem in problems))


def _write_text(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = f"{error.strerror}; give --json a file in a folder that exists, on a disk with room"
        raise UserError(f"cannot write {file}: {reason}") from error


def _read(entries: list[Entry], folder: Folder, split: str) -> tuple[Tally, list[Problem], list[Seen]]:
    tally, problems, seen = Tally(), [], []
    for entry in entries:
        example = read_example(folder, entry)
        tally.add(example)
        problems += example.labels.problems
        if example.data:
            boxes = np.bincount(example.labels.category, minlength=len(CLASS_NAMES))
            seen.append(Seen(split, entry.name, hashlib.sha256(example.data).digest(), tuple(boxes.tolist())))
    return tally, problems, seen


def _print(
    yolo_dir: Path, counts: dict[str, Any], parts: list[tuple[str, ...]], advice: list[str], problems: list[Problem]
) -> None:
    console = Console(width=None if Console().is_terminal else 119)
    edges = f"{Config.shortest_edge}, at most {Config.longest_edge} px"
    size_note = f"box sizes: sqrt(area) after the training resize to {edges}"
    with console.capture() as tables:
        for (header, *rows), caption in ((counts_table(counts), size_note), (parts, "what was annotated where")):
            table = Table(*header, caption=caption)
            for row in rows:
                table.add_row(*(escape(printable(cell)) for cell in row))
            console.print(table)
    print(tables.get(), end="")
    for (action, rule), count in sorted(Counter((problem.action, problem.rule) for problem in problems).items()):
        print(f"{action:8} {rule}: {count:,}")
    for name, boxes in counts["train"]["boxes_per_class"].items():
        if not boxes:
            print(f"note: no {name} box in train: this class cannot be learned")
    for line in advice:
        print(printable(line))
    refused = [problem for problem in problems if problem.action == "refused"]
    for line in refused_lines(refused, len(refused)):
        print(line)
    command = f"python -m data_prep pack {yolo_dir} --out OUT"
    if refused:
        correct = "correct what is listed, or leave it out with"
        print(f"`pack` would refuse this folder: {correct} `{command} --on-bad skip`")
    else:
        print(f"`pack` accepts this folder; next: {command}")
