"""The report's numbers as Markdown tables, for report.md, the model card and the comparison of runs.

    class_table(metrics.compute(), metrics.details())

Undefined numbers (-1 or None) are a dash. Words from outside (names of files and runs) go through `escape`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

BY_CLASS = {"map": "AP, IoU 0.50 to 0.95 (map)", "map_50": "AP at IoU 0.5 (map_50)",
            "mar_100": "AR, 100 detections (mar_100)", "mr2": "MR-2 (lower is better)", "ji": "JI"}  # fmt: skip
EXPLAINED = """
`map_50` has COCO's limit of 100 detections in the column `all`, and none by class. MR-2 is the log-average miss rate
over 0.01 to 1 false detections per image. JI is the Jaccard index: of all boxes and detections the share that pair up
one to one, at the best threshold. Both follow the CrowdHuman benchmark (Shao et al. 2018, arXiv:1805.00123)."""
MEANINGS = """
`map` is COCO's average precision (AP): mean over IoU 0.50 to 0.95; `map_50` and `map_75` are at one of them. `mar_N`
is the average recall (AR) with N detections per class and image. COCO's standard is 100: `map_max300` and `mar_300`
show what that hides in crowds. `small` are boxes below 32² pixels, `large` those above 96²."""
PUBLISHED = """
AP at IoU 0.5, MR-2 and JI by class may stand beside published rows (docs/faq.md of the recipe has some) where the
photographs are the same."""
NO_IGNORED_REGIONS = """
**MR-2, JI and AP of this evaluation may not be compared with published rows**: the papers leave detections in ignored
regions out, and these images have none (`iscrowd`), so that such detections count as false here."""


def number(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A number as the report writes it, with its 95 % interval if there is one; a dash for what is undefined."""
    if value is None or not value >= 0:
        return "–"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def escape(text: object) -> str:
    """Words from outside as Markdown shows them literally: no HTML, no links, no new cell or line of a table."""
    return re.sub(r"([\\`*_\[\]()#|~])", r"\\\1", " ".join(html.escape(str(text), quote=False).split()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """The lines of a Markdown table; `sides` has an l or r for each column."""
    rule = ["---:" if side == "r" else "---" for side in sides]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def class_rows(values: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """A table of all classes and each class: the numbers that exist per class, and the operating points."""
    boxes, intervals = details["boxes"], details.get("intervals", {})
    rows = [["labelled boxes", f"{sum(boxes.values()):,}", *(f"{count:,}" for count in boxes.values())]]
    for key, words in BY_CLASS.items():
        own = [key, *(f"{key}_{name}" for name in boxes)]
        rows.append([words, *(number(values[name], intervals.get(name)) if name in values else "" for name in own)])
    for key, words in {"threshold": "threshold", "precision": "precision", "recall": "recall", "f1": "F1"}.items():
        points = [details["operating_points"][name]["best_f1"] or {} for name in boxes]
        rows.append([f"{words} at best F1", "", *(number(point.get(key)) for point in points)])
    return table(["", "all", *boxes], rows, "l" + "r" * (len(boxes) + 1))


def class_table(values: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """The table by class, with what its numbers mean."""
    brackets = ["", "In brackets: 95 % intervals, by drawing the images anew (bootstrap)."]
    return [*class_rows(values, details), *EXPLAINED.splitlines(), *(brackets if "intervals" in details else [])]
