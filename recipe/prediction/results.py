"""What is written of detections: a line for each image as it comes, COCO's results at the end, YOLO's label files.

results = Results(folder); results.add(file, pixels, found, image_id=0); results.close(coco=True)
write_results(folder, rows)                                  # `recipe evaluate --save-detections`
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from recipe.files import printable
from recipe.hub import first_line
from recipe.prediction.files import File, frame_size
from recipe.prediction.predictor import Detections

logger = logging.getLogger(__name__)

CODEC = "mp4v"  # MPEG-4 part 2: fast, and in every build of OpenCV, which H.264 is not


def as_coco(boxes_xyxy: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Boxes [n, 4] in pixels as [{"category_id", "bbox", "score"}].

    `bbox` is [x, y, w, h] in pixels, to 1/10,000; `category_id` 0 is person, 1 head; `score` is the exact float32.
    """
    corner, end = np.split(boxes_xyxy.astype(np.float64), 2, axis=1)
    boxes_xywh = np.hstack([corner, end - corner]).round(4).tolist()
    return [
        {"category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(labels.tolist(), boxes_xywh, scores.tolist(), strict=True)
    ]


def write_results(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write predictions.json, which `pycocotools.coco.COCO.loadRes` reads, and images.json.

    Box by box: 12,000 crowds with 300 boxes each would take gigabytes.

    Args:
        rows: one an image, {"image_id", "file_name", "height", "width", "detections": as_coco(...)}.
    """
    images = []
    with new_file(folder / "predictions.json") as file:
        before = "["
        for row in rows:
            images.append({"id": row["image_id"]} | {key: row[key] for key in ("file_name", "height", "width")})
            for found in row["detections"]:
                file.write(before + json.dumps({"image_id": row["image_id"]} | found))
                before = ",\n"
        file.write("[]\n" if before == "[" else "]\n")
    with new_file(folder / "images.json") as file:
        json.dump(images, file)


class Results:
    """The folder of `recipe predict`; a run that is killed keeps what it had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = self.boxes = self.failed = 0
        for name in ("predictions.json", "images.json"):  # of an earlier run
            (folder / name).unlink(missing_ok=True)
        self._lines = new_file(folder / "predictions.jsonl")

    def add(self, file: File, pixels: np.ndarray, found: Detections, **keys: float) -> None:
        """Write the line of an image (keys: image_id) or of a video's frame (keys: frame, seconds)."""
        row = keys | {"file_name": str(file.path), "height": pixels.shape[0], "width": pixels.shape[1]}
        self._lines.write(json.dumps(row | {"detections": as_coco(*found)}) + "\n")
        self.images += 1
        self.boxes += len(found.scores)

    def leave_out(self, path: Path, error: Exception) -> None:
        """Count and name a file that cannot be read."""
        reason = printable(getattr(error, "strerror", None) or first_line(error))
        logger.warning("%s: left out, it cannot be read (%s)", printable(path), reason)
        self.failed += 1

    def save(self, path: Path, data: bytes) -> None:
        """Write a file of its own; a link in its place is not followed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def path_for(self, image_id: int, file: File, suffix: str) -> Path:
        """NUMBER-NAME in the folder itself, whatever the file's name says."""
        stem = re.sub(r"[^\w.-]", "_", Path(file.name).stem)[:50]  # 200 bytes at most; a name may have 255
        return self.folder / f"{image_id:05d}-{stem}{suffix}"

    def close(self, coco: bool) -> None:
        """End with COCO's files, if wanted, made of the images' lines."""
        self._lines.close()
        if coco:
            with (self.folder / "predictions.jsonl").open() as lines:
                write_results(self.folder, (row for row in map(json.loads, lines) if "image_id" in row))


def open_writer(path: Path, video: cv2.VideoCapture) -> cv2.VideoWriter:
    """An MP4 file like `video`, without sound, for BGR frames; odd sides lose a pixel. Raises OSError, ValueError."""
    path.unlink(missing_ok=True)
    name = os.fsencode(path.resolve()).decode()  # others, as in `open_video`, are a segmentation fault
    rate = video.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate <= 1000 else 25.0  # a file may say anything
    writer = cv2.VideoWriter(name, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*CODEC), rate, frame_size(video))
    if not writer.isOpened():
        raise OSError(f"{path.name} cannot be written as a video")
    return writer


def label_name(file: File) -> str:
    """Where YOLO's readers look for the labels of an image: train/labels/a.txt for train/images/a.jpg."""
    folder, separator, name = f"/{os.path.splitext(file.name)[0]}.txt".rpartition("/images/")
    return f"{folder}/labels/{name}"[1:] if separator else name[1:]


def label_lines(found: Detections, height: int, width: int) -> str:
    """YOLO's lines: class, cx, cy, w, h in shares of the image, clipped to it."""
    corner, end = np.split((found.boxes_xyxy / np.array([width, height] * 2, np.float64)).clip(0, 1), 2, axis=1)
    boxes = np.hstack([(corner + end) / 2, end - corner])  # cxcywh
    return "".join(
        f"{label} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}\n"
        for label, (cx, cy, w, h) in zip(found.labels.tolist(), boxes.tolist(), strict=True)
        if w > 0 and h > 0
    )


def new_file(path: Path) -> TextIO:
    """A text file that is written line by line; a link in its place is not followed."""
    path.unlink(missing_ok=True)
    return path.open("w", buffering=1, newline="")
