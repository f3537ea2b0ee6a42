"""Is this image whole, and how large is it? Asked for every image that `python -m data_prep pack|inspect` reads.

The bytes are never changed. A JPEG is checked by decoding it strictly, in grey at an eighth of its size: as strict as
a whole decode, because every coefficient is read, and more than twice as fast (benchmarks/packing.py).
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
    """Width and height in pixels after the EXIF orientation, of an image that was checked.

    `full` decodes the pixels, `header` reads the header alone and so misses truncated files.

    Raises:
        ValueError: a short reason why this is not an image that training could read.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        return _jpeg_size(data, verify) if data.startswith(b"\xff\xd8\xff") else _other_size(data, verify)
    except Exception as error:  # decoders raise what hostile bytes lead them to: SyntaxError, DecompressionBomb, ...
        raise ValueError(_reason(error)) from error


def _jpeg_size(data: bytes, verify: Verify) -> tuple[int, int]:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # libjpeg-turbo refuses rare subsamplings that Pillow reads
        return _other_size(data, verify)
    if verify == "full":
        # strict: libjpeg's warnings count, which is how truncated and overwritten scans are found
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    if not _has_app1(data):  # no EXIF and no XMP: PIL's parser, ten times slower than all the rest, is not needed
        return width, height
    with Image.open(io.BytesIO(data)) as image:
        return (height, width) if image.getexif().get(ORIENTATION) in TURNED else (width, height)


def _has_app1(data: bytes) -> bool:
    """Walk the JPEG's segments up to the scan, looking for the one that may hold an orientation."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xE1:
            return True
        if marker == 0xDA:
            return False
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True  # not the plain sequence of segments: let PIL decide


def _other_size(data: bytes, verify: Verify) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size  # before load(), which turns a TIFF's pixels
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED
        if verify == "full":
            image.load()
    return (height, width) if turned else (width, height)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if text.startswith("cannot identify image file"):
        return "not an image in any format that Pillow reads"
    return text or type(error).__name__
