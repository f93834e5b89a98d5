"""Tools of this repository in processes of their own, which end when the caller is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_S = 0.5
_GRACE_S = 20.0  # a training ends within a step or an image of its evaluation

Process = subprocess.Popen[bytes]


def start_tool(
    words: Sequence[str], log: Path, environment: Mapping[str, str], lock: int
) -> Process:
    """Start a tool; no shell reads its words.

    Args:
        words: program and arguments.
        log: gets the command and all that is said, after what it holds.
        environment: of the process.
        lock: descriptor of the lock of the folder it works in.
    """
    with open(log, "ab") as stream:
        stream.write(f"$ {' '.join(words)}\n".encode())
        stream.flush()
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches the caller alone, which then ends the others one by one.
            start_new_session=True,
            # Whoever holds it uses the folder, even when the caller was killed.
            pass_fds=(lock,),
        )


def end_tools(processes: Sequence[Process]) -> None:
    """End what still runs: asked first, so that no half-written file is left behind."""
    # A process started in the background ignores SIGINT, and its children inherit that.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    try:
        for process in processes:
            _send(process, signal.SIGTERM if ignored else signal.SIGINT)
        until = time.monotonic() + _GRACE_S
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
    finally:  # after the time of grace, or a second Ctrl-C
        for process in processes:
            if process.poll() is None:
                _send(process, signal.SIGKILL)
                process.wait()


def call_tool(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    lock: int,
    waiting: Callable[[], None] = lambda: None,
) -> int:
    """Start a tool and wait for its exit code.

    Args:
        words: see :func:`start_tool`, as for the next three.
        log: see there.
        environment: see there.
        lock: see there.
        waiting: called now and then.
    """
    with terminated_like_interrupted():
        process = start_tool(words, log, environment, lock)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(_POLL_S)
                waiting()
        finally:
            end_tools([process])


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Within, SIGTERM is an interrupt: else the tools would go on without anybody."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _send(process: Process, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, what)
