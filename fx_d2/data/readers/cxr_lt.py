"""CXR-LT 2023: 26 labels for MIMIC-CXR-JPG images, in splits of their own.

The labels are a download of their own, beside the folder of MIMIC-CXR-JPG; its version is part of
the folder's name or a folder below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ..errors import DataError
from ..record import Record
from .base import (
    BINARY_CELLS,
    RESTORE_FILE,
    ReadRequest,
    bad_cell,
    checked_labels,
    counted,
    find_file,
    line_of,
    read_table,
    view_filter,
)

_KEYS = ("dicom_id", "subject_id", "study_id", "ViewPosition", "path")
_PATH = re.compile(r"files/p\d{2}/p(\d{8})/s(\d{8})/([0-9a-f]{8}(?:-[0-9a-f]{8}){4})\.jpg")

OPTIONS = ("labels_folder", "views")


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``train``, ``development`` or ``test``.

    Options:
        labels_folder: name of the label download, without its version, beside the images' folder.
        views: keep these views only (``["PA", "AP"]``); None keeps all.
    """
    yield from counted(request, _records(request))


def _label_table(request: ReadRequest) -> Path:
    folder = str(request.option("labels_folder"))
    names = [f"{folder}-2.0.0", f"{folder}-1.1.0", f"{folder}/2.0.0", f"{folder}/1.1.0", folder]
    files = [
        f"{name}/cxr-lt-2023/{request.part}.csv{packed}" for packed in ("", ".gz") for name in names
    ]
    return find_file(request.root.parent, *files, what=f"the CXR-LT labels of {request.part}")


def _image_root(root: Path) -> Path:
    folder = find_file(root, "files", "2.0.0/files", "2.1.0/files", what="MIMIC-CXR-JPG's images")
    return folder.parent


def _faults(frame: pd.DataFrame, path: Path) -> Iterator[tuple[int, str, DataError]]:
    """Rows whose ids contradict each other: (row, kind, error)."""
    parts = frame["path"].str.extract(_PATH)
    whole = frame["path"].str.fullmatch(_PATH)
    agree = whole & (parts[0] == frame["subject_id"]) & (parts[1] == frame["study_id"])
    agree &= parts[2] == frame["dicom_id"]
    for i in (~agree).to_numpy().nonzero()[0]:
        expected = "files/p10/p<subject_id>/s<study_id>/<dicom_id>.jpg with this row's ids"
        yield (
            int(i),
            "row with a bad path",
            bad_cell(path, int(i), "path", frame["path"].iloc[i], expected),
        )
    views = frame["ViewPosition"]
    for i in (~views.str.fullmatch(r"(?:[A-Z][A-Z ]{1,31})?")).to_numpy().nonzero()[0]:
        yield (
            int(i),
            "row with a bad view",
            bad_cell(
                path,
                int(i),
                "ViewPosition",
                views.iloc[i],
                "a view such as AP, PA, LATERAL, or blank",
            ),
        )
    for i in (frame["dicom_id"].duplicated() & agree).to_numpy().nonzero()[0]:
        yield (
            int(i),
            "repeated image",
            DataError(
                f"image {frame['dicom_id'].iloc[i]!r} stands a second time",
                file=path,
                row=line_of(int(i)),
                expected="one row per image",
                fix=RESTORE_FILE,
            ),
        )


def _records(request: ReadRequest) -> Iterator[Record]:
    path, root = _label_table(request), _image_root(request.root)
    classes = request.source.cls_classes
    columns = (*_KEYS, *classes)
    frame = read_table(path, required=columns, usecols=columns)
    labels, good = checked_labels(
        frame, classes, file=path, allowed=BINARY_CELLS, report=request.report
    )
    for i, kind, error in _faults(frame, path):
        if good[i]:
            request.report.bad(kind, error)
            good[i] = False
    wanted, prefix = view_filter(request), f"{root}/"
    rows = zip(*(frame[name].tolist() for name in _KEYS), strict=True)
    for i, (image, subject, study, view, name) in enumerate(rows):
        if not good[i] or not wanted(view or None):
            continue
        yield {
            "file_name": prefix + name,
            "image_id": image,
            "source": request.source.key,
            "patient_id": subject,
            "view": view or None,
            "study_id": study,
            "labels": labels[i].copy(),
        }
