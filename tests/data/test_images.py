"""From bytes to pixels: every kind of file, and the saved processor's pixels."""

import io

import numpy as np
import packed
import pytest
import torch
from PIL import Image, ImageOps
from transformers import YolosImageProcessor

from recipe.data import images
from recipe.data.batches import collate, normalise
from recipe.data.geometry import Geometry
from recipe.data.images import decode, resize

RULE = Geometry(160, 256)
SIZES = [(120, 200), (200, 120), (150, 150), (30, 40), (701, 903), (1000, 301), (20, 255), (160, 256)]


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_orientation_is_applied_as_pil_does(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = packed.encoded(packed.photograph(48, 64), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data), expected)


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
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_a_truncated_file_raises_instead_of_giving_grey_pixels(kind, cut):
    data = packed.encoded(packed.photograph(100, 100), kind)
    assert decode(data).shape == (100, 100, 3)
    with pytest.raises((ValueError, OSError, SyntaxError)):
        decode(data[:cut])


def test_a_file_that_lacks_only_its_last_bytes_is_refused_too():
    data = packed.encoded(packed.photograph(100, 100))
    with pytest.raises(OSError, match="truncated"):
        decode(data[:-400])


def test_the_first_picture_of_an_mpo_is_taken():
    """Phones write stereo and depth photographs so, and name them x.jpg."""
    file, pictures = io.BytesIO(), [packed.photograph(20, 30, seed) for seed in (0, 1)]
    first, second = (Image.fromarray(pixels) for pixels in pictures)
    first.save(file, "MPO", save_all=True, append_images=[second])
    near, far = (np.abs(decode(file.getvalue()).astype(int) - pixels).mean() for pixels in pictures)
    assert near < far / 2


def test_no_decoder_beyond_the_list_is_started():
    """An EPS named x.jpg would start Ghostscript."""
    for kind in ("EPS", "GIF", "PPM"):
        with pytest.raises(ValueError, match="not an image in the formats JPEG, "):
            decode(packed.encoded(packed.photograph(20, 20), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch, kind):
    """A JPEG of 40,000 x 40,000 needs 6.4 GB in each worker."""
    data = packed.encoded(packed.photograph(100, 101), kind)
    assert decode(data).shape == (100, 101, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(ValueError, match="101x100 is more than 10,000 pixels"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "grey PNG"])
@pytest.mark.parametrize("size", SIZES)
def test_the_saved_processor_reproduces_the_training_pixels_bit_for_bit(size, kind):
    """Bites with cv2's resize (1 to 14 levels off), another size, or a mean that is rounded another way."""
    colors = packed.photograph(*size)
    data = packed.encoded(colors[..., 0] if "grey" in kind else colors, kind.removeprefix("grey "))
    mean, std = [0.43, 0.411, 0.296], [0.213, 0.156, 0.143]
    edges = {"shortest_edge": RULE.shortest_edge, "longest_edge": RULE.longest_edge}
    processor = YolosImageProcessor(size=edges, image_mean=mean, image_std=std)
    stock = processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")  # as `pipeline` opens it
    sample = {"pixels": resize(decode(data), RULE.resized(*size)), "image_id": 1}
    ours = normalise(collate([sample]), mean, std)
    torch.testing.assert_close(ours["pixel_values"], stock["pixel_values"], rtol=0, atol=0)
    assert stock["pixel_mask"].all()
