"""The single pass over image files: some numbers and a thumbnail per image, never the pixels.

Everything that needs decoded pixels is measured here, in worker processes, so that 100,000 images
cost one read each; the checks then work on the table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..images import image_size, read_image
from ..processes import worker_pool
from .mask_facts import MaskFact, MaskJob, measure_mask

THUMB_PX = 32
HASH_BITS = 64
_SAMPLE_PX = 512  # statistics are taken on a grid of about this many points per side

Thumb = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FileFacts:
    """What one image file turned out to be.

    Args:
        error: why it cannot be read, else None; the other fields then keep their defaults.
        missing: there is no such file.
        height, width: of the pixels, after EXIF orientation.
        bits, mode, photometric, exif: as the file states them.
        max_value: largest value the format can hold.
        low, high: smallest and largest pixel.
        share_low, share_high: share of the pixels at the end of the scale.
        clipped_low, clipped_high: share of the pixels outside the file's own display window.
        n_levels: number of different grey values.
        thumb: (32, 32) uint8, stretched between the 1st and 99th percentile; None without pixels.
        hash: 64 signs of the thumbnail's cosine transform.
    """

    error: str | None = None
    missing: bool = False
    height: int = 0
    width: int = 0
    bits: int = 0
    mode: str = ""
    photometric: str = ""
    exif: int = 1
    max_value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    share_low: float = 0.0
    share_high: float = 0.0
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    n_levels: int = 0
    thumb: Thumb | None = None
    hash: int = 0


@dataclass(frozen=True)
class Job:
    """One file to look at and the masks that belong to it."""

    path: str
    decode: bool
    masks: tuple[MaskJob, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The facts of one :class:`Job`, in the order of its masks."""

    file: FileFacts
    masks: tuple[MaskFact, ...] = ()


def thumbnail(pixels: npt.NDArray[np.float32], size_px: int = THUMB_PX) -> Thumb:
    """Area-mean thumbnail, stretched so that exposure does not matter; a constant image gives 0."""
    step = max(1, min(pixels.shape) // _SAMPLE_PX)
    low, high = np.percentile(pixels[::step, ::step], (1, 99))
    small = cv2.resize(pixels, (size_px, size_px), interpolation=cv2.INTER_AREA)
    if high <= low:
        return np.zeros((size_px, size_px), dtype=np.uint8)
    return np.round(np.clip((small - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def perceptual_hash(thumb: Thumb) -> int:
    """64 bits: low cosine coefficients above their median; small edits move few bits."""
    spectrum = cv2.dct(thumb.astype(np.float32))[:9, :9].ravel()[1 : HASH_BITS + 1]
    bits = spectrum > np.median(spectrum)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def look_at_file(path: str, decode: bool) -> FileFacts:
    """Facts of one image; a file that cannot be read gives its error, never an exception."""
    try:
        if not decode:
            height, width = image_size(path)
            return FileFacts(height=height, width=width)
        loaded = read_image(path)
    except DataError as exc:
        return FileFacts(error=str(exc), missing=exc.problem == "no such file")
    pixels, facts = loaded.pixels, loaded.facts
    step = max(1, min(pixels.shape) // _SAMPLE_PX)
    sample = pixels[::step, ::step]
    thumb = thumbnail(pixels)
    return FileFacts(
        height=facts.height,
        width=facts.width,
        bits=facts.bits,
        mode=facts.mode,
        photometric=facts.photometric,
        exif=facts.exif_orientation,
        max_value=facts.max_value,
        low=float(pixels.min()),
        high=float(pixels.max()),
        share_low=float((sample <= 0.002 * facts.max_value).mean()),
        share_high=float((sample >= 0.998 * facts.max_value).mean()),
        clipped_low=facts.clipped_low,
        clipped_high=facts.clipped_high,
        n_levels=len(np.unique(sample)),
        thumb=thumb,
        hash=perceptual_hash(thumb),
    )


def run_job(job: Job) -> Outcome:
    """Look at a file and its masks."""
    facts = look_at_file(job.path, job.decode)
    size = (facts.height, facts.width)
    return Outcome(facts, tuple(measure_mask(mask, size) for mask in job.masks))


def _run_batch(jobs: list[Job]) -> list[Outcome]:
    cv2.setNumThreads(1)
    return [run_job(job) for job in jobs]


def look_at_all(jobs: Iterable[Job], workers: int, batch: int = 16) -> Iterator[Outcome]:
    """Outcomes in the order of ``jobs``; memory is bounded by a few batches per worker.

    Args:
        jobs: made lazily.
        workers: processes; 0 works in this one.
        batch: jobs handed over at a time.
    """
    if workers <= 0:
        yield from map(run_job, jobs)
        return
    with worker_pool(workers) as pool:
        waiting: deque[Future[list[Outcome]]] = deque()
        chunk: list[Job] = []
        try:
            for job in jobs:
                chunk.append(job)
                if len(chunk) < batch:
                    continue
                waiting.append(pool.submit(_run_batch, chunk))
                chunk = []
                if len(waiting) >= 4 * workers:
                    yield from waiting.popleft().result()
            if chunk:
                waiting.append(pool.submit(_run_batch, chunk))
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class FactTable:
    """Facts of many files in arrays: about 1.2 kB per image, so that 100,000 images take 120 MB."""

    _NUMBERS = np.dtype(
        [
            ("height", np.int32),
            ("width", np.int32),
            ("bits", np.uint8),
            ("exif", np.uint8),
            ("n_levels", np.int32),
            ("low", np.float32),
            ("high", np.float32),
            ("max_value", np.float32),
            ("share_low", np.float32),
            ("share_high", np.float32),
            ("clipped_low", np.float32),
            ("clipped_high", np.float32),
            ("hash", np.uint64),
        ]
    )

    def __init__(self, n_files: int) -> None:
        self.numbers = np.zeros(n_files, dtype=self._NUMBERS)
        self.thumbs = np.zeros((n_files, THUMB_PX, THUMB_PX), dtype=np.uint8)
        self.contrast = np.zeros(n_files, dtype=np.float32)  # standard deviation of the thumbnail
        self.looked = np.zeros(n_files, dtype=bool)  # opened, whatever came of it
        self.decoded = np.zeros(n_files, dtype=bool)  # has pixels and a thumbnail
        self.errors: dict[int, str] = {}
        self.missing: set[int] = set()
        self.storage: list[tuple[str, str]] = [("", "")] * n_files  # (mode, photometric), shared

    def put(self, index: int, facts: FileFacts) -> None:
        """Keep the facts of file ``index``."""
        self.looked[index] = True
        if facts.missing:
            self.missing.add(index)
        elif facts.error is not None:
            self.errors[index] = facts.error
        else:
            row: Any = self.numbers[index]
            for name in self._NUMBERS.names or ():
                row[name] = getattr(facts, name)
            self.storage[index] = (facts.mode, facts.photometric)
        if facts.thumb is not None:
            self.thumbs[index] = facts.thumb
            self.contrast[index] = facts.thumb.std()
            self.decoded[index] = True
