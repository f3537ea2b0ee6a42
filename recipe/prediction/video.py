"""Video files, read and written by OpenCV frame by frame.

    video = Video(Path("clip.mp4"))
    for seconds, pixels in video: ...

OpenCV is given paths below /proc/self/fd: a name that is not UTF-8 is a segmentation fault in it, and FFmpeg takes
some names for protocols.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from recipe.files import open_file
from recipe.schema import MAX_PIXELS

# Whatever a file is named, FFmpeg would also open playlists and stream descriptions, which name files and addresses.
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "format_whitelist;mov,avi,matroska")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong is said once, by the command
CODEC = "mp4v"  # MPEG-4 part 2: fast, and in every build of OpenCV, which H.264 is not


class Video:
    """Frames as (seconds from the start, uint8 [height, width, 3] RGB), upright.

    Attributes:
        size: (width, height) of every frame.
        frames: how many there are as the file says, which may be an estimate, or 0.
        frames_per_second: 25 where the file says nothing that can be.

    Raises:
        OSError, ValueError: it is not a video that can be read, or its frames change their size.
    """

    def __init__(self, path: Path) -> None:
        with open_file(path) as file:
            self._capture = cv2.VideoCapture(f"/proc/self/fd/{file.fileno()}", cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise ValueError("not a video in any format that is read")
        width, height = (int(self._capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.size = width, height
        self.frames = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self.frames_per_second = rate if 0 < rate <= 1000 else 25.0

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        while True:
            there, pixels = self._capture.read()
            if not there:
                return
            if pixels.shape[1::-1] != self.size:
                raise ValueError("its frames change their size")
            yield self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


@contextmanager
def video_writer(path: Path, video: Video) -> Iterator[cv2.VideoWriter]:
    """An MP4 file like `video`, without sound, for BGR frames; odd sides lose a pixel.

    Raises:
        OSError: it cannot be written.
    """
    path.unlink(missing_ok=True)  # a link in its place is not followed
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        name, code = f"/proc/self/fd/{folder}/{path.name}", cv2.VideoWriter_fourcc(*CODEC)  # type: ignore[attr-defined]
        writer = cv2.VideoWriter(name, cv2.CAP_FFMPEG, code, video.frames_per_second, video.size)
    finally:
        os.close(folder)
    if not writer.isOpened():
        raise OSError(f"{path.name} cannot be written as a video")
    try:
        yield writer
    finally:
        writer.release()
