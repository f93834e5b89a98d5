"""Tools are tried on what the tests of the engine are tried on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Makes ``studies`` importable, and ``own_process``.
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "engine"), str(HERE)]


@pytest.fixture
def loggers_kept() -> Iterator[None]:
    """A tool that is called here leaves the loggers as they were."""
    loggers = [logging.getLogger(name) for name in ("fx_d2", "detectron2", "fvcore")]
    before = [(log.handlers[:], log.propagate, log.level) for log in loggers]
    yield
    for log, (handlers, propagate, level) in zip(loggers, before, strict=True):
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
