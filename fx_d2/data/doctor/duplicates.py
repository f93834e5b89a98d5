"""The same picture twice: under two ids, in two splits, or in two datasets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..images import read_image
from .examination import Entry, Examination
from .facts import thumbnail
from .findings import Hit, check
from .hamming import near_pairs
from .rows import row_hits

# Measured on 64 real radiographs. Copies (JPEG at quality 60, other sizes, a gamma of 0.8) move at
# most 6 bits (95 % of them 4), their thumbnails' detail correlates by 0.98 and finer detail by 0.93
# or more (5th percentile). Different films, of one patient too, differ in 6 bits or more, and
# correlate by 0.78 and 0.40 at most. Synthetic patients are more alike: 0.95 and 0.88.
RADIUS_BITS = 5
MIN_DETAIL = 0.96
MIN_FINE_DETAIL = 0.88
_FINE_PX = 128
_DETAIL_SIGMA = 2.0
_FLAT = 8.0  # thumbnails with less contrast all look alike
_MAX_READ_AGAIN = 5000  # pairs looked at again in finer detail; more are counted without


def detail(thumb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """A thumbnail without its coarse layout, which all chests share; flat, of unit length."""
    image = thumb.astype(np.float32)
    fine = (image - cv2.GaussianBlur(image, (0, 0), _DETAIL_SIGMA)).ravel()
    fine -= fine.mean()
    return fine / max(float(np.linalg.norm(fine)), 1e-6)


def same_pictures(exam: Examination) -> list[tuple[int, int]]:
    """Pairs of different files that show the same picture."""
    table = exam.facts
    files = np.flatnonzero(table.decoded & (table.contrast > _FLAT))
    pairs = []
    n_read = 0
    for i, j, _ in near_pairs(table.numbers["hash"][files], RADIUS_BITS):
        a, b = int(files[i]), int(files[j])
        if float(detail(table.thumbs[a]) @ detail(table.thumbs[b])) < MIN_DETAIL:
            continue
        n_read += 1
        if n_read <= _MAX_READ_AGAIN and not _alike_in_fine_detail(exam.files[a], exam.files[b]):
            continue
        pairs.append((a, b))
    return sorted(pairs)


def _alike_in_fine_detail(path: str, other: str) -> bool:
    try:
        fine = [detail(thumbnail(read_image(p).pixels, _FINE_PX)) for p in (path, other)]
    except DataError:  # it was readable a moment ago
        return False
    return float(fine[0] @ fine[1]) >= MIN_FINE_DETAIL


def _entry_pairs(exam: Examination) -> Iterator[tuple[Entry, Entry]]:
    for a, b in exam.remembered("same pictures", same_pictures):
        for i, j in product(exam.entries_of_file[a], exam.entries_of_file[b]):
            yield exam.entries[i], exam.entries[j]


def _crosses(a: Entry, b: Entry) -> bool:
    """One is trained on and the other one measures."""
    return a.role != b.role and "train" in (a.role, b.role) and "" not in (a.role, b.role)


def _called(exam: Examination, entry: Entry) -> str:
    part = exam.parts[entry.part]
    role = f", {entry.role}" if entry.role else ""
    return f"{part.source.key} {entry.image_id} (part {part.name}{role})"


@check(
    "duplicates/image",
    "warning",
    what="the same picture under two ids of one source; an error if one of them is trained on and "
    "the other tested",
    fix="keep one; where splits differ, keep it in the test split only",
    needs_pixels=True,
)
def within_source(exam: Examination) -> Iterator[Hit]:
    """Same pictures within a source."""
    for a, b in _entry_pairs(exam):
        if exam.source_of(a).key != exam.source_of(b).key:
            continue
        yield Hit(
            found=f"same picture as {_called(exam, b)}, {exam.relative(exam.files[b.file])}; "
            f"this one is {a.role or 'unused'}",
            expected="every picture once",
            severity="error" if _crosses(a, b) else None,
            **exam.place(a),
        )


@check(
    "duplicates/across",
    "error",
    what="a picture of one source is in another one as well; an error if it is trained on in one "
    "and tested in the other, a warning where the overlap is known, else information",
    fix="leave these images out of one of the two when you train on one and test on the other",
    needs_pixels=True,
)
def across_sources(exam: Examination) -> Iterator[Hit]:
    """Same pictures in two sources, summed per pair of sources."""
    groups: dict[tuple[str, str], list[tuple[Entry, Entry]]] = defaultdict(list)
    for a, b in _entry_pairs(exam):
        first, second = exam.source_of(a), exam.source_of(b)
        if first.folder != second.folder:
            if first.key > second.key:
                a, b = b, a
            groups[exam.source_of(a).key, exam.source_of(b).key].append((a, b))
    for (one, other), pairs in groups.items():
        known = _known_overlap(exam, one, other)
        crossing = [pair for pair in pairs if _crosses(*pair)]
        a, b = (crossing or pairs)[0]
        names = "; ".join(f"{_called(exam, x)} = {_called(exam, y)}" for x, y in pairs[:5])
        leak = f", {len(crossing)} of them trained on in one and tested in the other"
        yield Hit(
            found=f"{len(pairs)} pictures are in both{leak if crossing else ''}: {names}",
            expected="a known overlap" if known else "no common picture",
            severity="info" if not crossing else "warning" if known else "error",
            count=len(pairs),
            **(exam.place(a) | {"source": f"{one}+{other}", "part": None}),
        )


def _known_overlap(exam: Examination, one: str, other: str) -> bool:
    rows = {source.key: source for source in exam.sources}
    return other in rows[one].overlaps or one in rows[other].overlaps


@check(
    "duplicates/image-id",
    "error",
    what="an image_id occurs twice in a source",
    fix="image_id must be unique within a source: remove the second row",
)
def image_ids(exam: Examination) -> Iterator[Hit]:
    """Ids that occur more than once in a part; between parts it is a leak (splits/image)."""
    yield from row_hits(exam, "duplicates/image-id")
    for part in exam.parts:
        seen: dict[str, Entry] = {}
        for entry in exam.entries[part.first : part.first + len(part.records)]:
            if entry.image_id in seen:
                first = exam.relative(exam.files[seen[entry.image_id].file])
                yield Hit(found=f"also {first}", expected="a unique image_id", **exam.place(entry))
            seen.setdefault(entry.image_id, entry)
