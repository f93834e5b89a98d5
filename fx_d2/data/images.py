"""Any image file to a float32 grey array with its real depth, and the facts about it.

The content of a file decides what it is, then its extension. Training, evaluation and prediction
all read through here, so that one normalisation (:mod:`fx_d2.data.intensity`) means the same
everywhere.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from fx_d2.data.errors import DataError, shown
from fx_d2.data.formats import dicom, jsrt_img, metaimage, raster
from fx_d2.data.formats.contract import (
    DEFAULT_LIMITS,
    VOI_POLICIES,
    ImageFacts,
    LoadedImage,
    OpenedFile,
    ReadLimits,
    opened,
    refusing,
)
from fx_d2.data.formats.quiet import collecting_notes

__all__ = ["ImageFacts", "LoadedImage", "ReadLimits", "image_size", "read_image", "read_mask_image"]

_RASTERS = ("png", "jpeg", "bmp", "gif")
_SUPPORTED = "PNG, JPEG, BMP, GIF, DICOM, MetaImage .mha or JSRT .IMG"
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)


def read_image(
    path: str | os.PathLike[str], *, limits: ReadLimits = DEFAULT_LIMITS, voi: str = "auto"
) -> LoadedImage:
    """Read one radiograph.

    Args:
        path: a PNG, JPEG, BMP, GIF, DICOM, MetaImage ``.mha`` or JSRT ``.IMG`` file, or one of
            them gzipped.
        limits: what the file may cost; see :class:`ReadLimits`.
        voi: ``auto`` applies the DICOM VOI LUT, or else the first window, when there is a
            sensible one and scales its result to ``[0, max_value]``; ``ignore`` keeps the modality
            values.

    Returns:
        ``pixels`` float32 (H, W) in native units, bright = dense, within ``[0, facts.max_value]``,
        and ``facts``.

    Raises:
        DataError: the file cannot be read as what it is; nothing is ever replaced silently.
    """
    if voi not in VOI_POLICIES:
        raise ValueError(f"voi is {voi!r}; allowed: {', '.join(VOI_POLICIES)}")
    with opened(path, limits) as file, collecting_notes() as notes:
        kind = _kind(file)
        with refusing(file.path, f"reading the {kind} file"):
            if kind == "dicom":
                return dicom.decode(file, limits, notes, voi)
            if kind == "mha":
                return metaimage.decode(file, limits)
            if kind == "jsrt":
                return jsrt_img.decode(file, limits)
            return raster.decode(file, kind, limits, notes)


def image_size(
    path: str | os.PathLike[str], *, limits: ReadLimits = DEFAULT_LIMITS
) -> tuple[int, int]:
    """(height, width) as :func:`read_image` would give them, from the header only."""
    with opened(path, limits) as file, collecting_notes():
        kind = _kind(file)
        with refusing(file.path, f"reading the header of the {kind} file"):
            if kind == "dicom":
                return dicom.size(file, limits)
            if kind == "mha":
                header = metaimage.read_header(file, limits)
                return header.height, header.width
            if kind == "jsrt":
                return jsrt_img.size(file, limits)
            return raster.size(file, kind, limits)


def read_mask_image(
    path: str | os.PathLike[str], *, limits: ReadLimits = DEFAULT_LIMITS
) -> npt.NDArray[np.bool_]:
    """Foreground (H, W) of a PNG, GIF, BMP or JPEG mask: whatever is not black (JPEG: above half).

    A colour or palette entry counts by its brightest channel; an alpha channel is ignored.
    """
    with opened(path, limits) as file, collecting_notes():
        kind = _kind(file)
        if kind not in _RASTERS:
            raise DataError(
                f"a mask as {kind} file", file=file.path, expected="PNG, GIF, BMP or JPEG"
            )
        with refusing(file.path, f"reading the {kind} mask"):
            return raster.decode_mask(file, kind, limits)


def _kind(file: OpenedFile) -> str:
    """What the content is; the extension decides only where a format has no mark of its own."""
    with refusing(file.path, "reading the file", fix="check the disk"):
        head = file.head(1024)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return "bmp"
    if dicom.looks_like(head):
        return "dicom"
    if metaimage.looks_like(head):
        return "mha"
    if file.suffix == ".img":
        return "jsrt"
    raise DataError(
        f"not an image: it begins with {shown(repr(head[:12]))}",
        file=file.path,
        expected=_SUPPORTED,
        fix="the file is damaged or something else: download it again",
    )
