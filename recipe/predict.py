"""`recipe predict`: boxes for images, folders and videos, as COCO's results, label files and drawn.

    recipe predict outputs/run photos/ clip.mp4 --out outputs/predictions
    recipe predict outputs/run crowd.jpg --out outputs/predictions --tile 960x1536 --save coco,yolo,drawings

Into --out go predictions.jsonl and failed.csv while it runs, predictions.json and images.json (COCO) at the end;
drawings NUMBER-NAME.jpg; labels/NAME.txt, which beside the folder of images can be corrected and packed; and for a
video NUMBER-NAME.mp4, without sound, and NUMBER-NAME.jsonl with a line for each frame.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from typing import TypeVar

import cv2
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn

from recipe.model.checkpoint import load_detector, load_processor
from recipe.prediction.files import File, dataset_ids, find_files, printable, read_image
from recipe.prediction.predictor import Image, Predictor, batches_of_one_size, class_thresholds
from recipe.prediction.results import Results, as_coco, label_name, new_file
from recipe.prediction.video import Video, VideoWriter
from recipe.report.draw import draw_boxes
from recipe.schema import CLASS_NAMES, UserError
from recipe.training.run import writable

logger = logging.getLogger(__name__)

ALL_FRAMES = 0.9  # of the number in a video's header, which may be an estimate
LOG_SECONDS = 30  # between two lines on progress where there is no terminal

Item = TypeVar("Item")


def predict(options: argparse.Namespace) -> int:
    """Predict all images and videos of `options.paths`.

    Returns:
        The exit code: 1 if some could not be read, 2 if none could.
    """
    files = find_files(options.paths, options.out)
    images = [file for file in files if not file.is_video]
    if "yolo" in options.save:
        check_label_names(images)
    ids = dataset_ids(options.data, images) if options.data else range(len(images))
    out = writable(options.out, "--out")
    predictor = load_predictor(options)
    results = Results(out)
    predict_images(predictor, list(zip(ids, images, strict=True)), results, options.save)
    for number, file in enumerate((file for file in files if file.is_video), max(ids, default=-1) + 1):
        try:
            predict_video(predictor, number, file, results, "drawings" in options.save)
        except (OSError, ValueError, cv2.error) as error:
            results.add_failed(file.path, error)
    results.close("coco" in options.save)
    if results.failed:
        print(f"{results.failed} of {len(files)} files failed: {out / 'failed.csv'}")
    if not results.images:
        raise UserError(f"none of the {len(files)} files could be read")
    shown = ", ".join(f"{name} {value:.2f}" for name, value in zip(CLASS_NAMES, predictor.thresholds, strict=True))
    print(f"{results.boxes} boxes in {results.images} images and frames (thresholds: {shown})")
    print(f"results    {out}")
    return 1 if results.failed else 0


def load_predictor(options: argparse.Namespace) -> Predictor:
    """The checkpoint, on the GPU where there is one."""
    gpu = torch.cuda.is_available()
    model = load_detector(options.checkpoint, options.revision, bf16=gpu).to("cuda" if gpu else "cpu").eval()
    processor = load_processor(options.checkpoint, options.revision)
    thresholds = class_thresholds(model, options.threshold)
    return Predictor(model, processor, thresholds, options.tile, options.overlap, options.batch_size)


def predict_images(
    predictor: Predictor, images: Sequence[tuple[int, File]], results: Results, save: Sequence[str]
) -> None:
    """Predict images, given with their ids, and write what `save` names."""

    def decoded() -> Iterator[Image]:
        for image_id, file in track(images, len(images), "images"):
            try:
                image = Image(image_id, file, read_image(file.path))
            except Exception as error:  # a decoder's errors share no base: PIL's DecompressionBombError, SyntaxError
                results.add_failed(file.path, error)
            else:
                yield image

    at_once = 1 if predictor.tile else predictor.batch_size
    for batch in batches_of_one_size(decoded(), lambda image: predictor.size(image.pixels), at_once):
        for image, found in zip(batch, predictor([image.pixels for image in batch]), strict=True):
            results.add(image, found)
            if "yolo" in save:
                results.save_labels(image, found)
            if "drawings" in save:
                drawn = draw_boxes(image.pixels, found.boxes_xyxy, found.labels, found.scores)
                results.save_drawing(image, drawn)


def predict_video(predictor: Predictor, number: int, file: File, results: Results, drawn: bool) -> None:
    """Predict the frames of a video: a line of JSON for each and, if `drawn`, a video.

    Raises:
        OSError, ValueError, cv2.error: it is not a video, or ends before its time; what was there is written.
    """
    video = Video(file.path)
    frames = track(video, video.frames, "frames")
    count = 0
    with ExitStack() as stack:
        lines = stack.enter_context(new_file(results.path_for(number, file, ".jsonl")))
        if drawn:
            writer = stack.enter_context(closing(VideoWriter(results.path_for(number, file, ".mp4"), video)))
        while batch := list(islice(frames, predictor.batch_size)):
            for (seconds, pixels), found in zip(batch, predictor([pixels for _, pixels in batch]), strict=True):
                row = {"frame": count, "seconds": seconds, "detections": as_coco(*found)}
                lines.write(json.dumps(row) + "\n")
                if drawn:
                    writer.write(draw_boxes(pixels, found.boxes_xyxy, found.labels, found.scores))
                results.count(found)
                count += 1
    if count < video.frames * ALL_FRAMES or not count:
        raise ValueError(f"it ends after {count} of {video.frames} frames")


def check_label_names(images: Sequence[File]) -> None:
    """Raise UserError if two images would have one label file."""
    names = [label_name(file) for file in images]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UserError(
            f"--save yolo: several images would have the label file {printable(twice)}; rename them, or predict one "
            "folder at a time"
        )


def track(items: Iterable[Item], total: int, unit: str) -> Iterator[Item]:
    """Pass items on, with a bar that says how many a second, or a line each half minute where there is no terminal."""
    terminal = sys.stderr.isatty()
    started = said = time.monotonic()
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, console=Console(stderr=True), disable=not terminal) as bar:
        task = bar.add_task(unit, total=total or None, rate="")
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            rate = f"{done / (now - started):.1f} {unit}/s"
            bar.update(task, completed=done, rate=rate)
            if not terminal and now - said > LOG_SECONDS:
                logger.info("predict: %d of %s, %s", done, total or "?", rate)
                said = now
