"""Tables, lists and JSON as providers write them, with the same bytes every time."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write text without touching its line ends; ``.gz`` is packed without name and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode(encoding)
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
            stream.write(data)
        data = packed.getvalue()
    path.write_bytes(data)


def write_csv(
    path: Path,
    header: Sequence[str] | str | None,
    rows: Iterable[Sequence[object]],
    *,
    encoding: str = "utf-8",
) -> None:
    """Write a CSV file with LF line ends.

    Args:
        path: ``.gz`` is packed.
        header: column names; a string is written as it stands; None leaves it out.
        rows: cells; None is blank.
        encoding: ``utf-8-sig`` writes the byte order mark.
    """
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    if isinstance(header, str):
        buffer.write(header + "\n")
    elif header is not None:
        table.writerow(header)
    table.writerows(rows)
    write_text(path, buffer.getvalue(), encoding)


def write_json(path: Path, body: Any, indent: int | None = None) -> None:
    """Write JSON in the order of the dicts."""
    write_text(path, json.dumps(body, indent=indent))
