"""Checks of the index against the disk."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..image_files import IMAGE_SUFFIXES
from ..source import Source
from ..tree import walk_files
from .examination import Examination
from .findings import Hit, check
from .rows import OTHER, RowReport, blamed_text, route, row_hits

_MAX_ORPHAN_FOLDER = 4  # DICOM trees hold one to a few files per folder,
_MIN_TREE_FOLDERS = 8  # and many such folders


@check(
    "index/unreadable",
    "error",
    what="a part's index cannot be read: missing file, wrong header, not a table",
    fix="restore the file that is named; datasets/README.md shows the tree this source must have",
)
def unreadable_index(exam: Examination) -> Iterator[Hit]:
    """A part whose reader gave up."""
    for part in exam.parts:
        if part.error is not None and route("", part.error) == OTHER:
            yield Hit(
                part.source.key,
                part.error.problem,
                part.error.expected or "a readable index",
                part=part.name,
                file=None if part.error.file is None else exam.relative(part.error.file),
                where=None if part.error.row is None else f"row {part.error.row}",
                fix=part.error.fix,
            )


@check(
    "index/bad-rows",
    "error",
    what="rows of an index that its reader has to leave out",
    fix="restore these rows from the original file, or let them be left out (on_error: skip)",
)
def bad_rows(exam: Examination) -> Iterator[Hit]:
    """Rows that were left out for a reason that no other check covers."""
    yield from row_hits(exam, OTHER)


@check(
    "index/note",
    "warning",
    what="a soft check of the reader: a convention or published figure is not met",
    fix="compare with the source's page; a newer release may differ on purpose",
)
def notes(exam: Examination) -> Iterator[Hit]:
    """Expectations that were not met, and what readers noted in passing (information)."""
    for part in exam.parts:
        if isinstance(part.report, RowReport):
            for what, found, expected, file in part.report.unmet:
                place = None if file is None else exam.relative(file)
                yield Hit(part.source.key, f"{what}: {found}", expected, part=part.name, file=place)
        for note in part.report.notes:
            yield Hit(
                part.source.key,
                note,
                "nothing",
                part=part.name,
                severity="info",
                fix="good to know",
            )


@check(
    "index/record",
    "error",
    what="a record breaks the record contract (wrong type, unknown class, missing key)",
    fix="correct the reader of this source (the contract is in fx_d2/data/record.py)",
)
def broken_records(exam: Examination) -> Iterator[Hit]:
    """Records that break the contract in other ways than by their boxes or label values."""
    for number, part in enumerate(exam.parts):
        for i, error in part.contract:
            if error.problem.startswith(("box ", "labels hold")):
                continue  # boxes/outside, boxes/degenerate and labels/values say more
            entry = exam.entries[part.first + i]
            place = exam.place(entry) | {"record": (number, i)}
            yield Hit(found=error.problem, expected=error.expected or "the contract", **place)


@check(
    "index/empty",
    "error",
    what="a part without a single record",
    fix="check that the index belongs to this source and that its images were unpacked",
)
def empty_parts(exam: Examination) -> Iterator[Hit]:
    """Parts that read without error and hold nothing."""
    for part in exam.parts:
        if part.error is None and len(part.records) == 0:
            skipped = part.report.summary()
            yield Hit(part.source.key, f"no record ({skipped})", "at least one", part=part.name)


@check(
    "files/missing",
    "error",
    what="a file that the index names is not there",
    fix="download or unpack it again; if it is left out on purpose, remove its row",
)
def missing_files(exam: Examination) -> Iterator[Hit]:
    """Images named by an index and absent on disk."""
    yield from row_hits(exam, "files/missing")
    for file in sorted(exam.facts.missing):
        entry = exam.entries[exam.entries_of_file[file][0]]
        yield Hit(found="no such file", expected="the image the index names", **exam.place(entry))


def _whole(exam: Examination, source: Source) -> bool:
    """Whether every published part of a source was read."""
    read = {part.name for part in exam.parts_of(source.key)}
    return read >= {part.name for part in source.splits.values()}


@check(
    "files/extra",
    "warning",
    what="an image file among the indexed ones that no index names",
    fix="remove it, or find out which row of the index was lost",
)
def extra_files(exam: Examination) -> Iterator[Hit]:
    """Image files that lie where indexed images lie, but are not indexed."""
    for folder, sources in exam.groups():
        keys = "+".join(source.key for source in sources)
        if any(part.error for source in sources for part in exam.parts_of(source.key)):
            continue  # without its index every file would be extra
        if not all(_whole(exam, source) for source in sources):
            continue  # nor can files of parts that were not asked for be told from extra ones
        known = {exam.files[f] for source in sources for f in exam.files_of(source.key)}
        if not known:
            continue
        # An image whose row was left out is reported with its row.
        parts = [part for source in sources for part in exam.parts_of(source.key)]
        rows_lost = sum(sum(part.report.skipped.values()) for part in parts)
        blamed = "\n".join(blamed_text(part) for part in parts)
        for path in sorted(_orphans(exam.root / folder, known)):
            if Path(path).stem in blamed:
                continue
            found = "no row of the index names this file"
            if rows_lost:
                found = f"no record uses this file; {rows_lost} rows were left out"
            yield Hit(
                keys,
                found,
                "every image among the indexed ones to have a row",
                file=exam.relative(path),
                severity="info" if rows_lost else None,
            )


def _orphans(root: Path, known: set[str]) -> Iterator[str]:
    """Unindexed images beside indexed ones, or alone in a tree with a folder per image."""
    per_folder: Counter[str] = Counter(os.path.dirname(path) for path in known)
    suffixes = {os.path.splitext(path)[1].lower() for path in known}
    no_suffix = not suffixes <= set(IMAGE_SUFFIXES)  # CANDID's files are named by UID alone
    children: dict[str, set[str]] = defaultdict(set)  # folder -> child folders with indexed files
    for path in per_folder:
        parent = os.path.dirname(path)
        while len(parent) >= len(str(root)):
            children[parent].add(path)
            path, parent = parent, os.path.dirname(parent)
    usual = float(np.median(list(per_folder.values())))
    depths = {path.count(os.sep) for path in per_folder}
    is_tree = usual <= _MAX_ORPHAN_FOLDER and len(per_folder) >= _MIN_TREE_FOLDERS
    for folder, names in walk_files(root):
        images = [
            os.path.join(folder, name)
            for name in names
            if no_suffix or name.lower().endswith(tuple(suffixes))
        ]
        if folder in per_folder:
            yield from (path for path in images if path not in known)
            continue
        alone = is_tree and len(images) <= _MAX_ORPHAN_FOLDER and folder.count(os.sep) in depths
        if alone:
            parent = os.path.dirname(folder)
            while parent not in children and len(parent) > len(str(root)):
                parent = os.path.dirname(parent)
            if len(children[parent]) > 1:
                yield from images


@check(
    "files/size",
    "error",
    what="an image has another size than its index or its source states",
    fix="use images and index of the same release; resized copies need resized boxes and masks",
)
def wrong_sizes(exam: Examination) -> Iterator[Hit]:
    """Image size against the record and against the size the provider fixes."""
    numbers = exam.facts.numbers
    for entry in exam.entries:
        if not exam.facts.looked[entry.file] or not numbers["height"][entry.file]:
            continue
        found = (int(numbers["height"][entry.file]), int(numbers["width"][entry.file]))
        record = exam.record(entry)
        expected = (record.get("height"), record.get("width"))
        origin = "its index says"
        if expected[0] is None:
            expected, origin = (
                exam.source_of(entry).image_size or found,
                "all images of this source",
            )
        if tuple(expected) != found:
            yield Hit(
                found=f"{found[0]} x {found[1]} (height x width)",
                expected=f"{expected[0]} x {expected[1]}: {origin}",
                **exam.place(entry),
            )
