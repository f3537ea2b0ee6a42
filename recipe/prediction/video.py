"""Video files, read and written by OpenCV frame by frame.

    video = Video(Path("clip.mp4"))
    for seconds, pixels in video: ...

OpenCV is given paths below /proc/self/fd: a name that is not UTF-8 is a segmentation fault in it, and FFmpeg takes
some names for protocols.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from recipe.prediction.files import check_regular
from recipe.schema import MAX_PIXELS

# Whatever a file is named, FFmpeg would also open playlists and stream descriptions, which name files and addresses.
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "format_whitelist;mov,avi,matroska")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong is said once, by the command
CODEC = "mp4v"  # MPEG-4 part 2: fast, and in every build of OpenCV, which H.264 is not


class Video:
    """Frames as (seconds from the start, uint8 [height, width, 3] RGB), upright.

    Attributes:
        height, width: of every frame.
        frames: how many there are as the file says, which may be an estimate, or 0.
        frames_per_second: 25 where the file says nothing that can be.

    Raises:
        OSError, ValueError: it is not a video that can be read, or its frames change their size.
    """

    def __init__(self, path: Path) -> None:
        check_regular(path)
        with path.open("rb") as file:
            self._capture = cv2.VideoCapture(f"/proc/self/fd/{file.fileno()}", cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise ValueError("not a video in any format that is read")
        self.height, self.width, self.frames = (
            max(int(self._capture.get(key)), 0)
            for key in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_COUNT)
        )
        if self.height * self.width > MAX_PIXELS:
            raise ValueError(f"{self.width}x{self.height} is more than {MAX_PIXELS:,} pixels")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_second = rate if 0 < rate <= 1000 else 25.0

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        while True:
            there, pixels = self._capture.read()
            if not there:
                return
            if pixels.shape != (self.height, self.width, 3):
                raise ValueError("its frames change their size")
            yield self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


class VideoWriter:
    """An MP4 file without sound, complete once it is closed; odd sides lose a pixel.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, video: Video) -> None:
        path.unlink(missing_ok=True)  # a link in its place is not followed
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            name, code = f"/proc/self/fd/{folder}/{path.name}", cv2.VideoWriter_fourcc(*CODEC)  # type: ignore[attr-defined]
            size = video.width, video.height
            self._file = cv2.VideoWriter(name, cv2.CAP_FFMPEG, code, video.frames_per_second, size)
        finally:
            os.close(folder)
        if not self._file.isOpened():
            raise OSError(f"{path.name} cannot be written as a video")

    def write(self, pixels: np.ndarray) -> None:
        """Add a frame, uint8 [height, width, 3] RGB."""
        self._file.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._file.release()
