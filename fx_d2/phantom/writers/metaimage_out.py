"""MetaImage ``.mha`` files of 16-bit grey images, plain or compressed."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np


def write_mha(path: Path, stored: np.ndarray, *, compressed: bool = False) -> None:
    """Write uint16 (H, W), little-endian, with the header ITK writes."""
    data = np.ascontiguousarray(stored, dtype="<u2").tobytes()
    packed = zlib.compress(data, 2) if compressed else data
    height, width = stored.shape
    lines = [
        "ObjectType = Image",
        "NDims = 2",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {compressed}",
        *([f"CompressedDataSize = {len(packed)}"] if compressed else []),
        "TransformMatrix = 1 0 0 1",
        "Offset = 0 0",
        "CenterOfRotation = 0 0",
        "ElementSpacing = 1 1",
        f"DimSize = {width} {height}",
        "ElementType = MET_USHORT",
        "ElementDataFile = LOCAL",
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode("ascii") + packed)
