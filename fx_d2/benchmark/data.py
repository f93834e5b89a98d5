"""Images per second and peak memory of reading, direct and from the cache."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from fx_d2.command_line import existing_root, named_source
from fx_d2.data.cache import ImageCache
from fx_d2.data.cache_build import build_cache
from fx_d2.data.catalog import datasets_root, load_records
from fx_d2.data.images import LoadedImage, image_size, read_image
from fx_d2.data.intensity import normalise
from fx_d2.data.sources import SOURCES, get_source
from fx_d2.phantom.writers.dicom_out import DicomForm, write_dicom

from .memory import added_in_a_process

_LARGE_PX = (2500, 2500)
_LARGE_FORMS = {
    "16-bit DICOM, uncompressed": DicomForm(bits=16),
    "12-bit DICOM, JPEG 2000": DicomForm(bits=12, syntax="jpeg2000"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: images per second and the memory that reading adds."""

    name: str
    frame: str
    direct: float
    cached: float
    direct_mib: float
    cached_mib: float
    cache_kib_per_image: float


def _prepare(loaded: LoadedImage, size_px: int) -> np.ndarray:
    """What the loader does with every image: normalise, then scale to the network's size."""
    pixels = normalise(loaded)
    scale = size_px / max(pixels.shape)
    if scale >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _timed(read: Callable[[str], LoadedImage], names: Sequence[str], size_px: int) -> float:
    start = time.perf_counter()
    for name in names:
        _prepare(read(name), size_px)
    return len(names) / (time.perf_counter() - start)


def _peak(read: Callable[[str], LoadedImage], names: Sequence[str], size_px: int) -> float:
    """Peak resident memory (MiB) that reading adds, in a process of its own; NaN if not Linux."""
    return added_in_a_process(lambda: _timed(read, names, size_px))


def measure(name: str, files: Sequence[str], size_px: int, rounds: int) -> Row:
    """Direct against cached reading of ``files``, in alternating rounds."""
    with tempfile.TemporaryDirectory(prefix="fx_d2_benchmark_") as folder:
        report = build_cache(files, folder, size_px, side="long", progress=False)
        if report.failed:
            raise report.failed[0]
        stored = sum(f.stat().st_size for f in Path(folder).iterdir())
        cache = ImageCache.open(folder)
        rates: dict[str, list[float]] = {"direct": [], "cached": []}
        for _ in range(rounds):
            rates["direct"].append(_timed(read_image, files, size_px))
            rates["cached"].append(_timed(cache.get, files, size_px))
        height, width = image_size(files[0])
        return Row(
            name=name,
            frame=f"{width} x {height}",
            direct=statistics.median(rates["direct"]),
            cached=statistics.median(rates["cached"]),
            direct_mib=_peak(read_image, files, size_px),
            cached_mib=_peak(cache.get, files, size_px),
            cache_kib_per_image=stored / len(files) / 1024,
        )


def _files_of(key: str, root: Path, limit: int) -> list[str]:
    source = get_source(key)
    split = "all" if "all" in source.splits else "train"
    records = load_records(key, split, root=root / source.folder)
    return sorted({records[i]["file_name"] for i in range(min(limit, len(records)))})


def _large_files(folder: Path, form: DicomForm, count: int) -> list[str]:
    """DICOM files of 2,500 px whose pixels compress about as a radiograph's do."""
    rng = np.random.default_rng(0)
    names = []
    for i in range(count):
        coarse = cv2.GaussianBlur(rng.random((64, 64), dtype=np.float32), (0, 0), 4)
        smooth = cv2.resize(coarse, _LARGE_PX[::-1], interpolation=cv2.INTER_CUBIC)
        smooth = cv2.normalize(smooth, None, 0.05, 0.95, cv2.NORM_MINMAX)
        noise = rng.normal(0, 0.004, _LARGE_PX).astype(np.float32)
        path = folder / f"{i}.dcm"
        uid = f"1.2.826.0.1.3680043.10.543.{i + 1}"
        write_dicom(path, np.clip(smooth + noise, 0, 1), form, sop=uid, study=uid, series=uid)
        names.append(str(path))
    return names


def measure_reading(
    root: Path | None,
    sources: Sequence[str] = (),
    *,
    num: int,
    size_px: int,
    rounds: int,
    large: bool = True,
    quiet: bool = False,
) -> list[Row]:
    """Every source below the root, then 2,500-px DICOM made for the purpose.

    Args:
        root: of the datasets; None is where ``$DETECTRON2_DATASETS`` says.
        sources: keys; by default all that are there.
        num: images per source.
        size_px: of the network.
        rounds: alternating rounds.
        large: whether to make the large DICOM too.
        quiet: no progress bar.
    """
    root = datasets_root() if root is None else existing_root(root)
    if sources:
        keys = [named_source(key).key for key in sources]
    else:
        keys = [s.key for s in SOURCES.values() if (root / s.folder).is_dir()]
        if not keys:
            print(f"benchmark: no known source below {root}", file=sys.stderr)
    rows = []
    for job in tqdm([*keys, *(_LARGE_FORMS if large else ())], desc="sources", disable=quiet):
        if job in _LARGE_FORMS:
            with tempfile.TemporaryDirectory(prefix="fx_d2_large_") as folder:
                files = _large_files(Path(folder), _LARGE_FORMS[job], min(num, 8))
                rows.append(measure(job, files, size_px, rounds))
        else:
            rows.append(measure(job, _files_of(job, root, num), size_px, rounds))
    return rows


def as_table(rows: Sequence[Row], size_px: int, style: str) -> str:
    """The rows as text."""
    header = [
        "source",
        "frame (w x h)",
        "direct img/s",
        f"cached img/s ({size_px} px)",
        "cached / direct",
        "direct +MiB",
        "cached +MiB",
        "cache KiB/img",
    ]
    body = [
        [
            r.name,
            r.frame,
            f"{r.direct:.1f}",
            f"{r.cached:.0f}",
            f"{r.cached / r.direct:.1f}",
            f"{r.direct_mib:.0f}",
            f"{r.cached_mib:.0f}",
            f"{r.cache_kib_per_image:.0f}",
        ]
        for r in rows
    ]
    return tabulate(body, headers=header, tablefmt=style, disable_numparse=True, stralign="right")
