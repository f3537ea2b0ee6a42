"""The report's numbers as Markdown tables, for report.md, the model card and the comparison of runs.

    class_table(metrics.compute(), metrics.details())
    values, words = check_with_torchmetrics(metrics)

Undefined numbers (-1 or None) are a dash. Words from outside (names of files and runs) go through `escape`.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipe.evaluation.metrics import DetectionMetrics

logger = logging.getLogger(__name__)

MOST_IMAGES = 2_500  # torchmetrics keeps every box: 1.9 KB each (measured), so 1.8 GB at 300 + 80 boxes an image
TOLERANCE = 1e-6

BY_CLASS = {"map": "AP, IoU 0.50 to 0.95 (map)", "map_50": "AP at IoU 0.5 (map_50)",
            "mar_100": "AR, 100 detections (mar_100)", "mr2": "MR-2 (lower is better)", "ji": "JI"}  # fmt: skip
EXPLAINED = """
`map` is COCO's average precision (AP): mean over IoU 0.50 to 0.95; `map_50` and `map_75` are at one of them. `mar_N`
is the average recall (AR) with N detections per class and image. COCO's standard is 100: `map_max300` and `mar_300`
show what that hides in crowds; `map_50` by class has no limit. `small` are boxes below 32² pixels, `large` those above
96². MR-2 is the log-average miss rate over 0.01 to 1 false detections per image. JI is the Jaccard index: of all boxes
and detections the share that pair up one to one, at the best threshold. Both follow the CrowdHuman benchmark (Shao et
al. 2018, arXiv:1805.00123)."""
PUBLISHED = """\
AP at IoU 0.5, MR-2 and JI by class may stand beside published rows (docs/faq.md of the recipe has some) where the
photographs are the same."""
NOT_COMPARABLE = """\
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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table: words in the first column, numbers at the right of the others."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def class_rows(values: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """A table of all classes and each class: the numbers that exist per class, and the operating points."""
    boxes, intervals = details["boxes"], details.get("intervals", {})
    rows = [["labelled boxes", f"{sum(boxes.values()):,}", *(f"{count:,}" for count in boxes.values())]]
    for key, words in BY_CLASS.items():
        own = [key, *(f"{key}_{name}" for name in boxes)]
        rows.append([words, *(number(values[name], intervals.get(name)) if name in values else "" for name in own)])
    points = [details["operating_points"][name]["best_f1"] or {} for name in boxes]
    for key in ("threshold", "precision", "recall", "f1"):
        rows.append([f"{key.replace('f1', 'F1')} at best F1", "", *(number(point.get(key)) for point in points)])
    return table(["", "all", *boxes], rows)


def class_table(values: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """The table by class, with what its numbers mean."""
    brackets = ["", "In brackets: 95 % intervals, by drawing the images anew (bootstrap)."]
    return [*class_rows(values, details), EXPLAINED, *(brackets if "intervals" in details else [])]


def error_table(errors: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Hits, missed boxes and each kind of false detection by class."""
    kinds = [kind.replace("_", " ") for kind in next(iter(errors.values()))]
    return table(["", *kinds], [[name, *map(str, own.values())] for name, own in errors.items()])


def worst_table(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """The images with most missed boxes, by their files."""
    head = ("file_name", "image_id", "boxes", "misses", "duplicates", "false_positives")
    return table(head, [[escape(row[key]) for key in head] for row in images if row["misses"]])


def number_table(metrics: DetectionMetrics) -> list[str]:
    """Every number, beside torchmetrics' own where it has one."""
    checked, words = check_with_torchmetrics(metrics)
    rows = [[f"`{key}`", number(value), number(checked.get(key))] for key, value in metrics.compute().items()]
    return [*table(["metric", "value", "torchmetrics"], rows), "", words]


def check_with_torchmetrics(metrics: DetectionMetrics) -> tuple[dict[str, float], str]:
    """Each COCO number as torchmetrics computes it, and how the streaming ones of every epoch agree with it.

    Of more than MOST_IMAGES images the first are compared, and no numbers are returned.
    """
    part, images, where = metrics, metrics.state(), "on all of them"
    if len(images) > MOST_IMAGES:
        part = DetectionMetrics(metrics.class_names, metrics.num_queries)
        part.merge([images[:MOST_IMAGES]])
        where += f", compared on the first {MOST_IMAGES:,} images: it keeps every box, which takes 0.7 MB an image"
    checked, values = coco_numbers(part), part.compute()
    wrong = [key for key, value in checked.items() if abs(value - values[key]) > TOLERANCE]
    words = f"torchmetrics' MeanAveragePrecision (faster_coco_eval) agrees to {TOLERANCE:g} {where}."
    if wrong:
        both = ", ".join(f"{key} {values[key]:.7f} against {checked[key]:.7f}" for key in wrong)
        words = f"THE NUMBERS DISAGREE WITH TORCHMETRICS by more than {TOLERANCE:g}: {both}. Report this as a bug."
        logger.error(words)
        words = f"**{words}**"
    return checked if part is metrics else {}, words


def coco_numbers(metrics: DetectionMetrics) -> dict[str, float]:
    """COCO's numbers and those by class, under this project's keys; -1 where there is nothing to find."""
    import torch
    from torchmetrics.detection import MeanAveragePrecision  # its import takes seconds

    coco = MeanAveragePrecision(
        # Its own defaults are float32: recalls that are reached exactly are then missed, 3e-6 to 6e-5 of an AP.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        max_detection_thresholds=[1, 10, 100],
        class_metrics=True,
        backend="faster_coco_eval",
        sync_on_compute=False,  # the main process alone has all images; the others would be waited for in vain
    )
    coco.warn_on_many_detections = False
    for image in metrics.images().values():
        found = {"boxes": image.boxes.astype(float), "scores": image.scores, "labels": image.labels.astype(int)}
        wanted = {"boxes": image.targets, "labels": image.target_labels.astype(int), "area": image.target_area,
                  "iscrowd": image.crowd.astype(int)}  # fmt: skip
        coco.update(*([{key: torch.from_numpy(value) for key, value in own.items()}] for own in (found, wanted)))
    values = {key: value.reshape(-1).tolist() for key, value in coco.compute().items()}
    names = [metrics.class_names[int(label)] for label in values.pop("classes")]
    numbers = {key: value[0] for key, value in values.items() if not key.endswith("_per_class")}
    for key in ("map", "mar_100"):  # one -1 where there is no class
        numbers |= {f"{key}_{name}": own for name, own in zip(names, values[f"{key}_per_class"], strict=False)}
    return numbers
