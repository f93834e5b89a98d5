"""Builds an image cache: decode once, shrink, append; a killed run continues where it stopped.

Workers decode, one process writes. Pixels reach the disk before the index record that points at
them, so whatever moment the run is killed at, every record found later has its pixels.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fx_d2.data.atomic import write_atomically
from fx_d2.data.cache import (
    HEADER_NAME,
    INDEX_NAME,
    RECORD,
    CacheSettings,
    file_crc,
    key_of,
    newest_records,
    read_records,
    read_settings,
    record_crcs,
    settings_as_json,
    shard_name,
)
from fx_d2.data.errors import DataError
from fx_d2.data.formats.contract import LoadedImage
from fx_d2.data.images import read_image
from fx_d2.data.processes import worker_pool

_SHARD_BYTES = 1 << 30
_ALIGN_BYTES = 64
# Images between two flushes to the disk: what a power cut may cost.
_FLUSH_IMAGES = 64


@dataclass
class CacheReport:
    """What a build did.

    Args:
        n_built: images decoded now.
        n_kept: images that were there and fresh.
        failed: one error for every image that could not be read; it is not in the cache.
    """

    n_built: int = 0
    n_kept: int = 0
    failed: list[DataError] = field(default_factory=list)

    def summary(self) -> str:
        """One line."""
        return f"{self.n_built} built, {self.n_kept} kept, {len(self.failed)} failed"


@dataclass(frozen=True)
class _Entry:
    """A decoded image on its way to the shard."""

    key: bytes
    source_bytes: int
    source_mtime_ns: int
    source_crc: int
    pixels: npt.NDArray
    scale: float
    facts: bytes


def shrink(pixels: npt.NDArray[np.float32], size_px: int, side: str) -> npt.NDArray[np.float32]:
    """``pixels`` (H, W) averaged down so that the short or long side is ``size_px``; never up."""
    height, width = pixels.shape
    chosen = min(height, width) if side == "short" else max(height, width)
    if chosen <= size_px:
        return pixels
    ratio = size_px / chosen
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    smaller = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, dtype=np.float32)


def pack(loaded: LoadedImage, settings: CacheSettings) -> tuple[npt.NDArray, float]:
    """(stored integers, scale): 8 bit for images of at most 8 bit, else as fine as 16 bit allow.

    The scale is a whole number where possible, so that whole native values come back exactly.
    """
    pixels = shrink(loaded.pixels, settings.size_px, settings.side)
    top = loaded.facts.max_value
    if loaded.facts.bits <= 8 and top == 255:
        return np.rint(pixels).astype(np.uint8), 1.0
    scale = 65535 / top
    if scale >= 1:
        scale = float(math.floor(scale))
    return np.rint(pixels * np.float32(scale)).clip(0, 65535).astype("<u2"), scale


def _decode(path: str, settings: CacheSettings) -> _Entry | DataError:
    try:
        before = os.stat(path)
        loaded = read_image(path, voi=settings.voi)
        pixels, scale = pack(loaded, settings)
        return _Entry(
            key=key_of(path, settings.root),
            source_bytes=before.st_size,
            source_mtime_ns=before.st_mtime_ns,
            source_crc=file_crc(path),
            pixels=pixels,
            scale=scale,
            facts=json.dumps(asdict(loaded.facts)).encode(),
        )
    except DataError as exc:
        return exc
    except (OSError, ValueError) as exc:
        return DataError(f"cannot be read: {exc}", file=path, fix="check the path and the disk")


class _Writer:
    """Appends to the shards and the index of one cache folder."""

    def __init__(self, folder: Path, n_bytes_per_shard: int) -> None:
        self._folder, self._limit = folder, n_bytes_per_shard
        self._waiting: list[npt.NDArray] = []
        numbers = [int(p.stem[6:]) for p in folder.glob("shard-*.bin") if p.stem[6:].isdigit()]
        self._number = max(numbers, default=0)
        self._shard = self._open_shard()
        index = folder / INDEX_NAME
        self._index: BinaryIO = open(index, "ab")  # noqa: SIM115 - closed in close()
        whole = self._index.tell() // RECORD.itemsize * RECORD.itemsize
        # The tail of a record that a killed run left.
        self._index.truncate(whole)
        self._index.seek(whole)

    def _open_shard(self) -> BinaryIO:
        return open(self._folder / shard_name(self._number), "ab")

    def add(self, entry: _Entry) -> None:
        if self._shard.tell() >= self._limit:
            self.flush()
            self._shard.close()
            self._number += 1
            self._shard = self._open_shard()
        self._shard.write(bytes(-self._shard.tell() % _ALIGN_BYTES))
        offset = self._shard.tell()
        pixels = np.ascontiguousarray(entry.pixels).tobytes()
        self._shard.write(pixels)
        self._shard.write(entry.facts)
        record = np.zeros(1, dtype=RECORD)
        record["key"] = entry.key
        record["source_bytes"] = entry.source_bytes
        record["source_mtime_ns"] = entry.source_mtime_ns
        record["source_crc"] = entry.source_crc
        record["shard"], record["offset"] = self._number, offset
        record["height"], record["width"] = entry.pixels.shape
        record["depth_bytes"] = entry.pixels.dtype.itemsize
        record["facts_bytes"], record["scale"] = len(entry.facts), entry.scale
        record["crc"] = zlib.crc32(entry.facts, zlib.crc32(pixels))
        record["record_crc"] = record_crcs(record)
        self._waiting.append(record)
        if len(self._waiting) >= _FLUSH_IMAGES:
            self.flush()

    def flush(self) -> None:
        """Pixels first, then the records that point at them."""
        if not self._waiting:
            return
        _to_disk(self._shard)
        self._index.write(np.concatenate(self._waiting).tobytes())
        _to_disk(self._index)
        self._waiting.clear()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._shard.close()
            self._index.close()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time; the lock goes with the process, also when that is killed."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise DataError(
                "another process is building this image cache",
                file=folder,
                fix="wait for it, or choose another folder",
            ) from exc
        yield


def _prepare(folder: Path, settings: CacheSettings) -> None:
    """Write the header, or check that the one there says the same."""
    if (folder / HEADER_NAME).exists():
        found = read_settings(folder)
        if found != settings:
            raise DataError(
                f"there is an image cache with other settings: {found}",
                file=folder,
                expected=str(settings),
                fix="choose another folder, or delete this one",
            )
        return
    write_atomically(folder / HEADER_NAME, settings_as_json(settings))


def _missing(paths: Sequence[str], folder: Path, settings: CacheSettings) -> Iterator[str]:
    """Those of ``paths`` without a record that fits the file as it is now."""
    records = newest_records(read_records(folder))
    known = {bytes(r["key"]): (r["source_bytes"], r["source_mtime_ns"]) for r in records}
    for path in paths:
        found = known.get(key_of(path, settings.root))
        if found is not None:
            with contextlib.suppress(OSError):
                info = os.stat(path)
                if (info.st_size, info.st_mtime_ns) == found:
                    continue
        yield path


def build_cache(
    paths: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    size_px: int,
    *,
    side: str = "short",
    voi: str = "auto",
    root: str | os.PathLike[str] | None = None,
    workers: int = 0,
    progress: bool = True,
    shard_bytes: int = _SHARD_BYTES,
) -> CacheReport:
    """Decode images once into ``folder``; call it again to continue, or to renew changed files.

    Args:
        paths: the image files; duplicates are done once.
        folder: made if it is not there.
        size_px: the chosen side is scaled down to this.
        side: ``short`` or ``long``.
        voi: ``auto`` or ``ignore``, as the training config will say.
        root: images are known by their path below it; the common folder of ``paths`` by default.
        workers: processes that decode; 0 decodes in this one.
        progress: show a progress bar.
        shard_bytes: a new shard is begun beyond this size.

    Returns:
        How many were built and kept, and an error for every image that could not be read.
    """
    names = list(dict.fromkeys(os.path.abspath(path) for path in paths))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    if root is None and (target / HEADER_NAME).exists():
        root = read_settings(target).root
    if root is None:
        root = os.path.commonpath([os.path.dirname(name) for name in names]) if names else "/"
    settings = CacheSettings(size_px=size_px, side=side, voi=voi, root=os.path.abspath(root))
    report = CacheReport()
    with _locked(target):
        _prepare(target, settings)
        todo = list(_missing(names, target, settings))
        report.n_kept = len(names) - len(todo)
        with contextlib.closing(_Writer(target, shard_bytes)) as writer:
            silent = not (progress and todo)
            bar = tqdm(total=len(todo), desc="caching images", disable=silent, unit="img")
            with bar:
                for result in _decoded(todo, settings, workers):
                    if isinstance(result, DataError):
                        report.failed.append(result)
                    else:
                        writer.add(result)
                        report.n_built += 1
                    bar.update()
    return report


def _decoded(
    paths: Sequence[str], settings: CacheSettings, workers: int
) -> Iterator[_Entry | DataError]:
    """Decode in order of completion; at most two images per worker are held at a time."""
    if workers <= 0:
        for path in paths:
            yield _decode(path, settings)
        return
    with worker_pool(workers) as pool:
        running: set[Future[_Entry | DataError]] = set()
        waiting = iter(paths)
        try:
            while True:
                for name in islice(waiting, 2 * workers - len(running)):
                    running.add(pool.submit(_decode, name, settings))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()
