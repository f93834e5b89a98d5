"""From a row of the source table to the records of one of its splits.

``load_records("rsna", "train")`` finds the dataset's folder, lets the row's reader read the
published part, cuts it patient-wise where the part is shared between splits, and packs what is
left. Nothing here knows any particular source.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .errors import DataError, DataWarning, ReadReport
from .readers.base import ReadRequest
from .readers.lookup import check_options, is_ours, reader_of
from .record import PackedRecords, Record, validate_record
from .source import Part, Source
from .sources import get_source
from .splits import folds_of, patients_between, read_split_file

_logger = logging.getLogger(__name__)

ROOT_VARIABLE = "DETECTRON2_DATASETS"
PHANTOM_FILE = "PHANTOM.json"
_SPLIT_FIX = "write the split file with tools/make_split.py, or correct its image ids"


@dataclass
class Settings:
    """What the config says about reading; :func:`configure` changes it, every read looks it up.

    Args:
        roots: source key -> its folder, instead of ``$DETECTRON2_DATASETS/<folder>``.
        on_error: ``"raise"`` or ``"skip"`` for single bad records.
        split_files: source key -> split file that replaces the row's splits.
        options: source key -> options for its reader.
        validate: check every record against the contract. The readers of this package are checked
            in its tests; readers from elsewhere are always checked.
    """

    roots: dict[str, str] = field(default_factory=dict)
    on_error: str = "raise"
    split_files: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    validate: bool = False


_settings = Settings()


def configure(
    roots: Mapping[str, str] | None = None,
    *,
    on_error: str = "raise",
    split_files: Mapping[str, str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    validate: bool = False,
) -> None:
    """Replace all reading settings; called without arguments it restores the defaults."""
    for mapping in (roots, split_files, options):
        for key in mapping or ():
            get_source(key)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; allowed: 'raise', 'skip'")
    for key, given in (options or {}).items():
        check_options(get_source(key), given)
    _settings.roots = dict(roots or {})
    _settings.on_error = on_error
    _settings.split_files = dict(split_files or {})
    _settings.options = {key: dict(value) for key, value in (options or {}).items()}
    _settings.validate = validate


def set_roots(roots: Mapping[str, str]) -> None:
    """Say where single sources lie; the others stay below ``$DETECTRON2_DATASETS``."""
    for key in roots:
        get_source(key)
    _settings.roots.update(roots)


def datasets_root() -> Path:
    """``$DETECTRON2_DATASETS``, or ``datasets`` where it is not set; looked up at every call."""
    return Path(os.environ.get(ROOT_VARIABLE) or "datasets").expanduser()


def source_root(key: str) -> Path:
    """The folder of a source: as configured, else ``$DETECTRON2_DATASETS/<folder>``."""
    source = get_source(key)
    if key in _settings.roots:
        return Path(_settings.roots[key]).expanduser()
    return datasets_root() / source.folder


def _is_phantom(root: Path) -> bool:
    return (root / PHANTOM_FILE).is_file() or (root.parent / PHANTOM_FILE).is_file()


def make_report(key: str, root: Path | None = None, on_error: str | None = None) -> ReadReport:
    """A fresh report; a synthetic world is not compared with published figures."""
    folder = source_root(key) if root is None else Path(root)
    return ReadReport(
        on_error=on_error or _settings.on_error, published_counts=not _is_phantom(folder)
    )


def read_part(
    key: str,
    part: str,
    *,
    root: str | os.PathLike[str] | None = None,
    report: ReadReport | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """The records of a published part, one at a time; an image id that comes twice is an error.

    Args:
        key: of the source.
        part: as the source's row names it (``Part.name``).
        root: the source's own folder; default as configured.
        report: collects skips and warnings; default a fresh one.
        options: for the reader, above those of the config and the row.
    """
    source = get_source(key)
    folder = source_root(key) if root is None else Path(root)
    if not folder.is_dir():
        raise DataError(
            f"dataset {source.title!r} is not there",
            file=folder,
            expected=f"its folder {source.folder!r} below ${ROOT_VARIABLE} "
            f"(now {os.environ.get(ROOT_VARIABLE) or 'not set: ./datasets'})",
            fix=f"set {ROOT_VARIABLE} or DATASETS.ROOTS; datasets/README.md says how to get {key}",
        )
    report = make_report(key, folder) if report is None else report
    check_options(source, options or ())
    merged = {**_settings.options.get(key, {}), **(options or {})}
    read = reader_of(source)
    request = ReadRequest(folder, part, source, report, merged)
    own = is_ours(getattr(read, "__module__", ""))
    seen: set[str] = set()
    for record in read(request):
        if _settings.validate or not own:
            validate_record(record, source)
        if record["image_id"] in seen:
            report.bad(
                "image id that comes twice",
                DataError(
                    f"image id {record['image_id']!r} comes twice in {key} {part}",
                    file=record["file_name"],
                    expected="every image once",
                    fix="remove the second copy from the index",
                ),
            )
            continue
        seen.add(record["image_id"])
        yield record


def patient_of(record: Record) -> str:
    """What must not stand on two sides of a split: the patient, else the image."""
    return record["patient_id"] or record["image_id"]


def _pack(records: Iterable[Record], what: str) -> tuple[PackedRecords, list[str], list[str]]:
    """Packed records, their image ids and their patients, in one pass and with a progress bar."""
    image_ids: list[str] = []
    patients: list[str] = []

    def noted() -> Iterator[Record]:
        # The first two seconds show nothing: most sources are read by then.
        bar = tqdm(records, desc=f"reading {what}", unit=" records", delay=2, file=sys.stderr)
        for record in bar:
            image_ids.append(record["image_id"])
            patients.append(patient_of(record))
            yield record

    return PackedRecords(noted()), image_ids, patients


def _part_of(source: Source, split: str) -> Part:
    if split not in source.splits:
        raise KeyError(
            f"source {source.key!r} has no split {split!r}; it has {list(source.splits)}"
        )
    return source.splits[split]


def load_records(
    key: str,
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    on_error: str | None = None,
    options: Mapping[str, Any] | None = None,
    split_file: str | os.PathLike[str] | None = None,
    report: ReadReport | None = None,
) -> PackedRecords:
    """The records of a split, packed so that loader workers share them.

    Args:
        key: of the source.
        split: a split of its row, or one of ``split_file``.
        root: the source's own folder; default as configured.
        on_error: ``"raise"`` or ``"skip"``; default as configured.
        options: for the reader, above those of the config and the row.
        split_file: written by ``tools/make_split.py``; default as configured.
        report: collects skips and warnings, for callers that show them.
    """
    source = get_source(key)
    folder = source_root(key) if root is None else Path(root)
    report = make_report(key, folder, on_error) if report is None else report
    split_file = _settings.split_files.get(key) if split_file is None else split_file
    if split_file is not None:
        records = _load_listed(source, split, Path(split_file), folder, report, options)
    else:
        part = _part_of(source, split)
        stream = read_part(key, part.name, root=folder, report=report, options=options)
        records, _, patients = _pack(stream, f"{key} {part.name}")
        if (part.low, part.high) != (0.0, 1.0):
            chosen = patients_of(source, part, patients, report)
            records = records.select([i for i, p in enumerate(patients) if p in chosen])
    if report.skipped:
        warnings.warn(f"{key} {split}: {report.summary()}", DataWarning, stacklevel=2)
    if not len(records):
        raise DataError(
            f"no record in {key} {split} ({report.summary()})",
            file=folder,
            fix="run tools/doctor.py on this source; a split carved from a handful of patients "
            "may be empty: take another split or more patients",
        )
    _logger.info("%s %s: %d records, %.1f MB", key, split, len(records), records.nbytes / 1e6)
    return records


def _load_listed(
    source: Source,
    split: str,
    path: Path,
    folder: Path,
    report: ReadReport,
    options: Mapping[str, Any] | None,
) -> PackedRecords:
    """The records that ``path`` lists for ``split``, from whichever published parts."""
    splits = read_split_file(path, source.key)
    if split not in splits:
        raise DataError(
            f"no split {split!r}", file=path, expected=f"one of {sorted(splits)}", fix=_SPLIT_FIX
        )
    missing = set(splits[split])
    parts = [source.splits[split].name] if split in source.splits else []
    parts += [part.name for part in source.splits.values()]

    def listed() -> Iterator[Record]:
        for part in dict.fromkeys(parts):
            if not missing:
                return
            for record in read_part(source.key, part, root=folder, report=report, options=options):
                if record["image_id"] in missing:
                    missing.remove(record["image_id"])
                    yield record

    records, _, _ = _pack(listed(), f"{source.key} {split}")
    if len(missing) > report.skipped.total():  # a skipped record explains one of them
        raise DataError(
            f"{len(missing)} images of split {split!r} are not on disk, e.g. {min(missing)!r}",
            file=path,
            fix=_SPLIT_FIX,
        )
    return records


def patients_of(
    source: Source, part: Part, patients: Iterable[str], report: ReadReport
) -> set[str]:
    """The patients in the share of a published part.

    Sources of one folder share the salt, and images that one of them leaves out still count, so
    that all of them are cut identically.

    Args:
        source: whose part.
        part: the share.
        patients: of the records that were read (:func:`patient_of`), repeats allowed.
        report: of the same reading.
    """
    everybody = {*patients, *report.left_out.get(part.name, ())}
    return patients_between(everybody, part.low, part.high, salt=source.folder)


def _contains(part: Part, other: Part) -> bool:
    larger = (part.high - part.low) > (other.high - other.low)
    return larger and part.name == other.name and part.low <= other.low < other.high <= part.high


def fold_ids(
    key: str,
    count: int,
    *,
    root: str | os.PathLike[str] | None = None,
    report: ReadReport | None = None,
) -> list[dict[str, list[str]]]:
    """Per fold of a cross-validation ``{"train": ids, "test": ids}``, patient-wise.

    All images of the source take part, whatever part they were published in.
    """
    source = get_source(key)
    report = make_report(key, None if root is None else Path(root)) if report is None else report
    ids: list[str] = []
    patients: list[str] = []
    for name in dict.fromkeys(part.name for part in source.splits.values()):
        stream = read_part(key, name, root=root, report=report)
        _, found, theirs = _pack(stream, f"{key} {name}")
        ids += found
        patients += theirs
    try:
        folds = folds_of(patients, count, salt=source.folder)
    except ValueError as exc:
        raise DataError(f"{key}: {exc}", file=root, fix="ask for another number of folds") from exc
    return [
        {
            "train": [i for i, fold in zip(ids, folds, strict=True) if fold != held],
            "test": [i for i, fold in zip(ids, folds, strict=True) if fold == held],
        }
        for held in range(count)
    ]


def split_ids(
    key: str, *, root: str | os.PathLike[str] | None = None, report: ReadReport | None = None
) -> dict[str, list[str]]:
    """Image ids of the disjoint splits of a row, as a split file holds them.

    A split that contains another one (``all``, ``trainval``) is left out.
    """
    source = get_source(key)
    report = make_report(key, None if root is None else Path(root)) if report is None else report
    result: dict[str, list[str]] = {}
    by_part: dict[str, tuple[list[str], list[str]]] = {}
    for split, part in source.splits.items():
        if any(_contains(part, other) for other in source.splits.values()):
            continue
        if part.name not in by_part:
            stream = read_part(key, part.name, root=root, report=report)
            by_part[part.name] = _pack(stream, f"{key} {part.name}")[1:]
        ids, patients = by_part[part.name]
        chosen = patients_of(source, part, patients, report)
        result[split] = [i for i, p in zip(ids, patients, strict=True) if p in chosen]
    return result
