"""What `inspect` says of the data as training material: what was annotated where, leaks, recommended settings."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_prep.sequences import sequence_of
from data_prep.statistics import QUERIES, Tally
from recipe.config import Config
from recipe.schema import CLASS_NAMES

PART_IMAGES = 10  # a smaller part may lack a class by chance
PARTS_SHOWN = 12
SMALLEST = 8  # px after the resize: half a patch of the backbone, below which a box is hardly found
LARGEST_SCALE = 4 / 3  # of the resolution; attention grows with its fourth power
QUERIES_PER_BOX = 11  # then boxes and "no object" weigh the same: 1 box = 10 queries at eos_coefficient 0.1


class Seen(NamedTuple):
    """What is kept of each image until all are read."""

    split: str
    name: str
    digest: bytes  # of the file's bytes
    boxes: tuple[int, ...]  # by class


def annotated_parts(
    seen: list[Seen], labelled: Sequence[tuple[str, str]] = ()
) -> tuple[list[tuple[str, ...]], list[str]]:
    """A table of the data's parts (by folder, or by how the names begin) and a warning for each missing class."""
    images, boxes = Counter[str](), {name: Counter[str]() for name in CLASS_NAMES}
    for image in seen:
        folder, _, rest = image.name.rpartition("/")
        part = f"{folder.split('/')[0]}/*" if folder else f"{re.split(r'[0-9_.-]', rest)[0]}*"
        images[part] += 1
        for name, count in zip(CLASS_NAMES, image.boxes, strict=True):
            boxes[name][part] += count
    shown = [(part, count) for part, count in images.most_common() if count >= PART_IMAGES]
    rows = [(part, f"{n:,}", *(f"{boxes[name][part]:,}" for name in CLASS_NAMES)) for part, n in shown[:PARTS_SHOWN]]
    warnings = []
    for part, count in shown:
        there = [name for name in CLASS_NAMES if boxes[name][part]]
        if there and len(there) < len(CLASS_NAMES) and (part, there[0]) not in labelled:
            missing = next(name for name in CLASS_NAMES if name not in there)
            warnings.append(
                f"warning: {count:,} images {part} have no {missing} box. If {missing}s there were not annotated, "
                f"they are trained as background: say so with `--labelled '{part}={there[0]}'`"
            )
    return [("part", "images", *(f"{name} boxes" for name in CLASS_NAMES)), *rows], warnings


def leaks(seen: list[Seen]) -> list[str]:
    """A warning each for images and for sequences that are in more than one split."""
    copies: dict[bytes, list[Seen]] = defaultdict(list)
    frames: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for image in seen:
        copies[image.digest].append(image)
        frames[sequence_of(image.name)][image.split].add(image.name)
    across = [(same[0], same[-1]) for same in copies.values() if same[0].split != same[-1].split]
    # the same name on both sides: the numbers begin anew in each folder
    films = [film for film, sides in frames.items() if len(sides) > 1 and not set.intersection(*sides.values())]
    found = []
    if across:
        one, other = across[0]
        example = f"{one.name} of {one.split} and {other.name} of {other.split}"
        found.append(f"warning: {len(across):,} images are in two splits, byte for byte, such as {example}")
    if films:
        found.append(f"warning: {len(films):,} sequences have frames in two splits, such as {films[0]}*")
    advice = "numbers on validation would be too good: split by sequence, for example with --val-fraction 0.1"
    return [f"{line}; {advice}" for line in found]


def recommended_settings(train: Tally) -> list[str]:
    """Values of --num_queries and --shortest_edge that fit the training images better than the defaults."""
    boxes = train.boxes_per_image()
    if not boxes.any():
        return []
    found, most = [], float(np.percentile(boxes, 99))
    queries = max(QUERIES, math.ceil(most / 100) * 100, int(QUERIES_PER_BOX * boxes.mean()) // 100 * 100)
    if queries > QUERIES:
        reason = f"{boxes.mean():.0f} boxes an image, and more than {most:.0f} in one of a hundred"
        found.append(f"recommended: --num_queries {queries} instead of {QUERIES} ({reason})")
    tenths: dict[str, float] = {}  # px; a tenth of the boxes is smaller
    for number, name in enumerate(CLASS_NAMES):
        sides = [side for (category, side), n in train.sides.items() for _ in range(n) if category == number]
        tenths |= {name: float(np.percentile(sides, 10))} if sides else {}
    smallest = min(tenths, key=lambda name: tenths[name])
    if tenths[smallest] < SMALLEST:
        scale = min(SMALLEST / max(tenths[smallest], 1.0), LARGEST_SCALE)
        short, long = (math.ceil(edge * scale / 32) * 32 for edge in (Config.shortest_edge, Config.longest_edge))
        reason = f"a tenth of the {smallest} boxes is below {tenths[smallest]:.0f} px; costs {scale**2:.1f} times"
        found.append(f"recommended: --shortest_edge {short} --longest_edge {long} ({reason})")
    return found
