"""Tables as text: cells found by column name, and every bad cell named with its file and row."""

from __future__ import annotations

import csv
import difflib
import gzip
import itertools
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError, ReadReport

RESTORE_FILE = "restore the file from the original download"
# Cells of label columns as vendors write them.
BINARY_CELLS = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0}
LABEL_CELLS = {**BINARY_CELLS, "-1": -1.0, "-1.0": -1.0, "": np.nan}
_ENCODING = "utf-8-sig"
_LINE_LIMIT = 1 << 24  # bytes; the longest rows (landmarks and run lengths) have some 20,000
_UNPACKED_LIMIT = (1 << 28, 100)  # bytes, and ratio to the packed size: beyond both it is a bomb


def _lines(path: Path, stream: Any) -> Iterator[bytes]:
    total, packed = 0, max(path.stat().st_size, 1)
    while text := stream.readline(_LINE_LIMIT):
        total += len(text)
        unpacks_too_much = total > _UNPACKED_LIMIT[0] and total / packed > _UNPACKED_LIMIT[1]
        if len(text) >= _LINE_LIMIT or unpacks_too_much:
            raise DataError(
                "a row is longer than 16 MiB" if not unpacks_too_much else "unpacks without end",
                file=path,
                expected="a table",
                fix=RESTORE_FILE,
            )
        yield text


def _check_cells(path: Path, header: Sequence[str] | None) -> None:
    """Every row has as many cells as the first, and no named column is without a cell.

    Some vendors end every line with a comma, so blank cells beyond the header are allowed, but only
    in all rows alike: one such row more likely lost a cell of its own.
    """
    quote, blank = b'"', (b"\n", b"\r\n")
    named = None if header is None else len(header)
    width: int | None = None

    def check(line: int, row: Sequence[str]) -> None:
        nonlocal named, width
        if named is None:  # the header line
            named = len(row)
            while named > 1 and not row[named - 1].strip():
                named -= 1
            return
        width = width or len(row)
        if len(row) != width or len(row) < named or any(c.strip() for c in row[named:]):
            raise DataError(
                f"{len(row)} cells",
                file=path,
                row=line,
                expected=f"{max(named, width)}, as in the rows before",
                fix=f"{RESTORE_FILE} (is it cut off?)",
            )

    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        lines = _lines(path, stream)
        for line, text in enumerate(lines, start=1):
            if quote in text:
                rest = (raw.decode(_ENCODING) for raw in itertools.chain([text], lines))
                rows = csv.reader(rest, strict=True)
                last = line - 1  # the line a record ends on; a record may span several
                try:
                    for row in rows:
                        if row:
                            check(last + 1, row)
                        last = line + rows.line_num - 1
                except csv.Error as exc:
                    raise DataError(
                        f"broken quotes ({exc})",
                        file=path,
                        row=last + 1,
                        expected="a CSV file",
                        fix=f"{RESTORE_FILE} (is it cut off?)",
                    ) from exc
                return
            if text not in blank and (
                width is None or text.count(b",") + 1 != width or width != named
            ):
                check(line, text.decode(_ENCODING).rstrip("\r\n").split(","))


def _undecodable_line(path: Path) -> int | None:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        for line, text in enumerate(_lines(path, stream), start=1):
            try:
                text.decode(_ENCODING)
            except UnicodeDecodeError:
                return line
    return None


def _parsed(
    path: Path, header: Sequence[str] | None, usecols: Iterable[str] | None
) -> pd.DataFrame:
    """The cells as text, with what is wrong with the file told by its name."""
    wanted = None if usecols is None else set(usecols)
    try:
        _check_cells(path, header)
        with warnings.catch_warnings():  # about blank last cells, which are checked above
            warnings.simplefilter("ignore", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                encoding=_ENCODING,
                header=None if header is not None else 0,
                names=list(header) if header is not None else None,
                usecols=(lambda name: name.strip() in wanted) if wanted is not None else None,
                index_col=False,
                on_bad_lines="error",
                compression="infer",
                encoding_errors="strict",
            )
    except DataError:
        raise
    except UnicodeDecodeError as exc:
        raise DataError(
            f"not {_ENCODING} text ({exc.reason})",
            file=path,
            row=_undecodable_line(path),
            expected=_ENCODING,
            fix=RESTORE_FILE,
        ) from exc
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"cannot be read ({exc})", file=path, fix=RESTORE_FILE) from exc
    # The errors of pandas' parser are ValueErrors.
    except (ValueError, csv.Error, OverflowError, MemoryError) as exc:
        raise DataError(
            f"not a table ({exc})", file=path, expected="a CSV file", fix=RESTORE_FILE
        ) from exc


def _check_columns(path: Path, columns: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in columns]
    if missing:
        near = difflib.get_close_matches(missing[0], columns, n=1)
        hint = f" (is it {near[0]!r}?)" if near else ""
        raise DataError(
            f"no column {missing[0]!r}{hint}; the header reads {columns[:20]}",
            file=path,
            row=1,
            expected=f"columns {list(required)}",
            fix="is this the right file, with its header line?",
        )


def read_table(
    path: Path,
    *,
    required: Sequence[str] = (),
    header: Sequence[str] | None = None,
    usecols: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Read a CSV table as strings, blanks around names and cells removed; blank cells are ``""``.

    Cells stay text, so that a column of labels with one stray word is reported with its row instead
    of turning the whole column into something else. Columns are found by name; ``header`` names
    them where the file has none. A row with fewer cells than the others is an error: it is what the
    last row of a truncated file looks like, and pandas would fill in blanks.

    Args:
        path: the file; ``.gz`` is unpacked on the fly.
        required: columns that must be there (after stripping blanks from names).
        header: column names of a file without a header line.
        usecols: read only these columns (saves memory on wide tables).
    """
    frame = _parsed(path, header, usecols)
    frame.columns = [str(name).strip() for name in frame.columns]  # SIIM: " EncodedPixels"
    for name in frame.columns:
        frame[name] = frame[name].str.strip()
    if usecols is not None and not set(required) <= set(frame.columns):
        read_table(path, required=required)  # raises, and says what else the header has
    _check_columns(path, list(frame.columns), required)
    return frame.fillna("")


def line_of(index: int) -> int:
    """Line number in the file of row ``index`` (0-based) of a table with a one-line header."""
    return index + 2


def checked_labels(
    frame: pd.DataFrame,
    columns: Sequence[str],
    *,
    file: Path,
    allowed: Mapping[str, float],
    report: ReadReport,
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of a table through ``allowed`` (text -> value); a bad cell goes to ``report``.

    Returns:
        The labels, float32 (N, C), and which rows are good, bool (N,).
    """
    out = np.full((len(frame), len(columns)), np.nan, dtype=np.float32)
    good = np.ones(len(frame), dtype=bool)
    for j, name in enumerate(columns):
        codes, texts = pd.factorize(frame[name])  # a handful of texts, whatever the number of rows
        known = np.array([text in allowed for text in texts] or [True])
        values = np.array([allowed.get(text, np.nan) for text in texts] or [np.nan])
        out[:, j] = values[codes]
        unknown = ~known[codes]
        good &= ~unknown
        for i in np.flatnonzero(unknown):
            report.bad(
                "row with a bad label",
                bad_cell(file, int(i), name, frame[name].iloc[i], sorted(allowed)),
            )
    return out, good


def bad_cell(
    file: Path, index: int | str, column: str, value: object, expected: object
) -> DataError:
    """The error for a cell; ``index`` is the 0-based row of a table with a header, or an id."""
    return DataError(
        f"column {column!r} holds {value!r}",
        file=file,
        row=line_of(index) if isinstance(index, int) else index,
        expected=f"one of {expected}" if isinstance(expected, (list, tuple)) else str(expected),
        fix="restore this row from the original file",
    )


def number(
    text: object, *, file: Path, row: int | str, column: str, minimum: float | None = None
) -> float:
    """A finite number from a cell or a JSON value, or a :class:`DataError` that names it."""
    try:
        value = float(text)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        value = float("nan")
    if not np.isfinite(value) or (minimum is not None and value < minimum):
        raise DataError(
            f"column {column!r} holds {text!r}",
            file=file,
            row=row,
            expected="a number" if minimum is None else f"a number from {minimum}",
            fix="restore this row from the original file",
        )
    return value


def reject(
    frame: pd.DataFrame,
    column: str,
    wrong: np.ndarray,
    good: np.ndarray,
    *,
    file: Path,
    expected: object,
    report: ReadReport,
) -> None:
    """Report the rows where ``wrong`` (N,) is True, and clear them in ``good`` (N,)."""
    for row in np.flatnonzero(wrong & good):
        error = bad_cell(file, int(row), column, frame[column].iloc[row], expected)
        report.bad(f"row with a bad {column}", error)
        good[row] = False
