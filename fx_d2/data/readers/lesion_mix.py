"""A written lesion mix (``tools/make_lesion_mix.py``): one line of truth per image.

It can be read as a split of the base source or as a source of its own; the row decides which of the
boxes and masks are classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..lesion_mix.truth import record_of
from ..record import Record
from .base import RESTORE_FILE, ReadRequest, find_file, fit_box, relative_name

_MAX_SIDE = 32_768


def read(request: ReadRequest) -> Iterator[Record]:
    """The records of the one part there is."""
    path = find_file(
        request.root, "records.jsonl", what="the records of a lesion mix",
        fix="make it with tools/make_lesion_mix.py; it writes them when all is done",
    )  # fmt: skip
    with path.open(encoding="utf-8") as lines:
        for line, text in enumerate(lines, start=1):
            try:
                record = _record(request, text, path, line)
            except DataError as error:
                request.report.bad("bad row", error)
                continue
            yield record


def _record(request: ReadRequest, text: str, path: Path, line: int) -> Record:
    source = request.source
    try:
        row = json.loads(text)
        name = relative_name(row["file"], file=path, row=line)
        _check(row, len(source.cls_classes), path, line)
        record = record_of(row, source)
        image_id, patient, view = row["image_id"], row["patient_id"], row["view"]
        base_image = str(row["base_image"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        if isinstance(exc, DataError):
            raise
        raise DataError(
            f"not a record ({type(exc).__name__}: {exc})", file=path, row=line, fix=RESTORE_FILE
        ) from exc
    for what, value in (("patient_id", patient), ("view", view)):
        if value is not None and not isinstance(value, str):
            raise DataError(f"{what} is {value!r}", file=path, row=line, fix=RESTORE_FILE)
    if not isinstance(image_id, str) or not image_id:
        raise DataError(f"image_id is {image_id!r}", file=path, row=line, fix=RESTORE_FILE)
    return {
        "file_name": str(request.root / name),
        "image_id": image_id,
        "patient_id": patient,
        "view": view,
        "base_image": base_image,
        **record,
    }


def _check(row: dict[str, Any], n_classes: int, path: Path, line: int) -> None:
    labels = np.array([np.nan if v is None else v for v in row["labels"]], dtype=np.float64)
    known = labels[~np.isnan(labels)]
    if len(labels) != n_classes or not ((known == -1) | ((known >= 0) & (known <= 1))).all():
        raise DataError(
            f"labels are {row['labels']}", file=path, row=line,
            expected=f"{n_classes} numbers from 0 to 1, -1 or null", fix=RESTORE_FILE,
        )  # fmt: skip
    size = (row["height"], row["width"])
    if not all(isinstance(v, int) and 0 < v <= _MAX_SIDE for v in size):
        raise DataError(f"size is {size}", file=path, row=line, fix=RESTORE_FILE)
    for entry in (*row["pasted"], *(row["boxes"] or ())):
        x0, y0, x1, y1 = (float(v) for v in entry["box"])
        fit_box(x0, y0, x1, y1, frame=(size[0], size[1]), file=path, row=line)
