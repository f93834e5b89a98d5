#!/usr/bin/env python3
"""Measure what fx_d2 does with the machine it runs on.

    python tools/benchmark.py data --root output/world    # images/s per source, direct and cached

Figures are medians of several alternating rounds; the ratio of two columns of one run says more
than a column does on a busy machine.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import contextlib
import ctypes
import gc
import math
import multiprocessing
import os
import platform
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

from fx_d2.command_line import Parser, check_output, existing_root, named_source, tool, whole
from fx_d2.data.atomic import write_atomically
from fx_d2.data.cache import ImageCache
from fx_d2.data.cache_build import build_cache
from fx_d2.data.catalog import datasets_root, load_records
from fx_d2.data.images import LoadedImage, image_size, read_image
from fx_d2.data.intensity import normalise
from fx_d2.data.sources import SOURCES, get_source
from fx_d2.phantom.writers.dicom_out import DicomForm, write_dicom

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


def _status_mib(field: str) -> float:
    """A memory figure of this process in MiB; NaN where the system has no such table."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(li.split()[1]) / 1024 for li in lines if li.startswith(field)), math.nan)


def _give_memory_back() -> None:
    """Return what is free but still resident: reading into it would not be seen to grow."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _peak(read: Callable[[str], LoadedImage], names: Sequence[str], size_px: int) -> float:
    """Peak resident memory (MiB) that reading adds, in a process of its own; NaN if not Linux."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        _give_memory_back()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the parent
        before = _status_mib("VmRSS")
        _timed(read, names, size_px)
        sender.send(_status_mib("VmHWM") - before)

    process = context.Process(target=work)
    process.start()
    process.join()
    if process.exitcode or not receiver.poll():
        raise RuntimeError(f"the measuring process ended with code {process.exitcode}")
    return float(receiver.recv())


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


def benchmark_data(args: argparse.Namespace) -> list[Row]:
    """Every source below the root, then 2,500-px DICOM made for the purpose."""
    root = datasets_root() if args.root is None else existing_root(args.root)
    if args.source:
        keys = [named_source(key).key for key in args.source]
    else:
        keys = [s.key for s in SOURCES.values() if (root / s.folder).is_dir()]
        if not keys:
            print(f"benchmark: no known source below {root}", file=sys.stderr)
    rows = []
    jobs = [*keys, *([] if args.no_large else _LARGE_FORMS)]
    for job in tqdm(jobs, desc="sources", disable=args.quiet):
        if job in _LARGE_FORMS:
            with tempfile.TemporaryDirectory(prefix="fx_d2_large_") as folder:
                files = _large_files(Path(folder), _LARGE_FORMS[job], min(args.num, 8))
                rows.append(measure(job, files, args.size, args.rounds))
        else:
            files = _files_of(job, root, args.num)
            rows.append(measure(job, files, args.size, args.rounds))
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


def machine() -> str:
    """One line on what ran this."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the architecture has to do
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = Parser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    positive = whole(1)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="images/s and peak memory, direct and cached")
    data.add_argument("--root", type=Path, help="datasets root; default: $DETECTRON2_DATASETS")
    data.add_argument("--source", nargs="+", metavar="S", help="default: all that are there")
    data.add_argument("--num", type=positive, default=24, help="images per source (default 24)")
    data.add_argument("--size", type=positive, default=512, help="network size in px (default 512)")
    data.add_argument("--rounds", type=positive, default=3, help="alternating rounds (default 3)")
    data.add_argument("--no-large", action="store_true", help="leave the 2,500-px DICOM out")
    data.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    data.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


@tool("benchmark")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 1 where data is missing or bad."""
    args = parse_args(argv)
    if args.markdown:
        check_output(args.markdown)
    cv2.setNumThreads(1)  # images/s per core, as a loader worker has it
    rows = benchmark_data(args)
    if not rows:
        return 1  # nothing to measure, as said above
    if args.markdown:
        write_atomically(args.markdown, as_table(rows, args.size, "github") + "\n")
    print(machine())
    print(as_table(rows, args.size, "simple"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
