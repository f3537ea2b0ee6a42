"""The images and videos that `recipe predict` is pointed at.

files = find_files(["photos/", "clip.mp4"], out=Path("outputs/predictions"))
for seconds, pixels in read_frames(open_video(files[-1].path)): ...
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import fsspec
import numpy as np
import pyarrow.parquet as pq

from recipe.files import list_files, open_file, printable, suffix
from recipe.hub import as_user_errors
from recipe.schema import IMAGE_SUFFIXES, MAX_PIXELS, UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")
SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)

# Whatever a file is named, FFmpeg would also open playlists and stream descriptions, which name files and addresses.
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "format_whitelist;mov,avi,matroska")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong is said once, by the command


class File(NamedTuple):
    path: Path
    name: str  # relative to the PATH of the command line that led to it

    @property
    def is_video(self) -> bool:
        return suffix(self.name) in VIDEO_SUFFIXES


def find_files(paths: Sequence[str], out: Path) -> list[File]:
    """All files that are named, whatever their suffix, and the images and videos below named folders, but for `out`.

    Raises:
        UserError: a path is not there or is `out`, a folder cannot be read, or there is no file at all.
    """
    found: list[File] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{printable(path)}: no such file or folder")
        if path.resolve() == out.resolve():
            raise UserError(f"--out {out}: holds the images; give a folder of its own: `--out {out / 'predictions'}`")
        results = os.path.relpath(out.resolve(), path.resolve())  # they may lie among the images
        try:
            names = list_files(path) if path.is_dir() else []
        except OSError as error:
            raise UserError(f"{printable(error.filename)}: cannot be read ({error.strerror})") from error
        names = [name for name in names if suffix(name) in SUFFIXES and not name.startswith(f"{results}/")]
        found += [File(path / name, name) for name in names] if path.is_dir() else [File(path, path.name)]
    if not found:
        raise UserError(f"no images in {', '.join(map(printable, paths))}; read are {', '.join(SUFFIXES)}")
    return found


def dataset_ids(data: str, files: Iterable[File]) -> list[int]:
    """The image_id of each file in a packed folder or Hub dataset, of which only names and ids are read.

    A file is known by the end of its path: photos/deep/a.jpg may be deep/a.jpg or a.jpg there.

    Raises:
        UserError: no such dataset, or it does not hold one of the files, or two of that name.
    """
    place = os.path.abspath(data) if Path(data).is_dir() else f"hf://datasets/{data}"
    known: dict[str, set[int]] = {}
    with as_user_errors(f"--data {data}: no packed dataset here or on the Hub"):
        filesystem, folder = fsspec.url_to_fs(f"{place}/data")
        for shard in filesystem.glob(f"{folder}/*.parquet"):  # `pq.read_table` of a folder would read the images too
            table = pq.ParquetFile(shard, filesystem=filesystem).read(columns=["image_id", "image.path"])
            for row in table.to_pylist():
                known.setdefault(row["image"]["path"], set()).add(row["image_id"])
    found: list[int] = []
    for file in files:
        parts = file.path.resolve().parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        ids = next((known[end] for end in ends if end in known), set())
        if len(ids) != 1:
            count = "several images" if ids else "no image"
            raise UserError(f"--data {data}: holds {count} of the name {printable(file.path)}; give their own dataset")
        found += ids
    return found


def open_video(path: Path) -> cv2.VideoCapture:
    """A video file, open for reading.

    OpenCV is given no name: one that is not UTF-8 is a segmentation fault in it, and FFmpeg takes some for protocols.

    Raises:
        OSError, ValueError: it is not a video that can be read.
    """
    with open_file(path) as file:
        video = cv2.VideoCapture(f"/proc/self/fd/{file.fileno()}", cv2.CAP_FFMPEG)
    if not video.isOpened():
        raise ValueError("not a video in any format that is read")
    if math.prod(frame_size(video)) > MAX_PIXELS:
        raise ValueError(f"its frames have more than {MAX_PIXELS:,} pixels")
    return video


def frame_size(video: cv2.VideoCapture) -> tuple[int, int]:
    """(width, height)"""
    return int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))


def read_frames(video: cv2.VideoCapture) -> Iterator[tuple[float, np.ndarray]]:
    """Frames as (seconds from the start, uint8 [height, width, 3] RGB), upright.

    Raises:
        ValueError: they change their size; a writer would leave those out without a word.
    """
    size = frame_size(video)
    while (read := video.read())[0]:
        pixels = read[1]
        if pixels.shape[1::-1] != size:
            raise ValueError("its frames change their size")
        yield video.get(cv2.CAP_PROP_POS_MSEC) / 1000, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
