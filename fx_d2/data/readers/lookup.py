"""From a row's ``reader`` to the function that reads, and what that one may be told."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

from ..errors import DataError, did_you_mean
from ..record import Record
from ..source import Source
from .base import ReadRequest

Reader = Callable[[ReadRequest], Iterator[Record]]


def reader_of(source: Source) -> Reader:
    """The ``read`` of a row: a function, a module of ``readers``, or any other module."""
    name = source.reader
    if not isinstance(name, str):
        return name
    module = _import_first(name if "." in name else f"{__package__}.{name}", name)
    if module is None:
        raise DataError(
            f"source {source.key!r} names the reader {name!r}, which cannot be imported",
            expected="a module of fx_d2.data.readers, or the path of another module",
            fix="correct `reader` in the source's row, or put its folder on PYTHONPATH",
        )
    read = getattr(module, "read", None)
    if not callable(read):
        raise DataError(
            f"reader {module.__name__!r} has no function read(request)",
            fix="define `def read(request: ReadRequest) -> Iterator[Record]` in it",
        )
    return read


def check_options(source: Source, given: Iterable[str]) -> None:
    """Refuse what the reader would not look at.

    A module of readers names its options in ``OPTIONS``; one from elsewhere that does not, and a
    function, take anything.
    """
    others = [name for name in given if name not in source.options]
    if not others or not isinstance(source.reader, str):
        return
    module = sys.modules[reader_of(source).__module__]
    known = getattr(module, "OPTIONS", () if is_ours(module.__name__) else None)
    for name in others:
        if known is not None and name not in known:
            raise ValueError(
                f"DATASETS.OPTIONS.{source.key}: the reader {source.reader!r} has no option "
                f"{name!r}.{did_you_mean(name, known)} Options: {', '.join(known) or 'none'}"
            )


def is_ours(module: str) -> bool:
    """Whether a module of that name is a reader of this package."""
    return module.startswith(f"{__package__}.")


def _import_first(*paths: str) -> ModuleType | None:
    for path in paths:
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{path}.".startswith(f"{exc.name}."):
                raise  # the reader is there, but something it imports is not
    return None
