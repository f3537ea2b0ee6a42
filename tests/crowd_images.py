"""Random images full of detections and targets that compete for one another, and their DetectionMetrics."""

import numpy as np

from recipe.evaluation.metrics import DetectionMetrics


def random_image(rng, image_id, n_det, n_target, *, tied=False, crowd=False, jitter=5.0, spread=250, whole=False):
    """Detections are moved targets (some exact, some of the other class), so that they compete for the same ones: the
    more, the smaller `spread`; with `whole` pixels also at equal IoUs."""
    corner, extent = rng.uniform(0, spread, (n_target, 2)), rng.choice([6.0, 30, 32, 60, 96, 140], (n_target, 2))
    targets = np.hstack([corner, corner + extent + rng.uniform(-1, 1, (n_target, 2)).round()]).astype(np.float32)
    target_labels = rng.integers(0, 2, n_target)
    if n_target:
        source = rng.integers(0, n_target, n_det)
        boxes, labels = targets[source], target_labels[source]
    else:
        boxes, labels = np.tile(np.float32([5, 5, 50, 50]), (n_det, 1)), rng.integers(0, 2, n_det)
    boxes = boxes + rng.normal(0, jitter, (n_det, 4)) * (rng.random((n_det, 1)) < 0.7)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    boxes, targets = (boxes.round(), targets.round()) if whole else (boxes, targets)
    scores = rng.random(n_det)
    return {
        "image_id": image_id,
        "size": (400, 400),
        "pred_xyxy": boxes.astype(np.float32),
        "scores": (scores.round(1) if tied else scores).astype(np.float32),
        "labels": np.where(rng.random(n_det) < 0.9, labels, 1 - labels),
        "target_xyxy": targets,
        "target_labels": target_labels,
        "target_area": rng.uniform(0, 12000, n_target) if crowd else None,  # masks have other areas than boxes
        "iscrowd": rng.random(n_target) < 0.15 if crowd else None,
    }


def random_images(seed, count=4, most_det=40, most_target=20, **options):
    rng = np.random.default_rng(seed)
    ids = rng.permutation(3 * count)[:count]
    sizes = [(rng.integers(0, most_det + 1), rng.integers(0, most_target + 1)) for _ in ids]
    return [random_image(rng, int(i), *size, **options) for i, size in zip(ids, sizes, strict=True)]


def collect(images, metrics=None):
    metrics = metrics or DetectionMetrics()
    for image in images:
        metrics.update(**image)
    return metrics
