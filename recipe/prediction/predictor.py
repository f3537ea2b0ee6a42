"""A trained detector at work: images of one size in a batch, large ones in tiles.

    predictor = Predictor(load_detector("outputs/run").eval(), load_processor("outputs/run"), thresholds=(0.5, 0.5))
    for name, pixels, found in predictor.detect([("a.jpg", pixels)]):
        print(name, found.boxes_xyxy, found.scores, found.labels)

Without tiles the boxes are those of `pipeline("object-detection")`, image by image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from transformers import BaseImageProcessor

from recipe.data.geometry import Geometry
from recipe.model.detector import Detector
from recipe.prediction.tiles import merge, tile_image
from recipe.schema import CLASS_NAMES, UserError

Key = TypeVar("Key")


class Detections(NamedTuple):
    """What was found in one image."""

    boxes_xyxy: np.ndarray  # float32 [n, 4], in pixels of the image
    scores: np.ndarray  # float32 [n]
    labels: np.ndarray  # int64 [n]


@dataclass(frozen=True)
class Predictor:
    """Detections above one threshold per class; `tile` is (height, width), None for no tiles."""

    model: Detector
    processor: BaseImageProcessor
    thresholds: Sequence[float]
    tile: tuple[int, int] | None = None
    overlap: float = 0.2
    batch_size: int = 4

    def size(self, pixels: np.ndarray) -> tuple[int, int]:
        """The (height, width) to which an image [h, w, 3] is resized, by the saved processor's rule."""
        edges = self.processor.size
        return Geometry(edges["shortest_edge"], edges["longest_edge"]).resized(*pixels.shape[:2])

    def detect(self, images: Iterable[tuple[Key, np.ndarray]]) -> Iterator[tuple[Key, np.ndarray, Detections]]:
        """Detect in images (key, uint8 [h, w, 3] RGB) as they come: neighbours of one resized size are a batch.

        Raises:
            UserError: the GPU has no memory for a batch.
        """
        for _, neighbours in groupby(images, lambda image: self.size(image[1])):
            while batch := list(islice(neighbours, 1 if self.tile else self.batch_size)):
                keys, pixels = zip(*batch, strict=True)
                try:
                    found = self._tiled(pixels[0], self.tile) if self.tile else self._batch(pixels)
                except torch.cuda.OutOfMemoryError as error:
                    raise UserError(
                        f"--batch_size {self.batch_size}: more than this GPU's memory holds; give `--batch_size 1`"
                    ) from error
                yield from zip(keys, pixels, found, strict=True)

    @torch.inference_mode()
    def _batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        height, width = self.size(images[0])
        inputs = self.processor(
            list(images),
            size={"height": height, "width": width},
            input_data_format="channels_last",
            return_tensors="pt",
        )
        device = self.model.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            outputs = self.model(inputs["pixel_values"].to(device))
        sizes = [pixels.shape[:2] for pixels in images]
        found = []
        for each in self.processor.post_process_object_detection(outputs, min(self.thresholds), target_sizes=sizes):
            boxes, scores, labels = (each[key].cpu().numpy() for key in ("boxes", "scores", "labels"))
            kept = scores > np.asarray(self.thresholds)[labels]
            found.append(Detections(boxes[kept], scores[kept], labels[kept]))
        return found

    def _tiled(self, pixels: np.ndarray, tile: tuple[int, int]) -> list[Detections]:
        """One image in tiles, and once more as it is for what is too large for a tile.

        From the complete image only boxes beyond the overlap's size are taken: whatever is smaller lies in one of the
        tiles completely, and is seen better there.
        """
        height, width = pixels.shape[:2]
        tiles = tile_image(height, width, tile, self.overlap)
        (complete,) = self._batch([pixels])
        if len(tiles) == 1:
            return [complete]
        sides = complete.boxes_xyxy[:, 2:] - complete.boxes_xyxy[:, :2]  # [n, 2]
        large = (sides > self.overlap * np.array(tile[::-1])).any(1)
        found = [Detections(*(array[large] for array in complete))]
        for start in range(0, len(tiles), self.batch_size):
            found += self._batch([pixels[y0:y1, x0:x1] for x0, y0, x1, y1 in tiles[start : start + self.batch_size]])
        views = np.concatenate([[(0, 0, width, height)], tiles])  # [v, 4] xyxy
        view = np.repeat(np.arange(len(views)), [len(each.scores) for each in found])  # [n]
        boxes, scores, labels = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        boxes = boxes + views[view][:, [0, 1, 0, 1]].astype(np.float32)
        kept = merge(views, view, boxes, scores, labels)
        return [Detections(boxes[kept], scores[kept], labels[kept])]


def class_thresholds(model: Detector, wished: float | None) -> list[float]:
    """One score per class: as wished, else those of best F1 that the checkpoint's config carries, else 0.5."""
    carried = getattr(model.config, "detection_thresholds", None) or {}
    return [wished if wished is not None else carried.get(name, 0.5) for name in CLASS_NAMES]
