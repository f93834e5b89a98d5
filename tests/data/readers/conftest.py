"""Trees in vendor layout, written literally by the tests, and a way to read them."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fx_d2.data.catalog import read_part, reader_of
from fx_d2.data.errors import DataWarning, ReadReport
from fx_d2.data.readers.base import ReadRequest
from fx_d2.data.record import Record, validate_record
from fx_d2.data.sources import get_source


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """Write ``{path: content}`` below a folder: text, bytes, or something to dump as JSON."""

    def write(files: Mapping[str, Any]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, (list, dict)):
                content = json.dumps(content)
            data = content.encode() if isinstance(content, str) else content
            path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path

    return write


@pytest.fixture
def read() -> Callable[..., list[Record]]:
    """Read a part, check every record against the contract, and keep the report's notes quiet."""

    def read_all(
        key: str, part: str, root: Path, *, report: ReadReport | None = None, **options: Any
    ) -> list[Record]:
        report = ReadReport(published_counts=False) if report is None else report
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            records = list(read_part(key, part, root=root, report=report, options=options))
        for record in records:
            validate_record(record, get_source(key))
        return records

    return read_all


@pytest.fixture
def read_source() -> Callable[..., tuple[list[Record], ReadReport]]:
    """Read a part and check its records; gives the report too, and compares counts if asked."""

    def read_and_report(
        key: str,
        root: Path,
        part: str,
        *,
        on_error: str = "raise",
        counts: bool = False,
        **options: Any,
    ) -> tuple[list[Record], ReadReport]:
        report = ReadReport(on_error=on_error, published_counts=counts)
        source = get_source(key)
        request = ReadRequest(Path(root), part, source, report, options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            records = list(reader_of(source)(request))
        for record in records:
            validate_record(record, source)
        return records, report

    return read_and_report


@pytest.fixture
def put_png() -> Callable[..., None]:
    """Write a small picture: black, with a white ``box`` (x0, y0, x1, y1; end exclusive)."""

    def put(
        path: Path,
        size: tuple[int, int] = (20, 24),
        box: tuple[int, int, int, int] | None = None,
        mode: str = "L",
    ) -> None:
        pixels = np.zeros(size, dtype=np.uint8)
        if box is not None:
            pixels[box[1] : box[3], box[0] : box[2]] = 255
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path)

    return put
