"""Mask files: what counts as foreground in every mode they are stored in."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from fx_d2.data.images import read_mask_image

MASK = np.zeros((23, 31), bool)
MASK[5:9, 7:20] = True


@pytest.mark.parametrize("value", [1, 2, 128, 255])
@pytest.mark.parametrize("suffix", ["png", "gif", "bmp"])
def test_masks_with_any_value_above_zero(tmp_path, value, suffix):
    Image.fromarray(MASK * np.uint8(value)).save(tmp_path / f"m.{suffix}")
    np.testing.assert_array_equal(read_mask_image(tmp_path / f"m.{suffix}"), MASK)


@pytest.mark.parametrize("colour", [(0, 0, 3), (200, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_coloured_masks(tmp_path, colour, mode):
    image = Image.fromarray(MASK[..., None] * np.array(colour, np.uint8))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask_image(tmp_path / "m.png"), MASK)


def test_the_palette_decides_not_the_index(tmp_path):
    image = Image.fromarray(np.where(MASK, 0, 1).astype(np.uint8)).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    for suffix in ("png", "gif"):
        image.save(tmp_path / f"m.{suffix}")
        np.testing.assert_array_equal(read_mask_image(tmp_path / f"m.{suffix}"), MASK)


def test_alpha_is_no_mask(tmp_path):
    image = Image.fromarray(MASK * np.uint8(255)).convert("LA")
    image.putalpha(Image.fromarray(~MASK * np.uint8(255)))
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask_image(tmp_path / "m.png"), MASK)


def test_one_bit_and_16_bit_masks(tmp_path):
    Image.fromarray(MASK).save(tmp_path / "1.png")
    Image.fromarray(MASK * np.uint16(1)).save(tmp_path / "16.png")
    for name in ("1.png", "16.png"):
        np.testing.assert_array_equal(read_mask_image(tmp_path / name), MASK)


def test_jpeg_masks_do_not_ring(tmp_path):
    mask = cv2.resize(MASK.astype(np.uint8), None, fx=8, fy=8, interpolation=0)
    Image.fromarray(mask * np.uint8(255)).save(tmp_path / "m.jpg", quality=60)
    found = read_mask_image(tmp_path / "m.jpg")
    assert (found != mask.astype(bool)).mean() < 0.002
