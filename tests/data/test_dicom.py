"""DICOM to grey: transfer syntaxes, polarity, depth, windows, and what is refused."""

from __future__ import annotations

import builtins
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from fx_d2.data.errors import DataError
from fx_d2.data.formats.contract import ReadLimits
from fx_d2.data.images import image_size, read_image

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
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

HEIGHT, WIDTH = 37, 52


def make_dataset(pixels, *, bits=None, photometric="MONOCHROME2", **elements):
    """A minimal radiograph around ``pixels`` (H, W), uint8 / uint16 / int16."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.SOPInstanceUID = "1.2.3.4"
    ds.Modality = "DX"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.PixelData = pixels.tobytes()
    return ds


def save(ds, path, **kwargs):
    ds.save_as(path, enforce_file_format=True, **kwargs)
    return path


def ramp(bits, dtype=np.uint16):
    """All depths of grey, including both ends."""
    values = np.linspace(0, 2**bits - 1, HEIGHT * WIDTH).round().reshape(HEIGHT, WIDTH)
    return values.astype(dtype)


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


def test_deflated_bomb_is_refused_before_it_is_unpacked(tmp_path):
    ds = make_dataset(ramp(8, np.uint8))
    path = save(ds, tmp_path / "a.dcm")
    whole = path.read_bytes()
    start = whole.index(b"\x08\x00\x16\x00UI")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    meta = whole[:start].replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.1.99")
    meta = meta.replace(struct.pack("<H", 20) + b"1.2.8", struct.pack("<H", 22) + b"1.2.8")
    path.write_bytes(meta + bomb)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.dcm.*unpacks to more than"):
        read_image(path, limits=ReadLimits(max_file_bytes=4 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


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


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values_start_at_zero(tmp_path, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    stored = np.linspace(low, high, HEIGHT * WIDTH).round().reshape(HEIGHT, WIDTH)
    stored = stored.astype(np.int16)
    loaded = read_image(save(make_dataset(stored, bits=bits), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(loaded.pixels, stored.astype(int) - low)
    assert loaded.facts.max_value == 2**bits - 1
    assert loaded.facts.offset == -low


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


def test_colour_becomes_luminance(tmp_path):
    grey = ramp(8, np.uint8)
    ds = make_dataset(np.stack([grey] * 3, axis=-1), photometric="RGB")
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(loaded.pixels, grey)
    assert loaded.facts.n_samples == 3
    assert any("luminance" in note for note in loaded.facts.notes)


@pytest.mark.parametrize(
    "elements, message",
    [
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"SamplesPerPixel": 3}, "3 samples"),
        ({"BitsStored": 17}, "BitsStored 17"),
        ({"BitsAllocated": 32}, "BitsAllocated 32"),
        ({"PixelRepresentation": 7}, "PixelRepresentation 7"),
        ({"Rows": 0}, "height 0"),
        ({"RescaleSlope": 0}, "RescaleSlope 0"),
        ({"Rows": 65535, "Columns": 65535}, "at most"),
        ({"Rows": 38}, "bytes"),
    ],
)
def test_what_is_refused(tmp_path, elements, message):
    ds = make_dataset(ramp(12), bits=12)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    path = save(ds, tmp_path / "a.dcm")
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bomb_header_costs_no_memory(tmp_path):
    ds = make_dataset(ramp(8, np.uint8))
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    path = save(ds, tmp_path / "bomb.dcm")
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")
    data[start + 8 : start + 16] = struct.pack(">II", 100_000, 100_000)
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DataError, match="100000 x 100000"):
        read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_frame_of_another_size_is_refused(tmp_path):
    ds = make_dataset(ramp(8, np.uint8))
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    ds.Rows, ds.Columns = WIDTH, HEIGHT
    with pytest.raises(DataError, match="as the DICOM header says"):
        read_image(save(ds, tmp_path / "a.dcm"))


def test_missing_decoder_names_the_extra_and_the_syntax(tmp_path, monkeypatch):
    ds = make_dataset(ramp(8, np.uint8))
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    path = save(ds, tmp_path / "a.dcm")
    from pydicom.pixels.decoders import JPEG2000LosslessDecoder

    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {})
    with pytest.raises(DataError, match=r"JPEG 2000.*fx_d2\[dicom\]"):
        read_image(path)


def test_missing_pydicom_names_the_extra(tmp_path, monkeypatch):
    path = save(make_dataset(ramp(8, np.uint8)), tmp_path / "a.dcm")
    import importlib

    original = importlib.import_module

    def without_pydicom(name, package=None):
        if name.startswith("pydicom"):
            raise ImportError(name)
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", without_pydicom)
    with pytest.raises(DataError, match=r"a\.dcm.*pydicom is not installed.*fx_d2\[dicom\]"):
        read_image(path)


def test_reading_a_png_does_not_import_pydicom(tmp_path, monkeypatch):
    Image.fromarray(ramp(8, np.uint8)).save(tmp_path / "a.png")
    original = builtins.__import__

    def without_pydicom(name, *args, **kwargs):
        assert not name.startswith("pydicom")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pydicom)
    assert read_image(tmp_path / "a.png").pixels.shape == (HEIGHT, WIDTH)


def test_library_warnings_become_notes_not_output(tmp_path, recwarn, capfd):
    ds = make_dataset(ramp(8, np.uint8))
    ds.PixelData = ds.PixelData + bytes(100)
    loaded = read_image(save(ds, tmp_path / "a.dcm"))
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
    assert any("bytes" in note for note in loaded.facts.notes)
