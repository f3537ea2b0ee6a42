"""A trained detector at work: images of one size in a batch, large ones in tiles.

    predictor = Predictor(load_detector("outputs/run").eval(), load_processor("outputs/run"), thresholds=(0.5, 0.5))
    (found,) = predictor([pixels])                      # boxes_xyxy, scores, labels

Without tiles the boxes are those of `pipeline("object-detection")`, image by image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import BaseImageProcessor

from recipe.data.geometry import Geometry
from recipe.model.detector import Detector
from recipe.prediction.files import File
from recipe.prediction.tiles import merge, tile_image
from recipe.schema import CLASS_NAMES, UserError

WAITING_BYTES = 200_000_000  # images that wait for others of their size


class Image(NamedTuple):
    """A decoded image and where it is from."""

    image_id: int
    file: File
    pixels: np.ndarray  # uint8 [height, width, 3] RGB


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

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect in images uint8 [h, w, 3] RGB, which are all resized to one size.

        Raises:
            UserError: the GPU has no memory for them.
        """
        try:
            if self.tile is None:
                return self._batch(images)
            return [self._tiled(pixels, self.tile) for pixels in images]
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"--batch_size {self.batch_size}: more than this GPU's memory holds; give `--batch_size 1`"
            ) from error

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
        processed = self.processor.post_process_object_detection(outputs, min(self.thresholds), target_sizes=sizes)
        found = []
        for each in processed:
            boxes, scores, labels = (each[key].cpu().numpy() for key in ("boxes", "scores", "labels"))
            kept = scores > np.asarray(self.thresholds)[labels]
            found.append(Detections(boxes[kept], scores[kept], labels[kept]))
        return found

    def _tiled(self, pixels: np.ndarray, tile: tuple[int, int]) -> Detections:
        """One image in tiles, and once more as it is for what is too large for a tile.

        From the complete image only boxes beyond the overlap's size are taken: whatever is smaller lies in one of the
        tiles completely, and is seen better there.
        """
        height, width = pixels.shape[:2]
        tiles = tile_image(height, width, tile, self.overlap)
        (complete,) = self._batch([pixels])
        if len(tiles) == 1:
            return complete
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
        return Detections(boxes[kept], scores[kept], labels[kept])


def class_thresholds(model: Detector, wished: float | None) -> list[float]:
    """One score per class: as wished, else those of best F1 that the checkpoint's config carries, else 0.5."""
    carried = getattr(model.config, "detection_thresholds", None) or {}
    return [wished if wished is not None else carried.get(name, 0.5) for name in CLASS_NAMES]


def batches_of_one_size(
    images: Iterable[Image], size: Callable[[Image], tuple[int, int]], batch_size: int
) -> Iterator[list[Image]]:
    """Lists of at most `batch_size` images of one size, made as they come, in bounded memory."""
    waiting: dict[tuple[int, int], list[Image]] = {}
    for image in images:
        group = waiting.setdefault(size(image), [])
        group.append(image)
        if len(group) == batch_size:
            yield waiting.pop(size(image))
        elif sum(each.pixels.nbytes for group in waiting.values() for each in group) > WAITING_BYTES:
            yield from waiting.values()
            waiting.clear()
    yield from waiting.values()
