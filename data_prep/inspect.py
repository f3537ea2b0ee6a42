"""Show what is in a YOLO folder before anything is trained on it: `python -m data_prep inspect YOLO_DIR`.

Statistics, every problem, and advice: what was annotated where, leaks between splits, recommended settings.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.entries import AS_WRITTEN, ReadOptions
from data_prep.folder import open_folder, sequence_of
from data_prep.parquet import read_folder
from data_prep.statistics import QUERIES, Seen, Survey, counts_table, table
from recipe.config import Config
from recipe.files import printable
from recipe.schema import CLASS_NAMES

BYTES_AT_ONCE = 16 * 10**6  # of images that a process reads before it hands their counts over
PART_IMAGES = 10  # a smaller part may lack a class by chance
PARTS_SHOWN = 12
SMALLEST = 8  # px after the resize: half a patch of the backbone, below which a box is hardly found
LARGEST_SCALE = 4 / 3  # of the resolution; attention grows with its fourth power
QUERIES_PER_BOX = 11  # then boxes and "no object" weigh the same: 1 box = 10 queries at eos_coefficient 0.1
LEAK = "numbers on validation would be too good: split by sequence, for example with --val-fraction 0.1"


def inspect(
    yolo_dir: Path, options: ReadOptions = AS_WRITTEN, json_file: Path | None = None, *, workers: int = 2
) -> int:
    """Print statistics and problems, write both to `json_file`; returns 1 when `pack` would refuse the folder."""
    folder = open_folder(yolo_dir, options)
    if json_file:
        json_file.write_text("")  # before minutes of reading, not after
    surveys = read_folder(folder, workers, BYTES_AT_ONCE)
    counts = {name: survey.counts() for name, survey in surveys.items()}
    problems = [problem for survey in surveys.values() for problem in survey.problems]
    refused = [problem for survey in surveys.values() for problem in survey.refused()]
    seen = {name: survey.seen for name, survey in surveys.items()}
    parts, warnings = annotated_parts([image for images in seen.values() for image in images], options.labelled)
    advice = [*warnings, *leaks(seen), *recommended_settings(surveys["train"])]
    for name in CLASS_NAMES:
        if not counts["train"][f"{name}_boxes"]:
            advice.append(f"note: no {name} box in train: this class cannot be learned")
    if json_file:
        report = {"splits": counts, "advice": advice, "problems": [problem._asdict() for problem in problems]}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(counts_table(counts), table(parts), sep="\n\n", end="\n\n")
    rules = [f"{name}: {rule}: {n:,}" for name, split in counts.items() for rule, n in split["problems"].items()]
    for line in (*rules, *advice, *refused):
        print(printable(str(line)))
    command = f"python -m data_prep pack {yolo_dir} --out OUT"
    if refused:
        correct = "correct what is listed, or leave it out with"
        print(f"`pack` would refuse this folder: {correct} `{command} --on-bad skip`")
    else:
        print(f"`pack` accepts this folder; next: {command}")
    return int(bool(refused))


def annotated_parts(
    seen: list[Seen], labelled: Sequence[tuple[str, str]] = ()
) -> tuple[list[tuple[str, ...]], list[str]]:
    """A table of the data's parts (by folder, or by how the names begin) and a warning for each missing class."""
    parts: dict[str, list[Seen]] = defaultdict(list)
    for image in seen:
        folder, _, rest = image.name.rpartition("/")
        parts[f"{folder.split('/')[0]}/*" if folder else f"{re.split(r'[0-9_.-]', rest)[0]}*"].append(image)
    rows: list[tuple[str, ...]] = [("part", "images", *(f"{name} boxes" for name in CLASS_NAMES))]
    warnings = []
    for part, images in sorted(parts.items(), key=lambda item: -len(item[1])):
        boxes = np.bincount(np.concatenate([image.category for image in images]), minlength=len(CLASS_NAMES))
        if len(images) < PART_IMAGES:
            continue
        rows.append((part, f"{len(images):,}", *(f"{count:,}" for count in boxes)))
        there = [name for name, count in zip(CLASS_NAMES, boxes, strict=True) if count]
        if len(there) == 1 and (part, there[0]) not in labelled:
            missing = " or ".join(name for name in CLASS_NAMES if name not in there)
            advice = f"if {missing}s were not annotated there, say so with `--labelled '{part}={there[0]}'`"
            warnings.append(f"warning: {len(images):,} images {part} have no {missing} box; {advice}")
    return rows[: PARTS_SHOWN + 1], warnings


def leaks(splits: dict[str, list[Seen]]) -> list[str]:
    """A warning each for images and for sequences that are in more than one split."""
    copies: dict[bytes, dict[str, str]] = defaultdict(dict)  # digest -> split -> name
    films: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # sequence -> split -> names
    for split, images in splits.items():
        for image in images:
            copies[image.digest][split] = image.name
            films[sequence_of(image.name)][split].add(image.name)
    found = []
    if across := [names for names in copies.values() if len(names) > 1]:
        example = " and ".join(f"{name} of {split}" for split, name in across[0].items())
        found.append(f"warning: {len(across):,} images are in two splits, byte for byte, such as {example}; {LEAK}")
    # the same name on both sides: the numbers begin anew in each folder
    if cut := [film for film, names in films.items() if len(names) > 1 and not set.intersection(*names.values())]:
        found.append(f"warning: {len(cut):,} sequences have frames in two splits, such as {cut[0]}*; {LEAK}")
    return found


def recommended_settings(train: Survey) -> list[str]:
    """Values of --num_queries and --shortest_edge that fit the training images better than the defaults."""
    boxes = train.boxes_per_image()
    if not boxes.any():
        return []
    found, most = [], float(np.percentile(boxes, 99))
    queries = max(QUERIES, math.ceil(most / 100) * 100, int(QUERIES_PER_BOX * boxes.mean()) // 100 * 100)
    if queries > QUERIES:
        reason = f"{boxes.mean():.0f} boxes an image, and more than {most:.0f} in one of a hundred"
        found.append(f"recommended: --num_queries {queries} instead of {QUERIES} ({reason})")
    sides = [train.sides(category) for category in range(len(CLASS_NAMES))]
    tenth = min(float(np.percentile(side, 10)) for side in sides if len(side))  # px; a tenth of a class is smaller
    if tenth < SMALLEST:
        scale = min(SMALLEST / max(tenth, 1.0), LARGEST_SCALE)
        short, long = (math.ceil(edge * scale / 32) * 32 for edge in (Config.shortest_edge, Config.longest_edge))
        reason = f"a tenth of the boxes of a class is below {tenth:.0f} px; costs {scale**2:.1f} times"
        found.append(f"recommended: --shortest_edge {short} --longest_edge {long} ({reason})")
    return found
