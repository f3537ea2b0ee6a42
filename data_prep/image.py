"""Is this image complete, and how large is it? Asked for every image that `python -m data_prep pack|inspect` reads.

The bytes are never changed. Every image is decoded: a JPEG strictly, in grey at an eighth of its size, which reads
every coefficient as a full decode would, and is more than twice as fast (benchmarks/packing.py).
"""

from __future__ import annotations

import io

import simplejpeg
from PIL import Image

from recipe.schema import MAX_PIXELS, PIL_FORMATS

ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels after the EXIF orientation.

    Raises:
        ValueError: a short reason why this is not an image that training could read.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=PIL_FORMATS) as image:
            width, height = image.size  # before load(), which turns a TIFF's pixels
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS:,} are read: make it smaller")
            turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED
            if not data.startswith(b"\xff\xd8") or not _is_complete_jpeg(data):
                image.load()
    except Exception as error:  # decoders raise what hostile bytes lead them to: SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        unknown = reason.startswith("cannot identify image file")
        raise ValueError(f"not an image in the formats {', '.join(PIL_FORMATS)}" if unknown else reason) from error
    return (height, width) if turned else (width, height)


def _is_complete_jpeg(data: bytes) -> bool:
    """True once every scan was decoded; False where libjpeg-turbo refuses a rare subsampling that Pillow reads.

    Raises:
        ValueError: it is truncated or overwritten. libjpeg's warnings count here; Pillow passes over them.
    """
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    return True
