"""A training in a process of its own, with one line about where it is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from fx_d2.command_line import WRONG_USE, WrongUse
from fx_d2.data.errors import DataError

from .stages import duration

_POLL_S, _LINE_S = 1.0, 30.0  # between two looks at the log; between two lines of a log of ours
_PATIENCE_S = 30.0  # for a process that was asked to end
_PHASE = re.compile(r"iteration (\d+): cycle (\d+), slot (\d+) of (\d+), (\S+ .+), share ")
_SCORING = re.compile(r"scoring every head: (.+)$")
_LOSS = re.compile(r"iter: (\d+) +total_loss: ([\d.e+-]+)")


class Progress:
    """Where a training is, by the lines of its log.

    Args:
        cycles: of the run.
        evaluations: data sets that are scored at its end, a model at a time.
    """

    def __init__(self, cycles: int, evaluations: int) -> None:
        self._cycles, self._evaluations = max(cycles, 1), max(evaluations, 1)
        self._evaluated = 0
        self.share, self.words = 0.0, "starting"

    def read(self, line: str) -> None:
        """Take notice of one line."""
        phase, scoring = _PHASE.search(line), _SCORING.search(line)
        if phase is not None:
            _, cycle, slot, slots, title = phase.groups()
            past = (int(cycle) - 1) * int(slots) + int(slot) - 1
            self.share = min(past / (self._cycles * int(slots)), 1.0)
            self.words = f"cycle {cycle} of {self._cycles}, {title}"
        elif scoring is not None:
            self.words = f"scoring every head, {scoring[1].strip()}"
        elif "Start inference on" in line:
            self._evaluated += 1
            self.share = 1.0
            self.words = (
                f"evaluating {min(self._evaluated, self._evaluations)} of {self._evaluations}"
            )

    def left_s(self, elapsed_s: float, expected_s: float, since: float = 0.0) -> float:
        """Seconds to go: as expected at first, more and more by the pace so far.

        Args:
            elapsed_s: of this call.
            expected_s: of a whole run.
            since: the share at the beginning of this call, of a resumed run.
        """
        gone = self.share - since
        expected = max(expected_s * (1 - since) - elapsed_s, 0.0)
        if gone <= 0 or elapsed_s <= 0:
            return expected
        by_pace = elapsed_s / gone * (1 - self.share)
        trust = min(gone / 0.3, 1.0)
        return trust * by_pace + (1 - trust) * expected


def train(
    command: Sequence[str],
    log: Path,
    progress: Progress,
    *,
    expected_s: float,
    environment: Mapping[str, str],
    out: TextIO = sys.stderr,
) -> None:
    """Run a training, and tell on ``out`` how far it is; Ctrl-C ends both cleanly.

    Args:
        command: words.
        log: everything it prints is appended there.
        progress: fed with its lines.
        expected_s: of a whole run.
        environment: of the process, beside that of this one.
        out: a terminal gets a line that changes, a file one every half minute.

    Raises:
        WrongUse: it refused its settings.
        DataError: it failed; the text has its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+", encoding="utf-8", errors="replace") as text:
        text.seek(0, os.SEEK_END)
        start_of_log = text.tell()
        # A session of its own: Ctrl-C reaches it once, from here, and it saves what it can.
        process = subprocess.Popen(
            list(command),
            stdout=text.fileno(),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            _follow(process, log, start_of_log, progress, expected_s, out)
        finally:
            _end(process)
    if process.returncode:
        _raise(process.returncode, log, start_of_log)


def _follow(
    process: subprocess.Popen[bytes],
    log: Path,
    start_of_log: int,
    progress: Progress,
    expected_s: float,
    out: TextIO,
) -> None:
    start, told, since = time.monotonic(), 0.0, None
    terminal = out.isatty()
    with log.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(start_of_log)
        rest = ""
        while True:
            ended = process.poll() is not None
            *whole, rest = (rest + lines.read()).split("\n")
            for line in whole:
                progress.read(line)
                if since is None and progress.words != "starting":
                    since = progress.share
            elapsed = time.monotonic() - start
            if ended:
                break
            if terminal or elapsed - told >= _LINE_S:
                told = elapsed
                left = duration(progress.left_s(elapsed, expected_s, since or 0.0))
                _tell(out, f"{progress.words}; about {left} left", terminal)
            time.sleep(_POLL_S)
    if terminal:
        out.write("\r\x1b[K")
        out.flush()


def _tell(out: TextIO, words: str, terminal: bool) -> None:
    out.write(f"\r\x1b[K      {words[:90]}" if terminal else f"      {words}\n")
    out.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process that still runs to end, then see to it."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(sign)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            continue


def _raise(code: int, log: Path, start_of_log: int) -> None:
    with log.open("rb") as file:
        file.seek(max(start_of_log, log.stat().st_size - 20_000))
        tail = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    if code == WRONG_USE:
        raise WrongUse(last)
    raise DataError(
        f"the training ended with exit code {code}: {last[:200]}",
        file=log,
        fix="read the log; the same call goes on from the last checkpoint",
    )
