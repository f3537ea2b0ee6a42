"""Augmentation by albumentations, after the resize: a flip, a mild affine, a light change of colour; never a crop.

    augmentation = build_augmentation(config)
    pixels, boxes_xyxy, rows = augmentation(pixels, boxes_xyxy, (seed, epoch, index))

`--augmentation FILE` takes a pipeline of your own instead, as `albumentations.save(pipeline, FILE)` writes it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from recipe.config import Config
from recipe.hub import first_line
from recipe.schema import UserError

if TYPE_CHECKING:
    import albumentations

FILL = (124, 116, 104)  # about the ImageNet mean: 0 once normalised
MIN_VISIBILITY = 0.25  # a box of which less remains in the frame is no target
COLOR_RANGE = 0.1  # brightness and contrast, to either side


def build_augmentation(config: Config) -> Augmentation | None:
    """The pipeline that the settings ask for, or None with `--augment false`.

    Raises:
        UserError: `--augmentation FILE` cannot be read, or does not keep the size of the image.
    """
    if not config.augment:
        return None
    import albumentations as A  # here, because it takes 4 s

    if config.augmentation is not None:
        try:
            pipeline = A.load(config.augmentation, data_format="yaml")  # JSON is YAML too
            augmentation = Augmentation([pipeline], f"--augmentation {config.augmentation}")
        except Exception as error:  # those of YAML, pydantic and the transforms share no base
            raise UserError(
                f"--augmentation {config.augmentation} cannot be read ({first_line(error)}): write it with "
                "`albumentations.save(albumentations.Compose([...]), FILE)`, as JSON or YAML."
            ) from error
        for epoch in range(8):  # some of its transforms are drawn in some epochs only
            augmentation(np.zeros((160, 240, 3), np.uint8), np.array([[0.25, 0.25, 0.75, 0.75]]), (0, epoch, 0))
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
    return Augmentation([A.HorizontalFlip(p=config.hflip), affine, color], "augmentation")


class Augmentation:
    """An albumentations pipeline whose every draw depends on (seed, epoch, index) alone.

    An image's augmentation is then another in each epoch, and the same whatever the number of workers and after a
    resume: left to itself, albumentations repeats itself in every worker and every epoch (traps in the README).
    """

    def __init__(self, transforms: list[albumentations.BasicTransform], name: str) -> None:
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's own threads would only fight them
        boxes = A.BboxParams(
            format="albumentations",  # xyxy, normalised
            label_fields=["rows"],
            min_visibility=MIN_VISIBILITY,
            clip=True,
            filter_invalid_bboxes=True,
        )
        self.name = name
        self.pipeline = A.Compose(transforms, bbox_params=boxes)

    def __call__(
        self, pixels: np.ndarray, boxes_xyxy: np.ndarray, seeds: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Augment pixels uint8 [H, W, 3] and boxes_xyxy float [n, 4], normalised, by seeds (seed, epoch, index).

        Returns:
            The pixels, the m boxes that remain, clipped to the frame, and which rows [m] of boxes_xyxy they were.

        Raises:
            UserError: a pipeline of the user's own failed, or changed the size of the image.
        """
        generator = np.random.default_rng(seeds)
        # Not set_random_seed: that gives every transform the same numbers, so that only flipped images are turned.
        self.pipeline.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        try:
            out: dict[str, Any] = self.pipeline(image=pixels, bboxes=boxes_xyxy, rows=np.arange(len(boxes_xyxy)))
        except Exception as error:  # whatever the transforms of others raise
            raise UserError(f"{self.name} failed: {first_line(error)}") from error
        found = np.asarray(out["image"])
        if found.shape != pixels.shape or found.dtype != pixels.dtype:
            raise UserError(
                f"{self.name} makes {found.dtype} {found.shape} of an image of {pixels.dtype} {pixels.shape}: it must "
                "keep both, for a batch holds images of one size. Leave crops and normalising out."
            )
        return found, np.reshape(out["bboxes"], (-1, 4)), np.asarray(out["rows"], dtype=np.int64)
