"""Memory that a piece of work needs, on the CPU as resident memory of a process of its own.

Resident memory is what the operating system counts. The C library keeps some freed memory, which is
part of it: the peak of a process is an upper bound of what the work needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal


def status_mib(field: str) -> float:
    """A memory figure of this process in MiB; NaN where the system has no such table."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(li.split()[1]) / 1024 for li in lines if li.startswith(field)), math.nan)


def give_memory_back() -> None:
    """Return what is free but still resident: growing into it would not be seen."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def added_by(work: Callable[[], object]) -> float:
    """Peak resident memory (MiB) of this process during ``work``, above that before it."""
    give_memory_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    before = status_mib("VmRSS")
    work()
    return status_mib("VmHWM") - before


def _report(sender: Connection, work: Callable[[], object]) -> None:
    sender.send(added_by(work))


def added_in_a_process(
    work: Callable[[], object], start: Literal["fork", "spawn"] = "fork"
) -> float:
    """:func:`added_by` in a process of its own.

    Args:
        work: what to do there; with ``spawn`` it must be picklable.
        start: ``fork`` for work that is ready to go, ``spawn`` for a process that starts from
            nothing, so that nothing this one did is reused.
    """
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, work))
    process.start()
    process.join()
    if process.exitcode or not receiver.poll():
        raise RuntimeError(f"the measuring process ended with code {process.exitcode}")
    return float(receiver.recv())
