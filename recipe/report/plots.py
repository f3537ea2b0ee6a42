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

from recipe.report.draw import COLORS, hex_color
from recipe.schema import CLASS_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recipe.data.annotations import Annotations

Rows = Sequence[Mapping[str, Any]]

GREY, INK = "#8a8f98", "#22262e"
STYLE: dict[Any, Any] = {
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "legend.frameon": False,
    "legend.loc": "upper right",  # "best" is slow with many points
}
SIZE_TICKS = (2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024)  # pixels; 8, 16, 32 and 96 part the size bins
BELOW: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.16), "ncols": 2}  # covers nothing there
MOST_POINTS = 200  # of a curve: more are averaged, so that a long run stays readable


@contextmanager
def sheet(path: Path, columns: int, rows: int = 1, *, width: float = 5.2, height: float = 3.6) -> Iterator[list[Axes]]:
    """Empty axes, row by row, that are saved as PNG at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no backend to choose, no global state

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), dpi=120, layout="constrained")
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        figure.savefig(path)


def class_colors(names: Sequence[str]) -> dict[str, str]:
    """The colour of each class, by its label."""
    return {name: hex_color(COLORS[label % len(COLORS)]) for label, name in enumerate(names)}


def learning_curves(path: Path, histories: Mapping[str, Rows]) -> bool:
    """Loss and average precision against the epoch, of one run or of several by their names."""
    from matplotlib import colormaps

    shown = {name: rows for name, rows in histories.items() if any("loss" in r or "eval_map" in r for r in rows)}
    if not shown:
        return False
    with sheet(path, 2, width=6.2, height=4.2) as (loss, precision):
        if len(shown) > 1:
            for place, (name, rows) in enumerate(shown.items()):
                label = name if len(name) <= 32 else f"…{name[-31:]}"  # longer ones would push the plot off its sheet
                style = {"color": colormaps["tab10"](place % 10), "marker": "osv^D"[place // 10 % 5], "label": label}
                _line(loss, rows, "eval_loss", **style)
                _line(precision, rows, "eval_map", **style)
        else:
            (rows,) = shown.values()
            _line(loss, rows, "loss", color=GREY, label="training")
            _line(loss, rows, "eval_loss", color=INK, marker="o", label="validation")
            keys = ["map", "map_50", *(f"map_{name}" for name in CLASS_NAMES)]
            for key, color, marker in zip(
                keys, [INK, GREY, *class_colors(CLASS_NAMES).values()], "os^v", strict=False
            ):
                _line(precision, rows, f"eval_{key}", color=color, marker=marker, label=key)
        loss.set_title("Loss" if len(shown) == 1 else "Loss on validation")
        precision.set_title("Average precision on validation")
        for axes in (loss, precision):
            axes.set(xlabel="epoch", xlim=(0, None), ylim=(0, max(1.1 * axes.get_ylim()[1], 0.1)))
            for text in axes.legend(**BELOW).get_texts() if axes.lines else ():
                text.set_parse_math(False)  # the name of a run may hold $
    return True


def _line(axes: Axes, rows: Rows, key: str, **options: Any) -> None:
    points = np.array([(row.get("epoch") or 0, row[key]) for row in rows if row.get(key, -1) >= 0])
    if len(points):
        options = {"marker": "o" if len(points) == 1 else None} | options  # one point makes no line that is seen
        parts = np.array_split(points, min(len(points), MOST_POINTS))
        axes.plot(*np.array([part.mean(axis=0) for part in parts]).T, markersize=5, fillstyle="none", **options)


def histograms(path: Path, annotations: Annotations, names: Sequence[str], num_queries: int) -> bool:
    """Boxes per image and box sizes of the evaluated split."""
    counts, sizes, people = annotations.counts, np.sqrt(annotations.area), annotations.iscrowd == 0
    with sheet(path, 2, width=6.2) as (count, size):
        most = int(counts.max(initial=1))
        count.hist(counts, np.linspace(0, most + 1, min(most + 2, 41)).tolist(), color=GREY)
        count.locator_params(axis="y", integer=True)
        count.set(title="Boxes per image", xlabel="boxes in an image, all classes", ylabel="images")
        if most > 0.6 * num_queries:
            count.axvline(num_queries, color=INK, linestyle="--", label=f"{num_queries} queries")
            count.legend(**BELOW)
        edges = np.geomspace(2, max(128.0, float(sizes.max(initial=2))), 41)
        for label, (name, color) in enumerate(class_colors(names).items()):
            own = sizes[people & (annotations.labels == label)].clip(2)
            size.hist(own, edges.tolist(), histtype="step", linewidth=1.8, color=color, label=f"{name} ({len(own):,})")
        size.set(title="Size of the boxes", xlabel="pixels of the original image (square root of the area)")
        size.set(ylabel="boxes", xscale="log")
        size.set_xticks(SIZE_TICKS, list(map(str, SIZE_TICKS)))
        size.minorticks_off()
        size.set_xlim(edges[0], edges[-1])
        size.legend(**BELOW)
    return True


def operating_points(path: Path, details: Mapping[str, Any]) -> bool:
    """Of each class that has a hit: precision against recall, and both against the threshold."""
    points = details["operating_points"]
    colors = {name: color for name, color in class_colors(list(points)).items() if points[name]["best_f1"]}
    if not colors:
        return False
    with sheet(path, len(colors), 2, width=6.2, height=4.2) as panels:
        for relation, by_score, (name, color) in zip(panels, panels[len(colors) :], colors.items(), strict=False):
            for (iou, curve), style in zip(details["pr_curves"][name].items(), ("-", "--"), strict=True):
                # Beyond the highest recall that is reached there is no precision; COCO counts it as 0.
                drawn = [np.nan if s is None else p for p, s in zip(curve["precision"], curve["score"], strict=True)]
                label = f"IoU {iou}: AP {np.mean(curve['precision']):.3f}"
                relation.plot(curve["recall"], drawn, style, color=color, label=label)
            curve = details["threshold_curves"][name]
            for key, style in {"precision": "--", "recall": ":", "f1": "-"}.items():
                values = np.array(curve[key], float)  # None becomes nan
                by_score.plot(curve["threshold"], values, style, color=color, label=key.replace("f1", "F1"))
            for key, style, marker in (("best_f1", "-", "o"), ("precision_90", "-.", "s")):
                if point := points[name][key]:
                    label = f"{key.replace('_', ' ').replace('f1', 'F1')}, at {point['threshold']:.2f}"
                    relation.plot(point["recall"], point["precision"], marker, color=INK, label=label)
                    by_score.axvline(point["threshold"], color=INK, linestyle=style, label=label)
            relation.set(title=f"{name}: precision and recall", xlabel="recall", ylabel="precision")
            by_score.set(title=f"{name}: choosing a threshold", xlabel="score threshold")
            for axes in (relation, by_score):
                axes.set(xlim=(0, 1), ylim=(0, 1.02))
                axes.legend(**BELOW)
    return True


def where_it_fails(path: Path, details: Mapping[str, Any]) -> bool:
    """The share of the boxes found by box size and by boxes per image: at any score (pale), above the threshold."""
    names = [name for name, boxes in details["boxes"].items() if boxes]
    if not names:
        return False
    with sheet(path, 2, width=6.2, height=4) as panels:
        for axes, (key, by) in zip(panels, {"by_size": "size", "by_density": "boxes per image"}.items(), strict=True):
            rows = {name: details[key][name] for name in names}
            bins = ["{}\n({})".format(own[0]["bin"], ", ".join(f"{row['boxes']:,}" for row in own))
                    for own in zip(*rows.values(), strict=True)]  # fmt: skip
            _bars(axes, bins, rows, "recall", details, "at any score", alpha=0.35)
            _bars(axes, bins, rows, "recall_best_f1", details, "above the threshold", inside=True)
            words = f"{by.replace('size', 'size in pixels')} (number of boxes: {', '.join(names)})"
            axes.set(title=f"Share of the boxes found, by {by}", ylim=(0, 1.08), xlabel=words)
        panels[0].legend(loc="upper left", bbox_to_anchor=(0, -0.24), ncols=2)
    return True


def error_kinds(path: Path, details: Mapping[str, Any]) -> bool:
    """How many of the labelled boxes are found or missed, and what the false detections are."""
    errors = {name: kinds for name, kinds in details["errors"].items() if sum(kinds.values())}
    if not errors:
        return False
    words = [kind.replace("hits", "found").replace("_", " ") for kind in next(iter(errors.values()))]
    rows = {name: [{"count": n, "boxes": True} for n in kinds.values()] for name, kinds in errors.items()}
    with sheet(path, 1, width=11) as (axes,):
        _bars(axes, words, rows, "count", details, form="{:,}")
        axes.set(title="Labelled boxes found and missed, and kinds of false detections", ylabel="boxes")
        axes.legend()
    return True


def _bars(
    axes: Axes, bins: Sequence[str], rows: Mapping[str, Rows], key: str, details: Mapping[str, Any],
    meaning: str = "", *, form: str = "{:.2f}", inside: bool = False, alpha: float = 1.0,
) -> None:  # fmt: skip
    """Bars of each class side by side, with their values; a dash where there are no boxes."""
    width, colors = 0.8 / len(rows), class_colors(list(details["boxes"]))
    for i, (name, own) in enumerate(rows.items()):
        place = np.arange(len(own)) + (i + 0.5) * width - 0.4
        heights = [max(row[key], 0) for row in own]
        label = f"{name}, {meaning}" if meaning else name
        bars = axes.bar(place, heights, width, color=colors[name], alpha=alpha, label=label)
        texts = [form.format(row[key]) if row["boxes"] else "–" for row in own]
        if inside:
            texts = [text if height > 0.1 else "" for text, height in zip(texts, heights, strict=True)]
        axes.bar_label(bars, texts, label_type="center" if inside else "edge", fontsize=8, color=INK)
    axes.set_xticks(range(len(bins)), bins, fontsize=8)
    axes.grid(False, axis="x")
