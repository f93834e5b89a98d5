"""Rows that a reader left out, sorted by the check they belong to.

A reader drops an impossible box before it becomes a record, so the checks of records would never
see it. What it dropped, and why, is in its report; the sentence of the error says which check it is
a case of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import DataError, ReadReport, shown
from .examination import Examination, Part
from .findings import Hit

MAX_KEPT = 1000  # errors kept per kind and part; the rest is counted

# The first pattern found in "<kind>: <problem>" decides; tests hold the readers' sentences to this.
_ROUTES = (
    (r"comes twice", "duplicates/image-id"),
    (r"box .*leaves the image", "boxes/outside"),
    (r"box .*has no area", "boxes/degenerate"),
    (r"run lengths .*leave|crop .*(leaves|at left)", "masks/frame"),
    (r"image without a file|patient without a folder|image .* is not below", "files/missing"),
    (r"without a mask", "masks/unreadable"),
    (r"bad label|label .* is |labels hold", "labels/values"),
)
OTHER = "index/bad-rows"


@dataclass
class RowReport(ReadReport):
    """A reader's report that keeps every error, not only the first of a kind, and logs nothing."""

    on_error: str = "skip"
    kept: list[tuple[str, DataError]] = field(default_factory=list)
    unmet: list[tuple[str, str, str, str | None]] = field(default_factory=list)

    def bad(self, kind: str, error: DataError) -> None:
        """Count the error, and keep it while there is room for its kind."""
        self.examples.setdefault(kind, error)
        self.skipped[kind] += 1
        if self.skipped[kind] <= MAX_KEPT:
            self.kept.append((kind, error))

    def soft(self, what: str, *, found: object, expected: object, file: str | None = None) -> None:
        """Keep an unmet expectation as (what, found, expected, file)."""
        if found != expected:
            self.unmet.append((what, shown(found), shown(expected), file))


def route(kind: str, error: DataError) -> str:
    """The id of the check that an error of a reader is a case of."""
    text = f"{kind}: {error.problem}"
    return next((check for pattern, check in _ROUTES if re.search(pattern, text)), OTHER)


def lost_rows(part: Part, check: str) -> int:
    """How many rows of a part were left out for the reason of ``check``."""
    examples = part.report.examples
    return sum(n for kind, n in part.report.skipped.items() if route(kind, examples[kind]) == check)


def blamed_text(part: Part) -> str:
    """Everything that the errors of left-out rows say, to find the images they are about."""
    kept = part.report.kept if isinstance(part.report, RowReport) else []
    return "\n".join(f"{error.row} {error.problem}" for _, error in kept)


def row_hits(exam: Examination, check: str) -> Iterator[Hit]:
    """A hit per row that was left out for the reason of ``check``."""
    for part in exam.parts:
        report = part.report
        kept = report.kept if isinstance(report, RowReport) else list(report.examples.items())
        shown: dict[str, int] = {}
        for kind, error in kept:
            if route(kind, error) == check:
                shown[kind] = shown.get(kind, 0) + 1
                yield _hit(exam, part, kind, error)
        for kind, number in shown.items():
            if report.skipped[kind] > number:
                more = report.skipped[kind] - number
                yield Hit(part.source.key, f"{more} more: {kind}", "", part.name, count=more)
        if part.error is not None and route("", part.error) == check != OTHER:
            yield _hit(exam, part, "", part.error)


def _hit(exam: Examination, part: Part, kind: str, error: DataError) -> Hit:
    row = error.row if error.row is None or isinstance(error.row, str) else f"row {error.row}"
    return Hit(
        part.source.key,
        f"{kind}: {error.problem}" if kind and kind not in error.problem else error.problem,
        error.expected or "rows in the published form",
        part=part.name,
        file=None if error.file is None else exam.relative(error.file),
        where=row,
        fix=error.fix,
    )
