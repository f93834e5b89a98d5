"""What is shown of a radiograph by its lung mask, and the way back to its pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_d2.data.lung_input import (
    CROPPING_MODES,
    LUNG_MODES,
    LungCrop,
    LungMaskError,
    lung_crop_box,
    prepare_lungs,
)


@pytest.fixture
def film() -> tuple[np.ndarray, np.ndarray]:
    """A film 60 x 100 without black pixels, and two lungs from (20, 10) to (80, 50)."""
    image = np.random.default_rng(0).uniform(0.1, 1, (60, 100)).astype(np.float32)
    mask = np.zeros((60, 100), dtype=bool)
    mask[10:50, 20:40] = mask[10:50, 60:80] = True
    return image, mask


def test_each_mode_shows_what_it_says(film):
    image, mask = film
    before = image.copy()
    shown = {mode: prepare_lungs(image, mask, mode) for mode in LUNG_MODES}
    whole, box = (0, 0, 100, 60), (17, 8, 83, 52)  # 5 % of 60 and of 40 pixels more on each side
    for mode, crop in shown.items():
        assert crop.mode == mode and crop.box == (box if mode in CROPPING_MODES else whole)
        assert crop.image.shape == (crop.box[3] - crop.box[1], crop.box[2] - crop.box[0])
        assert crop.image.dtype == np.float32
    x0, y0, x1, y1 = box
    assert np.array_equal(shown["none"].image, before)
    assert np.array_equal(shown["mask"].image, np.where(mask, before, 0))
    assert np.array_equal(shown["background"].image, np.where(mask, 0, before))
    assert np.array_equal(shown["crop"].image, before[y0:y1, x0:x1])
    assert np.array_equal(shown["mask+crop"].image, np.where(mask, before, 0)[y0:y1, x0:x1])
    frame = before.copy()
    frame[y0:y1, x0:x1] = 0
    assert np.array_equal(shown["frame"].image, frame)
    assert np.array_equal(image, before), "the image was changed in place"


def test_margin_fill_and_least_size(film):
    image, mask = film
    assert prepare_lungs(image, mask, "crop", 0.0).box == (20, 10, 80, 50)
    assert prepare_lungs(image, mask, "crop", 1.0).box == (0, 0, 100, 60)
    assert (prepare_lungs(image, mask, "mask", fill=0.5).image[~mask] == 0.5).all()
    dot = np.zeros_like(mask)
    dot[0, 99] = True  # a stray pixel in the corner: the box stays within the image
    assert prepare_lungs(image, dot, "crop").box == (84, 0, 100, 16)
    assert prepare_lungs(image, dot, "crop", min_side_px=80).box == (20, 0, 100, 60)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 50))
def test_the_box_holds_the_mask_and_lies_within(seed: int, margin: float, least: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    mask = rng.random((height, width)) < 0.1
    mask[rng.integers(height), rng.integers(width)] = True
    x0, y0, x1, y1 = lung_crop_box(mask, margin, least)
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    assert x1 - x0 >= min(least, width) and y1 - y0 >= min(least, height)


def test_a_bright_square_comes_back_to_its_place(film):
    """Through crop and resize: the map of the network's input, put back, covers the square."""
    image, mask = film
    crop = prepare_lungs(image, mask, "mask+crop")
    x0, y0, x1, y1 = crop.box
    square = np.zeros((60, 100), dtype=np.float32)
    square[20:30, 62:78] = 1
    network = np.kron(square[y0:y1, x0:x1], np.ones((4, 4), dtype=np.float32))  # 4 times larger
    back = crop.map_in_original(network, 60, 100)
    assert back.shape == (60, 100) and np.array_equal(back > 0.5, square > 0.5)
    corners = [[(62 - x0) * 4, (20 - y0) * 4], [(78 - x0) * 4, (30 - y0) * 4]]
    found = crop.points_in_original(corners, network.shape)
    assert np.allclose(found, [[62, 20], [78, 30]])
    coarse = LungCrop(image, (0, 0, 100, 60), "none").map_in_original(np.ones((2, 2)), 60, 100)
    assert np.allclose(coarse, 1)
    assert (crop.map_in_original(network, 60, 100, outside=-1)[:y0] == -1).all()
    grains = np.zeros((240, 400), dtype=np.float32)
    grains[::4, ::4] = 1  # a finer map is averaged, so that none of it is lost between two pixels
    fine = LungCrop(image, (0, 0, 100, 60), "none").map_in_original(grains, 60, 100)
    assert np.allclose(fine, 1 / 16)
    with pytest.raises(ValueError, match=r"leaves an original of 40 x 40"):
        crop.map_in_original(network, 40, 40)


@pytest.mark.parametrize("mode", [m for m in LUNG_MODES if m != "none"])
def test_masks_that_cannot_be_used(film, mode):
    image, mask = film
    with pytest.raises(LungMaskError, match="the lung mask is empty"):
        prepare_lungs(image, np.zeros_like(mask), mode)
    with pytest.raises(LungMaskError, match=r"61 x 100; expected 60 x 100, the image's size"):
        prepare_lungs(image, np.ones((61, 100), dtype=bool), mode)
    with pytest.raises(LungMaskError, match="no lung mask"):
        prepare_lungs(image, None, mode)
    assert prepare_lungs(image, None, "none").box == (0, 0, 100, 60)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "backgroud"}, "Did you mean 'background'"),
        ({"margin": 1.5}, "margin 1.5"),
        ({"fill": -0.1}, "fill -0.1"),
        ({"min_side_px": 0}, "min_side_px 0"),
    ],
)
def test_wrong_settings(film, given, said):
    with pytest.raises(ValueError, match=said):
        prepare_lungs(*film, **({"mode": "mask"} | given))
