"""The one error that bad data raises, and what a reader may do about it.

A user with 377,110 files needs to know which file, which row, what was expected there and what to
do next; a traceback from inside pandas or pydicom tells none of it. Library exceptions are
therefore turned into :class:`DataError` where the file is known.
"""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_logger = logging.getLogger(__name__)

_MAX_SHOWN_CHARS = 200


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` to put behind a message, or nothing where no name is near."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def shown(value: object) -> str:
    """``value`` as a one-line message may hold it: control characters escaped, long text cut."""
    text = repr(value) if not isinstance(value, str) else value
    text = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."


class DataError(ValueError):
    """Something on disk is not what its source's layout says; the message is one line.

    Args:
        problem: what is wrong, with the offending value.
        file: the file it is in.
        row: line number in the file as an editor counts (header is 1), or a record id.
        expected: what is allowed there.
        fix: what the user can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        row: int | str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.problem = shown(problem)
        self.file = None if file is None else os.fspath(file)
        self.row = row
        self.expected = None if expected is None else shown(expected)
        self.fix = None if fix is None else shown(fix)
        super().__init__(self._line())

    def __reduce__(self):  # keyword-only arguments would be lost between loader workers
        return (_rebuild, (self.problem, self.file, self.row, self.expected, self.fix))

    def _line(self) -> str:
        where = [] if self.file is None else [shown(self.file)]
        if self.row is not None:
            where.append(f"row {shown(self.row)}" if isinstance(self.row, int) else shown(self.row))
        line = f"{', '.join(where)}: {self.problem}" if where else self.problem
        if self.expected:
            line += f"; expected {self.expected}"
        if self.fix:
            line += f". To do: {self.fix}"
        return line


def _rebuild(problem, file, row, expected, fix) -> DataError:
    return DataError(problem, file=file, row=row, expected=expected, fix=fix)


class DataWarning(UserWarning):
    """A soft check failed: usable data, but a published figure or convention is not met."""


@dataclass
class ReadReport:
    """What a reader found while reading, and whether a bad record stops it or is counted.

    Args:
        on_error: ``"raise"`` stops at the first bad record; ``"skip"`` leaves it out and counts it.
            Errors that concern a whole file (missing index, wrong header) always raise.
        published_counts: whether totals are compared with the published figures; off for a
            synthetic world, which is smaller by design (it is recognised by its ``PHANTOM.json``).
        left_out: by part, ids of images or patients that a reader leaves out by design. They take
            part when the part is cut into splits, so that sources of one folder are cut alike.
    """

    on_error: str = "raise"
    published_counts: bool = True
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, DataError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}; allowed: 'raise', 'skip'")

    def bad(self, kind: str, error: DataError) -> None:
        """Raise ``error``, or count a record of ``kind`` as skipped and keep the first to show."""
        if self.on_error == "raise":
            raise error
        if kind not in self.skipped:
            self.examples[kind] = error
            _logger.warning("skipping %s (first case): %s", kind, error)
        self.skipped[kind] += 1

    def soft(self, what: str, *, found: object, expected: object, file: str | None = None) -> None:
        """Warn, naming both values, when ``found`` differs from a published figure."""
        if found == expected:
            return
        note = f"{what}: found {shown(found)}, expected {shown(expected)}"
        if file:
            note = f"{file}: {note}"
        self.notes.append(note)
        warnings.warn(note, DataWarning, stacklevel=2)

    def summary(self) -> str:
        """One line: how many records were left out, by kind."""
        if not self.skipped:
            return "no record skipped"
        return "skipped " + ", ".join(f"{n} x {kind}" for kind, n in sorted(self.skipped.items()))
