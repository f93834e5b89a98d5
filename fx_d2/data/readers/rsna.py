"""RSNA Pneumonia Detection Challenge, stage 2: boxes and classes in two tables.

Both tables repeat an image once per box, so they are brought together by image before they are
joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..record import XYXY_ABS, Record
from .base import (
    ReadRequest,
    bad_cell,
    counted,
    files_in,
    find_file,
    fit_box,
    line_of,
    missing_image,
    number,
    read_table,
)

_IMAGE_ID = re.compile(r"[0-9a-f]+(-[0-9a-f]+)+")
_BOX_COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
_CLASS_COLUMNS = ("patientId", "class")


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of the one labelled part, ``stage_2_train``."""
    return counted(request, _records(request))


def _classes(request: ReadRequest) -> dict[str, int]:
    """Class number by image; an image whose repeated rows disagree is reported and left out."""
    path = find_file(
        request.root, "stage_2_detailed_class_info.csv", what="the table of image classes"
    )
    frame = read_table(path, required=_CLASS_COLUMNS, usecols=_CLASS_COLUMNS)
    names = list(request.source.cls_classes)
    classes: dict[str, int] = {}
    spoilt: set[str] = set()
    for index, (name, text) in enumerate(zip(frame["patientId"], frame["class"], strict=True)):
        expected: object = names
        if text in names and classes.setdefault(name, names.index(text)) == names.index(text):
            continue
        if text in names:
            expected = f"{names[classes[name]]!r}, as in an earlier row of this image"
        spoilt.add(name)
        request.report.bad("bad class row", bad_cell(path, index, "class", text, expected))
    return {name: number for name, number in classes.items() if name not in spoilt}


def _box(row: dict, index: int, table: Path, frame: tuple[int, int] | None) -> list[float] | None:
    """The box of a row with ``Target`` 1; None for 0, whose cells must be blank."""
    cells = [row[name] for name in ("x", "y", "width", "height")]
    if row["Target"] in ("0", "0.0"):
        if any(cells):
            raise bad_cell(table, index, "x", row["x"], "blank where Target is 0")
        return None
    if row["Target"] not in ("1", "1.0"):
        raise bad_cell(table, index, "Target", row["Target"], "0 or 1")
    line = line_of(index)
    x, y, w, h = (
        number(row[name], file=table, row=line, column=name)
        for name in ("x", "y", "width", "height")
    )
    return fit_box(x, y, x + w, y + h, frame=frame, file=table, row=line)


def _records(request: ReadRequest) -> Iterator[Record]:
    table = find_file(request.root, "stage_2_train_labels.csv", what="the table of boxes")
    folder = find_file(request.root, "stage_2_train_images", what="the image folder")
    classes = _classes(request)
    frame = read_table(table, required=_BOX_COLUMNS, usecols=_BOX_COLUMNS)
    boxes: dict[str, list[list[float]]] = {}
    lines: dict[str, int] = {}
    spoilt: set[str] = set()
    size = request.source.image_size
    for index, row in enumerate(frame.to_dict("records")):
        name = row["patientId"]
        if not _IMAGE_ID.fullmatch(name):
            # Without its name nobody knows which image lacks a box: the whole table is in doubt.
            raise bad_cell(table, index, "patientId", name, "an id like 0004cfab-14fd-4e49-80ba")
        lines.setdefault(name, line_of(index))
        try:
            box = _box(row, index, table, size)
        except DataError as error:
            request.report.bad("bad box row", error)
            spoilt.add(name)
            continue
        known = boxes.setdefault(name, [])
        if box is not None and box not in known:  # a row may stand twice
            known.append(box)
    files = files_in(folder, (".dcm",))
    n_classes, odd = len(request.source.cls_classes), 0
    for name, found in boxes.items():
        if name in spoilt:
            continue
        try:
            if name not in files:
                raise missing_image(f"{name}.dcm", file=table, row=lines[name], folder=folder)
            if name not in classes:
                raise DataError(
                    f"image {name!r} has no class",
                    file=table,
                    row=lines[name],
                    expected="a row in stage_2_detailed_class_info.csv",
                    fix="restore both tables from the original download",
                )
        except DataError as error:
            request.report.bad("image without file or class", error)
            continue
        odd += bool(found) != (classes[name] == n_classes - 1)
        record: Record = {
            "file_name": files[name],
            "image_id": name,
            "source": request.source.key,
            "patient_id": name,
            "view": None,
            "labels": np.eye(n_classes, dtype=np.float32)[classes[name]],
            "annotations": [
                {"bbox": box, "bbox_mode": XYXY_ABS, "category_id": 0, "iscrowd": 0}
                for box in found
            ],
        }
        if size is not None:
            record["height"], record["width"] = size
        yield record
    what = "RSNA images with boxes but another class than Lung Opacity, or the reverse"
    request.report.soft(what, found=odd, expected=0, file=str(table))
