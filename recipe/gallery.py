"""Photographs of the report: typical predictions beside the ground truth, and the images with most missed boxes.

    worst(Path("report/worst.png"), details["worst_images"], images, dataset, thresholds)

`images` are those of `DetectionMetrics.state()`, by image id: they hold the detections and the targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from recipe.breakdown import BACKGROUND, DUPLICATE, HIT, judge
from recipe.coco import ImageBoxes
from recipe.data import CrowdDataset
from recipe.draw import COLORS, VERDICT_COLORS, draw_boxes, fit, grid, legend, words
from recipe.images import decode

PAIR = (398, 300)  # width and height of one picture of a pair
TILE = (528, 396)
SHOWN = 6  # typical images
READABLE = 14.0  # pixels that a missed box should have in its tile


def predictions(
    path: Path, images: Mapping[int, ImageBoxes], dataset: CrowdDataset, limits: np.ndarray, names: Sequence[str]
) -> bool:
    """Labelled and predicted boxes of six images, from the best found to the worst, by F1.

    Args:
        limits: [classes] the score threshold of each class.
    """
    scores = {}
    for image in images.values():
        verdict = judge(image, limits)
        hits, kept = int(np.sum(verdict.kind == HIT)), int(np.sum(verdict.kind <= BACKGROUND))
        if targets := int(np.sum(~image.crowd)):
            scores[image.image_id] = 2 * hits / (kept + targets)
    ranked = sorted(scores, key=lambda image_id: (-scores[image_id], image_id)) or sorted(images)
    places = (np.arange(SHOWN) + 0.5) / SHOWN * len(ranked)
    tiles = []
    for image_id in dict.fromkeys(ranked[int(place)] for place in places):
        image = images[image_id]
        keep = image.scores > limits[image.labels]
        pixels = _pixels(dataset, image_id)
        texts = (
            f"image {image_id}: {int(np.sum(~image.crowd))} labelled",
            f"{int(keep.sum())} predicted, F1 {scores.get(image_id, 0):.2f}",
        )
        sides = ((image.targets, image.target_labels), (image.boxes[keep], image.labels[keep]))
        for text, (boxes, labels) in zip(texts, sides, strict=True):
            tiles.append(np.vstack([words(text, PAIR[0]), fit_with_boxes(pixels, boxes, labels, PAIR)]))
    if not tiles:
        return False
    picture = grid(tiles, 4)
    entries = {name: COLORS[label % len(COLORS)] for label, name in enumerate(names)}
    _save(path, np.vstack([legend(entries, picture.shape[1]), picture]))
    return True


def fit_with_boxes(pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image scaled into `size` first and drawn on then, so that the lines stay thin and whole."""
    scale = min(size[0] / pixels.shape[1], size[1] / pixels.shape[0])
    shape = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    small = cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)
    return fit(draw_boxes(small, boxes * scale, labels, thickness=1), size)


def worst(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[int, ImageBoxes],
    dataset: CrowdDataset,
    limits: np.ndarray,
) -> bool:
    """The images with most missed boxes, zoomed to where most of them are; `rows` as in details()["worst_images"]."""
    tiles = []
    for row in rows:
        if not row["misses"]:
            continue
        picture, zoom = _judged(images[row["image_id"]], _pixels(dataset, row["image_id"]), limits)
        text = f"image {row['image_id']}: missed {row['misses']} of {row['boxes']}, {row['duplicates']} duplicates, "
        text += f"{row['false_positives']} false" + (f" - zoom {zoom:.1f}x" if zoom > 1.05 else "")
        tiles.append(np.vstack([words(text, TILE[0]), picture]))
    if not tiles:
        return False
    picture = grid(tiles, 3 if len(tiles) > 2 else len(tiles))
    meanings = {
        "missed": "labelled, missed",
        "hit": "labelled, found",
        "duplicate": "duplicate detection",
        "false positive": "false detection",
    }
    entries = {text: VERDICT_COLORS[kind] for kind, text in meanings.items()}
    bar = legend(entries, max(picture.shape[1], 900))
    picture = np.pad(picture, ((0, 0), (0, bar.shape[1] - picture.shape[1]), (0, 0)), constant_values=255)
    _save(path, np.vstack([bar, picture]))
    return True


def _judged(image: ImageBoxes, pixels: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, float]:
    """The tile of one image, and how many times larger it shows things than the whole image would."""
    verdict = judge(image, limits)
    (x0, y0, x1, y1), scale, whole = window(image.size, image.targets[verdict.missed])
    crop = cv2.cvtColor(pixels[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
    shape = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    grey = cv2.resize(crop, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    grey = cv2.cvtColor((grey * 0.7 + 50).astype(np.uint8), cv2.COLOR_GRAY2RGB)  # pale, so that the colours stand out
    false = (verdict.kind > DUPLICATE) & (verdict.kind <= BACKGROUND)
    missed = (image.targets[verdict.missed] - [x0, y0, x0, y0]) * scale
    layers = (
        ("hit", image.targets[verdict.target[verdict.kind == HIT]], 1),
        ("false positive", image.boxes[false], 1),
        ("duplicate", image.boxes[verdict.kind == DUPLICATE], 1),
    )
    for kind, boxes, thickness in layers:
        shown = (boxes - np.array([x0, y0, x0, y0])) * scale
        grey = draw_boxes(grey, shown, [0] * len(shown), VERDICT_COLORS[kind], thickness)
    tint = grey.copy()
    for box in missed.round().astype(int).tolist():
        cv2.rectangle(tint, box[:2], box[2:], VERDICT_COLORS["missed"], -1)
    grey = cv2.addWeighted(tint, 0.25, grey, 0.75, 0)
    grey = draw_boxes(grey, missed, [0] * len(missed), VERDICT_COLORS["missed"], 2)
    return fit(grey, TILE), scale / whole


def window(size: tuple[int, int], boxes_xyxy: np.ndarray) -> tuple[tuple[int, int, int, int], float, float]:
    """Which part of an image to show so that the small ones of `boxes_xyxy` can be read.

    Returns:
        (x0, y0, x1, y1) in pixels of the image, the scale to draw it at, and the scale of the whole image.
    """
    height, width = size
    whole = min(TILE[0] / width, TILE[1] / height)
    extents = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    smallish = float(np.quantile(np.sqrt(extents.prod(axis=1)), 0.25))
    scale = float(np.clip(READABLE / max(smallish, 1), whole, max(4 * whole, 1)))
    w, h = min(width, round(TILE[0] / scale)), min(height, round(TILE[1] / scale))
    centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2  # [n, 2]
    corners = np.clip(centers - [w / 2, h / 2], 0, [width - w, height - h])
    inside = ((centers >= corners[:, None]) & (centers <= corners[:, None] + [w, h])).all(axis=2).sum(axis=1)
    x0, y0 = corners[int(np.argmax(inside))].astype(int).tolist()
    return (x0, y0, x0 + w, y0 + h), scale, whole


def _pixels(dataset: CrowdDataset, image_id: int) -> np.ndarray:
    row = int(np.flatnonzero(dataset.annotations.image_id == image_id)[0])
    return decode(dataset.source[row]["image"]["bytes"])


def _save(path: Path, picture: np.ndarray) -> None:
    """As PNG of 256 colours: a third of the bytes, and no photograph of this size shows it."""
    Image.fromarray(picture).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
