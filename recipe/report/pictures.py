"""The same few validation images at every evaluation, labels beside predictions: one sees the model learn.

trainer.add_callback(Pictures(metrics, validation, count=4))
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe.data.dataset import CrowdDataset
from recipe.evaluation.matching import ImageBoxes
from recipe.evaluation.metrics import DetectionMetrics
from recipe.report.draw import draw_boxes, side_by_side

logger = logging.getLogger(__name__)

MIN_SCORE = 0.3  # low enough that an early epoch shows something


class Pictures(TrainerCallback):
    """Draws the first `count` evaluated images into OUTPUT_DIR/pictures/ID-step-N.jpg; the dashboard shows them."""

    def __init__(self, metrics: DetectionMetrics, dataset: CrowdDataset, count: int) -> None:
        self.metrics, self.dataset, self.count = metrics, dataset, count

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        images = self.metrics.images()
        ids = enumerate(self.dataset.annotations.image_id.tolist())
        shown = [(row, images[image_id]) for row, image_id in ids if image_id in images][: self.count]
        folder = Path(args.output_dir) / "pictures"
        for row, image in shown:
            path = folder / f"{image.image_id}-step-{state.global_step}.jpg"
            try:
                folder.mkdir(exist_ok=True)
                picture = labels_beside_predictions(self.dataset, row, image)
                if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
                    raise OSError("nothing was written")
            except Exception as error:  # a decoder's errors share no base, and no picture is worth the run
                logger.warning("%s: not drawn (%s: %s); training continues", path, type(error).__name__, error)


def labels_beside_predictions(dataset: CrowdDataset, row: int, image: ImageBoxes) -> np.ndarray:
    """One image twice, uint8 [h, w, 3] RGB: with its labelled boxes, and with what was predicted."""
    pixels = dataset.photograph(row)
    keep = image.scores >= MIN_SCORE
    captions = (
        f"{dataset.file_name(row)} (image_id {image.image_id}): {len(image.targets)} labelled boxes",
        f"{int(keep.sum())} predicted boxes with a score of {MIN_SCORE} or more",
    )
    left = draw_boxes(pixels, image.targets, image.target_labels)
    right = draw_boxes(pixels, image.boxes[keep], image.labels[keep], image.scores[keep])
    return side_by_side(left, right, captions)
