"""What DICOM is refused, in one line and at little cost, and what is missing to read one."""

from __future__ import annotations

import builtins
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from fx_d2.data.errors import DataError
from fx_d2.data.formats.contract import ReadLimits
from fx_d2.data.images import read_image

pydicom = pytest.importorskip("pydicom")
from dicom_files import HEIGHT, WIDTH, make_dataset, ramp, save  # noqa: E402
from pydicom.uid import (  # noqa: E402
    JPEG2000Lossless,
    JPEGLSLossless,
)


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
