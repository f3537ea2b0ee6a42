"""From bytes to pixels: every kind of file, and the stock processor's pixels."""

import io

import numpy as np
import packed
import pytest
import torch
from PIL import Image, ImageOps
from transformers import DetrImageProcessor

from recipe.data.augment import Transform
from recipe.data.batches import collate, normalise
from recipe.data.geometry import Geometry
from recipe.data.images import decode, orientation, render, resize

RULE = Geometry(160, 256)
SIZES = [(120, 200), (200, 120), (150, 150), (30, 40), (700, 900), (1000, 300)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_orientation_is_applied_as_pil_does(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = packed.encoded(packed.photograph(48, 64), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert orientation(data) == turn
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(decode(data, spare=True)[..., :3], expected)


def test_cmyk_grey_alpha_and_16_bit_files_become_rgb_bytes():
    colors = packed.photograph(20, 30)
    file = io.BytesIO()
    Image.fromarray(colors).convert("CMYK").save(file, "JPEG", quality=100)
    assert np.abs(decode(file.getvalue()).astype(int) - colors).mean() < 4
    grey = colors[..., 0]
    np.testing.assert_array_equal(decode(packed.encoded(grey, "PNG")), np.repeat(grey[..., None], 3, 2))
    assert decode(packed.encoded(grey)).shape == (20, 30, 3)
    alpha = np.dstack([colors, np.full((20, 30), 7, np.uint8)])
    np.testing.assert_array_equal(decode(packed.encoded(alpha, "PNG")), colors)


def test_a_16_bit_grey_image_is_scaled_and_not_clipped_to_white():
    """PIL's convert("RGB") clips at 255: nearly every pixel of a 16-bit photograph would be white."""
    values = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    pixels = decode(packed.encoded(values, "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], values >> 8)


@pytest.mark.parametrize("cut", [0, 20, 200, 2000])
def test_a_broken_file_raises_instead_of_giving_grey_pixels(cut):
    with pytest.raises((ValueError, OSError)):
        decode(packed.encoded(packed.photograph(100, 100))[:cut])


@pytest.mark.parametrize("size", SIZES)
def test_the_saved_processor_reproduces_the_training_pixels_bit_for_bit(size):
    """cv2's resize in place of `resize` differs by 1 to 14 levels; on the canvas the padding must be 0 as well."""
    data = packed.encoded(packed.photograph(*size))
    pixels = decode(data, spare=True)
    processor = DetrImageProcessor(
        size={"shortest_edge": RULE.shortest_edge, "longest_edge": RULE.longest_edge},
        pad_size=dict(zip(("height", "width"), RULE.canvas(*size), strict=True)),
    )
    stock = processor(Image.open(io.BytesIO(data)), return_tensors="pt")
    sample = {
        "pixels": render(pixels, RULE.resized(*size), Transform()),
        "boxes": np.zeros((0, 4), np.float32),
        "class_labels": np.zeros(0, np.int64),
        "image_id": 1,
        "size": RULE.resized(*size),
        "orig_size": size,
        "canvas": RULE.canvas(*size),
    }
    ours = normalise(collate([sample]))
    torch.testing.assert_close(ours["pixel_values"], stock["pixel_values"], rtol=0, atol=0)
    assert torch.equal(ours["pixel_mask"], stock["pixel_mask"].bool())


@pytest.mark.parametrize("size", [(200, 320), (400, 640), (700, 1120), (150, 150), (60, 80)])
def test_resize_and_affine_in_one_warp_are_as_good_as_one_after_the_other(size):
    """Bites when a large source is warped without coming near the target first: 400x640 falls below 30 dB."""
    fine = np.random.default_rng(0).normal(scale=25, size=(*size, 1)) * (max(size) > 330)  # what aliases
    data = packed.encoded((packed.photograph(*size) + fine).clip(0, 255).astype(np.uint8))
    target = RULE.resized(*size)
    shift = np.array([[1.0, 0.0, 3.0], [0.0, 1.0, 2.0]])
    expected = resize(decode(data), target)[:-2, :-3]
    for spare in (True, False):
        moved = render(decode(data, spare=spare), target, Transform(matrix=shift))
        assert moved.shape == (*target, 3)
        assert psnr(moved[2:, 3:], expected) > 42


def test_what_an_affine_uncovers_is_filled_with_about_zero():
    moved = render(np.zeros((20, 30, 3), np.uint8), (20, 30), Transform(matrix=np.array([[1.0, 0, 10], [0, 1, 0]])))
    sample = {"pixels": moved, "size": (20, 30), "orig_size": (20, 30), "canvas": (32, 32), "image_id": 1}
    sample |= {"boxes": np.zeros((0, 4), np.float32), "class_labels": np.zeros(0, np.int64)}
    assert normalise(collate([sample]))["pixel_values"][0, :, 5, 5].abs().max() < 0.02


def test_a_transformation_of_colour_stays_within_bytes_and_leaves_no_wrap():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    brighter = render(ramp, (1, 256), Transform(gain=1.1, bias=10))
    assert (np.diff(brighter[0, :, 0].astype(int)) >= 0).all()
    assert brighter[0, 0, 0] == 10
    assert brighter[0, -1, 0] == 255
