"""Images decoded once and kept small: what :mod:`fx_d2.data.cache_build` writes, read back.

A cache folder holds

* ``cache.json``: the settings it was built with;
* ``index.bin``: one fixed-size record per image, so that the index of 377,110 images is an array of
  30 MB that opens at once, and not a million Python objects;
* ``shard-00000.bin`` ...: per image its pixels, uint8 or uint16, then its facts as JSON.

Pixels are stored raw: a lossless PNG is half as large but takes ten times as long to read as the
memory-mapped array, which would leave no gain over an uncompressed DICOM.

Percentiles of the smaller copy differ a little from those of the original, because averaging
removes noise; so train and evaluate from the same place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fx_d2.data.catalog import source_root
from fx_d2.data.errors import DataError
from fx_d2.data.formats.contract import DEFAULT_LIMITS, VOI_POLICIES, ImageFacts, LoadedImage
from fx_d2.data.images import read_image
from fx_d2.data.sources import SOURCES, get_source

_logger = logging.getLogger(__name__)

VERSION = 1
HEADER_NAME = "cache.json"
INDEX_NAME = "index.bin"
SIDES = ("short", "long")
RECORD = np.dtype(
    [
        ("key", "S16"),  # blake2b of the path below the root
        ("source_bytes", "<u8"),
        ("source_mtime_ns", "<i8"),
        ("source_crc", "<u4"),
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("depth_bytes", "<u4"),  # per pixel: 1 or 2
        ("facts_bytes", "<u4"),
        ("scale", "<f8"),  # stored = native * scale
        ("crc", "<u4"),  # of pixels and facts
        ("record_crc", "<u4"),  # of this record without its last field
    ]
)
_REBUILD = "run tools/cache_images.py again"
_MAX_FACTS_BYTES = 1 << 16
_MAX_HEADER_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class CacheSettings:
    """What the pixels of a cache depend on.

    Args:
        size_px: the chosen side is scaled down to this; smaller images stay as they are.
        side: ``short`` or ``long``: which side ``size_px`` means.
        voi: as for :func:`fx_d2.data.images.read_image`; the rest of the intensity settings is
            applied after reading and may change.
        root: images are known by their path below this folder, so that both may be moved.
    """

    size_px: int
    side: str = "short"
    voi: str = "auto"
    root: str = "/"

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise ValueError(f"size_px is {self.size_px}; allowed: at least 1")
        if self.side not in SIDES:
            raise ValueError(f"side is {self.side!r}; allowed: {', '.join(SIDES)}")
        if self.voi not in VOI_POLICIES:
            raise ValueError(f"voi is {self.voi!r}; allowed: {', '.join(VOI_POLICIES)}")


def read_settings(folder: Path) -> CacheSettings:
    """The settings in the header of a cache folder."""
    path = folder / HEADER_NAME
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(_MAX_HEADER_BYTES).decode("utf-8"))
        if header.pop("format") != "fx_d2 image cache" or header.pop("version") != VERSION:
            raise ValueError("not this version of the cache")
        return CacheSettings(**header)
    except FileNotFoundError as exc:
        raise DataError(
            "there is no image cache in this folder",
            file=folder,
            expected=HEADER_NAME,
            fix=_REBUILD,
        ) from exc
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DataError(
            f"not the header of an image cache: {exc}",
            file=path,
            fix=f"delete the folder and {_REBUILD}",
        ) from exc


def settings_as_json(settings: CacheSettings) -> str:
    """The text of the header file."""
    header = {"format": "fx_d2 image cache", "version": VERSION, **asdict(settings)}
    return json.dumps(header, indent=1) + "\n"


def key_of(path: str | os.PathLike[str], root: str) -> bytes:
    """16 bytes that stand for a path; the last one is never 0, which NumPy would drop."""
    name = os.path.relpath(os.path.abspath(path), root).replace(os.sep, "/")
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=15).digest() + b"k"


def record_crcs(records: npt.NDArray) -> npt.NDArray[np.uint32]:
    """(N,) checksum of every record without its last field."""
    raw = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), RECORD.itemsize)
    body = raw[:, : -RECORD["record_crc"].itemsize]
    return np.fromiter((zlib.crc32(row.tobytes()) for row in body), np.uint32, len(records))


def read_records(folder: Path) -> npt.NDArray:
    """All whole records, in the order they were written; the tail of a killed run is left out."""
    path = folder / INDEX_NAME
    try:
        n_records = os.path.getsize(path) // RECORD.itemsize
        records = np.fromfile(path, dtype=RECORD, count=n_records)
    except FileNotFoundError:
        return np.empty(0, dtype=RECORD)
    except OSError as exc:
        raise DataError(f"cannot be read: {exc}", file=path, fix="check the disk") from exc
    wrong = np.flatnonzero(record_crcs(records) != records["record_crc"])
    if wrong.size:
        raise DataError(
            f"record {wrong[0]} of {n_records} is damaged",
            file=path,
            fix=f"delete the cache folder and {_REBUILD}",
        )
    return records


def newest_records(records: npt.NDArray) -> npt.NDArray:
    """One record per key, sorted by key; of several the last written one."""
    keys, first_from_end = np.unique(records["key"][::-1], return_index=True)
    del keys
    return records[::-1][first_from_end]


def file_crc(path: str | os.PathLike[str]) -> int:
    """Checksum of a file's content."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


class ImageCache:
    """Reads a cache folder; may be handed to loader workers, which open it themselves.

    Attributes:
        settings: what it was built with.
    """

    def __init__(
        self, folder: Path, settings: CacheSettings, *, check_sources: bool = True
    ) -> None:
        self.folder, self.settings, self.check_sources = folder, settings, check_sources
        self._records = newest_records(read_records(folder))
        self._verified = np.zeros(len(self._records), dtype=bool)
        self._shards: dict[int, npt.NDArray[np.uint8]] = {}

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        voi: str | None = None,
        size_px: int | None = None,
        root: str | os.PathLike[str] | None = None,
        check_sources: bool = True,
    ) -> ImageCache:
        """Open a cache, and refuse one that was built with other settings.

        Args:
            folder: where ``tools/cache_images.py`` put it.
            voi: what the config wants; None takes what there is.
            size_px: the same.
            root: where the images are now, if they were moved since.
            check_sources: whether every image must still be there and unchanged.
        """
        settings = read_settings(Path(folder))
        for name, wanted in (("voi", voi), ("size_px", size_px)):
            found = getattr(settings, name)
            if wanted is not None and wanted != found:
                raise DataError(
                    f"the image cache was built with {name} {found}",
                    file=folder,
                    expected=f"{name} {wanted}, as the config says",
                    fix="build another cache with tools/cache_images.py, or change the config",
                )
        if root is not None:
            settings = CacheSettings(**{**asdict(settings), "root": os.path.abspath(root)})
        return cls(Path(folder), settings, check_sources=check_sources)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self.folder, self.settings, self.check_sources))

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        return self._find(path) is not None

    def get(self, path: str | os.PathLike[str]) -> LoadedImage:
        """The smaller copy of an image; ``facts.height, facts.width`` are those of the original.

        Raises:
            DataError: it is not in the cache, its file changed since, or the cache is damaged.
        """
        row = self._find(path)
        if row is None:
            raise DataError(
                "the image is not in the cache",
                file=path,
                expected=f"an entry in {self.folder}",
                fix=_REBUILD,
            )
        record = self._records[row]
        if self.check_sources:
            self._check_source(path, row)
        pixel_bytes = int(record["height"]) * int(record["width"]) * int(record["depth_bytes"])
        data = self._data(record, pixel_bytes)
        if not self._verified[row]:
            if zlib.crc32(data.data) != record["crc"]:
                raise self._damaged("its checksum is wrong", path)
            self._verified[row] = True
        facts = self._facts(bytes(data[pixel_bytes:]), path)
        dtype = np.uint8 if record["depth_bytes"] == 1 else np.dtype("<u2")
        stored = data[:pixel_bytes].view(dtype).reshape(record["height"], record["width"])
        return LoadedImage(np.divide(stored, np.float32(record["scale"]), dtype=np.float32), facts)

    def _find(self, path: str | os.PathLike[str]) -> int | None:
        key = key_of(path, self.settings.root)
        row = int(np.searchsorted(self._records["key"], key))
        if row < len(self._records) and self._records["key"][row] == key:
            return row
        return None

    def _check_source(self, path: str | os.PathLike[str], row: int) -> None:
        record = self._records[row]
        try:
            info = os.stat(path)
            same = info.st_size == record["source_bytes"]
            if same and info.st_mtime_ns != record["source_mtime_ns"]:
                # Copied or touched: the content decides, and is asked once.
                same = file_crc(path) == record["source_crc"]
                if same:
                    self._records["source_mtime_ns"][row] = info.st_mtime_ns
        except OSError as exc:
            raise DataError(
                f"the original of a cached image cannot be read: {exc.strerror}",
                file=path,
                fix="restore it, or open the cache with check_sources=False",
            ) from exc
        if not same:
            raise DataError("the file changed since it was cached", file=path, fix=_REBUILD)

    def _data(self, record: np.void, pixel_bytes: int) -> npt.NDArray[np.uint8]:
        number = int(record["shard"])
        start, length = int(record["offset"]), pixel_bytes + int(record["facts_bytes"])
        path = self.folder / shard_name(number)
        if number not in self._shards:
            try:
                self._shards[number] = np.memmap(path, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as exc:
                raise self._damaged(f"{path.name} cannot be opened: {exc}", path) from exc
        shard = self._shards[number]
        sane = record["depth_bytes"] in (1, 2) and record["facts_bytes"] <= _MAX_FACTS_BYTES
        if not sane or pixel_bytes > 2 * DEFAULT_LIMITS.max_pixels or start + length > len(shard):
            raise self._damaged("an entry lies outside its shard", path)
        return shard[start : start + length]

    def _facts(self, text: bytes, path: str | os.PathLike[str]) -> ImageFacts:
        try:
            values = json.loads(text)
            window = values["window"]
            values["window"] = None if window is None else (window[0], window[1])
            values["notes"] = tuple(values["notes"])
            return ImageFacts(**values)
        except (ValueError, KeyError, TypeError, IndexError) as exc:
            raise self._damaged(f"its facts are unreadable: {exc}", path) from exc

    def _damaged(self, problem: str, path: str | os.PathLike[str]) -> DataError:
        return DataError(
            f"the image cache {self.folder} is damaged: {problem}",
            file=path,
            fix=f"delete the folder and {_REBUILD}",
        )


def _reopen(folder: Path, settings: CacheSettings, check_sources: bool) -> ImageCache:
    return ImageCache(folder, settings, check_sources=check_sources)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.bin"


class CachedReader:
    """Reads records from caches below a folder; a source without one, from its files.

    Sources that lie in one folder on disk share a cache, so ``tools/cache_images.py`` names a
    cache after that folder and not after the source.

    Args:
        folder: its ``--out``.
        voi: what the config wants; a cache built otherwise is refused.
    """

    def __init__(self, folder: str | os.PathLike[str], voi: str = "auto") -> None:
        self.folder, self.voi = Path(folder), voi
        self._caches: dict[str, ImageCache | None] = {}
        self._places: dict[str, tuple[str, Path]] = {}
        if not self.folder.is_dir():
            raise DataError("no such folder", file=folder, expected="image caches", fix=_REBUILD)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker knows nothing of DATASETS.ROOTS, nor of sources that a config registers,
        # so it is told where they lie.
        return {**vars(self), "_caches": {}, "_places": {key: _place(key) for key in SOURCES}}

    def read(self, record: Mapping[str, Any]) -> LoadedImage:
        """The image of ``record``, smaller if it comes from a cache."""
        key = record["source"]
        if record.get("synthetic"):  # written by us, small, and in no cache of its source
            return read_image(record["file_name"], voi=self.voi)
        if key not in self._caches:
            self._caches[key] = self._open(key)
        cache = self._caches[key]
        if cache is None:
            return read_image(record["file_name"], voi=self.voi)
        return cache.get(record["file_name"])

    def _open(self, key: str) -> ImageCache | None:
        name, root = self._places.get(key) or _place(key)
        folder = self.folder / name
        if not folder.is_dir():
            _logger.warning("%s has no cache in %s: reading its files", key, self.folder)
            return None
        return ImageCache.open(folder, voi=self.voi, root=root)


def _place(key: str) -> tuple[str, Path]:
    """Name of the cache of a source's images, and where its files are."""
    source = get_source(get_source(key).images_of or key)
    return source.folder, source_root(source.key)
