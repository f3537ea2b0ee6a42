"""The report's plots, one function per PNG, drawn from `DetectionMetrics.details()` and metrics.jsonl.

    learning_curves(Path("report/curves.png"), {"my run": read_log(Path("outputs/run"))})

Each function returns whether it had anything to draw. Class colours are those of the drawn boxes (draw.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipe.report.draw import COLORS
from recipe.schema import CLASS_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]

CLASSES = {name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in zip(CLASS_NAMES, COLORS, strict=False)}
STYLE: dict[Any, Any] = {"axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e6ea", "legend.frameon": False}
BELOW: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.2), "ncols": 2}  # covers nothing there
MOST_POINTS = 200  # of a curve: more are averaged, so that a long run stays readable


@contextmanager
def sheet(path: Path, columns: int, rows: int = 1) -> Iterator[list[Axes]]:
    """Empty axes, row by row, that are saved as PNG at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no backend to choose, no global state

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2 * columns, 4.2 * rows), dpi=120, layout="constrained")
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        figure.savefig(path)


def learning_curves(path: Path, histories: Mapping[str, Rows]) -> bool:
    """Loss and average precision against the epoch, of one run or of several by their names."""
    from matplotlib import colormaps

    shown = {name: rows for name, rows in histories.items() if any("loss" in r or "eval_map" in r for r in rows)}
    if not shown:
        return False
    with sheet(path, 2) as (loss, precision):
        curves = ((loss, "loss", ":", "training"), (loss, "eval_loss", "-", "validation"),
                  (precision, "eval_map", "-", "map"), (precision, "eval_map_50", ":", "map_50"))  # fmt: skip
        for place, (run, rows) in enumerate(shown.items()):
            for axes, key, style, words in curves:
                points = np.array([(row.get("epoch") or 0, row[key]) for row in rows if row.get(key, -1) >= 0])
                if len(points):
                    parts = np.array_split(points, min(len(points), MOST_POINTS))
                    label = f"{run[-32:]}, {words}".replace("$", r"\$")  # no formula
                    marker = "osv^D"[place // 10 % 5] if len(points) < 30 else None
                    x, y = np.array([part.mean(axis=0) for part in parts]).T
                    axes.plot(x, y, style, marker=marker, color=colormaps["tab10"](place % 10), label=label)
        loss.set_title("Loss")
        precision.set_title("Average precision on validation")
        for axes in (loss, precision):
            axes.set(xlabel="epoch", xlim=(0, None), ylim=(0, max(1.1 * axes.get_ylim()[1], 0.1)))
            if axes.lines:
                axes.legend(**BELOW)
    return True


def operating_points(path: Path, details: Mapping[str, Any]) -> bool:
    """Of each class that has a hit: precision against recall, and both against the threshold."""
    found = {name: points for name, points in details["operating_points"].items() if points["best_f1"]}
    if not found:
        return False
    with sheet(path, 2) as (relation, by_score):
        for name, points in found.items():
            color = CLASSES[name]
            for (iou, curve), style in zip(details["pr_curves"][name].items(), ("-", ":"), strict=True):
                # Beyond the highest recall that is reached there is no precision; COCO counts it as 0.
                drawn = [np.nan if s is None else p for p, s in zip(curve["precision"], curve["score"], strict=True)]
                label = f"{name}, IoU {iou}: AP {np.mean(curve['precision']):.3f}"
                relation.plot(curve["recall"], drawn, style, color=color, label=label)
            curve = details["threshold_curves"][name]
            for key, style in {"precision": "--", "recall": ":", "f1": "-"}.items():
                label = f"{name}, {key}"
                by_score.plot(curve["threshold"], np.array(curve[key], float), style, color=color, label=label)
            for (key, point), marker in zip(points.items(), "os", strict=True):
                if point:
                    label = f"{name}, {key.replace('_', ' ')}: at {point['threshold']:.2f}"
                    relation.plot(point["recall"], point["precision"], marker, color=color, label=label)
                    by_score.plot(point["threshold"], point["f1"], marker, color=color)
        relation.set(title="Precision and recall", xlabel="recall", ylabel="precision")
        by_score.set(title="Choosing a threshold", xlabel="score threshold")
        for axes in (relation, by_score):
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
            axes.legend(**BELOW)
    return True


def where_it_fails(path: Path, details: Mapping[str, Any]) -> bool:
    """The share of the boxes found by box size and by boxes per image: at any score (dotted), above the threshold."""
    names = [name for name, boxes in details["boxes"].items() if boxes]
    if not names:
        return False
    with sheet(path, 2) as panels:
        by = {"by_size": "size in pixels", "by_density": "boxes per image"}
        for axes, (key, words) in zip(panels, by.items(), strict=True):
            ticks = [row["bin"] for row in details[key][names[0]]]
            for name in names:
                rows, color = details[key][name], CLASSES[name]
                shares = np.array([(row["recall"], row["recall_best_f1"]) for row in rows]).T
                shares[shares < 0] = np.nan  # where there are no boxes
                axes.plot(shares[0], ":", marker="x", color=color, label=f"{name}, at any score")
                axes.plot(shares[1], "-", marker="o", color=color, label=f"{name}, above the threshold")
                ticks = [f"{tick}\n{row['boxes']:,}" for tick, row in zip(ticks, rows, strict=True)]
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set(title="Share of the boxes found", xlabel=f"{words}; below: boxes ({', '.join(names)})")
            axes.set(xlim=(-0.3, len(ticks) - 0.7), ylim=(-0.02, 1.02))  # what is 0 is seen too
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.28), ncols=2)
    return True
