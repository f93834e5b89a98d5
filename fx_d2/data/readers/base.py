"""What every reader needs: its request, tables read by column name, and files that must exist."""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError, ReadReport, shown
from ..source import Source


@dataclass
class ReadRequest:
    """What is to be read.

    Args:
        root: the source's own folder.
        part: a published part of the source (the name in its row's ``splits``).
        source: the row.
        report: collects skips and soft checks.
        options: the row's options, overridden by the config.
    """

    root: Path
    part: str
    source: Source
    report: ReadReport = field(default_factory=ReadReport)
    options: Mapping[str, Any] = field(default_factory=dict)

    def option(self, name: str, default: Any = None) -> Any:
        """An option of this request, else of the row, else ``default``."""
        return self.options.get(name, self.source.options.get(name, default))


def find_file(root: Path, *candidates: str, what: str, fix: str | None = None) -> Path:
    """The first of ``candidates`` (relative to ``root``) that exists; else a :class:`DataError` with what is there."""
    for candidate in candidates:
        path = root / candidate
        if path.exists():
            return path
    try:
        there = sorted(entry.name for entry in os.scandir(root))[:12]
    except OSError:
        raise DataError(
            f"no folder for {what}",
            file=root,
            fix=fix
            or "put the dataset there, or set DETECTRON2_DATASETS to the folder that holds it",
        ) from None
    near = difflib.get_close_matches(Path(candidates[0]).name, there, n=1, cutoff=0.7)
    raise DataError(
        f"{what} not found" + (f" (is it {near[0]!r}?)" if near else f"; the folder holds {there}"),
        file=root / candidates[0],
        expected=" or ".join(candidates),
        fix=fix or "see datasets/README.md for the tree this source must have",
    )


def read_table(
    path: Path,
    *,
    required: Sequence[str] = (),
    header: Sequence[str] | None = None,
    encoding: str = "utf-8-sig",
    separator: str = ",",
    usecols: Iterable[str] | None = None,
    strip: bool = True,
) -> pd.DataFrame:
    """Read a delimited table as strings; blank cells are ``""``.

    Cells stay text, so that a column of labels with one stray word is reported with its row instead of turning
    the whole column into something else. Columns are found by name; ``header`` names them where the file has none.

    Args:
        path: the file; ``.gz`` is unpacked on the fly.
        required: columns that must be there (after stripping blanks from names).
        header: column names of a file without a header line.
        encoding: of the text.
        separator: between cells.
        usecols: read only these columns (saves memory on wide tables).
        strip: strip blanks from names and cells (SIIM writes ``" EncodedPixels"``).
    """
    fix = "restore the file from the original download"
    wanted = None if usecols is None else set(usecols)
    try:
        frame = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            encoding=encoding,
            sep=separator,
            header=None if header is not None else 0,
            names=list(header) if header is not None else None,
            usecols=(lambda name: name.strip() in wanted) if wanted is not None else None,
            index_col=False,
            on_bad_lines="error",
            compression="infer",
            encoding_errors="strict",
        )
    except UnicodeDecodeError as exc:
        raise DataError(
            f"not {encoding} text (byte {exc.start})", file=path, expected=encoding, fix=fix
        ) from exc
    except (OSError, EOFError) as exc:
        raise DataError(f"cannot be read ({exc})", file=path, fix=fix) from exc
    except (
        ValueError,
        csv.Error,
        OverflowError,
        MemoryError,
    ) as exc:  # pandas' parser errors are ValueErrors
        raise DataError(f"not a table ({exc})", file=path, expected="a CSV file", fix=fix) from exc
    except Exception as exc:  # zlib.error and gzip errors share no base class with OSError
        raise DataError(
            f"cannot be read ({type(exc).__name__}: {exc})", file=path, fix=fix
        ) from exc
    if strip:
        frame.columns = [str(name).strip() for name in frame.columns]
        for name in frame.columns:
            frame[name] = frame[name].str.strip()
    missing = [name for name in required if name not in frame.columns]
    if missing:
        near = difflib.get_close_matches(missing[0], list(frame.columns), n=1)
        hint = f" (is it {near[0]!r}?)" if near else ""
        raise DataError(
            f"no column {missing[0]!r}{hint}; the header reads {list(frame.columns)[:20]}",
            file=path,
            row=1,
            expected=f"columns {list(required)}",
            fix="is this the right file, with its header line?",
        )
    return frame.fillna("")


def line_of(index: int) -> int:
    """Line number in the file of row ``index`` (0-based) of a table with a one-line header."""
    return index + 2


def label_columns(
    frame: pd.DataFrame,
    columns: Sequence[str],
    *,
    file: Path,
    allowed: Mapping[str, float],
) -> np.ndarray:
    """Columns of a table as a float32 (N, C) array through ``allowed`` (text -> value).

    A cell whose text is not in ``allowed`` is a :class:`DataError` with its row and column.
    """
    out = np.empty((len(frame), len(columns)), dtype=np.float32)
    for j, name in enumerate(columns):
        values = frame[name].map(allowed)
        # A blank cell may legitimately map to NaN, so unmatched cells are found by membership.
        unknown = ~frame[name].isin(list(allowed))
        if unknown.any():
            i = int(np.flatnonzero(unknown.to_numpy())[0])
            raise DataError(
                f"column {name!r} holds {frame[name].iloc[i]!r}",
                file=file,
                row=line_of(i),
                expected=f"one of {sorted(allowed)}",
                fix="restore this row from the original file",
            )
        out[:, j] = values.to_numpy(dtype=np.float32)
    return out


def number(
    text: str, *, file: Path, row: int | str, column: str, minimum: float | None = None
) -> float:
    """A finite number from a cell, or a :class:`DataError` that names it."""
    try:
        value = float(text)
    except ValueError:
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


def read_json(path: Path, kind: type) -> Any:
    """Parse a JSON file whose top level must be ``kind`` (``dict`` or ``list``)."""
    fix = "restore the file from the original download"
    try:
        body = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise DataError(f"cannot be read ({exc.strerror})", file=path, fix=fix) from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"not UTF-8 text (byte {exc.start})", file=path, fix=fix) from exc
    except (ValueError, RecursionError) as exc:
        raise DataError(f"not JSON ({exc})", file=path, fix=fix) from exc
    if not isinstance(body, kind):
        raise DataError(
            f"top level is a {type(body).__name__}",
            file=path,
            expected=f"a {kind.__name__}",
            fix=fix,
        )
    return body


def index_by_stem(
    root: Path, suffixes: Sequence[str], *, full_name: bool = False
) -> dict[str, str]:
    """All files below ``root`` with one of ``suffixes``, by stem (or by name); one directory walk.

    Hidden files (macOS ``._*``) are passed over; a name that occurs twice keeps the first path in sorted order.
    """
    found: dict[str, str] = {}
    wanted = tuple(s.lower() for s in suffixes)
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.startswith(".") or not name.lower().endswith(wanted):
                continue
            found.setdefault(name if full_name else Path(name).stem, os.path.join(folder, name))
    return found


def warn_counts(request: ReadRequest, **counts: int) -> None:
    """Soft-check ``counts`` (``images=...``) of the part against the row's published figures."""
    if not request.report.published_counts:
        return
    for name, value in counts.items():
        expected = request.source.expected.get(f"{request.part}/{name}")
        if expected is not None:
            request.report.soft(
                f"{request.source.key} {request.part}/{name}", found=value, expected=expected
            )


__all__ = [
    "ReadRequest",
    "find_file",
    "index_by_stem",
    "label_columns",
    "line_of",
    "number",
    "read_json",
    "read_table",
    "shown",
    "warn_counts",
]
