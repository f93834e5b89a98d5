"""DICOM as it is stored: transfer syntaxes, depth and sign, and what files leave out."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fx_d2.data.images import image_size, read_image

pydicom = pytest.importorskip("pydicom")
from dicom_files import HEIGHT, WIDTH, make_dataset, ramp, save  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_real_depth_is_kept_and_nothing_saturates(tmp_path, bits, photometric):
    stored = ramp(bits)
    path = save(make_dataset(stored, bits=bits, photometric=photometric), tmp_path / "a.dcm")
    loaded = read_image(path)
    expected = stored if photometric == "MONOCHROME2" else 2**bits - 1 - stored.astype(int)
    np.testing.assert_array_equal(loaded.pixels, expected)
    assert loaded.pixels.dtype == np.float32
    assert (loaded.facts.bits, loaded.facts.max_value) == (bits, 2**bits - 1)
    assert loaded.facts.inverted is (photometric == "MONOCHROME1")
    assert image_size(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
    ids=lambda uid: uid.keyword,
)
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_lossless_transfer_syntaxes_give_the_stored_values(tmp_path, syntax, bits, photometric):
    stored = ramp(bits, np.uint8 if bits == 8 else np.uint16)
    ds = make_dataset(stored, bits=bits, photometric=photometric)
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
        path = save(ds, tmp_path / "a")
    else:
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        path = save(ds, tmp_path / "a")
    loaded = read_image(path)
    expected = stored if photometric == "MONOCHROME2" else 2**bits - 1 - stored.astype(int)
    np.testing.assert_array_equal(loaded.pixels, expected)
    assert loaded.facts.transfer_syntax == str(syntax)
    assert image_size(path) == (HEIGHT, WIDTH)


def test_jpeg_baseline(tmp_path):
    stored = ramp(8, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "JPEG", quality=95)
    ds = make_dataset(stored)
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    assert np.abs(loaded.pixels - stored).max() < 12


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_lossless(tmp_path, bits):
    gdcm = pytest.importorskip("gdcm")
    stored = ramp(bits, np.uint8 if bits == 8 else np.uint16)
    plain = save(make_dataset(stored, bits=bits), tmp_path / "plain.dcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "lossless.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    loaded = read_image(tmp_path / "lossless.dcm")
    assert loaded.facts.transfer_syntax == str(JPEGLosslessSV1)
    np.testing.assert_array_equal(loaded.pixels, stored)


def test_deflated(tmp_path):
    stored = ramp(12)
    ds = make_dataset(stored, bits=12)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    path = save(ds, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_image(path).pixels, stored)
    assert image_size(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values_start_at_zero(tmp_path, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    stored = np.linspace(low, high, HEIGHT * WIDTH).round().reshape(HEIGHT, WIDTH)
    stored = stored.astype(np.int16)
    loaded = read_image(save(make_dataset(stored, bits=bits), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(loaded.pixels, stored.astype(int) - low)
    assert loaded.facts.max_value == 2**bits - 1
    assert loaded.facts.offset == -low


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless],
    ids=lambda uid: uid.keyword,
)
def test_more_bits_than_declared_widen_the_depth(tmp_path, syntax):
    stored = ramp(14)
    ds = make_dataset(stored, bits=14)
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
    ds.BitsStored, ds.HighBit = 12, 11
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(loaded.pixels, stored)
    assert (loaded.facts.bits, loaded.facts.max_value) == (14, 16383)
    assert any("BitsStored says 12" in note for note in loaded.facts.notes)


def test_an_overlay_in_the_unused_bits_is_no_pixel_value(tmp_path):
    stored = ramp(12)
    ds = make_dataset(stored | np.uint16(0x4000), bits=12)
    ds.add_new(0x60000102, "US", 14)
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(loaded.pixels, stored)
    assert loaded.facts.bits == 12


def test_signed_values_without_their_sign_in_the_unused_bits(tmp_path):
    stored = np.linspace(-2048, 2047, HEIGHT * WIDTH).round().reshape(HEIGHT, WIDTH)
    ds = make_dataset((stored.astype(np.int16) & 0x0FFF).astype(np.int16), bits=12)
    np.testing.assert_array_equal(read_image(save(ds, tmp_path / "a.dcm")).pixels, stored + 2048)


def test_what_is_left_out_in_practice(tmp_path):
    stored = ramp(12)
    ds = make_dataset(stored, bits=12)
    del ds.HighBit
    del ds.PixelRepresentation
    del ds.SamplesPerPixel
    np.testing.assert_array_equal(read_image(save(ds, tmp_path / "x.1")).pixels, stored)


@pytest.mark.parametrize("implicit", [True, False])
def test_no_preamble_and_no_meta(tmp_path, implicit):
    stored = ramp(12)
    ds = make_dataset(stored, bits=12)
    del ds.file_meta
    path = tmp_path / "bare"
    ds.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(read_image(path).pixels, stored)
    assert image_size(path) == (HEIGHT, WIDTH)
