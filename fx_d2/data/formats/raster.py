"""PNG, JPEG, BMP and GIF: grey, palette or colour, 1 to 16 bit.

Pillow decodes, because it refuses truncated files; OpenCV fills the missing rows with grey and says
nothing. Only 16-bit colour PNG goes to OpenCV, since Pillow keeps 8 of its 16 bits; the file's
checksums are verified before.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from fx_d2.data.errors import DataError
from fx_d2.data.formats.contract import (
    ImageFacts,
    LoadedImage,
    OpenedFile,
    ReadLimits,
    check_extent,
    refusing,
)

_ORIENTATION_TAG = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_8 = ("1", "L", "LA")
_COLOUR_8 = ("RGB", "RGBA", "RGBX", "P", "PA")
_GREY_16 = ("I;16", "I;16L", "I;16B", "I")
_PNG_COLOUR_TYPES = {0: "grey", 2: "colour", 3: "palette", 4: "grey", 6: "colour"}


@dataclass(frozen=True)
class PngHeader:
    """What a PNG says before its pixels, and its EXIF block wherever it stands."""

    height: int
    width: int
    depth: int
    colour_type: int
    exif: bytes | None


def size(file: OpenedFile, kind: str, limits: ReadLimits) -> tuple[int, int]:
    """(height, width) after EXIF orientation, from the header."""
    if kind == "png":
        header = read_png_header(file, limits, verify=False)
        height, width = header.height, header.width
        orientation = _orientation_of_exif(header.exif)
    else:
        with refusing(file.path, f"reading the {kind.upper()} header"):
            image = Image.open(file.stream, formats=[kind.upper()])
            width, height = image.size
            check_extent(height, width, limits, file.path)
            orientation = _orientation(image)
    return (width, height) if orientation >= 5 else (height, width)


def decode(file: OpenedFile, kind: str, limits: ReadLimits, notes: list[str]) -> LoadedImage:
    """Grey pixels of a PNG, JPEG, BMP or GIF, turned upright as its EXIF orientation says."""
    if kind == "png":
        header = read_png_header(file, limits, verify=True)
        orientation = _orientation_of_exif(header.exif)
        if header.depth == 16 and header.colour_type in (2, 4, 6):
            grey, mode, n_samples = _decode_png_16_colour(file, header)
        else:
            grey, mode, n_samples, _ = _decode_pillow(file, kind, limits)
        bits, photometric = header.depth, _PNG_COLOUR_TYPES[header.colour_type]
    else:
        grey, mode, n_samples, orientation = _decode_pillow(file, kind, limits)
        bits = 1 if mode == "1" else 8
        photometric = (
            "palette" if mode in ("P", "PA") else "colour" if mode in _COLOUR_8 else "grey"
        )
    if photometric == "palette":
        bits = 8
    if n_samples in (2, 4):
        notes.append("the alpha channel is ignored")
    max_value = 65535.0 if grey.dtype == np.uint16 else 255.0
    pixels = np.ascontiguousarray(_upright(grey, orientation), dtype=np.float32)
    facts = ImageFacts(
        format=kind,
        bits=bits,
        max_value=max_value,
        height=pixels.shape[0],
        width=pixels.shape[1],
        mode=mode,
        photometric=photometric,
        exif_orientation=orientation,
        n_samples=n_samples,
        notes=tuple(notes),
    )
    return LoadedImage(pixels, facts)


def _decode_pillow(
    file: OpenedFile, kind: str, limits: ReadLimits
) -> tuple[npt.NDArray, str, int, int]:
    with refusing(file.path, f"decoding the {kind.upper()}"):
        image = _open(file, kind, limits)
        mode, n_samples = image.mode, len(image.getbands())
        orientation = 1 if kind == "png" else _orientation(image)
        if mode == "RGB" and kind == "jpeg":
            # libjpeg then hands out the luma it stores, without a detour through colour.
            image.draft("L", image.size)
        image.load()
        if mode in _GREY_16:
            return _to_uint16(image, file.path), mode, n_samples, orientation
        if mode in _GREY_8 or mode in _COLOUR_8:
            return (
                np.asarray(image if image.mode == "L" else image.convert("L")),
                mode,
                n_samples,
                orientation,
            )
    raise DataError(
        f"the pixel mode {mode} is not a radiograph's",
        file=file.path,
        expected="grey, RGB, RGBA or palette",
        fix="convert the file to 8 or 16 bit grey",
    )


def _open(file: OpenedFile, kind: str, limits: ReadLimits) -> Image.Image:
    image = Image.open(file.stream, formats=[kind.upper()])
    check_extent(image.height, image.width, limits, file.path)
    if kind == "gif" and getattr(image, "is_animated", False):
        raise DataError(
            "the GIF has several frames", file=file.path, expected="one", fix="save a single frame"
        )
    return image


def _to_uint16(image: Image.Image, path: str) -> npt.NDArray[np.uint16]:
    values = np.asarray(image)
    if values.dtype.itemsize > 2:
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"values from {values.min()} to {values.max()}",
                file=path,
                expected="0 to 65535",
                fix="save as 16 bit grey",
            )
        return values.astype(np.uint16)
    return values.astype("=u2", copy=False)


def _decode_png_16_colour(
    file: OpenedFile, header: PngHeader
) -> tuple[npt.NDArray[np.uint16], str, int]:
    with refusing(file.path, "decoding the 16-bit PNG"):
        array = cv2.imdecode(np.frombuffer(file.everything(), np.uint8), cv2.IMREAD_UNCHANGED)
        if (
            array is None
            or array.dtype != np.uint16
            or array.shape[:2] != (header.height, header.width)
        ):
            raise DataError(
                "OpenCV cannot decode this 16-bit PNG", file=file.path, fix="save it as 16 bit grey"
            )
    n_samples = {2: 3, 4: 2, 6: 4}[header.colour_type]
    mode = {2: "RGB;16", 4: "LA;16", 6: "RGBA;16"}[header.colour_type]
    blue, green, red = array[..., 0], array[..., 1], array[..., 2]
    if np.array_equal(blue, green) and np.array_equal(green, red):
        return np.ascontiguousarray(green), mode, n_samples
    luma = 0.299 * red.astype(np.float32) + 0.587 * green + 0.114 * blue
    return np.clip(np.rint(luma), 0, 65535).astype(np.uint16), mode, n_samples


def read_png_header(file: OpenedFile, limits: ReadLimits, *, verify: bool) -> PngHeader:
    """Walk the chunks: size and depth first, then EXIF, which may stand before or after the pixels.

    Args:
        file: an opened PNG.
        limits: refused beyond these.
        verify: also check the CRC of every critical chunk, which Pillow skips for pixel data,
            so that a damaged file is refused instead of being decoded to something else.
    """
    stream = file.stream
    stream.seek(len(_PNG_SIGNATURE))
    name, body, intact = _png_chunk(file, wanted=None)
    if name != b"IHDR" or body is None or len(body) != 13 or not intact:
        raise DataError("the PNG header is damaged", file=file.path, fix="download it again")
    header = _png_header(body, file.path, limits)
    exif: bytes | None = None
    seen_data = False
    while name != b"IEND":
        name, body, intact = _png_chunk(file, wanted=None if verify else b"eXIf")
        critical = not name[0] & 0x20
        if critical and not intact:
            raise DataError(
                f"checksum of PNG chunk {name!r} is wrong",
                file=file.path,
                fix="the file is damaged: download it again",
            )
        if name == b"eXIf" and intact:
            exif = body
        seen_data = seen_data or name == b"IDAT"
    stream.seek(0)
    if not seen_data:
        raise DataError("the PNG has no pixel data", file=file.path, fix="download it again")
    return replace(header, exif=exif)


def _png_chunk(file: OpenedFile, *, wanted: bytes | None) -> tuple[bytes, bytes | None, bool]:
    """(name, body, checksum is right) of the next chunk; skipped unless ``wanted`` or None."""
    stream = file.stream
    start = stream.read(8)
    if len(start) < 8:
        raise DataError(
            "the PNG ends before its end marker",
            file=file.path,
            fix="the file is truncated: download it again",
        )
    length, name = struct.unpack(">I4s", start)
    if length > file.size - stream.tell() - 4:
        raise DataError(
            f"PNG chunk {name!r} claims {length} bytes, more than the file holds",
            file=file.path,
            fix="the file is truncated or damaged: download it again",
        )
    if wanted is not None and name != wanted:
        stream.seek(length + 4, io.SEEK_CUR)
        return name, None, True
    body = stream.read(length)
    checksum = int.from_bytes(stream.read(4), "big")
    return name, body, zlib.crc32(body, zlib.crc32(name)) == checksum


def _png_header(body: bytes, path: str, limits: ReadLimits) -> PngHeader:
    width, height, depth, colour_type = struct.unpack(">IIBB", body[:10])
    check_extent(height, width, limits, path)
    if colour_type not in _PNG_COLOUR_TYPES or depth not in (1, 2, 4, 8, 16):
        raise DataError(
            f"PNG colour type {colour_type} with {depth} bits does not exist",
            file=path,
            fix="download it again",
        )
    return PngHeader(height, width, depth, colour_type, None)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    # EXIF is an untrusted TIFF of its own; a broken one says nothing about the pixels, which stay
    # as they are.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orientation_of_exif(block: bytes | None) -> int:
    if not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        value = exif.get(_ORIENTATION_TAG, 1)
    # As above.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(grey: npt.NDArray, orientation: int) -> npt.NDArray:
    """Undo what EXIF orientation 1 to 8 says was done to ``grey`` (H, W)."""
    if orientation >= 5:
        grey = grey.T
    if orientation in (2, 3, 6, 7):
        # 2: mirrored; 3: half turn; after the transpose 6 and 7 need left and right exchanged.
        grey = grey[:, ::-1]
    if orientation in (3, 4, 7, 8):
        grey = grey[::-1]
    return grey


def decode_mask(file: OpenedFile, kind: str, limits: ReadLimits) -> npt.NDArray[np.bool_]:
    """Foreground of a mask image, (H, W): whatever is not black; for JPEG, brighter than half."""
    if kind == "png":
        orientation = _orientation_of_exif(read_png_header(file, limits, verify=True).exif)
    with refusing(file.path, f"decoding the {kind.upper()} mask"):
        image = _open(file, kind, limits)
        if kind != "png":
            orientation = _orientation(image)
        image.load()
        if image.mode in _COLOUR_8:
            # Not the luminance: a class drawn in dark blue would round to 0.
            # Band by band, because max(axis=-1) takes 50 times as long.
            red, green, blue = (np.asarray(band) for band in image.convert("RGB").split())
            values = np.maximum(np.maximum(red, green), blue)
        elif image.mode == "LA":
            values = np.asarray(image)[..., 0]
        else:
            values = np.asarray(image)
    # JPEG rings around the edge of a mask: small values outside it are no foreground.
    foreground = values > 127 if kind == "jpeg" else values > 0
    return np.ascontiguousarray(_upright(foreground, orientation))
