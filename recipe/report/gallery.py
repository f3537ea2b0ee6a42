"""The photographs of the report: labels beside predictions, and the images with most missed boxes.

    worst(Path("report/worst.png"), details["worst_images"], images, dataset, limits)

`images` are those of `DetectionMetrics.state()` by image id: they hold detections and targets. `limits` [classes] are
the score thresholds. Each picture shows the part of its image where the boxes can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from recipe.data.dataset import CrowdDataset
from recipe.data.images import decode
from recipe.evaluation.breakdown import BACKGROUND, DUPLICATE, HIT, judge
from recipe.evaluation.matching import ImageBoxes
from recipe.report.draw import COLORS, VERDICT_COLORS, Color, hex_color
from recipe.report.plots import sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = np.array((528, 396))  # width, height of a panel in pixels, without its title
SHOWN = 6  # images of predictions.png
READABLE = 12.0  # pixels that all but the smallest boxes should have in a picture
MOST_ZOOM = 4.0  # times the scale at which the whole image fits
Part = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the original image


def predictions(
    path: Path, images: Mapping[int, ImageBoxes], dataset: CrowdDataset, limits: np.ndarray, names: Sequence[str]
) -> bool:
    """Labelled and predicted boxes of a few images, evenly taken from those with boxes."""
    ids = sorted(image_id for image_id, image in images.items() if len(image.targets)) or sorted(images)
    shown = [ids[place] for place in sorted({int((i + 0.5) / SHOWN * len(ids)) for i in range(SHOWN)})]
    above = ", ".join(f"{name} > {limit:.2f}" for name, limit in zip(names, limits, strict=True))
    with sheet(path, 4, -(-len(shown) // 2), width=3.7, height=3.1) as panels:
        for place, image_id in enumerate(shown):
            image, pixels = images[image_id], _pixels(dataset, image_id)
            keep = image.scores > limits[image.labels]
            part, zoom = view(image.size, image.targets)
            texts = (f"image {image_id}: {len(image.targets)} labelled{zoom}", f"{keep.sum()} predicted: {above}")
            sides = ((image.targets, image.target_labels), (image.boxes[keep], image.labels[keep]))
            for axes, text, (boxes, labels) in zip(panels[2 * place :], texts, sides, strict=False):
                _photograph(axes, pixels, part, text)
                for label, color in COLORS.items():
                    _boxes(axes, boxes[labels == label], color)
        _legend(panels, {name: COLORS[label] for label, name in enumerate(names)})
    return True


def worst(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[int, ImageBoxes],
    dataset: CrowdDataset,
    limits: np.ndarray,
) -> bool:
    """The images with most missed boxes, in the order of `rows` (details()["worst_images"]), in shades of grey."""
    rows = [row for row in rows if row["misses"]]
    if not rows:
        return False
    columns = min(3, len(rows))
    with sheet(path, columns, -(-len(rows) // columns), width=4.6, height=3.8) as panels:
        for axes, row in zip(panels, rows, strict=False):
            image, pixels = images[row["image_id"]], _pixels(dataset, row["image_id"])
            verdict = judge(image, limits)
            part, zoom = view(image.size, image.targets[verdict.missed])
            text = f"image {row['image_id']}: missed {row['misses']} of {row['boxes']}, "
            text += f"duplicates {row['duplicates']}, false {row['false_positives']}{zoom}"
            _photograph(axes, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) * 0.7 + 55, part, text)
            false = (verdict.kind > DUPLICATE) & (verdict.kind <= BACKGROUND)
            _boxes(axes, image.targets[verdict.target[verdict.kind == HIT]], VERDICT_COLORS["hit"], width=1)
            _boxes(axes, image.boxes[false], VERDICT_COLORS["false positive"])
            _boxes(axes, image.boxes[verdict.kind == DUPLICATE], VERDICT_COLORS["duplicate"])
            _boxes(axes, image.targets[verdict.missed], VERDICT_COLORS["missed"], filled=True)
        meanings = ("labelled and found", "labelled and MISSED", "duplicate detection", "other false detection")
        _legend(panels, dict(zip(meanings, VERDICT_COLORS.values(), strict=True)))
    return True


def view(size: tuple[int, int], boxes_xyxy: np.ndarray) -> tuple[Part, str]:
    """The largest part of an image (height, width) in which three quarters of the boxes can be read, and its zoom.

    Of all places for such a part, one that holds most of the boxes.
    """
    whole = np.array(size[::-1])  # width, height
    fits = float((PICTURE / whole).min())
    extents = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    small = max(float(np.quantile(np.sqrt(extents.prod(axis=1)), 0.25)), 1) if len(boxes_xyxy) else np.inf
    scale = float(np.clip(READABLE / small, fits, MOST_ZOOM * fits))
    if scale < 1.05 * fits:
        return (0, 0, size[1], size[0]), ""
    extent = np.minimum(whole, PICTURE / scale)
    centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2  # [n, 2]
    corners = np.clip(centers - extent / 2, 0, whole - extent)
    inside = ((centers >= corners[:, None]) & (centers <= corners[:, None] + extent)).all(axis=2).sum(axis=1)
    corner = corners[int(np.argmax(inside))]
    x0, y0, x1, y1 = np.concatenate([corner, corner + extent]).astype(int).tolist()
    return (x0, y0, x1, y1), f", zoom {scale / fits:.1f}"


def _pixels(dataset: CrowdDataset, image_id: int) -> np.ndarray:
    row = int(np.flatnonzero(dataset.annotations.image_id == image_id)[0])
    return decode(dataset.source[row]["image"]["bytes"])


def _photograph(axes: Axes, pixels: np.ndarray, part: Part, text: str) -> None:
    """Part of an image, in its own coordinates: boxes need no scaling."""
    x0, y0, x1, y1 = part
    axes.imshow(pixels[y0:y1, x0:x1], extent=(x0, x1, y1, y0), cmap="gray", vmin=0, vmax=255)
    axes.set_title(text, fontsize=8, fontweight="normal")


def _boxes(axes: Axes, boxes_xyxy: np.ndarray, color: Color, width: float = 1.5, filled: bool = False) -> None:
    from matplotlib.collections import PolyCollection

    corners = list(boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2))
    face = hex_color(color) + "40" if filled else "none"
    outline = PolyCollection(
        corners, facecolors=face, edgecolors=hex_color(color), linewidths=width, antialiased=False
    )
    axes.add_collection(outline, autolim=False)


def _legend(panels: Sequence[Axes], meanings: Mapping[str, Color]) -> None:
    from matplotlib.patches import Patch

    for axes in panels:
        axes.axis("off")
    handles = [Patch(edgecolor=hex_color(color), facecolor="none", linewidth=3, label=text)
               for text, color in meanings.items()]  # fmt: skip
    panels[0].figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=12)
