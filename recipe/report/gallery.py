"""The photographs of the report: labels beside predictions, and the images with most missed boxes.

    worst(Path("report/worst.png"), metrics, dataset)

Each picture shows the part of its image where the boxes can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from recipe.data.dataset import CrowdDataset
from recipe.evaluation.breakdown import BACKGROUND, DUPLICATE, HIT, name_errors
from recipe.evaluation.metrics import DetectionMetrics
from recipe.report.draw import COLORS, Color, hex_color
from recipe.report.plots import sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = np.array((528, 396))  # width, height of a panel in pixels, without its title
SHOWN = 6  # images of predictions.png
READABLE = 12.0  # pixels that all but the smallest boxes should have in a picture
MOST_ZOOM = 4.0  # times the scale at which the complete image fits
FOUND, MISSED, TWICE, FALSE = (0, 190, 140), (235, 75, 10), (245, 225, 50), (110, 190, 255)
MEANINGS = {"labelled and found": FOUND, "labelled and MISSED": MISSED, "found twice": TWICE, "other false": FALSE}
Part = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the original image


def predictions(path: Path, metrics: DetectionMetrics, dataset: CrowdDataset) -> bool:
    """Labelled and predicted boxes of a few images, evenly taken from those with boxes."""
    images, rows, thresholds = metrics.images(), rows_by_id(dataset), metrics.details()["thresholds"]
    limits = np.array(list(thresholds.values()))
    ids = sorted(image_id for image_id, image in images.items() if len(image.targets)) or sorted(images)
    ids = [ids[place] for place in sorted({int((i + 0.5) / SHOWN * len(ids)) for i in range(SHOWN)})]
    above = ", ".join(f"{name} > {limit:.2f}" for name, limit in thresholds.items())
    with sheet(path, 4, -(-len(ids) // 2), width=3.7, height=3.1) as panels:
        for left, right, image_id in zip(panels[::2], panels[1::2], ids, strict=False):
            image, pixels = images[image_id], dataset.photograph(rows[image_id])
            keep = image.scores > limits[image.labels]
            part, zoom = view(image.size, image.targets)
            name = title(dataset, rows[image_id])
            _photograph(left, pixels, part, f"{name}\n{len(image.targets)} labelled{zoom}")
            _photograph(right, pixels, part, f"{keep.sum()} predicted\n{above}")
            for label, color in enumerate(COLORS):
                _boxes(left, image.targets[image.target_labels == label], color)
                _boxes(right, image.boxes[keep & (image.labels == label)], color)
        _legend(panels, dict(zip(metrics.class_names, COLORS, strict=False)))
    return True


def worst(path: Path, metrics: DetectionMetrics, dataset: CrowdDataset) -> bool:
    """The images with most missed boxes, in shades of grey so that the boxes stand out."""
    images, rows, details = metrics.images(), rows_by_id(dataset), metrics.details()
    shown = [row for row in details["worst_images"] if row["misses"]]
    if not shown:
        return False
    columns = min(3, len(shown))
    with sheet(path, columns, -(-len(shown) // columns), width=4.6, height=3.8) as panels:
        for axes, row in zip(panels, shown, strict=False):
            image, place = images[row["image_id"]], rows[row["image_id"]]
            errors = name_errors(image, np.array(list(details["thresholds"].values())))
            part, zoom = view(image.size, image.targets[errors.missed])
            counts = f"missed {row['misses']} of {row['boxes']}, twice {row['duplicates']}"
            text = f"{title(dataset, place)}\n{counts}, false {row['false_positives']}{zoom}"
            grey = cv2.cvtColor(dataset.photograph(place), cv2.COLOR_RGB2GRAY) * 0.7 + 55
            _photograph(axes, grey, part, text)
            _boxes(axes, image.targets[errors.target[errors.kind == HIT]], FOUND, width=1)
            _boxes(axes, image.boxes[(errors.kind > DUPLICATE) & (errors.kind <= BACKGROUND)], FALSE)
            _boxes(axes, image.boxes[errors.kind == DUPLICATE], TWICE)
            _boxes(axes, image.targets[errors.missed], MISSED, filled=True)
        _legend(panels, MEANINGS)
    return True


def rows_by_id(dataset: CrowdDataset) -> dict[int, int]:
    """Image id -> its row in the dataset."""
    return {image_id: row for row, image_id in enumerate(dataset.annotations.image_id.tolist())}


def title(dataset: CrowdDataset, row: int) -> str:
    """The file's name, its end where it is long, and the image id."""
    name = dataset.file_name(row)
    return f"{name if len(name) <= 36 else '…' + name[-35:]} (image_id {dataset.annotations.image_id[row]})"


def view(size: tuple[int, int], boxes_xyxy: np.ndarray) -> tuple[Part, str]:
    """The largest part of an image (height, width) in which three quarters of the boxes can be read, and its zoom.

    Of all places for such a part, one that holds most of the boxes.
    """
    full = np.array(size[::-1])  # width, height
    fits = float((PICTURE / full).min())
    extents = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    small = max(float(np.quantile(np.sqrt(extents.prod(axis=1)), 0.25)), 1) if len(boxes_xyxy) else np.inf
    scale = float(np.clip(READABLE / small, fits, MOST_ZOOM * fits))
    if scale < 1.05 * fits:
        return (0, 0, size[1], size[0]), ""
    extent = np.minimum(full, PICTURE / scale)
    centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2  # [n, 2]
    corners = np.clip(centers - extent / 2, 0, full - extent)
    inside = ((centers >= corners[:, None]) & (centers <= corners[:, None] + extent)).all(axis=2).sum(axis=1)
    corner = corners[int(np.argmax(inside))]
    x0, y0, x1, y1 = np.concatenate([corner, corner + extent]).astype(int).tolist()
    return (x0, y0, x1, y1), f", zoom {scale / fits:.1f}"


def _photograph(axes: Axes, pixels: np.ndarray, part: Part, text: str) -> None:
    """Part of an image, in its own coordinates: boxes need no scaling."""
    x0, y0, x1, y1 = part
    axes.imshow(pixels[y0:y1, x0:x1], extent=(x0, x1, y1, y0), cmap="gray", vmin=0, vmax=255)
    axes.set_title(text, fontsize=8, fontweight="normal", parse_math=False)  # a file name may hold $


def _boxes(axes: Axes, boxes_xyxy: np.ndarray, color: Color, width: float = 1.5, filled: bool = False) -> None:
    from matplotlib.collections import PolyCollection

    corners = list(boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2))
    face, edge = hex_color(color) + "40" if filled else "none", hex_color(color)
    outline = PolyCollection(corners, facecolors=face, edgecolors=edge, linewidths=width, antialiased=False)
    axes.add_collection(outline, autolim=False)


def _legend(panels: Sequence[Axes], meanings: Mapping[str, Color]) -> None:
    from matplotlib.patches import Patch

    for axes in panels:
        axes.axis("off")
    handles = [Patch(ec=hex_color(color), fc="none", lw=3, label=text) for text, color in meanings.items()]
    panels[0].figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=12)
