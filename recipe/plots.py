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

from recipe.draw import COLORS, VERDICT_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recipe.annotations import Annotations

GREY = "#8a8f98"
INK = "#22262e"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
}
SIZE_MARKS = (8, 16, 32, 96)  # the edges of the size bins, in pixels


def hex_color(rgb: tuple[int, int, int]) -> str:
    """(45, 140, 240) as matplotlib and HTML write it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def class_colors(names: Sequence[str]) -> dict[str, str]:
    """The colour of each class, by its label."""
    return {name: hex_color(COLORS[label % len(COLORS)]) for label, name in enumerate(names)}


@contextmanager
def sheet(path: Path, columns: int, rows: int = 1, *, width: float = 5.2, height: float = 3.6) -> Iterator[list[Axes]]:
    """A row (or grid) of empty axes that is saved as PNG at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no backend, no global state

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), dpi=120, layout="constrained")
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        figure.savefig(path)


def learning_curves(path: Path, history: Sequence[Mapping[str, Any]]) -> bool:
    """Loss, loss of each decoder layer, and mAP against the epoch."""
    training = [row for row in history if "loss" in row]
    evaluations = [row for row in history if "eval_map" in row]
    if not training and not evaluations:
        return False
    layers = sorted((key for row in training[:1] for key in row if key.startswith("loss_layer_")), key=_layer)
    with sheet(path, 3) as (loss, by_layer, score):
        _line(loss, training, "loss", color=GREY, label="training")
        _line(loss, evaluations, "eval_loss", color=INK, marker="o", label="validation")
        loss.set(title="Loss", ylim=(0, None))
        _legend(loss)
        from matplotlib import colormaps

        for i, key in enumerate(layers):
            color = colormaps["viridis"](0.9 * i / max(len(layers) - 1, 1))
            _line(by_layer, training, key, color=color, label=f"layer {_layer(key)}", linewidth=1.4)
        by_layer.set(title="Loss of each decoder layer", ylim=(0, None))
        _legend(by_layer, ncols=2)
        for key, style in (("eval_map", "-o"), ("eval_map_50", "--o")):
            _line(score, evaluations, key, style, color=INK, label=key.removeprefix("eval_"))
        for name, color in class_colors(_classes(evaluations)).items():
            _line(score, evaluations, f"eval_map_{name}", "-o", color=color, label=f"map_{name}", linewidth=1.4)
        score.set(title="Average precision on validation", ylim=(0, 1))
        _legend(score)
        for axes in (loss, by_layer, score):
            axes.set_xlabel("epoch")
            axes.set_xlim(0, max(_epoch(row) for row in [*training, *evaluations]) * 1.04 or 1)
    return True


def _layer(key: str) -> int:
    return int(key.rsplit("_", 1)[1])


def _epoch(row: Mapping[str, Any]) -> float:
    return float(row.get("epoch") or 0)


def _classes(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key.removeprefix("eval_mr2_") for row in evaluations[:1] for key in row if key.startswith("eval_mr2_")]


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, *style: str, **options: Any) -> None:
    points = [(_epoch(row), row[key]) for row in rows if row.get(key) is not None and row[key] >= 0]
    if points:
        if len(points) == 1:
            options = {"marker": "o", **options}  # a line through one point would be invisible
        axes.plot(*zip(*points, strict=True), *style, markersize=4, **options)


def _legend(axes: Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def histograms(path: Path, annotations: Annotations, names: Sequence[str], num_queries: int) -> bool:
    """Boxes per image and box sizes of the evaluated split."""
    colors = class_colors(names)
    real = annotations.iscrowd == 0
    sizes = np.sqrt(annotations.area)
    with sheet(path, 2, width=6.2) as (count, size):
        most = int(annotations.counts.max(initial=1))
        bins = np.linspace(0, max(most, 1) + 1, min(most + 2, 41))
        count.hist(annotations.counts, bins=bins, color="#5b6472")
        if most > 0.6 * num_queries:
            count.axvline(num_queries, color=INK, linestyle="--", linewidth=1.2)
            count.annotate(f"{num_queries} queries", (num_queries, 0.97), xycoords=("data", "axes fraction"), rotation=90,
                           xytext=(-4, 0), textcoords="offset points", ha="right", va="top")  # fmt: skip
        count.set(title="Boxes per image", xlabel="boxes in an image, both classes", ylabel="images")
        edges = np.geomspace(2, max(float(sizes.max(initial=4)), 128), 41)
        for label, name in enumerate(names):
            own = sizes[real & (annotations.labels == label)].clip(2)
            size.hist(own, bins=edges, color=colors[name], alpha=0.35)
            size.hist(
                own, bins=edges, color=colors[name], histtype="step", linewidth=1.6, label=f"{name} ({len(own):,})"
            )
        size.set_xscale("log")
        size.set_xticks([2, 4, *SIZE_MARKS, 256, 512], [str(n) for n in (2, 4, *SIZE_MARKS, 256, 512)], minor=False)
        size.minorticks_off()
        for mark in SIZE_MARKS:
            size.axvline(mark, color=GREY, linestyle=":", linewidth=1)
        size.set(title="Box size", xlabel="square root of the area, pixels of the original image", ylabel="boxes",
                 xlim=(edges[0], edges[-1]))  # fmt: skip
        size.legend()
    return True


def precision_recall(path: Path, details: Mapping[str, Any]) -> bool:
    """Precision against recall per class at IoU 0.5 and 0.75, with the best-F1 point."""
    curves = {name: curve for name, curve in details["pr_curves"].items() if details["boxes"][name]}
    colors = class_colors(list(details["boxes"]))
    if not curves:
        return False
    with sheet(path, len(curves), height=4.2) as panels:
        for axes, (name, by_iou) in zip(panels, curves.items(), strict=True):
            for iou, style in (("0.5", "-"), ("0.75", "--")):
                curve = by_iou[iou]
                area = float(np.mean(curve["precision"]))
                axes.plot(
                    curve["recall"], curve["precision"], style, color=colors[name], label=f"IoU {iou}: AP {area:.3f}"
                )
            point = details["operating_points"][name]["best_f1"]
            if point:
                axes.plot(point["recall"], point["precision"], "o", color=INK, markersize=8,
                          label=f"best F1 {point['f1']:.2f} at threshold {point['threshold']:.2f}")  # fmt: skip
            axes.set(title=name, xlabel="recall: share of the boxes found", ylabel="precision: share of detections right",
                     xlim=(0, 1), ylim=(0, 1.02))  # fmt: skip
            axes.legend(loc="lower left")
    return True


def thresholds(path: Path, details: Mapping[str, Any]) -> bool:
    """Precision, recall and F1 against the score threshold per class, operating points marked."""
    curves = {name: curve for name, curve in details["threshold_curves"].items() if details["boxes"][name]}
    colors = class_colors(list(details["boxes"]))
    if not curves:
        return False
    with sheet(path, len(curves), height=4.2) as panels:
        for axes, (name, curve) in zip(panels, curves.items(), strict=True):
            for key, style in (("precision", "--"), ("recall", ":"), ("f1", "-")):
                values = [np.nan if value is None else value for value in curve[key]]
                axes.plot(curve["threshold"], values, style, color=colors[name], label=key.replace("f1", "F1"))
            for key, word in (("best_f1", "best F1"), ("precision_90", "90 % precision")):
                point = details["operating_points"][name].get(key)
                if point:
                    axes.axvline(point["threshold"], color=INK, linewidth=1)
                    axes.annotate(f"{word}: {point['threshold']:.2f}", (point["threshold"], 0.02), rotation=90,
                                  xytext=(-3, 0), textcoords="offset points", ha="right", va="bottom")  # fmt: skip
            axes.set(title=name, xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02))
            axes.legend(loc="upper right", bbox_to_anchor=(1, 0.98))
    return True


def where_it_fails(path: Path, details: Mapping[str, Any]) -> bool:
    """AP and recall by box size and by boxes per image."""
    names = [name for name, boxes in details["boxes"].items() if boxes]
    colors = class_colors(list(details["boxes"]))
    if not names:
        return False
    kinds = (("by_size", "size of the box (pixels)"), ("by_density", "boxes in the image"))
    with sheet(path, 2, 2, width=6.2, height=3.3) as panels:
        for column, (key, label) in enumerate(kinds):
            _bars(panels[column], details[key], names, colors, "ap_50", None)
            panels[column].set(title="AP at IoU 0.5 by " + label.split(" (")[0], ylim=(0, 1.08))
            _bars(panels[2 + column], details[key], names, colors, "recall_best_f1", "recall")
            panels[2 + column].set(title="Share of boxes found", ylim=(0, 1.08), xlabel=label)
        panels[2].legend(fontsize=8, loc="upper left")
    return True


def _bars(
    axes: Axes, rows: Mapping[str, Any], names: Sequence[str], colors: Mapping[str, str], key: str, light: str | None
) -> None:
    """Grouped bars; with `light` a paler bar behind them, for what lies below the threshold."""
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        place = np.arange(len(rows[name])) + (i - (len(names) - 1) / 2) * width
        heights = [max(row[key], 0) if row["boxes"] else 0 for row in rows[name]]
        if light:
            all_heights = [max(row[light], 0) if row["boxes"] else 0 for row in rows[name]]
            axes.bar(place, all_heights, width, color=colors[name], alpha=0.35, label=f"{name}, any score")
        axes.bar(place, heights, width, color=colors[name], label=f"{name}, above the threshold")
        for x, height, row in zip(place, all_heights if light else heights, rows[name], strict=True):
            text = f"{row[light or key]:.2f}" if row["boxes"] else "–"
            axes.text(x, height + 0.015, text, ha="center", va="bottom", fontsize=8, color=INK)
    first = rows[names[0]]
    counts = ["/".join(f"{rows[name][b]['boxes']:,}" for name in names) for b in range(len(first))]
    axes.set_xticks(range(len(first)), [f"{row['bin']}\n{n} boxes" for row, n in zip(first, counts, strict=True)])
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.grid(False, axis="x")


def error_kinds(path: Path, details: Mapping[str, Any]) -> bool:
    """Of the boxes: found or missed; of the detections above the threshold: right, or wrong in which way."""
    names = [name for name, boxes in details["boxes"].items() if boxes or sum(details["errors"][name].values())]
    if not names:
        return False
    parts = {"hits": "hit", "missed": "missed", "duplicate": "duplicate"}
    colors = {key: hex_color(VERDICT_COLORS[word]) for key, word in parts.items()}
    colors |= {
        "wrong_class": "#0b4f8a",
        "badly_placed": hex_color(VERDICT_COLORS["false positive"]),
        "background": GREY,
    }
    panels_of = {
        "What became of the labelled boxes": ("hits", "missed"),
        "What the detections are": ("hits", "duplicate", "wrong_class", "badly_placed", "background"),
    }
    with sheet(path, 1, 2, width=11, height=1.1 + 0.45 * len(names)) as panels:
        for axes, (title, kinds) in zip(panels, panels_of.items(), strict=True):
            for y, name in enumerate(names):
                counts = [details["errors"][name][kind] for kind in kinds]
                left = 0.0
                for kind, n in zip(kinds, counts, strict=True):
                    share = n / max(sum(counts), 1)
                    axes.barh(y, share, left=left, color=colors[kind], label=kind.replace("_", " ") if not y else None)
                    if share > 0.035:
                        axes.text(left + share / 2, y, f"{n:,}", ha="center", va="center", fontsize=9, color="black")
                    left += share
            axes.set_yticks(range(len(names)), names)
            axes.invert_yaxis()
            axes.set(title=title, xlim=(0, 1))
            axes.xaxis.set_major_formatter("{x:.0%}")
            axes.grid(False, axis="y")
            axes.legend(loc="lower left", bbox_to_anchor=(1.0, 0), fontsize=9)
    return True
