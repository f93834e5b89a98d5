"""MIMIC-CXR-JPG 2.0.0 and 2.1.0: labels per study, joined to images by study id.

The label columns of the vendor are alphabetical, not in CheXpert's order; they are read by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError, ReadReport
from ..record import Record
from .base import (
    LABEL_CELLS,
    MAX_SIDE_PX,
    ReadRequest,
    bad_cell,
    checked_labels,
    read_table,
    reject,
    view_filter,
    warn_counts,
)

_TABLES = {"chexpert": "chexpert", "negbio": "negbio", "radiologist": "test-set-labeled"}
_HOMES = ("", "2.0.0", "2.1.0", "files/mimic-cxr-jpg/2.0.0", "files/mimic-cxr-jpg/2.1.0")
_PATTERNS = {
    "dicom_id": r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}",
    "subject_id": r"1\d{7}",
    "study_id": r"5\d{7}",
    "split": "train|validate|test",
}


def mimic_table(root: Path, name: str) -> Path:
    """``mimic-cxr-<version>-<name>.csv``, packed or not, in ``root`` or its version folder."""
    for home in _HOMES:
        found = sorted((root / home).glob(f"mimic-cxr-*-{name}.csv*"))
        found = [path for path in found if path.name.endswith((".csv", ".csv.gz"))]
        if found:
            return found[0]
    raise DataError(
        f"no mimic-cxr-2.0.0-{name}.csv or .csv.gz",
        file=root,
        expected="the CSV files of MIMIC-CXR-JPG beside its folder 'files'",
        fix="see datasets/README.md for the tree this source must have",
    )


def _unique_index(table: Path, column: str, values: pd.Series) -> pd.Index:
    index = pd.Index(values)
    if not index.is_unique:
        row = int(np.flatnonzero(index.duplicated())[0])
        raise bad_cell(table, row, column, values.iloc[row], "a value that stands in one row only")
    return index


def mimic_metadata(
    root: Path, dicom_ids: pd.Series, report: ReadReport | None = None
) -> tuple[list, list]:
    """View and (height, width) or None of every image, in the order of ``dicom_ids``.

    Of a row with a bad cell nothing is used.
    """
    report = ReadReport() if report is None else report
    table = mimic_table(root, "metadata")
    columns = ("dicom_id", "ViewPosition", "Rows", "Columns")
    frame = read_table(table, required=columns, usecols=columns)
    rows = _unique_index(table, "dicom_id", frame["dicom_id"]).get_indexer(dicom_ids)
    good = np.ones(len(frame), dtype=bool)
    sizes = []
    for name in columns[2:]:
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float)
        wrong = ~((values >= 1) & (values <= MAX_SIDE_PX)) & (frame[name] != "").to_numpy()
        reject(frame, name, wrong, good, file=table, expected="a number of pixels", report=report)
        sizes.append(np.where(good, values, np.nan))
    wrong = ~frame["ViewPosition"].str.fullmatch("[A-Z ]*").to_numpy(dtype=bool)
    hint = "AP, PA, LATERAL and the like, or blank"
    reject(frame, "ViewPosition", wrong, good, file=table, expected=hint, report=report)
    view = np.where(good, frame["ViewPosition"].to_numpy(dtype=object), "")
    views = [None if row < 0 else (view[row] or None) for row in rows]
    shapes = [
        None if row < 0 or not sizes[0][row] > 0 or not sizes[1][row] > 0
        else (int(sizes[0][row]), int(sizes[1][row]))
        for row in rows
    ]  # fmt: skip
    return views, shapes


def _study_labels(
    request: ReadRequest, studies: pd.Series, subjects: pd.Series
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N, C) of the images' studies (NaN where a study has none); which images are good."""
    name = request.option("labels", "chexpert")
    if name not in _TABLES:
        raise ValueError(
            f"option labels={name!r} of {request.source.key}; allowed: {list(_TABLES)}"
        )
    table = mimic_table(request.root, _TABLES[name])
    classes = request.source.cls_classes
    named = [
        "Airspace Opacity" if name == "radiologist" and c == "Lung Opacity" else c for c in classes
    ]
    frame = read_table(table, required=("study_id", *named))
    values, good_rows = checked_labels(
        frame, named, file=table, allowed=LABEL_CELLS, report=request.report
    )
    rows = _unique_index(table, "study_id", frame["study_id"]).get_indexer(studies)
    labels = np.full((len(studies), len(classes)), np.nan, dtype=np.float32)
    found = rows >= 0
    labels[found] = values[rows[found]]
    good = np.ones(len(studies), dtype=bool)
    good[found] = good_rows[rows[found]]
    if "subject_id" in frame.columns:
        stated = frame["subject_id"].to_numpy(dtype=object)[rows]
        for i in np.flatnonzero(found & (stated != subjects.to_numpy(dtype=object))):
            row, subject = int(rows[i]), subjects.iloc[i]
            expected = f"{subject!r}, the subject of study {studies.iloc[i]} in the split table"
            error = bad_cell(table, row, "subject_id", stated[i], expected)
            request.report.bad("study of two subjects", error)
            good[i] = False
    return labels, good


OPTIONS = ("labels", "views")


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``train``, ``validate`` or ``test``; an image without labels has NaN.

    Options:
        labels: ``chexpert`` (default), ``negbio``, or ``radiologist`` (the test part of 2.1.0).
        views: keep these views only, e.g. ``("AP", "PA")``; None keeps all.
    """
    table = mimic_table(request.root, "split")
    columns = ("dicom_id", "study_id", "subject_id", "split")
    frame = read_table(table, required=columns, usecols=columns)
    good = np.ones(len(frame), dtype=bool)
    for column, pattern in _PATTERNS.items():
        wrong = ~frame[column].str.fullmatch(pattern).to_numpy(dtype=bool)
        expected = f"text like {pattern}"
        reject(frame, column, wrong, good, file=table, expected=expected, report=request.report)
    repeated = frame["dicom_id"].duplicated().to_numpy()
    once = "an image that stands in one row only"
    reject(frame, "dicom_id", repeated, good, file=table, expected=once, report=request.report)
    frame = frame[good & (frame["split"] == request.part).to_numpy()]
    labels, good = _study_labels(request, frame["study_id"], frame["subject_id"])
    views, shapes = mimic_metadata(request.root, frame["dicom_id"], request.report)
    warn_counts(
        request,
        images=len(frame),
        patients=frame["subject_id"].nunique(),
        studies=frame["study_id"].nunique(),
    )
    wanted, files = view_filter(request), table.parent / "files"
    if not files.is_dir():
        raise DataError(
            "no folder of images",
            file=files,
            expected="files/p10/p10000000/s50000000/<dicom_id>.jpg",
            fix="see datasets/README.md for the tree this source must have",
        )
    rows = zip(frame["dicom_id"], frame["study_id"], frame["subject_id"], strict=True)
    for row, (dicom_id, study, subject) in enumerate(rows):
        if not good[row] or not wanted(views[row]):
            continue
        record: Record = {
            "file_name": f"{files}/p{subject[:2]}/p{subject}/s{study}/{dicom_id}.jpg",
            "image_id": dicom_id,
            "source": request.source.key,
            "patient_id": subject,
            "study_id": study,
            "view": views[row],
            "labels": labels[row],
        }
        shape = shapes[row]
        if shape is not None:
            record["height"], record["width"] = shape
        yield record
