"""`recipe predict`: boxes for images, folders and videos, as COCO's results, label files and drawn.

    recipe predict outputs/run photos/ clip.mp4 --out outputs/predictions
    recipe predict outputs/run crowd.jpg --out outputs/predictions --tile 960x1536 --save coco,yolo,drawings

Into --out go predictions.jsonl while it runs, predictions.json and images.json (COCO) at the end; drawings
NUMBER-NAME.jpg, of a video NUMBER-NAME.mp4 without sound; and labels/NAME.txt, which beside the folder of images can
be corrected and packed. A line of predictions.jsonl is an image or, with "frame", a frame of a video.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from huggingface_hub.utils import tqdm

from recipe.data.images import decode
from recipe.files import printable, read_file
from recipe.model.checkpoint import load_detector, load_processor
from recipe.prediction.files import File, dataset_ids, find_files, open_video, read_frames
from recipe.prediction.predictor import Detections, Predictor, class_thresholds
from recipe.prediction.results import Results, label_lines, label_name, open_writer
from recipe.report.draw import draw_boxes
from recipe.schema import CLASS_NAMES, MAX_PIXELS, UserError
from recipe.training.run import writable

ALL_FRAMES = 0.9  # of the number in a video's header, which may be an estimate
MAX_BYTES = MAX_PIXELS * 8  # four channels of 16 bits, not compressed


def predict(options: argparse.Namespace) -> int:
    """Predict all images and videos of `options.paths`.

    Returns:
        The exit code: 1 if some could not be read, which the log names. Raises UserError if none could.
    """
    files = find_files(options.paths, options.out)
    images = [file for file in files if not file.is_video]
    videos = [file for file in files if file.is_video]
    twice = [name for name, count in Counter(map(label_name, images)).items() if count > 1]
    if "yolo" in options.save and twice:
        where = f"--save yolo: several images would have the label file {printable(twice[0])}"
        raise UserError(f"{where}; rename them, or predict one folder at a time")
    ids = dataset_ids(options.data, images) if options.data else range(len(images))
    out = writable(options.out, "--out")
    gpu = torch.cuda.is_available()
    model = load_detector(options.checkpoint, options.revision, bf16=gpu).to("cuda" if gpu else "cpu").eval()
    processor = load_processor(options.checkpoint, options.revision)
    thresholds = class_thresholds(model, options.threshold)
    predictor = Predictor(model, processor, thresholds, options.tile, options.overlap, options.batch_size)
    results, began = Results(out), time.perf_counter()
    predict_images(predictor, list(zip(ids, images, strict=True)), results, options.save)
    for number, file in enumerate(videos, max(ids, default=-1) + 1):
        try:
            predict_video(predictor, number, file, results, "drawings" in options.save)
        except (OSError, ValueError, cv2.error) as error:
            results.leave_out(file.path, error)
    results.close("coco" in options.save)
    if not results.images:
        raise UserError(f"none of the {len(files)} files could be read")
    rate = results.images / (time.perf_counter() - began)
    shown = ", ".join(f"{name} {value:.2f}" for name, value in zip(CLASS_NAMES, thresholds, strict=True))
    print(f"{results.boxes} boxes in {results.images} images and frames, {rate:.1f} a second (thresholds: {shown})")
    if results.failed:
        print(f"{results.failed} of {len(files)} files could not be read")
    print(f"results    {out}")
    return 1 if results.failed else 0


def predict_images(
    predictor: Predictor, images: Sequence[tuple[int, File]], results: Results, save: Sequence[str]
) -> None:
    """Predict images, given with their ids, and write what `save` names."""

    def decoded() -> Iterator[tuple[tuple[int, File], np.ndarray]]:
        for image_id, file in tqdm(images, unit=" images", disable=None):  # no bar where there is no terminal
            try:
                pixels = decode(read_file(file.path, MAX_BYTES))
            except Exception as error:  # a decoder's errors share no base: PIL's DecompressionBombError, SyntaxError
                results.leave_out(file.path, error)
            else:
                yield (image_id, file), pixels

    for (image_id, file), pixels, found in predictor.detect(decoded()):
        results.add(file, pixels, found, image_id=image_id)
        if "yolo" in save:
            results.save(results.folder / "labels" / label_name(file), label_lines(found, *pixels.shape[:2]).encode())
        if "drawings" in save:
            _, data = cv2.imencode(".jpg", draw(pixels, found))  # OpenCV is given no name, which may crash it
            results.save(results.path_for(image_id, file, ".jpg"), data.tobytes())


def predict_video(predictor: Predictor, number: int, file: File, results: Results, drawn: bool) -> None:
    """Predict the frames of a video: a line for each and, if `drawn`, a video.

    Raises:
        OSError, ValueError, cv2.error: it is not a video, or ends before its time; what was there is written.
    """
    video = open_video(file.path)
    writer = open_writer(results.path_for(number, file, ".mp4"), video) if drawn else None
    frames, count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0
    shown = tqdm(read_frames(video), total=max(frames, 0), unit=" frames", disable=None)
    for seconds, pixels, found in predictor.detect(shown):
        results.add(file, pixels, found, frame=count, seconds=seconds)
        count += 1
        if writer:
            writer.write(draw(pixels, found))
    if count < frames * ALL_FRAMES or not count:
        raise ValueError(f"it ends after {count} of {frames} frames")


def draw(pixels: np.ndarray, found: Detections) -> np.ndarray:
    """RGB pixels [height, width, 3] with boxes, classes and scores, as BGR for OpenCV."""
    return cv2.cvtColor(draw_boxes(pixels, found.boxes_xyxy, found.labels, found.scores), cv2.COLOR_RGB2BGR)
