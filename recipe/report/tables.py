"""The report's numbers as Markdown tables, for report.md, the model card and the comparison of runs.

    tables.class_table(metrics.compute(), metrics.details())

Undefined numbers (-1 or None) are a dash. Words from outside (names of files and runs) go through `escape`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

MEANINGS = {
    "map": "average precision, mean over IoU 0.50 to 0.95 and the classes; at most 100 detections per class and image",
    "map_max300": "the same with 300 detections: beside `map` it shows what COCO's limit hides in crowds",
    "map_50": "average precision at IoU 0.5: roughly in place",
    "map_75": "at IoU 0.75: well in place",
    "map_small": "on boxes below 32² pixels",
    "map_medium": "on boxes from 32² to 96² pixels",
    "map_large": "on boxes above 96² pixels",
    "mar_1": "average recall, mean over IoU 0.50 to 0.95, with one detection per class and image",
    "mar_10": "with 10 detections",
    "mar_100": "with 100 detections, COCO's standard",
    "mar_300": "with 300 detections: the fair one where an image holds more than 100 boxes",
    "mar_small": "on boxes below 32² pixels",
    "mar_medium": "on boxes from 32² to 96² pixels",
    "mar_large": "on boxes above 96² pixels",
}
BY_CLASS = {  # of a metric's key: what the tables call it
    "map": "AP, IoU 0.50 to 0.95 (map)",
    "map_50": "AP at IoU 0.5 (map_50)",
    "mar_100": "AR, 100 detections (mar_100)",
    "mr2": "MR-2 (lower is better)",
    "ji": "JI",
}
EXPLAINED = """
`map_50` has COCO's limit of 100 detections in the column `all`, and none by class. MR-2 is the log-average miss rate
over 0.01 to 1 false detections per image. JI is the Jaccard index: of all boxes and detections the share that pair up
one to one, at the best threshold. Both follow the CrowdHuman benchmark (Shao et al. 2018, arXiv:1805.00123)."""
# CrowdHuman val, full body (heads: their own boxes): model, class, AP at IoU 0.5, MR-2, JI, source.
PUBLISHED = """\
| CrowdDet, R50 | person | 90.7 | 41.4 | 82.4 | Chu et al., CVPR 2020, arXiv:2003.09163 |
| Deformable DETR, 1000 queries | person | 91.5 | 43.7 | 83.1 | as measured by Zheng et al., arXiv:2203.07669 |
| Iter Deformable DETR, Swin-L | person | 94.1 | 37.7 | 87.1 | Zheng et al., CVPR 2022, arXiv:2203.07669 |
| IDPD, R50 | person | 93.2 | 39.2 | 85.0 | SIViP 2024, doi:10.1007/s11760-023-02896-2 |
| BPJDet-M, 1536 pixels | person | 82.8 | 45.4 | – | Zhou et al., TPAMI 2024, arXiv:2304.10765 |
| BPJDet-M, 1536 pixels | head | 77.7 | 46.8 | – | Zhou et al., TPAMI 2024, arXiv:2304.10765 |

The papers evaluate on CrowdHuman's validation set, persons as full bodies with their hidden parts, most with 500 to
1000 queries: on other photographs the rows cannot be compared. Their AP is at IoU 0.5 without a limit on detections;
it is not `map`, which averages over stricter IoUs and is much lower for any model."""
NO_IGNORED_REGIONS = """
**MR-2, JI and AP of this evaluation may not be compared with the published rows**: the papers leave detections in
ignored regions out, and these images have none (`iscrowd`), so that such detections count as false here."""


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


def class_rows(values: Mapping[str, float], details: Mapping[str, Any], *, intervals: bool = False) -> list[list[str]]:
    """What, all classes, each class: the numbers that exist per class, and the operating points."""
    boxes, known = details["boxes"], (details.get("intervals") or {}) if intervals else {}
    rows = [["labelled boxes", f"{sum(boxes.values()):,}", *(f"{count:,}" for count in boxes.values())]]
    for key, words in BY_CLASS.items():
        own = [key, *(f"{key}_{name}" for name in boxes)]
        rows.append([words, *(number(values[name], known.get(name)) if name in values else "" for name in own)])
    for key in ("threshold", "precision", "recall", "f1"):
        points = [details["operating_points"][name]["best_f1"] or {} for name in boxes]
        rows.append([f"{key.replace('f1', 'F1')} at best F1", "", *(number(point.get(key)) for point in points)])
    return rows


def class_table(values: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """The table by class, with what its numbers mean."""
    head, sides = ["", "all", *details["boxes"]], "l" + "r" * (len(details["boxes"]) + 1)
    lines = [*table(head, class_rows(values, details, intervals=True), sides), *EXPLAINED.splitlines()]
    if details.get("intervals"):
        lines += ["", "In brackets: 95 % intervals, by drawing the images anew (bootstrap)."]
    return lines


def published(values: Mapping[str, float], details: Mapping[str, Any], ignored_regions: bool) -> list[str]:
    """CrowdHuman numbers of papers in percent, under this evaluation's own where they may be compared."""
    rows = []
    for name in details["boxes"] if ignored_regions else ():
        shares = (values[f"{key}_{name}"] for key in ("map_50", "mr2", "ji"))
        rows.append(["**this evaluation**", name, *(f"{100 * x:.1f}" if x >= 0 else "–" for x in shares), "own data"])
    head = ["model", "class", "AP50 %", "MR-2 % (lower is better)", "JI %", "source"]
    lines = [*table(head, rows, "llrrrl"), *PUBLISHED.splitlines()]
    return lines if ignored_regions else [*lines, *NO_IGNORED_REGIONS.splitlines()]
