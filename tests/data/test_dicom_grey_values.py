"""From stored values of a DICOM to grey: polarity, windows, tables, padding, colour."""

from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.images import read_image

pydicom = pytest.importorskip("pydicom")
from dicom_files import make_dataset, ramp, save  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402


def test_monochrome1_and_monochrome2_copies_are_one_image(tmp_path):
    stored = ramp(12)
    negative = (4095 - stored).astype(np.uint16)
    a = save(make_dataset(stored, bits=12), tmp_path / "a.dcm")
    b = save(make_dataset(negative, bits=12, photometric="MONOCHROME1"), tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_image(a).pixels, read_image(b).pixels)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope, intercept", [(1, 0), (1, -1024), (0.37, 12), (-2, 5)])
def test_windowed_copies_are_one_image(tmp_path, function, slope, intercept):
    stored = ramp(12)
    centre, width = 1500 * slope + intercept, 900.0
    # Seen from the other end of the range, the same window. LINEAR has its half pixel.
    ends = intercept, 4095 * slope + intercept
    mirrored = sum(ends) - centre + (1 if function == "LINEAR" else 0)
    common = {
        "bits": 12,
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "VOILUTFunction": function,
    }
    a = make_dataset(stored, WindowCenter=centre, WindowWidth=width, **common)
    b = make_dataset(
        (4095 - stored).astype(np.uint16),
        photometric="MONOCHROME1",
        WindowCenter=mirrored,
        WindowWidth=width,
        **common,
    )
    one = read_image(save(a, tmp_path / "a.dcm"))
    two = read_image(save(b, tmp_path / "b.dcm"))
    assert one.facts.voi == "window"
    assert one.pixels.max() > one.pixels.min()
    if slope == 1:
        np.testing.assert_array_equal(one.pixels, two.pixels)
    else:
        np.testing.assert_allclose(one.pixels, two.pixels, atol=1e-3 * one.facts.max_value)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_agrees_with_pydicom(tmp_path, function):
    from pydicom.pixels import apply_windowing

    stored = ramp(12)
    ds = make_dataset(
        stored,
        bits=12,
        WindowCenter=[2000.0, 1.0],
        WindowWidth=[1000.0, 2.0],
        VOILUTFunction=function,
    )
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    expected = apply_windowing(stored, ds, index=0)
    np.testing.assert_allclose(loaded.pixels, expected, atol=0.01)
    assert loaded.facts.window == (2000.0, 1000.0)
    if function != "SIGMOID":
        assert loaded.facts.clipped_low == pytest.approx((stored < 1500).mean(), abs=0.002)
        assert loaded.facts.clipped_high == pytest.approx((stored > 2500).mean(), abs=0.002)


def test_voi_can_be_ignored(tmp_path):
    stored = ramp(12)
    path = save(make_dataset(stored, bits=12, WindowCenter=2000, WindowWidth=100), tmp_path / "a")
    loaded = read_image(path, voi="ignore")
    np.testing.assert_array_equal(loaded.pixels, stored)
    assert loaded.facts.voi == "none"
    assert loaded.facts.window == (2000, 100)
    assert read_image(path).facts.clipped_high > 0.4


@pytest.mark.parametrize(
    "centre, width", [(1000, 0), (1000, -5), (99999, 10), (-5000, 10), ("NaN", 10)]
)
def test_senseless_windows_are_ignored_and_noted(tmp_path, centre, width):
    stored = ramp(12)
    ds = make_dataset(stored, bits=12)
    with pydicom.config.disable_value_validation():
        ds.add_new("WindowCenter", "DS", str(centre))
        ds.add_new("WindowWidth", "DS", str(width))
        path = save(ds, tmp_path / "a.dcm")
    loaded = read_image(path)
    np.testing.assert_array_equal(loaded.pixels, stored)
    assert loaded.facts.voi == "none"
    assert any("ignored" in note for note in loaded.facts.notes)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_voi_lut_goes_before_the_window(tmp_path, photometric):
    stored = ramp(8, np.uint8)
    item = Dataset()
    item.LUTDescriptor = [256, 0, 12]
    item["LUTDescriptor"].VR = "US"
    table = (np.arange(256, dtype=np.uint32) ** 2 * 4095 // 255**2).astype(np.uint16)
    item.add_new("LUTData", "OW", table.tobytes())
    ds = make_dataset(stored, photometric=photometric, WindowCenter=10, WindowWidth=5)
    ds.VOILUTSequence = [item]
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    expected = table[stored] / 4095 * 255
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    np.testing.assert_allclose(loaded.pixels, expected, atol=1e-3)
    assert loaded.facts.voi == "lut"


def test_modality_lut(tmp_path):
    stored = ramp(8, np.uint8)
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item["LUTDescriptor"].VR = "US"
    table = (np.arange(256) * 200).astype(np.uint16)
    item.add_new("LUTData", "OW", table.tobytes())
    item.ModalityLUTType = "US"
    ds = make_dataset(stored)
    ds.ModalityLUTSequence = [item]
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(loaded.pixels, table[stored])
    assert loaded.facts.max_value == 65535


def test_rescale_keeps_its_units(tmp_path):
    stored = ramp(12)
    ds = make_dataset(stored, bits=12, RescaleSlope=0.5, RescaleIntercept=-100)
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(loaded.pixels, stored * 0.5)
    assert loaded.facts.max_value == 2047.5
    assert loaded.facts.offset == 100


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_whatever_the_polarity(tmp_path, photometric):
    stored = ramp(12)
    stored[:5] = 4000
    stored[5, :10] = 4001
    ds = make_dataset(
        stored,
        bits=12,
        photometric=photometric,
        PixelPaddingValue=4000,
        PixelPaddingRangeLimit=4001,
    )
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    padding = (stored == 4000) | (stored == 4001)
    assert not loaded.pixels[padding].any()
    assert loaded.pixels[~padding].max() > 3000
    assert loaded.facts.padded == pytest.approx(padding.mean())


def test_colour_becomes_luminance(tmp_path):
    grey = ramp(8, np.uint8)
    ds = make_dataset(np.stack([grey] * 3, axis=-1), photometric="RGB")
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(loaded.pixels, grey)
    assert loaded.facts.n_samples == 3
    assert any("luminance" in note for note in loaded.facts.notes)
