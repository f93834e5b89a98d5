"""Library warnings and log records about one file, collected as notes instead of printed.

``warnings.catch_warnings`` alone is not enough: two threads that leave it in the wrong order keep
each other's filters for ever. Here the first thread in installs one dispatcher and the last one out
removes it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_LOGGERS = ("pydicom",)
_MAX_NOTES = 8
_lock = threading.Lock()
_local = threading.local()
_depth = 0
_saved: tuple[warnings.catch_warnings, Any] | None = None


def _note(text: str) -> bool:
    notes = getattr(_local, "notes", None)
    if notes is None:
        return False
    line = " ".join(text.split())[:200]
    if line and line not in notes and len(notes) < _MAX_NOTES:
        notes.append(line)
    return True


class _CollectRecords(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        return not _note(record.getMessage())


_collect_records = _CollectRecords()


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    if not _note(str(message)) and _saved is not None:
        _saved[1](message, category, filename, lineno, file, line)


def _enter() -> None:
    global _depth, _saved
    with _lock:
        _depth += 1
        if _depth > 1:
            return
        catcher = warnings.catch_warnings()
        shown_before = warnings.showwarning
        catcher.__enter__()
        _saved = (catcher, shown_before)
        warnings.simplefilter("always")
        warnings.showwarning = _show
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_collect_records)


def _leave() -> None:
    global _depth, _saved
    with _lock:
        _depth -= 1
        if _depth or _saved is None:
            return
        catcher, _saved = _saved[0], None
        catcher.__exit__(None, None, None)
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(_collect_records)


@contextlib.contextmanager
def collecting_notes() -> Iterator[list[str]]:
    """Give the list into which this thread's library warnings go while the block runs."""
    before = getattr(_local, "notes", None)
    notes: list[str] = []
    _enter()
    _local.notes = notes
    try:
        yield notes
    finally:
        _local.notes = before
        _leave()
