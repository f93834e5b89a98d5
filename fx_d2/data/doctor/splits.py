"""Nothing that is tested may have been trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from .examination import Entry, Examination
from .findings import Hit, check


def _side(exam: Examination, entry: Entry) -> str:
    """What must not share anything: the split, or the part where it belongs to none."""
    return entry.role or f"part {exam.parts[entry.part].name}"


@check(
    "splits/patient",
    "error",
    what="images of one patient are in two splits",
    fix="move all images of the patient to one split; scores on the other are too good",
)
def patients(exam: Examination) -> Iterator[Hit]:
    """Patients on two sides."""
    for source in exam.sources:
        sides: dict[str, dict[str, Entry]] = defaultdict(dict)
        for entry in exam.entries_of(source.key):
            if entry.patient is not None:
                sides[entry.patient].setdefault(_side(exam, entry), entry)
        for patient, found in sides.items():
            if len(found) > 1:
                names = ", ".join(f"{side} ({e.image_id})" for side, e in sorted(found.items()))
                entry = found[min(found)]
                yield Hit(
                    found=f"patient {patient} is in {names}",
                    expected="one split per patient",
                    **(exam.place(entry) | {"where": f"patient {patient}"}),
                )


@check(
    "splits/image",
    "error",
    what="an image is in two splits: a test image inside a training list",
    fix="remove it from the training list",
)
def images(exam: Examination) -> Iterator[Hit]:
    """Images (by id or by file) on two sides of one source."""
    for source in exam.sources:
        by_id: dict[str, Entry] = {}
        by_file: dict[int, Entry] = {}
        for entry in exam.entries_of(source.key):
            for first in (by_id.get(entry.image_id), by_file.get(entry.file)):
                if first is not None and _side(exam, first) != _side(exam, entry):
                    yield Hit(
                        found=f"in {_side(exam, first)} and in {_side(exam, entry)}",
                        expected="one split per image",
                        **exam.place(entry),
                    )
                    break
            by_id.setdefault(entry.image_id, entry)
            by_file.setdefault(entry.file, entry)


@check(
    "splits/overlap",
    "info",
    what="two sources that are known to share images are both there",
    fix="do not train on one and test on the other without removing the common images",
)
def known_overlaps(exam: Examination) -> Iterator[Hit]:
    """Pairs of rows that name each other in `overlaps`."""
    there = {part.source.key: part.source for part in exam.parts if len(part.records)}
    pairs = {
        tuple(sorted((key, other)))
        for key, source in there.items()
        for other in source.overlaps
        if other in there
    }
    for one, other in sorted(pairs):
        found = f"{there[one].title} and {there[other].title} share images"
        if there[one].folder == there[other].folder:
            found += _conflict(exam, one, other)
        yield Hit(f"{one}+{other}", found, "to be used with care")


def _conflict(exam: Examination, one: str, other: str) -> str:
    """How many common files are trained on in one and tested in the other."""
    first = {entry.file: entry.role for entry in exam.entries_of(one)}
    crossing = sum(
        {first.get(entry.file), entry.role} == {"train", "test"} for entry in exam.entries_of(other)
    )
    return f"; {crossing} images are trained on in one and tested in the other" if crossing else ""
