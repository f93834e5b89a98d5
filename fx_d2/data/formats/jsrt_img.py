"""JSRT ``.IMG``: 2048 x 2048 big-endian uint16, no header, 12 bit, stored as a negative."""

from __future__ import annotations

import numpy as np

from fx_d2.data.errors import DataError
from fx_d2.data.formats.contract import (
    ImageFacts,
    LoadedImage,
    OpenedFile,
    ReadLimits,
    check_extent,
)

SIDE_PX = 2048
N_BYTES = SIDE_PX * SIDE_PX * 2
MAX_VALUE = 4095


def size(file: OpenedFile, limits: ReadLimits) -> tuple[int, int]:
    """(height, width); there is no header, so the length of the file has to be right."""
    if file.size != N_BYTES:
        raise DataError(
            f"a JSRT .IMG of {file.size} bytes",
            file=file.path,
            expected=f"{N_BYTES} bytes ({SIDE_PX} x {SIDE_PX}, 16 bit)",
            fix="download it again, or rename it if it is no JSRT image",
        )
    check_extent(SIDE_PX, SIDE_PX, limits, file.path)
    return SIDE_PX, SIDE_PX


def decode(file: OpenedFile, limits: ReadLimits) -> LoadedImage:
    """Grey pixels, 4095 - stored."""
    size(file, limits)
    stored = np.frombuffer(file.everything(), dtype=">u2").reshape(SIDE_PX, SIDE_PX)
    highest = int(stored.max())
    if highest > MAX_VALUE:
        raise DataError(
            f"a JSRT .IMG with the value {highest}",
            file=file.path,
            expected=f"big-endian values from 0 to {MAX_VALUE}",
            fix="the file is damaged or byte-swapped: use the original download",
        )
    pixels = np.subtract(MAX_VALUE, stored, dtype=np.float32)
    facts = ImageFacts(
        format="jsrt",
        bits=12,
        max_value=float(MAX_VALUE),
        height=SIDE_PX,
        width=SIDE_PX,
        mode="uint16",
        inverted=True,
    )
    return LoadedImage(pixels, facts)
