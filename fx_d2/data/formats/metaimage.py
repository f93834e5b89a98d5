"""MetaImage ``.mha``: a text header, then the pixels, raw or zlib-compressed."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fx_d2.data.errors import DataError
from fx_d2.data.formats.contract import (
    ImageFacts,
    LoadedImage,
    OpenedFile,
    ReadLimits,
    check_extent,
    inflate,
)

_MAX_HEADER_BYTES = 1 << 16
_STARTS = re.compile(rb"\s{0,8}(ObjectType|NDims|Comment|ObjectSubType)\s{0,8}=", re.IGNORECASE)
_ELEMENT_TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


@dataclass(frozen=True)
class MetaHeader:
    """The fields of the header that decide how the pixels are stored."""

    height: int
    width: int
    dtype: np.dtype
    compressed: bool
    data_start: int


def looks_like(head: bytes) -> bool:
    """Whether ``head`` begins like a MetaImage header; the format has no magic number."""
    return _STARTS.match(head) is not None


def read_header(file: OpenedFile, limits: ReadLimits) -> MetaHeader:
    """Parse and check the header of a 2-D image, or of a 3-D one with a single slice."""
    fields, data_start = _fields(file)

    def bad(problem: str, expected: str) -> DataError:
        return DataError(
            problem, file=file.path, expected=expected, fix="convert it to a plain 2-D .mha"
        )

    sizes = _integers(fields, "DimSize", file.path)
    if fields.get("NDims", str(len(sizes))) != str(len(sizes)) or len(sizes) not in (2, 3):
        raise bad(
            f"NDims {fields.get('NDims')} with DimSize {fields['DimSize']}",
            "2 or 3 sizes, as NDims says",
        )
    check_extent(sizes[1], sizes[0], limits, file.path)
    if len(sizes) == 3 and sizes[2] != 1:
        raise bad(f"{sizes[2]} slices", "one")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise bad(f"{fields['ElementNumberOfChannels']} channels", "one")
    if fields.get("ElementDataFile", "").upper() != "LOCAL":
        raise bad(
            f"ElementDataFile {fields.get('ElementDataFile')}", "LOCAL (pixels in the same file)"
        )
    if fields.get("HeaderSize", "0") not in ("0", "-1"):
        raise bad(f"HeaderSize {fields['HeaderSize']}", "no HeaderSize")
    if fields.get("BinaryData", "True").lower() != "true":
        raise bad("ASCII pixel data", "BinaryData = True")
    element = fields.get("ElementType", "").upper()
    if element not in _ELEMENT_TYPES:
        raise bad(f"ElementType {fields.get('ElementType')}", ", ".join(_ELEMENT_TYPES))
    big_endian = any(
        fields.get(key, "False").lower() == "true"
        for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    )
    return MetaHeader(
        height=sizes[1],
        width=sizes[0],
        dtype=np.dtype((">" if big_endian else "<") + _ELEMENT_TYPES[element]),
        compressed=fields.get("CompressedData", "False").lower() == "true",
        data_start=data_start,
    )


def _fields(file: OpenedFile) -> tuple[dict[str, str], int]:
    head = file.head(_MAX_HEADER_BYTES)
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", position)
        if end < 0:
            raise DataError(
                "the MetaImage header has no ElementDataFile line",
                file=file.path,
                fix="the file is truncated or damaged: download it again",
            )
        key, equals, value = head[position:end].decode("latin-1").partition("=")
        if not equals:
            raise DataError(
                f"MetaImage header line {key!r}", file=file.path, expected="Key = value"
            )
        fields[key.strip()] = value.strip()
        position = end + 1
    return fields, position


def _integers(fields: dict[str, str], key: str, path: str) -> list[int]:
    text = fields.get(key, "")
    # isascii: int() also takes other scripts' digits; the length bound keeps the product small.
    parts = text.split()
    if not parts or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise DataError(
            f"{key} is {text!r}", file=path, expected="whole numbers", fix="download it again"
        )
    return [int(part) for part in parts]


def decode(file: OpenedFile, limits: ReadLimits) -> LoadedImage:
    """Grey pixels; values that may be negative are shifted by the type's smallest one."""
    header = read_header(file, limits)
    raw = _pixel_bytes(file, header)
    stored = np.frombuffer(raw, dtype=header.dtype, count=header.height * header.width)
    pixels, bits, max_value, offset = _to_grey(
        stored.reshape(header.height, header.width), file.path
    )
    facts = ImageFacts(
        format="mha",
        bits=bits,
        max_value=max_value,
        height=header.height,
        width=header.width,
        mode=header.dtype.newbyteorder("=").name,
        offset=offset,
    )
    return LoadedImage(pixels, facts)


def _pixel_bytes(file: OpenedFile, header: MetaHeader) -> bytes:
    expected = header.height * header.width * header.dtype.itemsize
    file.stream.seek(header.data_start)
    raw = file.stream.read()
    if header.compressed:
        try:
            raw = inflate(raw, expected)
        except OverflowError as exc:
            raise _wrong_length(file, f"more than {expected}", expected) from exc
        except (zlib.error, EOFError) as exc:
            raise DataError(
                f"compressed pixel data is damaged: {exc}", file=file.path, fix="download it again"
            ) from exc
    if len(raw) != expected:
        raise _wrong_length(file, str(len(raw)), expected)
    return raw


def _wrong_length(file: OpenedFile, found: str, expected: int) -> DataError:
    return DataError(
        f"{found} bytes of pixels",
        file=file.path,
        expected=f"{expected}, as DimSize and ElementType say",
        fix="the file is truncated or its header is wrong: download it again",
    )


def _to_grey(stored: npt.NDArray, path: str) -> tuple[npt.NDArray[np.float32], int, float, float]:
    """(pixels, bits, max_value, offset) of stored values (H, W)."""
    bits = stored.dtype.itemsize * 8
    if stored.dtype.kind == "f":
        lowest, highest = float(stored.min()), float(stored.max())
        if (
            not np.isfinite([lowest, highest]).all()
            or max(abs(lowest), abs(highest)) > np.finfo(np.float32).max / 4
        ):
            raise DataError(
                f"pixel values from {lowest} to {highest}",
                file=path,
                expected="finite numbers",
                fix="the file is damaged: download it again",
            )
    elif bits <= 16:
        info = np.iinfo(stored.dtype)
        # Signed types usually hold plain non-negative values; those stay as they are.
        lowest = float(info.min) if stored.min() < 0 else 0.0
        return (
            (stored.astype(np.float32) - np.float32(lowest)),
            bits,
            float(info.max) - lowest,
            -lowest,
        )
    else:
        lowest, highest = float(stored.min()), float(stored.max())
    # Floats and 32-bit integers declare no depth: the range in the file is all there is to go by.
    lowest = min(lowest, 0.0)
    pixels = (stored.astype(np.float64) - lowest).astype(np.float32)
    return pixels, bits, float(pixels.max()) or 1.0, -lowest
