"""Run the checks over a datasets root."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import catalog
from ..errors import DataWarning, ReadReport
from ..record import PackedRecords, Record
from ..source import Source
from ..sources import SOURCES

# Each module registers its checks when it is imported.
from . import boxes, duplicates, labels, masks, orientation, pixels, splits  # noqa: F401
from . import files as _files  # noqa: F401
from .examination import Examination, ReadPart
from .facts import look_at_all
from .findings import CHECKS, SEVERITIES, Check, Finding, Hit, Report
from .rows import RowReport

MAX_PER_CHECK = 200  # lines per check and source; the rest is counted


@dataclass(frozen=True)
class Options:
    """How thoroughly to look.

    Args:
        parts: published parts to look at; None is all.
        max_images: images to decode per source; None is all.
        workers: processes that decode; 0 works in this one.
        decode: whether images and masks are decoded at all; headers are read regardless.
        progress: show progress bars.
    """

    parts: Sequence[str] | None = None
    max_images: int | None = None
    workers: int = 0
    decode: bool = True
    progress: bool = False


def read_with_reader(
    source: Source, part: str, folder: Path
) -> tuple[Sequence[Record], ReadReport]:
    """Records of a part by its source's reader; bad rows are left out and counted."""
    # Totals are compared in labels/published, for all parts alike.
    report = RowReport(published_counts=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # they are in report.notes
        records = PackedRecords(catalog.read_part(source.key, part, root=folder, report=report))
    return records, report


def present_sources(root: Path) -> list[Source]:
    """Rows whose folder exists below ``root``."""
    return [source for source in SOURCES.values() if (root / source.folder).is_dir()]


def examine(
    root: Path,
    sources: Sequence[Source] | None = None,
    options: Options | None = None,
    *,
    read_part: ReadPart = read_with_reader,
) -> tuple[Report, Examination]:
    """Look at everything below ``root`` and run every check.

    Args:
        root: the datasets root.
        sources: rows to examine; None takes every row whose folder is there.
        options: how thoroughly.
        read_part: gives the records of a part.

    Returns:
        The report, and the examination it rests on (to draw offenders from).
    """
    options = options or Options()
    started = time.monotonic()
    rows = present_sources(root) if sources is None else list(sources)

    def progress(items: Iterator[Any], total: int, what: str) -> Iterator[Any]:
        return iter(tqdm(items, total=total, desc=what, disable=not options.progress))

    exam = Examination(root, rows, read_part, options.parts)
    exam.read_indexes(progress)
    _look_at_files(exam, options, progress)
    report = Report(str(root), checked=_checked(exam))
    ran = [c for c in CHECKS.values() if options.decode or not c.needs_pixels]
    report.checks = tuple(c.id for c in ran)
    for one in progress(iter(ran), len(ran), "checking"):
        report.findings.extend(_bounded(one, exam))
    report.findings.sort(key=lambda f: (SEVERITIES.index(f.severity), f.check, f.source))
    report.seconds = time.monotonic() - started
    return report, exam


def _look_at_files(exam: Examination, options: Options, progress: Any) -> None:
    chosen = exam.choose_files(options.max_images)
    jobs = exam.jobs(chosen, options.decode)
    outcomes = look_at_all(jobs, options.workers)
    pairs = zip(chosen, outcomes, strict=True)
    for file, outcome in progress(pairs, len(chosen), "reading images"):
        exam.facts.put(file, outcome.file)
        exam.mask_facts.extend(outcome.masks)
    taken = np.zeros(len(exam.files), dtype=bool)
    taken[chosen] = True
    for file in np.flatnonzero(~taken):  # not opened, but they should at least be there
        if not Path(exam.files[file]).is_file():
            exam.facts.missing.add(int(file))


def _bounded(one: Check, exam: Examination) -> list[Finding]:
    """The findings of a check; beyond a limit per source they are only counted."""
    kept: list[Finding] = []
    per_source: dict[tuple[str, str], list[int]] = {}
    last: dict[tuple[str, str], Finding] = {}
    for hit in one.run(exam):
        finding = Finding.of(one, hit)
        key = (finding.source, finding.severity)
        lines, cases = per_source.setdefault(key, [0, 0])
        if lines < MAX_PER_CHECK:
            kept.append(finding)
            per_source[key][0] += 1
        else:
            per_source[key][1] = cases + finding.count
            last[key] = finding
    for key, example in last.items():
        more = per_source[key][1]
        hit = Hit(
            example.source,
            f"{more} more like these",
            example.expected,
            count=more,
            severity=example.severity,
        )
        kept.append(Finding.of(one, hit))
    return kept


def _checked(exam: Examination) -> dict[str, dict[str, Any]]:
    """What was looked at, per source."""
    seen: dict[str, dict[str, Any]] = {}
    for source in exam.sources:
        parts = exam.parts_of(source.key)
        files = exam.files_of(source.key)
        decoded = files[exam.facts.decoded[files]]
        seen[source.key] = {
            "title": source.title,
            "parts": {part.name: len(part.records) for part in parts},
            "files": len(files),
            "decoded": len(decoded),
            "boxes": sum(len(part.boxes) for part in parts),
        }
    return seen


__all__ = ["Options", "examine", "present_sources", "read_with_reader"]
