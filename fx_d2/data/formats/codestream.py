"""The size a compressed DICOM frame gives itself: a small header cannot hide a huge image."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_J2K_START = b"\xff\x4f\xff\x51"


@dataclass(frozen=True)
class FrameHeader:
    """Size, depth and number of components of one compressed frame."""

    height: int
    width: int
    bits: int
    n_components: int


def frame_header(frame: bytes) -> FrameHeader | None:
    """Read the header of a JPEG, JPEG-LS or JPEG 2000 frame; None for anything else."""
    if frame[:4] == b"\x00\x00\x00\x0c":
        start = frame.find(_J2K_START, 0, 4096)
        frame = frame[start:] if start > 0 else b""
    if frame[:4] == _J2K_START:
        return _jpeg_2000(frame)
    if frame[:2] == b"\xff\xd8":
        return _jpeg(frame)
    return None


def _jpeg_2000(frame: bytes) -> FrameHeader | None:
    if len(frame) < 43:
        return None
    right, bottom, left, top = struct.unpack(">4I", frame[8:24])
    (n_components,) = struct.unpack(">H", frame[40:42])
    return FrameHeader(bottom - top, right - left, (frame[42] & 0x7F) + 1, n_components)


def _jpeg(frame: bytes) -> FrameHeader | None:
    position = 2
    while position + 10 <= len(frame):
        if frame[position] != 0xFF:
            return None
        marker = frame[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _JPEG_FRAME_MARKERS:
            bits, height, width, n_components = struct.unpack(
                ">BHHB", frame[position + 4 : position + 10]
            )
            return FrameHeader(height, width, bits, n_components)
        (length,) = struct.unpack(">H", frame[position + 2 : position + 4])
        position += 2 + max(length, 2)
    return None
