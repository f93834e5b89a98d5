"""Image files of every format, intact, damaged and lying, as bytes."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

SIDE = 48


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
    """Headers that claim what the file does not hold: (label, file name, bytes)."""
    yield from lies_of_png(files["grey.png"])
    yield from lies_of_other_rasters(files)
    yield from lies_of_dicom(files["dicom_raw.dcm"])
    yield from lies_of_packed_dicom(files)
    yield from lies_of_mha()
    yield from lies_of_names()


def replaced(data, old, new):
    assert old in data, old
    return data.replace(old, new)


def lies_of_png(png):
    def sized(width, height):
        head = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
        body = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        return png[:8] + body + png[33:]

    yield "PNG of 100k x 100k", "a.png", sized(100_000, 100_000)
    yield "PNG of 0 x 48", "a.png", sized(0, SIDE)
    yield "PNG larger than its data", "a.png", sized(SIDE, 1000)
    yield "PNG smaller than its data", "a.png", sized(SIDE + 1, SIDE)
    yield "PNG with a bomb as pixels", "a.png", png_bomb()
    yield "PNG with a text bomb", "a.png", png_text_bomb(png)


def lies_of_other_rasters(files):
    sof = files["grey.jpg"].index(b"\xff\xc0")
    jpeg = files["grey.jpg"]
    yield "JPEG of 65k x 65k", "a.jpg", jpeg[: sof + 5] + b"\xff\xff\xff\xff" + jpeg[sof + 9 :]
    yield "JPEG of 0 rows", "a.jpg", jpeg[: sof + 5] + b"\0\0" + jpeg[sof + 7 :]
    bmp = files["grey.bmp"]
    yield "BMP of 2^31", "a.bmp", bmp[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bmp[26:]
    yield "BMP of negative width", "a.bmp", bmp[:18] + struct.pack("<i", -5) + bmp[22:]
    gif = files["mask.gif"]
    yield "GIF of 65k x 65k", "a.gif", gif[:6] + b"\xff\xff\xff\xff" + gif[10:]


def lies_of_dicom(raw):
    def element(group, number, vr, value):
        return struct.pack("<HH", group, number) + vr + struct.pack("<HH", 2, value)

    rows, columns = element(0x28, 0x10, b"US", SIDE), element(0x28, 0x11, b"US", SIDE)
    yield (
        "DICOM of 65k x 65k",
        "a.dcm",
        replaced(
            replaced(raw, rows, element(0x28, 0x10, b"US", 65535)),
            columns,
            element(0x28, 0x11, b"US", 65535),
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
    yield "DICOM nested 5,000 deep", "a.dcm", nested_sequences(raw, 5000)


def lies_of_packed_dicom(files):
    j2k = files["dicom_JPEG2000Lossless.dcm"]
    at = j2k.index(b"\xff\x4f\xff\x51")
    for side in (SIDE + 1, 100_000, 0xFFFFFFFF):
        size = struct.pack(">II", side, side)
        lie = j2k[: at + 8] + size + j2k[at + 16 :]
        yield f"JPEG 2000 of {side}", "a.dcm", lie
    yield "JPEG 2000 of garbage", "a.dcm", j2k[: at + 60] + os.urandom(400)
    yield "JPEG 2000 without a start", "a.dcm", replaced(j2k, b"\xff\x4f\xff\x51", b"\0\0\0\0")
    rle = files["dicom_RLELossless.dcm"]
    at = rle.index(b"\xfe\xff\x00\xe0", rle.index(b"\xe0\x7f\x10\x00") + 20) + 8
    yield "RLE of garbage", "a.dcm", rle[: at + 64] + b"\x81" * (len(rle) - at - 64)
    yield "RLE of 255 segments", "a.dcm", rle[:at] + b"\xff" * 64 + rle[at + 64 :]


def lies_of_mha():
    for size in ("100000 100000", "999999999 999999999", "1 1", "48 48 1", "1e3 4", "-1 -1"):
        yield f"MHA of {size}", "a.mha", mha(False, DimSize=size)
        yield f"packed MHA of {size}", "a.mha", mha(True, DimSize=size)
    yield "MHA bomb", "a.mha", mha(True)[:-100] + zlib.compress(bytes(64 << 20), 9)
    packed = mha(True)
    start = packed.index(b"LOCAL\n") + 6
    yield "MHA zlib bomb", "a.mha", packed[:start] + zlib.compress(bytes(64 << 20), 9)
    yield "MHA elsewhere", "a.mha", mha(False).replace(b"= LOCAL", b"= /etc/passwd")
    yield "MHA without an end", "a.mha", b"ObjectType = Image\n" + b"Comment = x\n" * 20_000


def lies_of_names():
    """Files that are not what their name says, and files that are next to nothing."""
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
