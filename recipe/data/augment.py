"""Augmentation by albumentations, after the resize: a flip, a mild affine, a light change of colour; never a crop.

    augmentation = build_augmentation(config)
    pixels, boxes_xyxy, rows = augmentation(pixels, boxes_xyxy, (seed, epoch, index))

`--augmentation FILE` takes a pipeline of your own instead, as `albumentations.save(pipeline, FILE)` writes it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.config import Config
from recipe.hub import first_line
from recipe.schema import UserError

FILL = (124, 116, 104)  # about the ImageNet mean: 0 once normalised
MIN_VISIBILITY = 0.25  # a box of which less remains in the frame is no target
COLOR_RANGE = 0.1  # brightness and contrast, to either side


def build_augmentation(config: Config) -> Augmentation | None:
    """The pipeline that the settings ask for, or None. UserError: `--augmentation FILE` cannot be used."""
    if config.augmentation == "none":
        return None
    import albumentations as A  # here, because it takes 4 s
    import cv2

    cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's own threads would only fight them
    boxes = {"format": "albumentations", "label_fields": ["rows"], "clip": True, "min_visibility": MIN_VISIBILITY}
    boxes_xyxy = A.BboxParams(**boxes, filter_invalid_bboxes=True)
    if config.augmentation is not None:
        try:
            pipeline = A.load(config.augmentation, data_format="yaml")  # JSON is YAML too
            augmentation = Augmentation(A.Compose([pipeline], boxes_xyxy))
            for epoch in range(8):  # some of its transforms are drawn in some epochs only
                augmentation(np.zeros((160, 240, 3), np.uint8), np.array([[0.25, 0.25, 0.75, 0.75]]), (0, epoch, 0))
        except Exception as error:  # those of YAML, pydantic and the transforms share no base
            raise UserError(
                f"--augmentation {config.augmentation} cannot be used ({first_line(error)}): write it with "
                "`albumentations.save(albumentations.Compose([...]), FILE)`, without crops and normalising."
            ) from error
        return augmentation
    affine = A.Affine(
        rotate=(-config.rotate, config.rotate),
        shear=(-config.shear, config.shear),
        translate_percent=(-config.translate, config.translate),  # (0.03, 0.03) would be a constant shift
        scale=(config.scale_min, config.scale_max),
        keep_ratio=True,
        rotate_method="ellipse",  # a turned rectangle's box is a sixth larger at 5 degrees
        fill=FILL,
        p=config.affine,
    )
    color = A.RandomBrightnessContrast(COLOR_RANGE, COLOR_RANGE, p=config.color)
    return Augmentation(A.Compose([A.HorizontalFlip(p=config.hflip), affine, color], boxes_xyxy))


@dataclass
class Augmentation:
    """An `albumentations.Compose` whose every draw depends on (seed, epoch, index) alone.

    Left to itself, albumentations repeats itself in every worker and every epoch (traps in the README).
    """

    pipeline: Any

    def __call__(
        self, pixels: np.ndarray, boxes_xyxy: np.ndarray, seeds: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Augment pixels uint8 [H, W, 3] and boxes_xyxy float [n, 4], normalised, by seeds (seed, epoch, index).

        Returns the pixels, the m boxes that remain, clipped to the frame, and which rows [m] of boxes_xyxy they were.
        Raises UserError where a transform fails or changes the size of the image.
        """
        generator = np.random.default_rng(seeds)
        # Not set_random_seed: that gives every transform the same numbers, so that only flipped images are turned.
        self.pipeline.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        try:
            out = self.pipeline(image=pixels, bboxes=boxes_xyxy, rows=np.arange(len(boxes_xyxy)))
            found = np.asarray(out["image"])
            if (found.shape, found.dtype) != (pixels.shape, pixels.dtype):
                raise ValueError(f"{found.dtype} {found.shape} of an image of {pixels.dtype} {pixels.shape}")
        except Exception as error:  # whatever the transforms of others raise
            raise UserError(f"augmentation failed: {first_line(error)}") from error
        return found, np.reshape(out["bboxes"], (-1, 4)), np.asarray(out["rows"], dtype=np.int64)
