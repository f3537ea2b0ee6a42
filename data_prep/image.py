"""Is this image whole, and how large is it? Asked for every image that `python -m data_prep pack|inspect` reads.

The bytes are never changed. `full` decodes every image: a JPEG strictly, in grey at an eighth of its size, which
reads every coefficient as a whole decode would, and is more than twice as fast (benchmarks/packing.py). `header` takes
the header at its word: three times as fast, and blind to truncated and overwritten pixels.
"""

from __future__ import annotations

import io
from typing import Literal

import simplejpeg
from PIL import Image

Verify = Literal["full", "header"]
ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def image_size(data: bytes, verify: Verify = "full") -> tuple[int, int]:
    """Width and height in pixels after the EXIF orientation.

    Raises:
        ValueError: a short reason why this is not an image that training could read.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        return (_jpeg_size if data.startswith(b"\xff\xd8\xff") else _other_size)(data, verify)
    except Exception as error:  # decoders raise what hostile bytes lead them to: SyntaxError, DecompressionBomb, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        unknown = reason.startswith("cannot identify image file")
        raise ValueError("not an image in any format that Pillow reads" if unknown else reason) from error


def _jpeg_size(data: bytes, verify: Verify) -> tuple[int, int]:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # libjpeg-turbo refuses rare subsamplings that Pillow reads
        return _other_size(data, verify)
    if verify == "full":  # strict: libjpeg's warnings count, which is how truncated and overwritten scans are found
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    header = data[: data.find(b"\xff\xda")]  # up to the first scan
    if b"Exif\0" not in header and b"tiff:Orientation" not in header:  # spares PIL's parser, ten times slower
        return width, height
    with Image.open(io.BytesIO(data)) as image:
        return (height, width) if image.getexif().get(ORIENTATION) in TURNED else (width, height)


def _other_size(data: bytes, verify: Verify) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size  # before load(), which turns a TIFF's pixels
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED
        if verify == "full":
            image.load()
    return (height, width) if turned else (width, height)
