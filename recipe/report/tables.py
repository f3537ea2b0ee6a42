"""The report's numbers as tables: Markdown for report.md and the model card, rows for the terminal.

    tables.metrics(metrics.compute())

Undefined numbers (-1 or None) are a dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

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
# CrowdHuman val, full body (heads: their own boxes): model, class, AP at IoU 0.5, MR-2, JI, source.
PUBLISHED = """\
| CrowdDet, R50 | person | 90.7 | 41.4 | 82.4 | Chu et al., CVPR 2020, arXiv:2003.09163 |
| Deformable DETR, 1000 queries | person | 91.5 | 43.7 | 83.1 | as measured by Zheng et al., arXiv:2203.07669 |
| Iter Deformable DETR, R50 | person | 92.1 | 41.5 | 84.0 | Zheng et al., CVPR 2022, arXiv:2203.07669 |
| Iter Deformable DETR, Swin-L | person | 94.1 | 37.7 | 87.1 | Zheng et al., CVPR 2022, arXiv:2203.07669 |
| IDPD, R50 | person | 93.2 | 39.2 | 85.0 | SIViP 2024, doi:10.1007/s11760-023-02896-2 |
| BPJDet-M, 1536 pixels | person | 82.8 | 45.4 | – | Zhou et al., TPAMI 2024, arXiv:2304.10765 |
| BPJDet-M, 1536 pixels | head | 77.7 | 46.8 | – | Zhou et al., TPAMI 2024, arXiv:2304.10765 |

The papers evaluate on CrowdHuman's validation set, persons as full bodies with their hidden parts, most with 500 to
1000 queries: on other photographs the rows cannot be compared. Their AP is at IoU 0.5 without a limit on detections;
it is not `map`, which averages over stricter IoUs and is much lower for any model."""


def number(value: float | None, digits: int = 3) -> str:
    """A number as the report writes it; a dash for what is undefined."""
    return "–" if value is None or not value >= 0 else f"{value:.{digits}f}"


def table(head: str, rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """A Markdown table; `sides` has an l or r for each column."""
    rule = ["---:" if side == "r" else "---" for side in sides]
    return [f"| {' | '.join(cells)} |" for cells in (head.split(" | "), rule, *rows)]


def average_precision_50(details: Mapping[str, Any], name: str) -> float | None:
    """AP of one class at IoU 0.5 without a limit on detections, as the CrowdHuman papers quote it."""
    return float(np.mean(details["pr_curves"][name]["0.5"]["precision"])) if details["boxes"][name] else None


def rows(values: Mapping[str, float], details: Mapping[str, Any]) -> list[list[str]]:
    """What, all classes, each class: the numbers that exist per class, and the operating points."""
    boxes, points = details["boxes"], details["operating_points"]
    lines = [["labelled boxes", f"{sum(boxes.values()):,}", *(f"{count:,}" for count in boxes.values())]]

    def add(word: str, own: Iterable[float | None], every: str = "") -> None:
        lines.append([word, every, *map(number, own)])

    add("AP, IoU 0.50 to 0.95 (map)", (values[f"map_{name}"] for name in boxes), number(values["map"]))
    add("AP at IoU 0.5", (average_precision_50(details, name) for name in boxes), number(values["map_50"]))
    add("AR, 100 detections (mar_100)", (values[f"mar_100_{name}"] for name in boxes), number(values["mar_100"]))
    add("MR-2 (lower is better)", (values[f"mr2_{name}"] for name in boxes))
    add("JI", (values[f"ji_{name}"] for name in boxes))
    for key in ("threshold", "precision", "recall", "f1"):
        best = [(points[name]["best_f1"] or {}).get(key) for name in boxes]
        add(f"{key.replace('f1', 'F1')} at best F1", best)
    return lines


def classes(values: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """The table by class, with what its numbers mean."""
    head = " | ".join(["", "all", *details["boxes"]])
    return [
        *table(head, rows(values, details), "l" + "r" * (len(details["boxes"]) + 1)),
        "",
        "AP at IoU 0.5 has COCO's limit of 100 detections in the column `all`, and none by class. MR-2 is the "
        "log-average miss rate over 0.01 to 1 false detections per image. JI is the Jaccard index: of all boxes and "
        "detections the share that pair up one to one, at the best threshold. Both follow the CrowdHuman benchmark "
        "(Shao et al. 2018, arXiv:1805.00123).",
    ]


def metrics(values: Mapping[str, float]) -> list[str]:
    """Every number that is not of one class, with its meaning."""
    lines = [[f"`{key}`", number(values[key]), text] for key, text in MEANINGS.items()]
    return table("metric | value | meaning", lines, "lrl")


def comparison(now: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """Each number beside an earlier one, with an arrow: up is better, whatever the metric."""
    lines = []
    for key in [key for key in now if isinstance(earlier.get(key), int | float)]:
        before, value, change, word = earlier[key], now[key], "–", ""
        if value >= 0 and before >= 0:
            change, gain = f"{value - before:+.3f}", before - value if key.startswith("mr2_") else value - before
            word = "=" if abs(gain) < 0.0005 else "▲ better" if gain > 0 else "▼ worse"
        lines.append([f"`{key}`", number(before), number(value), change, word])
    was, here = earlier.get("record") or {}, now["record"]
    same = (earlier.get("details") or {}).get("images") == now["details"]["images"] and all(
        was.get(key) == here.get(key) for key in ("manifest", "data_revision", "split")
    )
    text = f"Before: {was.get('checkpoint', 'unknown')}. " + (
        "Both were evaluated on the same images."
        if same
        else "**The two were not evaluated on the same images**, so the differences are not the model's alone."
    )
    return [*table("metric | before | now | change | ", lines, "lrrrl"), "", text]


def published(values: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """CrowdHuman numbers of papers in percent, under this evaluation's own."""
    own = []
    for name in details["boxes"]:
        shares = (average_precision_50(details, name), values[f"mr2_{name}"], values[f"ji_{name}"])
        percent = [number(None if share is None else 100 * share, 1) for share in shares]
        own.append(["**this evaluation**", name, *percent, "own data"])
    head = "model | class | AP50 % | MR-2 % (lower is better) | JI % | source"
    return [*table(head, own, "llrrrl"), *PUBLISHED.splitlines()]
