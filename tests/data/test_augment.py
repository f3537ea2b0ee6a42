"""Augmentation: drawn from (seed, epoch, index) alone, and boxes go where the pixels go."""

import subprocess
import sys
import types

import albumentations as A
import cv2
import numpy as np
import pytest

from recipe.config import Config
from recipe.data.augment import build_augmentation
from recipe.schema import UserError

H, W = 160, 240
PLAIN = {"hflip": 0.0, "affine": 0.0, "color": 0.0}
STILL = {
    "hflip": 0.0,
    "affine": 1.0,
    "rotate": 0.0,
    "shear": 0.0,
    "translate": 0.0,
    "scale_min": 1.0,
    "scale_max": 1.0,
}


def augmentation(**changes):
    settings = vars(Config(data="x")) | {"augmentation": None} | changes
    return build_augmentation(types.SimpleNamespace(**settings))


def dots(places, height=H, width=W) -> np.ndarray:
    """Red discs, at continuous coordinates: pixel i covers [i, i + 1]."""
    image = np.zeros((height, width, 3), np.uint8)
    for place in places:
        cv2.circle(image, [round((value - 0.5) * 16) for value in place], 64, (255, 0, 0), -1, cv2.LINE_AA, shift=4)
    return image


def markers(pixels: np.ndarray) -> list[np.ndarray]:
    """The centers of the discs found."""
    grey = (pixels[..., 0].astype(int) - pixels[..., 2]).clip(0)
    grey[grey < 60] = 0
    count, parts = cv2.connectedComponents((grey > 0).astype(np.uint8))
    ys, xs = np.mgrid[: grey.shape[0], : grey.shape[1]] + 0.5
    weights = [grey * (parts == part) for part in range(1, count)]
    return [np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum() for weight in weights]


def corners_seen(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Four markers by their place in the image."""
    found = markers(pixels)
    assert len(found) == 4
    return {
        "top_left": min(found, key=sum),
        "bottom_right": max(found, key=sum),
        "top_right": max(found, key=lambda p: p[0] - p[1]),
        "bottom_left": min(found, key=lambda p: p[0] - p[1]),
    }


def matrices(augment, count: int) -> list[np.ndarray]:
    """The linear map [2, 2] and shift of each draw, measured by where three dots at known places come to lie."""
    center, reach = np.array([W / 2, H / 2]), 40
    found = []
    for index in range(count):
        places = []
        for offset in ((0, 0), (reach, 0), (0, reach)):
            pixels, _, _ = augment(dots([center + offset]), np.zeros((0, 4)), (1, 0, index))
            places.append(markers(pixels)[0])
        origin, right, down = places
        found.append(np.column_stack([(right - origin) / reach, (down - origin) / reach, origin - center]))
    return found


@pytest.mark.parametrize("hflip", [0.0, 1.0])
@pytest.mark.parametrize("affine", [0.0, 1.0])
def test_markers_at_a_boxs_corners_are_found_where_its_augmented_box_says(hflip, affine):
    """The expected box is computed from the pixels: the four markers found span the parallelogram in which the box's
    ellipse lies. Bites: an offset of half a pixel, a flip about w - 1, a matrix applied the wrong way, boxes made of
    the turned rectangle's corners.
    """
    box = np.array([60.0, 40.0, 180.0, 110.0])
    image = dots([box[[0, 1]], box[[2, 1]], box[[0, 3]], box[[2, 3]]])
    augment = augmentation(affine=affine, hflip=hflip, color=0.0)
    frame = np.array([W, H, W, H])
    for epoch in range(12):
        pixels, boxes, rows = augment(image, box[None] / frame, (3, epoch, 0))
        seen = corners_seen(pixels)
        across = (seen["top_right"] - seen["top_left"]) / 2
        down = (seen["bottom_left"] - seen["top_left"]) / 2
        center, half = sum(seen.values()) / 4, np.hypot(across, down)
        assert rows.tolist() == [0]
        np.testing.assert_allclose(boxes[0] * frame, [*(center - half), *(center + half)], atol=0.4)


def test_the_same_seed_epoch_and_index_give_the_same_and_any_other_another():
    """Bites when one of the three is left out (the library's own generator is copied to every worker)."""
    augment, box = augmentation(affine=1.0), np.array([[0.3, 0.3, 0.6, 0.6]])
    image = np.zeros((32, 48, 3), np.uint8)
    keys = [(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(9)]
    drawn = {key: augment(image, box, key)[1].tobytes() for key in keys}
    assert len(set(drawn.values())) == len(keys)
    again = augmentation(affine=1.0)
    assert all(again(image, box, key)[1].tobytes() == drawn[key] for key in reversed(keys))


def test_flip_and_affine_are_independent_and_keep_to_their_probabilities():
    """Compose.set_random_seed gives each transform a generator of the same seed: then only flipped images turn."""
    augment, box = augmentation(), np.array([[0.2, 0.3, 0.3, 0.6]])
    drawn = []
    for index in range(1500):
        x = augment(np.zeros((16, 24, 3), np.uint8), box, (1, 0, index))[1][0]
        flipped = x[0] > 0.5
        drawn.append((flipped, not np.allclose(x, [0.7, 0.3, 0.8, 0.6] if flipped else box[0])))
    flips, affines = np.array(drawn).T
    assert flips.mean() == pytest.approx(0.5, abs=0.05)
    assert affines.mean() == pytest.approx(0.4, abs=0.05)
    assert affines[flips].mean() == pytest.approx(affines[~flips].mean(), abs=0.08)


def test_a_rotation_is_a_rotation_and_only_a_flip_mirrors():
    """Without shear the map is a scale times an orthonormal matrix; its determinant is negative exactly if flipped."""
    for hflip in (0.0, 1.0):
        for found in matrices(augmentation(affine=1.0, shear=0.0, hflip=hflip), 8):
            linear = found[:, :2]
            scale = np.sqrt(abs(np.linalg.det(linear)))
            np.testing.assert_allclose(linear @ linear.T / scale**2, np.eye(2), atol=0.02)
            assert (np.linalg.det(linear) < 0) == (hflip == 1.0)


def test_angles_scales_and_shifts_are_ranges_to_both_sides_and_never_more():
    """Bites when the shift is a constant, as translate_percent=(0.03, 0.03) is, or x and y scale apart."""
    found = matrices(augmentation(affine=1.0, shear=0.0, hflip=0.0), 80)
    angles = [np.degrees(np.arctan2(m[1, 0], m[0, 0])) for m in found]
    scales = [np.sqrt(np.linalg.det(m[:, :2])) for m in found]
    shifts = np.array([m[:, 2] for m in found]) / [W, H]
    assert -5.3 < min(angles) < -4 < 4 < max(angles) < 5.3
    assert 0.89 < min(scales) < 0.92 < 1.08 < max(scales) < 1.11
    assert (shifts.min(axis=0) < -0.02).all()
    assert (shifts.max(axis=0) > 0.02).all()
    assert np.abs(shifts).max() < 0.034


def test_a_box_of_which_less_than_a_quarter_remains_is_no_target():
    """Its label would teach a person where a hand is."""
    widths = {"gone": 0.1, "a fifth": 0.2 / 0.8, "a third": 0.3}
    shift = A.Affine(translate_percent={"x": (-0.2, -0.2), "y": (0, 0)}, rotate_method="ellipse", p=1.0)
    augment = augmentation()
    augment.pipeline = A.Compose([shift], bbox_params=augment.pipeline.processors["bboxes"].params)
    boxes = np.array([[0.0, 0.2, width, 0.6] for width in widths.values()] + [[0.5, 0.2, 0.9, 0.6]])
    _, moved, rows = augment(np.zeros((100, 100, 3), np.uint8), boxes, (0, 0, 0))
    assert rows.tolist() == [2, 3]
    np.testing.assert_allclose(moved, [[0, 0.2, 0.1, 0.6], [0.3, 0.2, 0.7, 0.6]], atol=1e-3)


def test_without_an_affine_no_box_is_lost_however_small():
    tiny = np.array([[0.1, 0.1, 0.1003, 0.1002]])
    for hflip in (0.0, 1.0):
        _, boxes, rows = augmentation(**PLAIN | {"hflip": hflip})(np.zeros((H, W, 3), np.uint8), tiny, (0, 0, 0))
        assert rows.tolist() == [0]
        assert np.ptp(boxes[0, [0, 2]]) == pytest.approx(0.0003)


def test_an_image_without_boxes_can_be_augmented():
    augment = augmentation(affine=1.0)
    for index in range(4):
        pixels, boxes, rows = augment(np.zeros((H, W, 3), np.uint8), np.zeros((0, 4)), (0, 0, index))
        assert pixels.shape == (H, W, 3)
        assert boxes.shape == (0, 4)
        assert rows.shape == (0,)


def test_what_an_affine_uncovers_is_filled_with_about_the_mean():
    augment = augmentation(**STILL | {"scale_min": 0.5, "scale_max": 0.5})
    pixels, _, _ = augment(np.zeros((H, W, 3), np.uint8), np.zeros((0, 4)), (0, 0, 0))
    assert np.abs(pixels[5, 5] / 255 - [0.485, 0.456, 0.406]).max() < 0.005
    assert (pixels[H // 2, W // 2] == 0).all()


def test_colour_is_light_and_changes_no_geometry():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(4, axis=0)
    box = np.array([[0.3, 0.3, 0.6, 0.6]])
    plain, colored = augmentation(affine=1.0), augmentation(affine=1.0, color=1.0)
    for index in range(20):
        np.testing.assert_array_equal(plain(ramp, box, (0, 0, index))[1], colored(ramp, box, (0, 0, index))[1])
    only = augmentation(**PLAIN | {"color": 1.0})
    for index in range(20):
        found = only(ramp, box, (0, 0, index))[0][0, :, 0].astype(int)
        assert (np.diff(found) >= 0).all()
        assert np.abs(found - ramp[0, :, 0]).max() <= 52
        assert (found != ramp[0, :, 0]).any()


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_a_pipeline_of_the_users_own_is_taken_with_the_same_seeds_and_box_rules(tmp_path, kind):
    """Its own bbox_params, or none, are replaced: they would not fit what the dataset hands over."""
    file = tmp_path / f"own.{kind}"
    params = A.BboxParams(format="coco", label_fields=["category"]) if kind == "json" else None
    A.save(A.Compose([A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=1)], params), file, data_format=kind)
    image, box = dots([(30, 30)]), np.array([[0.1, 0.1, 0.2, 0.3]])
    drawn = {index: augmentation(augmentation=str(file))(image, box, (1, 0, index))[1].tolist() for index in range(12)}
    flips = [[0.8, 0.1, 0.9, 0.3], [0.1, 0.7, 0.2, 0.9]]
    for found in drawn.values():
        assert any(np.allclose(found, flip) for flip in flips)
    assert len({str(found) for found in drawn.values()}) == 2
    augment = augmentation(augmentation=str(file))
    assert all(augment(image, box, (1, 0, index))[1].tolist() == drawn[index] for index in reversed(range(12)))


@pytest.mark.parametrize(
    "text", ["", "transform: [", "{}", "[1]", '{"transform": {"__class_fullname__": "Nope"}}', None]
)
def test_a_pipeline_that_cannot_be_read_is_refused_in_one_line(tmp_path, text):
    file = tmp_path / "own.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=r"^--augmentation .*own\.yaml cannot be used .*albumentations\.save") as error:
        augmentation(augmentation=str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("transform", [A.RandomCrop(64, 64, p=1), A.Normalize(p=1), A.Transpose(p=0.5)])
def test_a_pipeline_that_does_not_keep_the_images_size_and_bytes_is_refused_before_the_first_step(tmp_path, transform):
    file = tmp_path / "own.json"
    A.save(A.Compose([transform]), file)
    with pytest.raises(UserError, match=r"own\.json cannot be used \(augmentation failed: .*without crops") as error:
        augmentation(augmentation=str(file))
    assert "\n" not in str(error.value)


def test_augmentation_none_is_none_and_costs_no_import_of_albumentations():
    code = (
        "import sys, types; from recipe.data.augment import build_augmentation\n"
        "assert build_augmentation(types.SimpleNamespace(augmentation='none')) is None\n"
        "assert 'albumentations' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
