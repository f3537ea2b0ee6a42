"""The same few validation images at every evaluation, ground truth beside predictions: one sees the model learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe.data.dataset import CrowdDataset
from recipe.data.images import decode
from recipe.report.draw import draw_boxes, side_by_side

MIN_SCORE = 0.3  # low enough that an early epoch shows something


class Pictures(TrainerCallback):
    """Draws the shown images after each evaluation, into OUTPUT_DIR/pictures; the dashboard shows them."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / "pictures"
        for image_id, found in sorted(self.trainer.shown.items()):
            picture = compare(self.trainer.eval_dataset, self.trainer.rows[image_id], found)
            path = folder / f"{image_id}-step-{state.global_step}.jpg"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def compare(dataset: CrowdDataset, row: int, found: dict[str, np.ndarray]) -> np.ndarray:
    """Ground truth and predictions of one image side by side, uint8 [h, w, 3] RGB."""
    pixels = decode(dataset.source[row]["image"]["bytes"])
    truth = dataset.annotations.targets(row)
    keep = found["scores"] >= MIN_SCORE
    captions = (
        f"ground truth: {len(truth['target_labels'])} boxes",
        f"predicted: {int(keep.sum())} boxes with a score of {MIN_SCORE} or more",
    )
    left = draw_boxes(pixels, truth["target_xyxy"], truth["target_labels"])
    right = draw_boxes(pixels, found["pred_xyxy"][keep], found["labels"][keep])
    return side_by_side(left, right, captions)
