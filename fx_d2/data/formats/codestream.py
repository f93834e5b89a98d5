"""What a compressed DICOM frame would decode to, worked out without decoding it.

A small header must not hide a huge image, and some decoders answer a damaged frame by growing
without bound or by aborting in a way that Python cannot catch as an ordinary exception.
"""

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


def rle_segment_lengths(frame: bytes, n_segments: int, at_most: int) -> list[int]:
    """Unpacked length of every segment of a DICOM RLE frame.

    Args:
        frame: 64 bytes of header (count and offsets), then the segments (PackBits).
        n_segments: how many there have to be.
        at_most: a longer one is not followed to its end.

    Raises:
        ValueError: the header or a segment is damaged.
    """
    if len(frame) < 64:
        raise ValueError("the RLE header is cut off")
    count, *offsets = struct.unpack("<16I", frame[:64])
    if count != n_segments:
        raise ValueError(f"{count} RLE segments instead of {n_segments}")
    bounds = [*offsets[:count], len(frame)]
    if bounds[0] != 64 or any(a >= b for a, b in zip(bounds, bounds[1:], strict=False)):
        raise ValueError("the RLE segment offsets are out of order")
    return [
        _packbits_length(frame, *pair, at_most) for pair in zip(bounds, bounds[1:], strict=False)
    ]


def _packbits_length(data: bytes, position: int, end: int, at_most: int) -> int:
    total = 0
    # A last byte on its own is the padding that makes the length even.
    while position < end - 1:
        count = data[position]
        if count < 128:
            total += count + 1
            position += count + 2
        elif count > 128:
            total += 257 - count
            position += 2
        else:
            position += 1
        if total > at_most:
            raise ValueError(f"an RLE segment unpacks to more than {at_most} bytes")
    if position > end:
        raise ValueError("an RLE segment is cut off")
    return total
