"""The report's numbers as tables: Markdown for report.md and the model card, rows for the terminal.

    tables.metrics(metrics.compute())

Undefined numbers (-1 or None) are a dash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MEANINGS = {
    "map": "COCO's main number: average precision, mean over IoU 0.50 to 0.95 and the classes; at most 100 detections "
    "per image and class",
    "map_max300": "the same with 300 detections allowed: beside `map` it shows what COCO's limit hides in crowds",
    "map_50": "average precision where a box counts as found at IoU 0.5: roughly in place",
    "map_75": "the same at IoU 0.75: well in place",
    "map_small": "average precision on boxes below 32² pixels",
    "map_medium": "on boxes from 32² to 96² pixels",
    "map_large": "on boxes above 96² pixels",
    "mar_1": "average recall (IoU 0.50 to 0.95) with one detection per image and class",
    "mar_10": "with 10 detections",
    "mar_100": "with 100 detections, COCO's standard",
    "mar_300": "with 300 detections: the fair one where an image holds more than 100 boxes",
    "mar_small": "average recall on boxes below 32² pixels",
    "mar_medium": "on boxes from 32² to 96² pixels",
    "mar_large": "on boxes above 96² pixels",
}
LOWER_IS_BETTER = ("mr2_",)
AT_BEST_F1 = (("threshold", "threshold"), ("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
# AP at IoU 0.5, MR-2 and JI in percent, CrowdHuman val, full body (heads: their own boxes).
PUBLISHED = (
    ("CrowdDet, R50", "person", 90.7, 41.4, 82.4, "Chu et al., CVPR 2020, arXiv:2003.09163"),
    ("Deformable DETR, 1000 queries", "person", 91.5, 43.7, 83.1, "as measured by Zheng et al., arXiv:2203.07669"),
    ("Iter Deformable DETR, R50", "person", 92.1, 41.5, 84.0, "Zheng et al., CVPR 2022, arXiv:2203.07669"),
    ("Iter Deformable DETR, Swin-L", "person", 94.1, 37.7, 87.1, "Zheng et al., CVPR 2022, arXiv:2203.07669"),
    ("IDPD, R50", "person", 93.2, 39.2, 85.0, "SIViP 2024, doi:10.1007/s11760-023-02896-2"),
    ("BPJDet-M, 1536 pixels", "person", 82.8, 45.4, None, "Zhou et al., TPAMI 2024, arXiv:2304.10765"),
    ("BPJDet-M, 1536 pixels", "head", 77.7, 46.8, None, "Zhou et al., TPAMI 2024, arXiv:2304.10765"),
)


def number(value: float | None, digits: int = 3) -> str:
    """A number as the report writes it; a dash for what is undefined."""
    return "–" if value is None or not math.isfinite(value) or value < 0 else f"{value:.{digits}f}"


def table(head: str, rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """A Markdown table; `sides` has an l or r for each column."""
    rule = ["---:" if side == "r" else "---" for side in sides]
    return [f"| {' | '.join(cells)} |" for cells in (head.split(" | "), rule, *rows)]


def average_precision_50(details: Mapping[str, Any], name: str) -> float | None:
    """AP of one class at IoU 0.5 without a limit on detections, as the CrowdHuman papers quote it."""
    return float(np.mean(details["pr_curves"][name]["0.5"]["precision"])) if details["boxes"][name] else None


def rows(values: Mapping[str, float], details: Mapping[str, Any]) -> list[list[str]]:
    """What, all classes, each class: the numbers that exist per class, and the operating points."""
    names = list(details["boxes"])
    points = {name: details["operating_points"][name]["best_f1"] or {} for name in names}

    def row(word: str, every: str | None, own: Sequence[float | None]) -> list[str]:
        return [word, number(values[every]) if every else "", *(number(value) for value in own)]

    return [
        ["labelled boxes", f"{sum(details['boxes'].values()):,}", *(f"{details['boxes'][name]:,}" for name in names)],
        row("AP, IoU 0.50 to 0.95 (map)", "map", [values[f"map_{name}"] for name in names]),
        row("AP at IoU 0.5", "map_50", [average_precision_50(details, name) for name in names]),
        row("AR, 100 detections (mar_100)", "mar_100", [values[f"mar_100_{name}"] for name in names]),
        row("MR-2 (lower is better)", None, [values[f"mr2_{name}"] for name in names]),
        row("JI", None, [values[f"ji_{name}"] for name in names]),
        *(row(f"{word} at best F1", None, [points[name].get(key) for name in names]) for word, key in AT_BEST_F1),
    ]


def classes(values: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """The table by class, with what its numbers mean."""
    head = " | ".join(["", "all", *details["boxes"]])
    return [
        *table(head, rows(values, details), "l" + "r" * (len(details["boxes"]) + 1)),
        "",
        "AP at IoU 0.5 has COCO's limit of 100 detections in the column `all`, and none by class. MR-2 is the "
        "log-average miss rate: the share of boxes missed, averaged over 0.01 to 1 false detections per image. JI is "
        "the Jaccard index: of all boxes and detections the share that pair up one to one, at the best threshold. "
        "Both follow the CrowdHuman benchmark (Shao et al. 2018, arXiv:1805.00123).",
    ]


def metrics(values: Mapping[str, float]) -> list[str]:
    """Every number that is not of one class, with its meaning."""
    lines = [[f"`{key}`", number(values[key]), text] for key, text in MEANINGS.items()]
    return table("metric | value | meaning", lines, "lrl")


def comparison(now: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """Each number beside an earlier one, with an arrow: up is better, whatever the metric."""
    lines = []
    for key, value in now.items():
        before = earlier.get(key)
        if key in ("details", "record") or not isinstance(before, int | float):
            continue
        change = value - before
        sign = -1 if key.startswith(LOWER_IS_BETTER) else 1
        defined = value >= 0 and before >= 0
        word = "" if not defined else "=" if abs(change) < 0.0005 else "▲ better" if change * sign > 0 else "▼ worse"
        lines.append([f"`{key}`", number(before), number(value), f"{change:+.3f}" if defined else "–", word])
    return [*table("metric | before | now | change | ", lines, "lrrrl"), "", _same_images(now, earlier)]


def _same_images(now: Mapping[str, Any], earlier: Mapping[str, Any]) -> str:
    was, old, new = (found.get("record") or {} for found in (earlier, earlier, now))
    before = f"Before: {was.get('checkpoint', 'unknown')}."
    keys = ("manifest", "data_revision", "split")
    images = [(found.get("details") or {}).get("images") for found in (now, earlier)]
    if images[0] != images[1] or any(old.get(key) != new.get(key) for key in keys):
        return (
            before
            + " **The two were not evaluated on the same images**, so the differences are not the model's alone."
        )
    return before + " Both were evaluated on the same images."


def published(values: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """CrowdHuman numbers of papers, under this evaluation's own."""
    own = [
        [
            "**this evaluation**",
            name,
            *(percent(v) for v in (average_precision_50(details, name), values[f"mr2_{name}"], values[f"ji_{name}"])),
            "own data",
        ]
        for name in details["boxes"]
    ]
    lines = [[model, name, percent(ap / 100), percent(mr / 100), percent(ji and ji / 100), paper]
             for model, name, ap, mr, ji, paper in PUBLISHED]  # fmt: skip
    return [
        *table("model | class | AP50 % | MR-2 % (lower is better) | JI % | source", own + lines, "llrrrl"),
        "",
        "The papers evaluate on CrowdHuman's validation set, persons as full bodies with their hidden parts, "
        "most with 500 to 1000 queries. Unless this evaluation was made on that set with such boxes, the "
        "photographs and the boxes are others and the rows cannot be compared. Their AP is at IoU 0.5 without a "
        "limit on detections; it is not `map`, which averages over stricter IoUs and is much lower for any "
        "model. No paper gives `map` for both classes.",
    ]


def percent(value: float | None) -> str:
    """A share as papers write it: 0.907 is 90.7."""
    return "–" if value is None or value < 0 else f"{100 * value:.1f}"
