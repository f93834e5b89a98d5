"""Damaged, lying and malicious image files: refused in one line, or read to a valid array.

Never a library's own traceback, a hang, memory out of proportion, or a silent replacement.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fx_d2.data.errors import DataError
from fx_d2.data.images import image_size, read_image, read_mask_image

SIDE = 48
# Of Python and NumPy; an intact file of this size takes under 1 MB.
MEMORY_BYTES = 24 << 20
# Against hangs, not slowness: CharLS takes seconds over some damaged JPEG-LS frames.
SECONDS = 60.0


def picture(dtype=np.uint8):
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    values = (np.sin(x / 7) * np.cos(y / 5) + 1) / 2
    noise = np.random.default_rng(0).normal(0, 0.03, (SIDE, SIDE))
    return ((values + noise).clip(0, 1) * (255 if dtype == np.uint8 else 4095)).astype(dtype)


def raster(suffix, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(picture())).save(buffer, suffix, **options)
    return buffer.getvalue()


def mha(compressed, **more):
    body = picture(np.uint16).tobytes()
    fields = {
        "ObjectType": "Image",
        "NDims": 2,
        "BinaryData": "True",
        "CompressedData": compressed,
        "DimSize": f"{SIDE} {SIDE}",
        "ElementType": "MET_USHORT",
        **more,
        "ElementDataFile": "LOCAL",
    }
    head = "".join(f"{k} = {v}\n" for k, v in fields.items()).encode()
    return head + (zlib.compress(body) if compressed else body)


def dicom_files():
    pydicom = pytest.importorskip("pydicom")
    from pydicom import uid
    from pydicom.encaps import encapsulate

    def dataset(pixels):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.UID("1.2.840.10008.5.1.4.1.1.7")
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3")
        ds.Rows = ds.Columns = SIDE
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.BitsAllocated = pixels.dtype.itemsize * 8
        ds.BitsStored = 8 if pixels.dtype == np.uint8 else 12
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = 0
        ds.WindowCenter, ds.WindowWidth = "2000", "3000"
        ds.RescaleSlope, ds.RescaleIntercept = "1", "0"
        ds.PixelData = pixels.tobytes()
        return ds

    def saved(ds):
        buffer = io.BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    files = {"dicom_raw": saved(dataset(picture(np.uint16)))}
    for name in ("RLELossless", "JPEGLSLossless", "JPEG2000Lossless"):
        ds = dataset(picture(np.uint16))
        ds.compress(getattr(uid, name), generate_instance_uid=False)
        files[f"dicom_{name}"] = saved(ds)
    ds = dataset(picture())
    ds.PixelData = encapsulate([raster("JPEG")])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    files["dicom_JPEGBaseline"] = saved(ds)
    ds = dataset(picture(np.uint16))
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    files["dicom_deflated"] = saved(ds)
    return files


def intact_files():
    palette = Image.fromarray(picture()).convert("P")
    palette.putpalette([v for i in range(256) for v in (255 - i, i, i)])
    files = {
        "grey.png": raster("PNG"),
        "deep.png": raster("PNG", Image.fromarray(picture(np.uint16))),
        "palette.png": raster("PNG", palette),
        "grey.jpg": raster("JPEG", quality=90),
        "colour.jpg": raster("JPEG", Image.fromarray(np.stack([picture()] * 3, -1))),
        "progressive.jpg": raster("JPEG", progressive=True),
        "grey.bmp": raster("BMP"),
        "mask.gif": raster("GIF", palette),
        "raw.mha": mha(False),
        "packed.mha": mha(True),
        "grey.png.gz": gzip.compress(raster("PNG"), mtime=0),
    }
    files.update({f"{name}.dcm": data for name, data in dicom_files().items()})
    return files


def mutations(name, data, rng):
    """(label, file name, bytes) of damaged copies: flips, truncations, insertions, wrong names."""
    stem, _suffix = name.split(".", 1)
    for n in range(5):
        at = rng.randrange(min(len(data), 400))
        yield f"header flip {at}", name, flipped(data, at, rng)
        at = rng.randrange(len(data))
        yield f"flip {at}", name, flipped(data, at, rng)
        del n
    for share in (0.02, 0.2, 0.5, 0.8, 0.97):
        yield f"cut to {share}", name, data[: int(len(data) * share)]
    yield "cut by one", name, data[:-1]
    at = rng.randrange(len(data))
    yield f"insertion at {at}", name, data[:at] + b"\0" + data[at:]
    yield "a block of zeros", name, data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :]
    yield "a block of ones", name, data[:60] + b"\xff" * 32 + data[92:]
    yield "another extension", f"{stem}.img", data
    yield "no extension", stem, data
    yield "trailing junk", name, data + b"junk" * 10


def flipped(data, at, rng):
    copy = bytearray(data)
    copy[at] ^= 1 << rng.randrange(8)
    return bytes(copy)


def lies(files):
    """Headers that claim what the file does not hold."""

    def png_sized(width, height):
        head = b"IHDR" + struct.pack(">II", width, height) + files["grey.png"][24:29]
        body = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        return files["grey.png"][:8] + body + files["grey.png"][33:]

    def replaced(name, old, new):
        assert files[name].count(old) >= 1, (name, old)
        return files[name].replace(old, new)

    def element(group, number, vr, value):
        return struct.pack("<HH", group, number) + vr + struct.pack("<HH", 2, value)

    rows, columns = element(0x28, 0x10, b"US", SIDE), element(0x28, 0x11, b"US", SIDE)
    raw = "dicom_raw.dcm"
    yield "PNG of 100k x 100k", "a.png", png_sized(100_000, 100_000)
    yield "PNG of 0 x 48", "a.png", png_sized(0, SIDE)
    yield "PNG larger than its data", "a.png", png_sized(SIDE, 1000)
    yield "PNG smaller than its data", "a.png", png_sized(SIDE + 1, SIDE)
    yield "PNG with a bomb as pixels", "a.png", png_bomb()
    yield "PNG with a text bomb", "a.png", png_text_bomb(files["grey.png"])
    sof = files["grey.jpg"].index(b"\xff\xc0")
    jpeg = files["grey.jpg"]
    yield "JPEG of 65k x 65k", "a.jpg", jpeg[: sof + 5] + b"\xff\xff\xff\xff" + jpeg[sof + 9 :]
    yield "JPEG of 0 rows", "a.jpg", jpeg[: sof + 5] + b"\0\0" + jpeg[sof + 7 :]
    bmp = files["grey.bmp"]
    yield "BMP of 2^31", "a.bmp", bmp[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bmp[26:]
    yield "BMP of negative width", "a.bmp", bmp[:18] + struct.pack("<i", -5) + bmp[22:]
    gif = files["mask.gif"]
    yield "GIF of 65k x 65k", "a.gif", gif[:6] + b"\xff\xff\xff\xff" + gif[10:]
    yield (
        "DICOM of 65k x 65k",
        "a.dcm",
        (
            files[raw]
            .replace(rows, element(0x28, 0x10, b"US", 65535))
            .replace(columns, element(0x28, 0x11, b"US", 65535))
        ),
    )
    yield "DICOM of 0 rows", "a.dcm", replaced(raw, rows, element(0x28, 0x10, b"US", 0))
    yield "DICOM rows as text", "a.dcm", replaced(raw, rows, rows.replace(b"US", b"CS"))
    yield (
        "DICOM rows as two numbers",
        "a.dcm",
        replaced(raw, rows, struct.pack("<HH2sHHH", 0x28, 0x10, b"US", 4, SIDE, SIDE)),
    )
    yield "DICOM without rows", "a.dcm", replaced(raw, rows, b"")
    yield "DICOM slope is text", "a.dcm", replaced(raw, b"DS\x02\x001 ", b"DS\x02\x00x ")
    yield (
        "DICOM of 4 GB of pixels",
        "a.dcm",
        replaced(
            raw,
            b"OW\0\0" + struct.pack("<I", SIDE * SIDE * 2),
            b"OW\0\0" + struct.pack("<I", 0xFFFFFFF0),
        ),
    )
    yield (
        "DICOM with unknown syntax",
        "a.dcm",
        replaced(raw, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"),
    )
    yield (
        "DICOM that is deflated by name only",
        "a.dcm",
        replaced(raw, b"\x14\x001.2.840.10008.1.2.1\0", b"\x16\x001.2.840.10008.1.2.1.99"),
    )
    j2k = "dicom_JPEG2000Lossless.dcm"
    at = files[j2k].index(b"\xff\x4f\xff\x51")
    for side in (SIDE + 1, 100_000, 0xFFFFFFFF):
        size = struct.pack(">II", side, side)
        lie = files[j2k][: at + 8] + size + files[j2k][at + 16 :]
        yield f"JPEG 2000 of {side}", "a.dcm", lie
    yield "JPEG 2000 of garbage", "a.dcm", files[j2k][: at + 60] + os.urandom(400)
    yield "JPEG 2000 without a start", "a.dcm", replaced(j2k, b"\xff\x4f\xff\x51", b"\0\0\0\0")
    rle = "dicom_RLELossless.dcm"
    at = files[rle].index(b"\xfe\xff\x00\xe0", files[rle].index(b"\xe0\x7f\x10\x00") + 20) + 8
    yield "RLE of garbage", "a.dcm", files[rle][: at + 64] + b"\x81" * (len(files[rle]) - at - 64)
    yield "RLE of 255 segments", "a.dcm", files[rle][:at] + b"\xff" * 64 + files[rle][at + 64 :]
    yield "DICOM nested 5,000 deep", "a.dcm", nested_sequences(files[raw], 5000)
    for size in ("100000 100000", "999999999 999999999", "1 1", "48 48 1", "1e3 4", "-1 -1"):
        yield f"MHA of {size}", "a.mha", mha(False, DimSize=size)
        yield f"packed MHA of {size}", "a.mha", mha(True, DimSize=size)
    yield "MHA bomb", "a.mha", mha(True)[:-100] + zlib.compress(bytes(64 << 20), 9)
    packed = mha(True)
    start = packed.index(b"LOCAL\n") + 6
    yield "MHA zlib bomb", "a.mha", packed[:start] + zlib.compress(bytes(64 << 20), 9)
    yield "MHA elsewhere", "a.mha", mha(False).replace(b"= LOCAL", b"= /etc/passwd")
    yield "MHA without an end", "a.mha", b"ObjectType = Image\n" + b"Comment = x\n" * 20_000
    yield "gzip bomb", "a.gz", gzip.compress(gzip.compress(bytes(8 << 20)))
    yield "JSRT too short", "JPCLN001.IMG", bytes(4096)
    yield "JSRT too long", "JPCLN001.IMG", bytes(2048 * 2048 * 2 + 1)
    yield "JSRT byte-swapped", "JPCLN001.IMG", np.full(2048 * 2048, 4000, "<u2").tobytes()
    yield "text as PNG", "a.png", b"<!DOCTYPE html><title>404</title>"
    yield "zeros as PNG", "a.png", bytes(1000)
    yield "zeros as DICOM", "a.dcm", bytes(1000)
    yield "only the DICOM mark", "a.dcm", bytes(128) + b"DICM"
    yield "nothing", "a.png", b""
    yield "one byte", "a.jpg", b"\xff"


def png_bomb():
    """A legal header over pixel data that would unpack to 64 MB."""
    data = zlib.compress(bytes(64 << 20), 9)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)), (b"IDAT", data)]
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in [*chunks, (b"IEND", b"")]:
        crc = struct.pack(">I", zlib.crc32(name + body))
        out += struct.pack(">I", len(body)) + name + body + crc
    return out


def png_text_bomb(png):
    body = b"Comment\0\0" + zlib.compress(bytes(64 << 20), 9)
    crc = struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return png[:33] + struct.pack(">I", len(body)) + b"zTXt" + body + crc + png[33:]


def nested_sequences(data, depth):
    start = data.index(b"\x28\x00\x02\x00US")
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return data[:start] + (sequence + item) * depth + data[start:]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every hostile file, written: [(label, path)]."""
    folder = tmp_path_factory.mktemp("hostile")
    rng = random.Random(20_24)
    files = intact_files()
    cases = []
    for name, data in files.items():
        cases += [(f"{name}: {what}", new, body) for what, new, body in mutations(name, data, rng)]
    cases += list(lies(files))
    written = []
    for n, (label, name, body) in enumerate(cases):
        path = folder / f"{n:03d}_{name}"
        path.write_bytes(body)
        written.append((label, path))
    return written


def check_image(loaded, path):
    pixels, facts = loaded.pixels, loaded.facts
    assert pixels.dtype == np.float32
    assert pixels.ndim == 2
    assert pixels.size >= 1
    assert np.isfinite(pixels).all()
    assert pixels.min() >= 0
    assert pixels.max() <= facts.max_value
    assert image_size(path) == pixels.shape


def attempt(reader, path):
    """The outcome of ``reader``: its result, or the DataError; anything else is a failure."""
    start = time.perf_counter()
    tracemalloc.start()
    try:
        return reader(path)
    except DataError as error:
        line = str(error)
        assert str(path) in line, line
        assert "\n" not in line
        assert "To do: " in line or "expected" in line, line
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY_BYTES, f"{peak} bytes"
        assert time.perf_counter() - start < SECONDS


def test_every_hostile_file_is_refused_or_valid(hostile, recwarn, capfd):
    """At least 160 damaged files over all formats; most are refused, none gets through wrong."""
    outcomes = Counter()
    for label, path in hostile:
        try:
            loaded = attempt(read_image, path)
            if isinstance(loaded, DataError):
                outcomes["refused"] += 1
            else:
                check_image(loaded, path)
                outcomes["valid"] += 1
            attempt(image_size, path)
            attempt(read_mask_image, path)
        except Exception as exc:
            raise AssertionError(f"{label} ({path.name}): {type(exc).__name__}: {exc}") from exc
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    with capfd.disabled():
        print(f"\n{len(hostile)} mutated image files: {dict(outcomes)}")
    assert len(hostile) >= 160
    assert outcomes["refused"] >= 160


def test_cut_files_are_never_filled_up(hostile):
    """A file that misses a fifth of its bytes has lost pixels: no format may hide that."""
    cut = [path for label, path in hostile if "cut to" in label]
    assert len(cut) > 60
    for path in cut:
        with pytest.raises(DataError):
            read_image(path)


def test_intact_files_are_read(tmp_path):
    """The counterpart: what the mutations start from is fine, so a refusal is due to the damage."""
    for name, data in intact_files().items():
        (tmp_path / name).write_bytes(data)
        check_image(read_image(tmp_path / name), tmp_path / name)


@pytest.mark.parametrize("name", ["grey.png", "deep.png", "packed.mha", "palette.png"])
def test_checksummed_pixels_are_never_read_wrong(tmp_path, name):
    """PNG and compressed MHA carry checksums: a flip in the pixels is noticed, every single one."""
    data = intact_files()[name]
    rng = random.Random(5)
    start = data.index(b"IDAT") + 4 if name.endswith("png") else data.index(b"LOCAL\n") + 6
    stop = len(data) - (16 if name.endswith("png") else 0)
    path = tmp_path / name
    for at in rng.sample(range(start, stop), 60):
        path.write_bytes(flipped(data, at, rng))
        with pytest.raises(DataError):
            read_image(path)


PROBE = """
import resource, sys
from fx_d2.data.errors import DataError
from fx_d2.data.images import image_size, read_image
read_image(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for path in sys.argv[2:]:
    for reader in (read_image, image_size):
        try:
            reader(path)
        except DataError:
            refused += 1
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs_cost_no_memory(hostile, tmp_path):
    """Counted by the operating system, so that allocations of the C libraries are included."""
    words = ("100k", "65k", "bomb", "2^31", "100000", "999999999", "4294967295", "4 GB")
    bombs = [str(path) for label, path in hostile if any(word in label for word in words)]
    assert len(bombs) >= 15
    (tmp_path / "a.dcm").write_bytes(dicom_files()["dicom_JPEG2000Lossless"])
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "a.dcm"), *bombs],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    refused, grown_kib = map(int, done.stdout.split())
    assert refused >= len(bombs)
    assert grown_kib < 96 << 10, f"{grown_kib >> 10} MiB"
