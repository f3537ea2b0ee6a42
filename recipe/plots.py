"""The report's plots, one function per PNG, drawn from `DetectionMetrics.details()` and metrics.jsonl.

    learning_curves(Path("report/curves.png"), read_log(Path("outputs/run")))

Each function returns whether it had anything to draw. Class colours are those of the drawn boxes (recipe/draw.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipe.draw import COLORS, VERDICT_COLORS, Color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recipe.annotations import Annotations

Rows = Sequence[Mapping[str, Any]]

GREY, INK = "#8a8f98", "#22262e"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 9,
    "lines.linewidth": 2,
}
SIZE_TICKS = (2, 4, 8, 16, 32, 64, 96, 256, 512)  # pixels; 8, 16, 32 and 96 part the size bins
MOST_POINTS = 200  # of a curve: more are averaged, so that a long run stays readable


def hex_color(rgb: Color) -> str:
    """(45, 140, 240) as matplotlib writes it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def class_colors(names: Sequence[str]) -> dict[str, str]:
    """The colour of each class, by its label."""
    return {name: hex_color(COLORS[label % len(COLORS)]) for label, name in enumerate(names)}


@contextmanager
def sheet(path: Path, columns: int, rows: int = 1, *, width: float = 5.2, height: float = 3.6) -> Iterator[list[Axes]]:
    """Empty axes, row by row, that are saved as PNG at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no backend to choose, no global state

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), dpi=120, layout="constrained")
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        figure.savefig(path)


def learning_curves(path: Path, history: Rows) -> bool:
    """Loss, loss of each decoder layer, and mAP against the epoch."""
    training = [row for row in history if "loss" in row]
    evaluations = [row for row in history if "eval_map" in row]
    if not training and not evaluations:
        return False
    with sheet(path, 3) as panels:
        _losses(panels[0], training, evaluations)
        _layer_losses(panels[1], training)
        _precisions(panels[2], evaluations)
        last = max(_epoch(row) for row in [*training, *evaluations])
        for axes in panels:
            axes.set(xlabel="epoch", xlim=(0, last * 1.04 or 1))
            if axes.get_legend_handles_labels()[0]:
                axes.legend(ncols=2 if axes is panels[1] else 1)
    return True


def _losses(axes: Axes, training: Rows, evaluations: Rows) -> None:
    _line(axes, training, "loss", color=GREY, label="training")
    _line(axes, evaluations, "eval_loss", color=INK, marker="o", label="validation")
    axes.set(title="Loss", ylim=(0, 1.1 * axes.get_ylim()[1]))


def _layer_losses(axes: Axes, training: Rows) -> None:
    from matplotlib import colormaps

    layers = sorted({int(key[11:]) for row in training for key in row if key.startswith("loss_layer_")})
    for place, layer in enumerate(layers):
        color = colormaps["viridis"](0.9 * place / max(len(layers) - 1, 1))
        word = f"layer {layer}" + (" (last)" if layer == layers[-1] else "")
        _line(axes, training, f"loss_layer_{layer}", color=color, label=word, linewidth=1.5)
    axes.set(title="Training loss of each decoder layer", ylim=(0, 1.1 * axes.get_ylim()[1]))


def _precisions(axes: Axes, evaluations: Rows) -> None:
    names = [key.removeprefix("eval_mr2_") for row in evaluations[:1] for key in row if key.startswith("eval_mr2_")]
    _line(axes, evaluations, "eval_map_50", color=INK, linestyle="--", marker="o", label="map_50")
    _line(axes, evaluations, "eval_map", color=INK, marker="o", label="map")
    for name, color in class_colors(names).items():
        _line(axes, evaluations, f"eval_map_{name}", color=color, marker="o", label=f"map_{name}", linewidth=1.5)
    axes.set(title="Average precision on validation", ylim=(0, min(max(0.1, 1.1 * axes.get_ylim()[1]), 1)))


def _epoch(row: Mapping[str, Any]) -> float:
    return float(row.get("epoch") or 0)


def _line(axes: Axes, rows: Rows, key: str, **options: Any) -> None:
    points = np.array([(_epoch(row), row[key]) for row in rows if row.get(key, -1) >= 0])
    if not len(points):
        return
    if len(points) == 1:
        options = {"marker": "o", **options}  # a line through one point cannot be seen
    parts = np.array_split(points, min(len(points), MOST_POINTS))
    axes.plot(*np.array([part.mean(axis=0) for part in parts]).T, markersize=4, **options)


def histograms(path: Path, annotations: Annotations, names: Sequence[str], num_queries: int) -> bool:
    """Boxes per image and box sizes of the evaluated split."""
    from matplotlib.ticker import MaxNLocator

    counts, sizes, real = annotations.counts, np.sqrt(annotations.area), annotations.iscrowd == 0
    with sheet(path, 2, width=6.2) as (count, size):
        most = int(counts.max(initial=1))
        count.hist(counts, bins=np.linspace(0, most + 1, min(most + 2, 41)).tolist(), color="#5b6472")
        count.yaxis.set_major_locator(MaxNLocator(integer=True))
        if most > 0.6 * num_queries:
            count.axvline(num_queries, color=INK, linestyle="--", linewidth=1.2)
            _upright(count, num_queries, f"{num_queries} queries", 0.98, left=True)
        count.set(title="Boxes per image", xlabel="boxes in an image, all classes", ylabel="images")
        edges = np.geomspace(2, max(float(sizes.max(initial=4)), 128), 41).tolist()
        for label, (name, color) in enumerate(class_colors(names).items()):
            own = sizes[real & (annotations.labels == label)].clip(2)
            size.hist(own, edges, color=color, alpha=0.3)
            size.hist(own, edges, color=color, histtype="step", linewidth=1.8, label=f"{name} ({len(own):,})")
        size.set_xscale("log")
        size.minorticks_off()
        size.set_xticks(SIZE_TICKS, [str(pixels) for pixels in SIZE_TICKS])
        size.set(title="Size of the boxes", xlabel="pixels of the original image (square root of the area)")
        size.set(ylabel="boxes", xlim=(edges[0], edges[-1]))
        size.legend()
    return True


def _upright(axes: Axes, x: float, text: str, y: float, *, left: bool) -> None:
    """A word along a vertical line, on its left or right; `y` in shares of the axes."""
    axes.annotate(text, (x, y), xycoords=("data", "axes fraction"), xytext=(-3 if left else 3, 0),
                  textcoords="offset points", rotation=90, fontsize=9, ha="right" if left else "left",
                  va="top" if y > 0.5 else "bottom")  # fmt: skip


def precision_recall(path: Path, details: Mapping[str, Any]) -> bool:
    """Precision against recall at IoU 0.5 and 0.75 of each class that has a hit, with the best-F1 point."""
    colors = class_colors(list(details["boxes"]))
    curves = {
        name: curve for name, curve in details["pr_curves"].items() if details["operating_points"][name]["best_f1"]
    }
    if not curves:
        return False
    with sheet(path, len(curves), height=4.2) as panels:
        for axes, (name, by_iou) in zip(panels, curves.items(), strict=True):
            for iou, style in (("0.5", "-"), ("0.75", "--")):
                curve = by_iou[iou]
                # Beyond the highest recall that is reached there is no precision; COCO counts it as 0.
                drawn = [np.nan if s is None else p for p, s in zip(curve["precision"], curve["score"], strict=True)]
                label = f"IoU {iou}: AP {np.mean(curve['precision']):.3f}"
                axes.plot(curve["recall"], drawn, style, color=colors[name], label=label)
            point = details["operating_points"][name]["best_f1"]
            label = f"best F1 {point['f1']:.2f}, at threshold {point['threshold']:.2f}"
            axes.plot(point["recall"], point["precision"], "o", color=INK, markersize=8, label=label)
            axes.set(title=name, xlabel="recall: share of the labelled boxes found", xlim=(0, 1), ylim=(0, 1.02))
            axes.set_ylabel("precision: share of the detections right")
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14))
    return True


def thresholds(path: Path, details: Mapping[str, Any]) -> bool:
    """Precision, recall and F1 of each class that has a hit against the threshold, operating points marked."""
    colors = class_colors(list(details["boxes"]))
    curves = {
        name: curve
        for name, curve in details["threshold_curves"].items()
        if details["operating_points"][name]["best_f1"]
    }
    if not curves:
        return False
    with sheet(path, len(curves), height=4.2) as panels:
        for axes, (name, curve) in zip(panels, curves.items(), strict=True):
            for key, style in (("precision", "--"), ("recall", ":"), ("f1", "-")):
                values = [np.nan if value is None else value for value in curve[key]]
                axes.plot(curve["threshold"], values, style, color=colors[name], label=key.replace("f1", "F1"))
            points = details["operating_points"][name]
            found = [(point["threshold"], key) for key, point in points.items() if point]
            for place, (threshold, key) in enumerate(sorted(found)):
                word = "best F1" if key == "best_f1" else f"{key.rpartition('_')[2]}% precision"
                axes.axvline(threshold, color=INK, linewidth=1)
                _upright(axes, threshold, f"{word}: {threshold:.2f}", 0.02, left=place == 0)
            axes.set(title=name, xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02))
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    return True


def where_it_fails(path: Path, details: Mapping[str, Any]) -> bool:
    """AP and recall by box size and by boxes per image."""
    names = [name for name, boxes in details["boxes"].items() if boxes]
    if not names:
        return False
    kinds = (("by_size", "size of the box, in pixels"), ("by_density", "boxes in the image"))
    with sheet(path, 2, 2, width=6.2, height=3.3) as panels:
        for column, (key, label) in enumerate(kinds):
            rows = {name: details[key][name] for name in names}
            colors = class_colors(list(details["boxes"]))
            _bars(panels[column], rows, colors, "ap_50")
            panels[column].set(title=f"AP at IoU 0.5, by {label}", ylim=(0, 1.08))
            _bars(panels[2 + column], rows, colors, "recall_best_f1", behind="recall")
            panels[2 + column].set(title=f"Share of the boxes found, by {label}", ylim=(0, 1.08))
            bins = range(len(rows[names[0]]))
            counts = ["\n".join(f"{rows[name][b]['boxes']:,} {name}" for name in names) for b in bins]
            places = [row["bin"].replace("<=", "≤ ").replace(">=", "≥ ") for row in rows[names[0]]]
            panels[column].set_xticks(bins, places)
            panels[2 + column].set_xticks(bins, [f"{p}\n{n}" for p, n in zip(places, counts, strict=True)])
        panels[2].legend(fontsize=8, loc="upper left")
    return True


def _bars(
    axes: Axes, rows: Mapping[str, Rows], colors: Mapping[str, str], key: str, behind: str | None = None
) -> None:
    """Grouped bars; `behind` names a larger value, drawn paler behind."""
    width = 0.8 / len(rows)
    for i, (name, own) in enumerate(rows.items()):
        x = np.arange(len(own)) + (i - (len(rows) - 1) / 2) * width
        heights = [max(row[key], 0) if row["boxes"] else 0 for row in own]
        tops = [max(row[behind or key], 0) if row["boxes"] else 0 for row in own]
        if behind:
            axes.bar(x, tops, width, color=colors[name], alpha=0.35, label=f"{name}, at any score")
        axes.bar(x, heights, width, color=colors[name], label=f"{name}, above the threshold")
        for place, height, top, row in zip(x, heights, tops, own, strict=True):
            text = f"{top:.2f}" if row["boxes"] else "–"
            axes.text(place, top + 0.015, text, ha="center", va="bottom", fontsize=8, color=INK)
            if behind and 0.1 < height < top:
                axes.text(place, height - 0.015, f"{height:.2f}", ha="center", va="top", fontsize=8, color=INK)
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.grid(False, axis="x")


def error_kinds(path: Path, details: Mapping[str, Any]) -> bool:
    """Of the labelled boxes: found or missed; of the detections: right, or wrong in which way."""
    names = [name for name, kinds in details["errors"].items() if sum(kinds.values())]
    if not names:
        return False
    found, missed, duplicate, false = (hex_color(color) for color in VERDICT_COLORS.values())
    titles = {
        "The labelled boxes": {"hits": ("found", found), "missed": ("missed", missed)},
        "The detections above the threshold": {
            "hits": ("right", found),
            "duplicate": ("duplicate", duplicate),
            "wrong_class": ("wrong class", "#b48be0"),
            "badly_placed": ("badly placed", false),
            "background": ("on nothing labelled", "#b9bdc4"),
        },
    }
    with sheet(path, 1, 2, width=11, height=1.1 + 0.45 * len(names)) as panels:
        for axes, (title, kinds) in zip(panels, titles.items(), strict=True):
            counts = np.array([[details["errors"][name][kind] for kind in kinds] for name in names])
            shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
            starts = np.cumsum(shares, axis=1) - shares
            for k, (word, color) in enumerate(kinds.values()):
                axes.barh(names, shares[:, k], left=starts[:, k], color=color, label=word)
                for y in np.flatnonzero(shares[:, k] > 0.04).tolist():
                    text = f"{counts[y, k]:,}" + (f" ({shares[y, k]:.0%})" if shares[y, k] > 0.1 else "")
                    axes.text(starts[y, k] + shares[y, k] / 2, y, text, ha="center", va="center", fontsize=9)
            for y in np.flatnonzero(counts.sum(axis=1) == 0).tolist():
                axes.text(0.01, y, "none", va="center", fontsize=9, color=GREY)
            axes.invert_yaxis()
            axes.set(title=title, xlim=(0, 1))
            axes.xaxis.set_major_formatter("{x:.0%}")
            axes.grid(False, axis="y")
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True
