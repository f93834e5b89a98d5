"""CANDID-PTX: DICOM files without extension, one report table with run lengths.

Known defects of the published table are not errors: an outline that is blank is not known; an image
that stands under two patients, or is both negative and outlined, is left out and counted.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..record import Record
from .base import (
    ReadRequest,
    counted,
    find_file,
    line_of,
    missing_image,
    read_table,
)
from .run_masks import frame_of, outlines

_COLUMNS = ("SOPInstanceUID", "filename", "EncodedPixels")
_FOLDERS = ("dataset", "dataset1/dataset", "dataset1", "chest_radiographs")
_FILENAME = re.compile(r"([A-Za-z0-9-]+)_")
_UID = re.compile(r"[0-9.]{3,64}")


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of the one part ``all``."""
    return counted(request, _records(request))


def _image_files(folder: Path) -> dict[str, str]:
    """Files by UID: the names have no extension, or ``.dcm`` in some copies."""
    names = (e.name for e in os.scandir(folder) if e.is_file() and not e.name.startswith("."))
    return {name.removesuffix(".dcm"): os.path.join(folder, name) for name in names}


def _records(request: ReadRequest) -> Iterator[Record]:
    root = request.root
    homes = ("", "candid_ptx/")
    table = find_file(
        root, *(f"{h}Pneumothorax_reports.csv" for h in homes), what="the table of reports"
    )
    folder = find_file(table.parent, *_FOLDERS, what="the folder of DICOM files")
    frame = read_table(table, required=_COLUMNS, usecols=_COLUMNS)
    rows: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
    for index, row in enumerate(frame.to_dict("records")):
        rows[row["SOPInstanceUID"]].append((index, row))
    files = _image_files(folder)
    size = frame_of(request.source.image_size, request.source.key)
    two_patients = contradictory = 0
    for uid, found in rows.items():
        line = f"row {line_of(found[0][0])} (SOPInstanceUID {uid})"
        try:
            if not _UID.fullmatch(uid):
                raise DataError(
                    "not an image's id",
                    file=table,
                    row=line,
                    expected="digits and dots",
                    fix="restore this row from the original file",
                )
            if uid not in files:
                raise missing_image(uid, file=table, row=line, folder=folder)
            patients = {_patient(row["filename"]) for _, row in found}
            texts = list(dict.fromkeys(row["EncodedPixels"] for _, row in found))
            if len(patients) > 1:
                two_patients += 1
                continue
            if "-1" in texts and any(text not in ("-1", "") for text in texts):
                contradictory += 1
                continue
            facts = _facts(texts, size, table, line)
        except DataError as error:
            request.report.bad("bad row", error)
            continue
        yield {
            "file_name": files[uid],
            "image_id": uid,
            "source": request.source.key,
            "patient_id": patients.pop(),
            "view": None,
            **facts,
        }
    for what, count in (
        ("CANDID-PTX images under two patients, left out", two_patients),
        ("CANDID-PTX images both negative and outlined, left out", contradictory),
        ("CANDID-PTX files without a report row", len(set(files) - set(rows))),
    ):
        request.report.soft(what, found=count, expected=0, file=str(table))


def _patient(filename: str) -> str | None:
    """The patient's index, which a file name begins with; None where there is none."""
    match = _FILENAME.match(filename)
    return match.group(1) if match else None


def _facts(texts: list[str], size: tuple[int, int], table: Path, line: str) -> dict[str, Any]:
    """Labels, boxes and masks of one image from its distinct cells; blank is unknown."""
    outlined = [text for text in texts if text not in ("-1", "")]
    if outlined or "-1" in texts:
        return outlines(outlined, size, file=table, row=line)
    unknown = np.array([np.nan], dtype=np.float32)
    return {"height": size[0], "width": size[1], "labels": unknown}
