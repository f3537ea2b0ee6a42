"""`recipe predict`: boxes for any images, as COCO results JSON and drawn.

recipe predict outputs/run photos/ --out outputs/predictions
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import UnidentifiedImageError
from rich.progress import track
from transformers import DetrForObjectDetection, DetrImageProcessor

from recipe.data.geometry import Geometry
from recipe.data.images import decode
from recipe.evaluate import load_processor
from recipe.evaluation.matching import xywh
from recipe.model.checkpoint import load_model
from recipe.report.draw import draw_boxes
from recipe.schema import CLASS_NAMES, UserError
from recipe.training.run import writable

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def predict(options: argparse.Namespace) -> int:
    """Predict all images of `options.paths`. Returns the exit code: 2 if not one could be read."""
    paths = find_images(options.paths, options.out)
    out = writable(options.out, "--out")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(options.checkpoint, options.revision, bf16=device == "cuda").to(device).eval()
    processor = load_processor(options.checkpoint, options.revision)
    thresholds = class_thresholds(model, options.threshold)
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for number, path in enumerate(track(paths, description="predict", disable=not logger.isEnabledFor(logging.INFO))):
        try:
            pixels = read(path)
        except Exception as error:  # a decoder's errors share no base: PIL's DecompressionBombError, SyntaxError
            logger.warning("%s: left out, it cannot be read (%s)", path, error)
            continue
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            found = detect(model, processor, pixels, thresholds)
        images.append({"id": number, "file_name": str(path), "height": pixels.shape[0], "width": pixels.shape[1]})
        results += coco_results(number, found)
        drawn = draw_boxes(pixels, found["boxes"], found["labels"])
        drawing = out / f"{number:05d}-{path.stem}.jpg"
        if not cv2.imwrite(str(drawing), cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)):
            raise UserError(f"{drawing}: cannot be written; make room there or choose another folder with `--out DIR`")
    if not images:
        raise UserError(f"none of the {len(paths)} images could be read")
    (out / "predictions.json").write_text(json.dumps(results) + "\n")
    (out / "images.json").write_text(json.dumps(images, indent=1) + "\n")
    shown = ", ".join(f"{name} {value:.2f}" for name, value in zip(CLASS_NAMES, thresholds, strict=True))
    print(f"{len(results)} boxes in {len(images)} images (thresholds: {shown})\nresults    {out / 'predictions.json'}")
    return 0


def read(path: Path) -> np.ndarray:
    """The pixels of an image file; what is raised says in words why there are none."""
    data = path.read_bytes()
    if not data:
        raise ValueError("the file is empty")
    try:
        return decode(data)
    except UnidentifiedImageError as error:  # its own words name a buffer in memory
        raise ValueError("not an image in any format that Pillow reads") from error


def find_images(paths: Sequence[str], out: Path) -> list[Path]:
    """All image files named or lying in named folders, sorted within each folder, but for the drawings in `out`.

    Raises:
        UserError: a path that is not there or is `out` itself, or no image at all.
    """
    found: list[Path] = []
    own = out.resolve()
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if path.resolve() == own:
            raise UserError(f"--out {out}: holds the images; give a folder of its own: `--out {out / 'predictions'}`")
        if path.is_dir():
            below = own if path.resolve() in own.parents else None  # the images may lie under --out: `--out .`
            found += sorted(each for each in path.rglob("*") if below not in each.resolve().parents)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            logger.warning("%s: left out, read are %s", path, ", ".join(sorted(SUFFIXES)))
    found = [path for path in found if path.suffix.lower() in SUFFIXES]
    if not found:
        raise UserError(f"no images in {', '.join(paths)}; read are {', '.join(sorted(SUFFIXES))}")
    return found


def class_thresholds(model: DetrForObjectDetection, wished: float | None) -> list[float]:
    """One score per class: as wished, else those of best F1 that the checkpoint's config carries, else 0.5."""
    carried = getattr(model.config, "detection_thresholds", None) or {}
    return [wished if wished is not None else carried.get(name, 0.5) for name in CLASS_NAMES]


@torch.inference_mode()
def detect(
    model: DetrForObjectDetection, processor: DetrImageProcessor, pixels: np.ndarray, thresholds: Sequence[float]
) -> dict[str, np.ndarray]:
    """Detections above the thresholds of one image, uint8 [h, w, 3] RGB, on the canvas that training used.

    Returns:
        boxes [n, 4] xyxy in pixels of the image, scores [n], labels [n].
    """
    geometry = Geometry(processor.size["shortest_edge"], processor.size["longest_edge"])
    height, width = pixels.shape[:2]
    sizes = (geometry.resized(height, width), geometry.canvas(height, width))
    size, canvas = ({"height": h, "width": w} for h, w in sizes)
    inputs = processor(pixels, size=size, pad_size=canvas, input_data_format="channels_last", return_tensors="pt")
    outputs = model(**inputs.to(model.device))
    (found,) = processor.post_process_object_detection(outputs, min(thresholds), target_sizes=[(height, width)])
    arrays = {key: value.cpu().numpy() for key, value in found.items()}
    keep = arrays["scores"] > np.asarray(thresholds)[arrays["labels"]]
    return {key: value[keep] for key, value in arrays.items()}


def coco_results(image_id: int, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Detections in COCO's results form: bbox is [x, y, w, h] in pixels, category_id 0 is person, 1 head."""
    boxes, scores = xywh(found["boxes"]).round(2).tolist(), found["scores"].astype(np.float64).round(5).tolist()
    return [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(found["labels"].tolist(), boxes, scores, strict=True)
    ]
