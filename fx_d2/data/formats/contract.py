"""What every format module takes and gives: an opened file in, grey pixels and facts out."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fx_d2.data.errors import DataError

VOI_POLICIES = ("auto", "ignore")


@dataclass(frozen=True)
class ReadLimits:
    """What a file may cost; checked from headers, before anything is allocated.

    Args:
        max_pixels: height times width. The largest radiographs are about 25 megapixels.
        max_file_bytes: size on disk, and size after decompression of a gzipped file.
    """

    max_pixels: int = 100_000_000
    max_file_bytes: int = 1 << 30


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True)
class ImageFacts:
    """What the file says about its own pixels.

    Args:
        format: ``png``, ``jpeg``, ``bmp``, ``gif``, ``dicom``, ``mha`` or ``jsrt``.
        bits: real depth (DICOM BitsStored, PNG bit depth, 12 for JSRT), not the depth of the
            container.
        max_value: largest value the pixels can take; they lie in ``[0, max_value]``.
        height, width: of the file's image, after EXIF orientation. A cached copy has fewer pixels.
        mode: how the pixels are stored (a Pillow mode, or an element type such as ``uint16``).
        photometric: ``MONOCHROME1`` / ``MONOCHROME2`` (DICOM), ``grey``, ``colour`` or ``palette``.
        inverted: the stored values were flipped so that bright means dense.
        exif_orientation: 1 to 8; 1 when there is none. Already applied to the pixels.
        window: (centre, width) of the first VOI window in the file, used or not.
        voi: what was applied: ``none``, ``lut`` or ``window``.
        n_samples: samples per stored pixel; more than one was turned into luminance.
        clipped_low, clipped_high: share of the pixels outside the applied window.
        padded: share of the pixels that carry the DICOM padding value; they are set to 0.
        offset: added to the native values to make the smallest possible one 0.
        transfer_syntax: DICOM transfer syntax UID.
        notes: what the libraries warned of, and what was decided here.
    """

    format: str
    bits: int
    max_value: float
    height: int
    width: int
    mode: str
    photometric: str = "grey"
    inverted: bool = False
    exif_orientation: int = 1
    window: tuple[float, float] | None = None
    voi: str = "none"
    n_samples: int = 1
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    padded: float = 0.0
    offset: float = 0.0
    transfer_syntax: str | None = None
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class LoadedImage:
    """``pixels`` float32 (H, W) in ``[0, facts.max_value]``, bright = dense, and their facts."""

    pixels: npt.NDArray[np.float32]
    facts: ImageFacts


@dataclass(frozen=True)
class OpenedFile:
    """A regular file opened for reading; ``path`` is for messages, ``name`` has the extension."""

    path: str
    name: str
    stream: BinaryIO
    size: int

    @property
    def suffix(self) -> str:
        """The extension in lower case, with its dot."""
        return os.path.splitext(self.name)[1].lower()

    def head(self, n_bytes: int) -> bytes:
        """The first ``n_bytes``; the stream is left at its start."""
        self.stream.seek(0)
        data = self.stream.read(n_bytes)
        self.stream.seek(0)
        return data

    def everything(self) -> bytes:
        """All bytes of the file."""
        self.stream.seek(0)
        return self.stream.read(self.size)


class _ClippedReader(io.BufferedReader):
    """Never asks for more bytes than the file has, whatever a length field in it says."""

    def __init__(self, raw: io.FileIO, size: int) -> None:
        super().__init__(raw)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], limits: ReadLimits) -> Iterator[OpenedFile]:
    """Open a regular, non-empty file of bounded size; gzipped content is unpacked within it too."""
    shown_path = os.fspath(path)
    if not isinstance(shown_path, str):
        raise TypeError(f"path must be str or a path of str, not {type(shown_path).__name__}")
    try:
        # Before open(): opening a named pipe would wait for a writer that never comes.
        info = os.stat(shown_path)
        if stat.S_ISREG(info.st_mode):
            raw = io.FileIO(shown_path, "r")
    except (OSError, ValueError) as exc:
        raise _not_openable(shown_path, exc) from exc
    if not stat.S_ISREG(info.st_mode):
        what = "a directory" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        raise DataError(
            f"this is {what}", file=shown_path, expected="an image file", fix="name the file itself"
        )
    with _ClippedReader(raw, info.st_size) as stream:
        if info.st_size == 0:
            raise DataError("the file is empty (0 bytes)", file=shown_path, fix="download it again")
        if info.st_size > limits.max_file_bytes:
            raise DataError(
                f"the file has {info.st_size} bytes",
                file=shown_path,
                expected=f"at most {limits.max_file_bytes} bytes",
                fix="check that it is an image, or raise ReadLimits.max_file_bytes",
            )
        head = _head(stream, shown_path)
        if head.startswith(b"\x1f\x8b\x08"):
            inner = _gunzip(stream, shown_path, limits.max_file_bytes)
            name = shown_path[:-3] if shown_path.lower().endswith(".gz") else shown_path
            yield OpenedFile(shown_path, name, io.BytesIO(inner), len(inner))
        else:
            yield OpenedFile(shown_path, shown_path, stream, info.st_size)


def _head(stream: BinaryIO, path: str) -> bytes:
    try:
        head = stream.read(3)
        stream.seek(0)
    except OSError as exc:
        raise _not_openable(path, exc) from exc
    return head


def _not_openable(path: str, exc: Exception) -> DataError:
    if isinstance(exc, FileNotFoundError):
        return DataError(
            "no such file", file=path, fix="check the data root and that the download is complete"
        )
    if isinstance(exc, PermissionError):
        return DataError(
            "permission denied", file=path, fix="make the file readable for this user (chmod u+r)"
        )
    return DataError(f"cannot be opened: {exc}", file=path, fix="check the path and the disk")


def _gunzip(stream: BinaryIO, path: str, max_bytes: int) -> bytes:
    packed = stream.read()
    try:
        return inflate(packed, max_bytes, wbits=zlib.MAX_WBITS | 16)
    except (zlib.error, EOFError) as exc:
        raise DataError(f"gzip data is damaged: {exc}", file=path, fix="download it again") from exc
    except OverflowError as exc:
        raise DataError(
            f"gzip data unpacks to more than {max_bytes} bytes",
            file=path,
            fix="check that it is an image, or raise ReadLimits.max_file_bytes",
        ) from exc


def inflate(packed: bytes, max_bytes: int, *, wbits: int = zlib.MAX_WBITS) -> bytes:
    """Decompress at most ``max_bytes``.

    Raises:
        OverflowError: there is more than that.
        EOFError: the stream ends early.
        zlib.error: it is not a zlib stream.
    """
    unpacker = zlib.decompressobj(wbits)
    data = unpacker.decompress(packed, max_bytes)
    if not unpacker.eof:
        # A stream of exactly max_bytes may still need its trailer read.
        if unpacker.decompress(unpacker.unconsumed_tail, 1):
            raise OverflowError(f"more than {max_bytes} bytes")
        if not unpacker.eof:
            raise EOFError("the compressed data ends early")
    return data


def check_extent(height: int, width: int, limits: ReadLimits, path: str) -> None:
    """Refuse a size that is not positive or beyond the limit, before it is allocated."""
    if height < 1 or width < 1:
        raise DataError(
            f"the header says height {height}, width {width}",
            file=path,
            expected="both at least 1",
            fix="the file is damaged: download it again",
        )
    if height * width > limits.max_pixels:
        raise DataError(
            f"the header claims {height} x {width} pixels",
            file=path,
            expected=f"at most {limits.max_pixels} pixels",
            fix="the file is damaged or hostile; if it is real, raise ReadLimits.max_pixels",
        )


@contextlib.contextmanager
def refusing(
    path: str, doing: str, fix: str = "the file is damaged: download it again"
) -> Iterator[None]:
    """Turn whatever a library raises on untrusted bytes into a :class:`DataError`."""
    try:
        yield
    except DataError:
        raise
    # Decoders raise anything on damaged input: struct.error, SyntaxError, KeyError, OverflowError,
    # RecursionError ...
    except Exception as exc:
        raise DataError(f"{doing} failed: {type(exc).__name__}: {exc}", file=path, fix=fix) from exc
