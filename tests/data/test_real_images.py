"""The real samples through read_image; skipped where they are absent.

They are looked for in ``$FX_D2_REAL_SAMPLES``, or in ``shared/real`` beside the repository.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fx_d2.data.images import image_size, read_image, read_mask_image
from fx_d2.data.intensity import normalise

REAL = Path(os.environ.get("FX_D2_REAL_SAMPLES") or Path(__file__).parents[3] / "shared" / "real")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real samples in {REAL}"),
]


def files(pattern):
    found = sorted(REAL.glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} in {REAL}")
    return found


@pytest.mark.parametrize(
    "pattern", ["covid19_seg/images/*", "nih14/images/*.png", "tbx11k/**/*.png", "siim_acr/*.dcm"]
)
def test_every_image_is_read(pattern):
    for path in files(pattern):
        loaded = read_image(path)
        assert image_size(path) == loaded.pixels.shape
        assert loaded.pixels.min() >= 0
        assert loaded.pixels.max() <= loaded.facts.max_value
        assert loaded.pixels.std() > 0.02 * loaded.facts.max_value
        grey = normalise(loaded)
        assert grey.min() == 0
        assert grey.max() == 1


@pytest.mark.parametrize("pattern", ["nih14/images/*.png", "tbx11k/**/*.png"])
def test_png_values_are_the_stored_ones(pattern):
    for path in files(pattern):
        stored = np.asarray(Image.open(path))
        stored = stored if stored.ndim == 2 else stored[..., 0]
        np.testing.assert_array_equal(read_image(path).pixels, stored)


def test_a_chest_is_dark_where_the_lungs_are():
    """Upright and not inverted: the air outside is darkest, lungs darker than the mediastinum."""
    paths = files("nih14/images/*.png") + files("tbx11k/**/*.png")
    for path in paths:
        grey = normalise(read_image(path))
        height, width = grey.shape
        rows = slice(int(height * 0.35), int(height * 0.6))
        middle = grey[rows, int(width * 0.45) : int(width * 0.58)].mean()
        left = grey[rows, int(width * 0.2) : int(width * 0.35)].mean()
        right = grey[rows, int(width * 0.65) : int(width * 0.8)].mean()
        assert min(left, right) < middle, path.name


def test_the_flagged_siim_copy_is_the_complement():
    """Only its tag was changed, not its pixels: so the two arrays mirror each other exactly."""
    pytest.importorskip("pydicom")
    loaded = {read_image(p).facts.photometric: read_image(p) for p in files("siim_acr/*.dcm")}
    plain, flagged = loaded["MONOCHROME2"], loaded["MONOCHROME1"]
    np.testing.assert_array_equal(flagged.pixels, 255 - plain.pixels)
    assert (plain.facts.bits, plain.facts.inverted, flagged.facts.inverted) == (8, False, True)
    assert plain.pixels.shape == (1024, 1024)


def test_masks_fit_into_their_images():
    """A mask of the COVID set is a crop that is placed at (Left, Top)."""
    (table,) = files("covid19_seg/structure.csv")
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("Mask")]
    n_checked = 0
    for row in rows:
        mask_path = REAL / "covid19_seg" / "masks" / os.path.basename(row["Mask"])
        image_path = REAL / "covid19_seg" / "images" / os.path.basename(row["Filename"])
        if not (mask_path.is_file() and image_path.is_file()):
            continue
        mask = read_mask_image(mask_path)
        height, width = image_size(image_path)
        assert mask.any()
        assert int(float(row["Top"])) + mask.shape[0] <= height + 1
        assert int(float(row["Left"])) + mask.shape[1] <= width + 1
        n_checked += 1
    assert n_checked > 200
