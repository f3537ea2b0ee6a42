"""Photographs with their boxes: those of the report, and the same few at every evaluation of a training.

worst(Path("report/worst.png"), metrics, dataset)
trainer.add_callback(Pictures(metrics, validation, count=4))
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe.data.dataset import CrowdDataset
from recipe.evaluation.breakdown import BACKGROUND, DUPLICATE, HIT, name_errors
from recipe.evaluation.matching import ImageBoxes
from recipe.evaluation.metrics import DetectionMetrics
from recipe.report.draw import COLORS, Color, draw_boxes, fit, grid
from recipe.schema import CLASS_NAMES

logger = logging.getLogger(__name__)

SHOWN = 6  # images of predictions.png
MIN_SCORE = 0.3  # while it trains: low enough that an early epoch shows something
LARGE = 1 / 24  # of an image's width: missed boxes of this size are seen without enlarging them
CLASSES = dict(zip(CLASS_NAMES, COLORS, strict=False))
KINDS: dict[str, Color] = {
    "labelled and found": (0, 190, 140),
    "other false": (110, 190, 255),
    "found twice": (245, 225, 50),
    "MISSED": (255, 60, 0),
}


class Pictures(TrainerCallback):
    """Draws the first `count` evaluated images into OUTPUT_DIR/pictures/ID-step-N.jpg; the dashboard shows them."""

    def __init__(self, metrics: DetectionMetrics, dataset: CrowdDataset, count: int) -> None:
        self.metrics, self.dataset, self.count = metrics, dataset, count

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        images, limits = self.metrics.images(), dict.fromkeys(self.metrics.class_names, MIN_SCORE)
        rows = [(row, image_id) for image_id, row in rows_by_id(self.dataset).items() if image_id in images]
        for row, image_id in rows[: self.count]:
            path = Path(args.output_dir) / "pictures" / f"{image_id}-step-{state.global_step}.jpg"
            try:
                path.parent.mkdir(exist_ok=True)
                pair = labels_beside_predictions(self.dataset, row, images[image_id], limits, (800, 800))
                # Without subsampling: thin lines keep their colours.
                Image.fromarray(grid(pair, 2, CLASSES)).save(path, quality=90, subsampling=0)
            except Exception as error:  # a decoder's errors share no base, and no picture is worth the run
                logger.warning("%s: not drawn (%s: %s); training continues", path, type(error).__name__, error)


def predictions(path: Path, metrics: DetectionMetrics, dataset: CrowdDataset) -> bool:
    """Labelled and predicted boxes of a few images, evenly taken from those with boxes."""
    images, rows, thresholds = metrics.images(), rows_by_id(dataset), metrics.details()["thresholds"]
    ids = [image_id for image_id, image in images.items() if len(image.targets)] or list(images)
    panels = []
    for image_id in ids[:: -(-len(ids) // SHOWN)]:
        panels += labels_beside_predictions(dataset, rows[image_id], images[image_id], thresholds, (460, 400))
    Image.fromarray(grid(panels, min(len(panels), 4), CLASSES)).save(path)
    return True


def labels_beside_predictions(
    dataset: CrowdDataset, row: int, image: ImageBoxes, thresholds: dict[str, float], panel: tuple[int, int]
) -> list[tuple[np.ndarray, str]]:
    """Two pictures of one image with their captions: its labelled boxes, and those above the thresholds."""
    pixels, scale = fit(dataset.photograph(row), *panel)
    keep = image.scores > np.array(list(thresholds.values()))[image.labels]
    left = draw_boxes(pixels, image.targets * scale, image.target_labels)
    right = draw_boxes(pixels, image.boxes[keep] * scale, image.labels[keep], image.scores[keep])
    above = ", ".join(f"{name} > {limit:.2f}" for name, limit in thresholds.items())
    return [
        (left, f"{title(dataset, row)}\n{len(image.targets)} labelled"),
        (right, f"{keep.sum()} predicted\n{above}"),
    ]


def worst(path: Path, metrics: DetectionMetrics, dataset: CrowdDataset) -> bool:
    """The images with most missed boxes, in shades of grey so that the boxes stand out."""
    images, rows, details = metrics.images(), rows_by_id(dataset), metrics.details()
    limits, panels = np.array(list(details["thresholds"].values())), []
    for row in details["worst_images"]:
        if not row["misses"]:
            continue
        image = images[row["image_id"]]
        errors = name_errors(image, limits)
        false = (errors.kind > DUPLICATE) & (errors.kind <= BACKGROUND)
        groups = [image.targets[errors.target[errors.kind == HIT]], image.boxes[false],
                  image.boxes[errors.kind == DUPLICATE], image.targets[errors.missed]]  # fmt: skip
        x0, y0, x1, y1 = crowded_part(image.size, groups[-1])
        grey = cv2.cvtColor(dataset.photograph(rows[image.image_id])[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY) * 0.7 + 55
        pixels, scale = fit(np.dstack([grey.astype(np.uint8)] * 3), 528, 396)
        boxes, kinds = np.vstack(groups) - (x0, y0, x0, y0), np.repeat(range(4), list(map(len, groups)))
        text = f"missed {row['misses']} of {row['boxes']}, twice {row['duplicates']}, false {row['false_positives']}"
        text = f"{title(dataset, rows[image.image_id])}\n{text}"
        panels.append((draw_boxes(pixels, boxes * scale, kinds, colors=list(KINDS.values())), text))
    if panels:
        Image.fromarray(grid(panels, min(len(panels), 3), KINDS)).save(path)
    return bool(panels)


def rows_by_id(dataset: CrowdDataset) -> dict[int, int]:
    """Image id -> its row in the dataset."""
    return {image_id: row for row, image_id in enumerate(dataset.annotations.image_id.tolist())}


def title(dataset: CrowdDataset, row: int) -> str:
    """The end of the file's name, and the image id."""
    return f"{dataset.file_name(row)[-36:]} (image_id {dataset.annotations.image_id[row]})"


def crowded_part(size: tuple[int, int], boxes_xyxy: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the quarter of an image (height, width) with most boxes; all of it where they are large."""
    height, width = size
    if np.median(boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) > LARGE * width:
        return 0, 0, width, height
    extent = np.array([width, height]) // 2
    centers = boxes_xyxy.reshape(-1, 2, 2).mean(axis=1)  # [n, 2]
    corners = np.clip(centers - extent / 2, 0, extent).astype(int)
    inside = ((centers >= corners[:, None]) & (centers <= corners[:, None] + extent)).all(axis=2).sum(axis=1)
    x0, y0 = corners[inside.argmax()].tolist()
    return x0, y0, x0 + int(extent[0]), y0 + int(extent[1])
