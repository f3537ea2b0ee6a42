"""The Parquet contract: columns, types, class names, and the error that a user can act on.

    from recipe.schema import CLASS_NAMES, arrow_schema, check_dataset

Both `data_prep` (which writes the shards) and `recipe` (which reads them) know this module; it knows nobody and
imports its libraries only where they are used, so that `--help` stays instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

CLASS_NAMES = ("person", "head")
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # data.yaml -> Hub split; `test` is optional

# What is packed and trained on; every decoder is given this list (an EPS named x.jpg would start Ghostscript).
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".mpo")
PIL_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")  # an MPO is opened as the JPEG that it begins with
MAX_PIXELS = 89_478_485  # from here on Pillow warns of a decompression bomb; 270 MB as RGB, in each loader worker


class UserError(Exception):
    """A mistake that the user can mend: says the value, what is allowed, and the command that fixes it.

    The command lines print it as one line without a traceback and exit with code 2.
    """


def features(labelled: bool = False) -> datasets.Features:
    """The columns as `datasets.Features`: the layout that Hub object-detection datasets use.

    `objects.bbox` is COCO `[x, y, w, h]` in pixels of the image after its EXIF orientation was applied, as are `width`
    and `height`. `labelled`, the classes that were annotated in an image, is optional: without it, all were.
    """
    from datasets import ClassLabel, Features, Image, List, Value

    labels = List(ClassLabel(names=list(CLASS_NAMES)))
    return Features(
        {
            "image": Image(),
            "image_id": Value("int64"),
            "width": Value("int32"),
            "height": Value("int32"),
            "objects": {
                "id": List(Value("int64")),
                "bbox": List(List(Value("float32"), length=4)),
                "area": List(Value("float32")),
                "category": labels,
                "iscrowd": List(Value("int8")),
            },
        }
        | ({"labelled": labels} if labelled else {})
    )


def arrow_schema(labelled: bool = False) -> pa.Schema:
    """The same columns as an Arrow schema, with the metadata from which `load_dataset` restores the features."""
    return features(labelled).arrow_schema


def check_dataset(found: datasets.Features, where: str) -> None:
    """Refuse a dataset whose columns are not the contract's, with or without `labelled`.

    Raises:
        UserError: naming each column that is missing or of another type, and the command that packs a folder.
    """
    problems = [
        f"column {name!r} is {found[name]}, expected {feature}" if name in found else f"column {name!r} is missing"
        for name, feature in features("labelled" in found).items()
        if found.get(name) != feature
    ]
    if problems:
        raise UserError(
            f"{where} does not hold the columns of this recipe: {'; '.join(problems)}. "
            "Pack a YOLO folder with `python -m data_prep pack YOLO_DIR --out DIR`."
        )
