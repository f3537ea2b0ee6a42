"""COCO's numbers a second time, by torchmetrics: what the streaming numbers of every epoch are checked against.

values, words = check_with_torchmetrics(metrics)
"""

from __future__ import annotations

import logging

import numpy as np

from recipe.evaluation.metrics import DetectionMetrics

logger = logging.getLogger(__name__)

MOST_IMAGES = 2_500  # it keeps every box: 1.9 KB each (measured), so 1.8 GB at 300 + 80 boxes an image
TOLERANCE = 1e-6


def check_with_torchmetrics(metrics: DetectionMetrics) -> tuple[dict[str, float], str]:
    """Each COCO number as torchmetrics computes it, and how the two agree.

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
    values = coco.compute()
    classes = [metrics.class_names[label] for label in values.pop("classes").reshape(-1).tolist()]
    numbers = {}
    for key, value in values.items():
        if key.endswith("_per_class"):
            names = [f"{key.removesuffix('_per_class')}_{name}" for name in classes]
            numbers |= dict(zip(names, value.reshape(-1).tolist(), strict=False))  # one -1 where there is no class
        else:
            numbers[key] = float(value)
    return numbers
