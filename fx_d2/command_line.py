"""What the tools share: one clear line for what goes wrong, and an exit code.

0 is done, 1 data or files are not as they should be, 2 wrong use, 130 interrupted, 141 the reader
of the output went away. A traceback is left for errors of this program.
"""

from __future__ import annotations

import argparse
import functools
import io
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from fx_d2.data.errors import DataError, DataWarning, shown
from fx_d2.data.source import Source
from fx_d2.data.sources import get_source

FAILED = 1
WRONG_USE = 2
INTERRUPTED = 128 + signal.SIGINT
OUTPUT_CLOSED = 128 + getattr(signal, "SIGPIPE", 13)

Main = Callable[[Sequence[str] | None], int]


class WrongUse(Exception):
    """An argument cannot be right; its text says which and what is allowed."""


class Parser(argparse.ArgumentParser):
    """Answers a wrong argument with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(WRONG_USE, f"{self.prog.replace('.py', '')}: {message} (--help says more)\n")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An ``argparse`` type: a whole number in [low, high]."""
    allowed = f"a whole number from {low}" + ("" if high is None else f" to {high}")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(f"{shown(text)!r} is not {allowed}") from exc
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {allowed}")
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """An ``argparse`` type: a number in [low, high]."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{shown(text)!r} is not a number from {low:g} to {high:g}"
            )
        return value

    return parse


def named_source(key: str) -> Source:
    """The row of a source named by the user.

    Raises:
        WrongUse: there is none; the text has the nearest name.
    """
    try:
        return get_source(key)
    except KeyError as exc:
        raise WrongUse(exc.args[0]) from exc


def existing_root(root: Path) -> Path:
    """``root`` if it is a folder.

    Raises:
        WrongUse: it is not there, or a file.
    """
    root = root.expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "is not there"
        raise WrongUse(f"{root} {what}; set DETECTRON2_DATASETS or name a folder with --root")
    return root


def check_output(path: Path, *, folder: bool = False) -> None:
    """Find out before the work whether its result can be written.

    Args:
        path: file or folder to be.
        folder: whether it is to be a folder.

    Raises:
        WrongUse: it cannot be written, and why.
    """
    if path.exists() and path.is_dir() != folder:
        raise WrongUse(f"{path} is a {'file' if folder else 'folder'}; name another place")
    there = path if path.exists() else next(p for p in path.absolute().parents if p.exists())
    if not there.is_dir() and there != path:
        raise WrongUse(f"{path} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK):
        raise WrongUse(f"{path} cannot be written: no permission to write {there}")


def tool(name: str, *, resumable: bool = False) -> Callable[[Main], Main]:
    """Decorates the ``main`` of a tool: expected failures become one line and an exit code.

    Args:
        name: stands before the line.
        resumable: whether a second call continues an interrupted one.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            _listen_to_interrupts()
            if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be text
                sys.stdout.reconfigure(errors="backslashreplace")
            try:
                with _warnings_in_one_line(name):
                    code = main(argv)
                sys.stdout.flush()  # here, so that a closed pipe is met here
                return code
            except WrongUse as exc:
                return _say(name, str(exc), WRONG_USE)
            except KeyboardInterrupt:
                hint = "; call it again to continue" if resumable else ""
                return _say(name, f"interrupted{hint}", INTERRUPTED)
            except BrokenPipeError:
                # Nobody listens; a flush at exit would complain once more.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                return OUTPUT_CLOSED
            except DataError as exc:
                return _say(name, str(exc), FAILED)
            except ImportError as exc:
                return _say(name, str(exc), FAILED)
            except OSError as exc:
                return _say(name, _os_error(exc), FAILED)

        return guarded

    return decorate


def _listen_to_interrupts() -> None:
    """Undo what ``tools/quiet_interrupt.py`` did for the time of the imports."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _warnings_in_one_line(name: str) -> Iterator[None]:
    """Warnings about data without the line of this program that noticed."""
    before = warnings.formatwarning

    def formatted(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if issubclass(category, DataWarning):
            return f"{name}: warning: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


def _os_error(exc: OSError) -> str:
    where = exc.filename2 or exc.filename
    what = exc.strerror or str(exc)
    place = f"{os.fspath(where)!s}: " if isinstance(where, (str, os.PathLike)) else ""
    return f"{place}{what}; is there room, and may you read and write there?"


def _say(name: str, text: str, code: int) -> int:
    line = " ".join(text.split())
    print(f"{name}: {line.encode('utf-8', 'backslashreplace').decode()}", file=sys.stderr)
    return code
