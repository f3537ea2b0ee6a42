"""COCO's numbers a second time, by torchmetrics: what the streaming numbers of every epoch are checked against.

    values, words = check_with_torchmetrics(metrics)

`MeanAveragePrecision` keeps every box of the split in memory, so that it is left out where that would not fit.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from recipe.evaluation.metrics import DetectionMetrics

logger = logging.getLogger(__name__)

BYTES_PER_BOX = 1_900  # measured: 1,830 at 900 images of 300 + 80 boxes, 1,700 at 12,065 (7.8 GB, 3 minutes)
TOLERANCE = 1e-6


def check_with_torchmetrics(metrics: DetectionMetrics) -> tuple[dict[str, float], str]:
    """Each COCO number as torchmetrics computes it (none where memory would not suffice), and how the two agree."""
    boxes = sum(len(image.scores) + len(image.targets) for image in metrics.images().values())
    need, free = boxes * BYTES_PER_BOX / 1e9, free_memory() / 1e9
    if need > free:
        words = f"torchmetrics' check is left out: it needs about {need:.1f} GB, and {free:.1f} GB are free"
        logger.info(words)
        return {}, words + "."
    checked, values = coco_numbers(metrics), metrics.compute()
    wrong = [key for key, value in checked.items() if abs(value - values[key]) > TOLERANCE]
    if not wrong:
        return (
            checked,
            f"torchmetrics' MeanAveragePrecision (faster_coco_eval) agrees to {TOLERANCE:g} on all of them.",
        )
    both = ", ".join(f"{key} {values[key]:.7f} against {checked[key]:.7f}" for key in wrong)
    words = f"THE NUMBERS DISAGREE WITH TORCHMETRICS by more than {TOLERANCE:g}: {both}"
    logger.error("%s. Trust neither, and report this as a bug", words)
    return checked, f"**{words}. Trust neither, and report this as a bug.**"


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
    for _, image in sorted(metrics.images().items()):
        boxes, labels = torch.from_numpy(image.boxes).double(), torch.from_numpy(image.labels).long()
        targets, target_labels = torch.from_numpy(image.targets), torch.from_numpy(image.target_labels).long()
        area, crowd = torch.from_numpy(image.target_area), torch.from_numpy(image.crowd).long()
        coco.update(
            [{"boxes": boxes, "scores": torch.from_numpy(image.scores), "labels": labels}],
            [{"boxes": targets, "labels": target_labels, "area": area, "iscrowd": crowd}],
        )
    found = coco.compute()
    numbers = {key: float(value) for key, value in found.items() if value.ndim == 0 and key != "classes"}
    for place, label in enumerate(found["classes"].reshape(-1).tolist()):
        for key in ("map", "mar_100"):
            own = found[f"{key}_per_class"].reshape(-1)
            numbers[f"{key}_{metrics.class_names[label]}"] = float(own[place])
    return {key: value for key, value in numbers.items() if not key.endswith("_per_class")}


def free_memory() -> int:
    """Bytes that this process can still take: of the machine, or of the container where that has less."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no cgroup, or one without a limit ("max")
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        free = min(free, limit - int((group / "memory.current").read_text()) + int(cache))
    return free
