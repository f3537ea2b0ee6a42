"""The photographs of the report: labels beside predictions, and the images with most missed boxes.

    worst(Path("report/worst.png"), details["worst_images"], images, dataset, limits)

`images` are those of `DetectionMetrics.state()` by image id: they hold detections and targets. `limits` [classes] are
the score thresholds. Each picture shows the part of its image where the boxes can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from recipe.breakdown import BACKGROUND, DUPLICATE, HIT, judge
from recipe.coco import ImageBoxes
from recipe.data import CrowdDataset
from recipe.draw import COLORS, VERDICT_COLORS, Color, draw_boxes, fit, grid, legend, words
from recipe.images import decode

Size = tuple[int, int]  # width, height in pixels

PAIR: Size = (428, 321)
TILE: Size = (528, 396)
SHOWN = 6  # images of predictions.png
CANDIDATES = 200  # from which they are chosen: judging every image of a large split takes long
READABLE = 12.0  # pixels that all but the smallest boxes should have in a picture
MOST_ZOOM = 4.0  # times the scale at which the whole image fits


class View(NamedTuple):
    """A part of an image, and the scale it is drawn at."""

    corner: tuple[int, int]  # x, y of the original image
    extent: Size  # in pixels of the original image
    scale: float
    zoom: float  # how many times larger than the whole image would be

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """[n, 4] corners in the original image to corners in the picture."""
        return (xyxy - np.array(self.corner * 2)) * self.scale

    def render(self, pixels: np.ndarray) -> np.ndarray:
        """The part of the image, scaled."""
        (x, y), (w, h) = self.corner, self.extent
        size = max(1, round(w * self.scale)), max(1, round(h * self.scale))
        how = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
        return cv2.resize(np.ascontiguousarray(pixels[y : y + h, x : x + w]), size, interpolation=how)


def view(size: tuple[int, int], picture: Size, boxes_xyxy: np.ndarray) -> View:
    """The largest part of an image (height, width) in which three quarters of the boxes can be read.

    Of all places for such a part, one that holds most of the boxes.
    """
    (height, width), (w, h) = size, picture
    whole = min(w / width, h / height)
    if not len(boxes_xyxy):
        return View((0, 0), (width, height), whole, 1.0)
    extents = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    small = max(float(np.quantile(np.sqrt(extents.prod(axis=1)), 0.25)), 1)
    scale = float(np.clip(READABLE / small, whole, MOST_ZOOM * whole))
    extent = min(width, round(w / scale)), min(height, round(h / scale))
    centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2  # [n, 2]
    corners = np.clip(centers - np.array(extent) / 2, 0, [width - extent[0], height - extent[1]])
    inside = ((centers >= corners[:, None]) & (centers <= corners[:, None] + extent)).all(axis=2).sum(axis=1)
    x, y = corners[int(np.argmax(inside))].astype(int).tolist()
    return View((x, y), extent, scale, scale / whole)


def predictions(
    path: Path, images: Mapping[int, ImageBoxes], dataset: CrowdDataset, limits: np.ndarray, names: Sequence[str]
) -> bool:
    """Labelled and predicted boxes of a few images, from the best found to the worst."""
    tiles = []
    for image_id, f1 in _spread(images, limits):
        image = images[image_id]
        keep = image.scores > limits[image.labels]
        part = view(image.size, PAIR, image.targets)
        base = _quiet(part.render(_pixels(dataset, image_id)))
        zoom = f", zoom {part.zoom:.1f}" if part.zoom > 1.05 else ""
        texts = f"image {image_id}: {len(image.targets)} labelled{zoom}", f"{int(keep.sum())} predicted, F1 {f1:.2f}"
        sides = ((image.targets, image.target_labels), (image.boxes[keep], image.labels[keep]))
        for text, (boxes, labels) in zip(texts, sides, strict=True):
            drawn = draw_boxes(base, part.boxes(boxes), labels, thickness=2)
            tiles.append(np.vstack([words(text, PAIR[0]), fit(drawn, PAIR)]))
    if not tiles:
        return False
    _save(
        path, grid(tiles, min(4, len(tiles))), {name: COLORS[label % len(COLORS)] for label, name in enumerate(names)}
    )
    return True


def _spread(images: Mapping[int, ImageBoxes], limits: np.ndarray) -> list[tuple[int, float]]:
    """Image ids with their F1, evenly spread from the best to the worst; images without boxes only if all are."""
    ids = sorted(image_id for image_id, image in images.items() if not image.crowd.all()) or sorted(images)
    scores = []
    for image_id in ids[:: max(1, len(ids) // CANDIDATES)]:
        image = images[image_id]
        kind = judge(image, limits).kind
        boxes = int(np.sum(kind <= BACKGROUND)) + int(np.sum(~image.crowd))
        scores.append((2 * int(np.sum(kind == HIT)) / max(boxes, 1), -image_id))
    scores.sort(reverse=True)
    places = dict.fromkeys(int((i + 0.5) / SHOWN * len(scores)) for i in range(SHOWN))
    return [(-scores[place][1], scores[place][0]) for place in places if scores]


def worst(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[int, ImageBoxes],
    dataset: CrowdDataset,
    limits: np.ndarray,
) -> bool:
    """The images with most missed boxes, in the order of `rows` (details()["worst_images"])."""
    tiles = []
    for row in rows:
        if row["misses"]:
            picture, zoom = _judged(images[row["image_id"]], _pixels(dataset, row["image_id"]), limits)
            text = f"image {row['image_id']}: missed {row['misses']} of {row['boxes']}, duplicates {row['duplicates']}"
            text += f", false {row['false_positives']}" + (f", zoom {zoom:.1f}" if zoom > 1.05 else "")
            tiles.append(np.vstack([words(text, TILE[0]), picture]))
    if not tiles:
        return False
    meanings = ("labelled and found", "labelled and MISSED", "duplicate detection", "other false detection")
    _save(path, grid(tiles, 2 if len(tiles) < 3 else 3), dict(zip(meanings, VERDICT_COLORS.values(), strict=True)))
    return True


def _judged(image: ImageBoxes, pixels: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture of one image with every box in the colour of its verdict, and its zoom."""
    verdict = judge(image, limits)
    part = view(image.size, TILE, image.targets[verdict.missed])
    grey = cv2.cvtColor(part.render(pixels), cv2.COLOR_RGB2GRAY)
    # Grey and pale: whatever has a colour is a box.
    canvas = _quiet(cv2.cvtColor((grey * 0.7 + 55).astype(np.uint8), cv2.COLOR_GRAY2RGB))
    missed = part.boxes(image.targets[verdict.missed])
    tint = canvas.copy()
    for x0, y0, x1, y1 in missed.round().astype(int).tolist():
        cv2.rectangle(tint, (x0, y0), (x1, y1), VERDICT_COLORS["missed"], -1)
    canvas = _quiet(cv2.addWeighted(tint, 0.25, canvas, 0.75, 0))
    false = (verdict.kind > DUPLICATE) & (verdict.kind <= BACKGROUND)
    layers = (
        ("hit", part.boxes(image.targets[verdict.target[verdict.kind == HIT]]), 1),
        ("false positive", part.boxes(image.boxes[false]), 2),
        ("duplicate", part.boxes(image.boxes[verdict.kind == DUPLICATE]), 2),
        ("missed", missed, 2),
    )
    for kind, boxes, thickness in layers:
        canvas = draw_boxes(canvas, boxes, [0] * len(boxes), VERDICT_COLORS[kind], thickness)
    return fit(canvas, TILE), part.zoom


def _pixels(dataset: CrowdDataset, image_id: int) -> np.ndarray:
    row = int(np.flatnonzero(dataset.annotations.image_id == image_id)[0])
    return decode(dataset.source[row]["image"]["bytes"])


def _quiet(pixels: np.ndarray) -> np.ndarray:
    """Without the two lowest bits: nobody sees them, and a PNG of photographs is nearly half as large."""
    return pixels & np.uint8(0xFC)


def _save(path: Path, picture: np.ndarray, meanings: Mapping[str, Color]) -> None:
    Image.fromarray(np.vstack([legend(meanings, picture.shape[1]), picture])).save(path)
