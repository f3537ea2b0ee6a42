"""The report's plots, one function per PNG, drawn from `DetectionMetrics.details()` and metrics.jsonl.

    learning_curves(Path("report/curves.png"), read_log(Path("outputs/run")))

Each function returns whether it had anything to draw. Class colours are those of the drawn boxes (draw.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipe.report.draw import COLORS, hex_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recipe.data.annotations import Annotations

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
    "legend.fontsize": 9,
    "legend.loc": "upper right",  # "best" is slow with many points
    "lines.linewidth": 1.8,
}
SIZE_TICKS = (2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024)  # pixels; 8, 16, 32 and 96 part the size bins
# A legend beside the title covers no bar.
ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
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


def learning_curves(path: Path, history: Rows) -> bool:
    """Loss, loss of each decoder layer, and mAP against the epoch."""
    from matplotlib import colormaps

    rows = [row for row in history if "loss" in row or "eval_map" in row]
    if not rows:
        return False
    keys = dict.fromkeys(key for row in rows for key in row)
    classes = [key.removeprefix("eval_mr2_") for key in keys if key.startswith("eval_mr2_")]
    layers = sorted(int(key.removeprefix("loss_layer_")) for key in keys if key.startswith("loss_layer_"))
    with sheet(path, 3) as panels:
        loss, by_layer, precision = panels
        _line(loss, rows, "loss", color=GREY, label="training")
        _line(loss, rows, "eval_loss", color=INK, marker="o", label="validation")
        for layer in layers:
            shade = colormaps["viridis"](0.9 * layer / len(layers))
            word = f"layer {layer}" + (" (last)" if layer == layers[-1] else "")
            _line(by_layer, rows, f"loss_layer_{layer}", color=shade, label=word)
        own = zip(class_colors(classes).items(), "^v<>", strict=False)
        marks = [("map_50", GREY, "s", 13), ("map", INK, "o", 9)]
        marks += [(f"map_{name}", color, marker, 6) for (name, color), marker in own]
        hollow = {"markerfacecolor": "none", "markeredgewidth": 1.2, "clip_on": False}
        for key, color, marker, extent in marks:  # one inside the other where all are 0
            style = {"linestyle": "--" if key == "map_50" else "-", "marker": marker, "markersize": extent}
            _line(precision, rows, f"eval_{key}", color=color, label=key, **style, **hollow)
        titles = ("Loss", "Training loss of each decoder layer", "Average precision on validation")
        for axes, title in zip(panels, titles, strict=True):
            axes.set(title=title, xlabel="epoch", xlim=(0, None), ylim=(0, max(1.1 * axes.get_ylim()[1], 0.1)))
            place: Any = "upper left" if axes is precision else "upper right"
            if axes.lines:
                axes.legend(ncols=2 if axes is by_layer else 1, loc=place)
    return True


def _line(axes: Axes, rows: Rows, key: str, **options: Any) -> None:
    points = np.array([(row.get("epoch") or 0, row[key]) for row in rows if row.get(key, -1) >= 0])
    if len(points) == 1:
        options.setdefault("marker", "o")  # a line through one point cannot be seen
    if len(points):
        parts = np.array_split(points, min(len(points), MOST_POINTS))
        axes.plot(*np.array([part.mean(axis=0) for part in parts]).T, **{"markersize": 4} | options)


def histograms(path: Path, annotations: Annotations, names: Sequence[str], num_queries: int) -> bool:
    """Boxes per image and box sizes of the evaluated split."""
    from matplotlib.ticker import MaxNLocator

    counts, sizes, real = annotations.counts, np.sqrt(annotations.area), annotations.iscrowd == 0
    with sheet(path, 2, width=6.2) as (count, size):
        most = int(counts.max(initial=1))
        count.hist(counts, bins=np.linspace(0, most + 1, min(most + 2, 41)).tolist(), color="#5b6472")
        count.yaxis.set_major_locator(MaxNLocator(integer=True))
        if most > 0.6 * num_queries:
            count.axvline(num_queries, color=INK, linestyle="--", linewidth=1.2, label=f"{num_queries} queries")
            count.legend(**ABOVE)
        count.set(title="Boxes per image", xlabel="boxes in an image, all classes", ylabel="images")
        edges = np.geomspace(2, max(float(sizes.max(initial=4)), 128), 41).tolist()
        for label, (name, color) in enumerate(class_colors(names).items()):
            own = sizes[real & (annotations.labels == label)].clip(2)
            size.hist(own, edges, color=color, alpha=0.3)
            size.hist(own, edges, color=color, histtype="step", linewidth=1.8, label=f"{name} ({len(own):,})")
        size.set(title="Size of the boxes", xlabel="pixels of the original image (square root of the area)")
        size.set(ylabel="boxes", xscale="log", xlim=(edges[0], edges[-1]))
        ticks = [pixels for pixels in SIZE_TICKS if pixels <= edges[-1]]
        size.set_xticks(ticks, [str(pixels) for pixels in ticks])
        size.minorticks_off()
        size.legend(**ABOVE, ncols=2)
    return True


def operating_points(path: Path, details: Mapping[str, Any]) -> bool:
    """Of each class that has a hit: precision against recall, and both against the threshold."""
    points = details["operating_points"]
    colors = {name: color for name, color in class_colors(list(points)).items() if points[name]["best_f1"]}
    if not colors:
        return False
    with sheet(path, len(colors), 2, height=4.2) as panels:
        for place, (name, color) in enumerate(colors.items()):
            relation, by_score = panels[place], panels[place + len(colors)]
            for (iou, curve), style in zip(details["pr_curves"][name].items(), ("-", "--"), strict=True):
                # Beyond the highest recall that is reached there is no precision; COCO counts it as 0.
                drawn = [np.nan if s is None else p for p, s in zip(curve["precision"], curve["score"], strict=True)]
                label = f"IoU {iou}: AP {np.mean(curve['precision']):.3f}"
                relation.plot(curve["recall"], drawn, style, color=color, label=label)
            relation.set(title=f"{name}: precision and recall", xlabel="recall", ylabel="precision")
            curve = details["threshold_curves"][name]
            for key, style in (("precision", "--"), ("recall", ":"), ("f1", "-")):
                values = np.array(curve[key], float)  # None becomes nan
                by_score.plot(curve["threshold"], values, style, color=color, label=key.replace("f1", "F1"))
            by_score.set(title=f"{name}: choosing a threshold", xlabel="score threshold")
            for (key, point), marker in zip(points[name].items(), "os", strict=True):
                if point:
                    label = f"{key.replace('_', ' ')}, at threshold {point['threshold']:.2f}"
                    relation.plot(point["recall"], point["precision"], marker, color=INK, label=label)
                    by_score.axvline(
                        point["threshold"], color=INK, linestyle="-" if marker == "o" else "-.", label=label
                    )
            for axes in (relation, by_score):
                axes.set(xlim=(0, 1), ylim=(0, 1.02))
                axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)
    return True


def where_it_fails(path: Path, details: Mapping[str, Any]) -> bool:
    """AP and recall by box size and by boxes per image."""
    colors = {name: color for name, color in class_colors(list(details["boxes"])).items() if details["boxes"][name]}
    if not colors:
        return False
    with sheet(path, 2, 2, width=6.2, height=3.3) as panels:
        for column, (key, by) in enumerate({"by_size": "size in pixels", "by_density": "boxes per image"}.items()):
            rows = {name: details[key][name] for name in colors}
            bins = [row["bin"].replace("<=", "≤ ").replace(">=", "≥ ") for row in next(iter(rows.values()))]
            counts = [", ".join(f"{rows[name][b]['boxes']:,}" for name in rows) for b in range(len(bins))]
            precision, found = panels[column], panels[2 + column]
            _bars(precision, bins, rows, "ap_50", colors)
            precision.set(title=f"AP at IoU 0.5, by {by}", ylim=(0, 1.08), xlabel=by)
            _bars(found, bins, rows, "recall", colors, "at any score", alpha=0.35)
            _bars(found, bins, rows, "recall_best_f1", colors, "above the threshold", inside=True)
            found.set_xticks(range(len(bins)), [f"{bin}\n({count})" for bin, count in zip(bins, counts, strict=True)])
            words = f"{by} (number of boxes: {', '.join(colors)})"
            found.set(title=f"Share of the boxes found, by {by}", ylim=(0, 1.08), xlabel=words)
            if not any(row["recall"] > 0 for own in rows.values() for row in own):
                for axes in (precision, found):
                    axes.text(0.5, 0.5, "no labelled box was found", ha="center", color=GREY, transform=axes.transAxes)
        panels[2].legend(loc="upper left", bbox_to_anchor=(0, -0.26), ncols=2, fontsize=8)
    return True


def error_kinds(path: Path, details: Mapping[str, Any]) -> bool:
    """How many of the labelled boxes are found or missed, and what the false detections are."""
    errors = {name: kinds for name, kinds in details["errors"].items() if sum(kinds.values())}
    if not errors:
        return False
    words = [kind.replace("hits", "found").replace("_", " ") for kind in next(iter(errors.values()))]
    rows = {name: [{"count": n, "boxes": True} for n in kinds.values()] for name, kinds in errors.items()}
    with sheet(path, 1, width=11) as (axes,):
        _bars(axes, words, rows, "count", class_colors(list(details["boxes"])), form="{:,}")
        axes.set(title="Labelled boxes found and missed, and kinds of false detections", ylabel="boxes")
        axes.legend()
    return True


def _bars(
    axes: Axes, bins: Sequence[str], rows: Mapping[str, Rows], key: str, colors: Mapping[str, str],
    meaning: str = "", *, form: str = "{:.2f}", inside: bool = False, alpha: float = 1.0,
) -> None:  # fmt: skip
    """Bars of each class side by side, with their values; a dash where there are no boxes."""
    width = 0.8 / len(rows)
    for i, (name, own) in enumerate(rows.items()):
        place = np.arange(len(own)) + (i + 0.5) * width - 0.4
        heights = [max(row[key], 0) for row in own]
        label = f"{name}, {meaning}" if meaning else name
        bars = axes.bar(place, heights, width, color=colors[name], alpha=alpha, label=label)
        texts = [form.format(row[key]) if row["boxes"] else "–" for row in own]
        if inside:
            texts = [text if height > 0.1 else "" for text, height in zip(texts, heights, strict=True)]
        axes.bar_label(bars, texts, label_type="center" if inside else "edge", fontsize=8, color=INK)
    axes.set_xticks(range(len(bins)), bins)
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.grid(False, axis="x")
