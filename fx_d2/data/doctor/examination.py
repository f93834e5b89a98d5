"""What the checks look at: the records of every part, and a table of facts about the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..catalog import PHANTOM_FILE, patient_of, patients_of
from ..errors import DataError, ReadReport
from ..record import PackedRecords, Record, box_xyxy, validate_record
from ..source import Source
from .facts import FactTable, Job
from .mask_facts import MaskFact, MaskJob

_ROLES = ("train", "val", "test")  # splits that must not share an image or a patient

ReadPart = Callable[[Source, str, Path], tuple[Sequence[Record], ReadReport]]
Progress = Callable[[Iterator[Any], int, str], Iterator[Any]]

BOX_DTYPE = np.dtype(
    [
        ("record", np.int32),
        ("number", np.int16),
        ("category", np.int32),
        ("xyxy", np.float32, 4),
        ("height", np.int32),
        ("width", np.int32),
    ]
)


@dataclass(frozen=True)
class Entry:
    """A record, reduced to what the checks across records need."""

    __slots__ = ("file", "frontal", "image_id", "part", "patient", "record", "role")

    part: int
    record: int
    image_id: str
    patient: str | None
    file: int
    role: str
    frontal: bool


@dataclass
class Part:
    """A published part of a source as its reader gave it.

    Args:
        source: the row.
        name: of the part.
        records: what could be read.
        report: what the reader left out or noted.
        error: why the part as a whole could not be read.
        first: number of its first entry.
        labels: float32 (N, C); NaN throughout where there are none.
        boxes: every box, :data:`BOX_DTYPE`.
        contract: (record number, problem) of records that break the record contract.
    """

    source: Source
    name: str
    records: Sequence[Record] = ()
    report: ReadReport = field(default_factory=lambda: ReadReport(on_error="skip"))
    error: DataError | None = None
    first: int = 0
    labels: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, 0), dtype=np.float32)
    )
    boxes: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0, dtype=BOX_DTYPE))
    contract: list[tuple[int, DataError]] = field(default_factory=list)


def role_finder(
    source: Source, part: str, records: Sequence[Record], report: ReadReport
) -> Callable[[Record], str]:
    """Tells for a record of ``part`` whether it is trained on, validated on or tested on."""
    shares = {
        role: source.splits[role]
        for role in _ROLES
        if role in source.splits and source.splits[role].name == part
    }
    if len(shares) == 1 and (only := next(iter(shares.values()))).low == 0 and only.high == 1:
        role = next(iter(shares))
        return lambda record: role
    patients = {patient_of(record) for record in records}
    owner: dict[str, str] = {}
    for role, share in shares.items():
        for patient in patients_of(source, share, patients, report):
            owner[patient] = role
    return lambda record: owner.get(patient_of(record), "")


class Examination:
    """The records of all parts and the facts of all files, filled in two steps.

    Args:
        root: the datasets root.
        sources: rows to examine.
        read_part: gives records and the reader's report; raises :class:`DataError` for a part that
            cannot be read at all.
        parts: names of parts to look at; None is all.
    """

    def __init__(
        self,
        root: Path,
        sources: Sequence[Source],
        read_part: ReadPart,
        parts: Sequence[str] | None = None,
    ) -> None:
        self.root = root
        self.sources = list(sources)
        self.is_phantom = (root / PHANTOM_FILE).is_file()
        self.parts: list[Part] = []
        self.entries: list[Entry] = []
        self.files: list[str] = []
        self.entries_of_file: list[list[int]] = []
        self.mask_facts: list[MaskFact] = []
        self.facts = FactTable(0)
        self._read_part = read_part
        self._memory: dict[str, Any] = {}
        self._wanted_parts = None if parts is None else set(parts)

    # ------------------------------------------------------------------ step 1: the indexes
    def read_indexes(self, progress: Progress) -> None:
        """Read every part and collect ids, labels and boxes in one pass over its records."""
        wanted = [
            Part(source, name)
            for source in self.sources
            for name in dict.fromkeys(part.name for part in source.splits.values())
            if self._wanted_parts is None or name in self._wanted_parts
        ]
        file_numbers: dict[str, int] = {}
        for part in progress(iter(wanted), len(wanted), "reading indexes"):
            folder = self.root / part.source.folder
            try:
                records, part.report = self._read_part(part.source, part.name, folder)
                part.records = (
                    records if isinstance(records, PackedRecords) else PackedRecords(records)
                )
            except DataError as exc:
                part.error = exc
            except Exception as exc:  # a bug in somebody's reader is a finding too
                part.error = DataError(
                    f"the reader failed: {type(exc).__name__}: {exc}",
                    file=folder,
                    expected="records, or a DataError",
                    fix="correct the reader, or report it with this line",
                )
            part.first = len(self.entries)
            self._collect(len(self.parts), part, file_numbers)
            self.parts.append(part)
        self.facts = FactTable(len(self.files))

    def _collect(self, number: int, part: Part, file_numbers: dict[str, int]) -> None:
        role_of = role_finder(part.source, part.name, part.records, part.report)
        n_classes = len(part.source.cls_classes)
        labels = np.full((len(part.records), n_classes), np.nan, dtype=np.float32)
        boxes: list[tuple[Any, ...]] = []
        for i, record in enumerate(part.records):
            path = record["file_name"]
            file = file_numbers.setdefault(path, len(self.files))
            if file == len(self.files):
                self.files.append(path)
                self.entries_of_file.append([])
            self.entries_of_file[file].append(len(self.entries))
            self.entries.append(
                Entry(
                    part=number,
                    record=i,
                    image_id=record["image_id"],
                    patient=record["patient_id"],
                    file=file,
                    role=role_of(record),
                    frontal=_is_frontal_chest(record, part.source),
                )
            )
            try:
                validate_record(record, part.source)
            except DataError as exc:
                part.contract.append((i, exc))
            found = record.get("labels")
            if isinstance(found, np.ndarray) and found.shape == (n_classes,):
                labels[i] = found
            boxes.extend(_boxes_of(i, record))
        part.labels = labels
        part.boxes = np.array(boxes, dtype=BOX_DTYPE)

    # ------------------------------------------------------------------ step 2: the files
    def jobs(self, chosen: Sequence[int], decode: bool) -> Iterator[Job]:
        """One job per chosen file, with the masks of every record that uses it."""
        for file in chosen:
            masks: list[MaskJob] = []
            if decode:
                for entry in self.entries_of_file[file]:
                    masks.extend(self._mask_jobs(entry))
            yield Job(self.files[file], decode, tuple(masks))

    def _mask_jobs(self, entry_number: int) -> Iterator[MaskJob]:
        entry = self.entries[entry_number]
        source = self.parts[entry.part].source
        if not source.seg_classes and not source.instance_masks:
            return
        record = self.record(entry)
        for name, ref in record.get("masks", {}).items():
            yield MaskJob(entry_number, name, ref, source.resize_masks)
        for annotation in record.get("annotations", ()):
            ref = annotation.get("segmentation")
            if ref is None or (isinstance(ref, list) and not ref):
                continue
            category = annotation.get("category_id")
            name = str(category)
            if isinstance(category, int) and 0 <= category < len(source.thing_classes):
                name = source.thing_classes[category]
            if isinstance(ref, list):
                ref = {"polygons": ref}
            box = box_xyxy(annotation)
            yield MaskJob(entry_number, name, ref, source.resize_masks, instance=True, box=box)

    def choose_files(self, max_images: int | None) -> list[int]:
        """Files to open: all, or ``max_images`` of every source, spread evenly over its index."""
        if max_images is None:
            return list(range(len(self.files)))
        chosen: set[int] = set()
        for source in self.sources:
            files = self.files_of(source.key)
            if len(files) > max_images:
                files = files[np.linspace(0, len(files) - 1, max_images).round().astype(int)]
            chosen.update(int(f) for f in files)
        return sorted(chosen)

    # ------------------------------------------------------------------ what checks ask for
    def record(self, entry: Entry) -> Record:
        """The whole record of an entry."""
        return self.parts[entry.part].records[entry.record]

    def source_of(self, entry: Entry) -> Source:
        """The row an entry belongs to."""
        return self.parts[entry.part].source

    def parts_of(self, key: str) -> list[Part]:
        """The parts of one source."""
        return [part for part in self.parts if part.source.key == key]

    def entries_of(self, key: str) -> Iterator[Entry]:
        """The entries of one source."""
        for part in self.parts_of(key):
            yield from self.entries[part.first : part.first + len(part.records)]

    def files_of(self, key: str, *, frontal: bool = False) -> npt.NDArray[np.int64]:
        """Distinct files of a source in index order; ``frontal``: no other views, no bones."""
        numbers = (e.file for e in self.entries_of(key) if e.frontal or not frontal)
        return np.fromiter(dict.fromkeys(numbers), dtype=np.int64)

    def remembered(self, name: str, compute: Callable[[Examination], Any]) -> Any:
        """What ``compute`` gives for this examination; several checks may ask for it."""
        if name not in self._memory:
            self._memory[name] = compute(self)
        return self._memory[name]

    def groups(self) -> Iterator[tuple[str, list[Source]]]:
        """Folders and the sources that read them; files are checked once per folder."""
        folders: dict[str, list[Source]] = {}
        for source in self.sources:
            folders.setdefault(source.folder, []).append(source)
        yield from folders.items()

    def relative(self, path: str) -> str:
        """``path`` as shown in findings: relative to the root where it lies below it."""
        prefix = f"{self.root}/"
        return path[len(prefix) :] if path.startswith(prefix) else path

    def place(self, entry: Entry) -> dict[str, Any]:
        """The keywords of a hit that say where it is."""
        part = self.parts[entry.part]
        return {
            "source": part.source.key,
            "part": part.name,
            "file": self.relative(self.files[entry.file]),
            "where": f"image_id {entry.image_id}",
            "record": (entry.part, entry.record),
        }


def _is_frontal_chest(record: Record, source: Source) -> bool:
    if record.get("body_part") not in (None, "chest"):
        return False
    return source.frontal_views is None or record["view"] in source.frontal_views


def _boxes_of(number: int, record: Record) -> Iterator[tuple[Any, ...]]:
    for i, annotation in enumerate(record.get("annotations", ())):
        try:
            box = box_xyxy(annotation)
        except (KeyError, TypeError, ValueError):  # reported as a broken record contract
            continue
        category = annotation.get("category_id")
        yield (
            number,
            min(i, 32767),
            category if isinstance(category, int) else -1,
            box,
            record.get("height") or 0,
            record.get("width") or 0,
        )
