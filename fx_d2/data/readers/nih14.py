"""NIH ChestX-ray14 in the three shapes it is handed out in; images are found by file name.

Boxes exist for 880 test images, on 8 of the 14 classes, and not for every labelled class of those
images. An image without a row in the box list is not annotated for boxes.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..record import XYXY_ABS, Record
from .base import (
    RESTORE_FILE,
    ReadRequest,
    bad_cell,
    find_file,
    fit_box,
    index_by_stem,
    line_of,
    missing_image,
    number,
    read_lines,
    read_table,
    reject,
    view_filter,
    warn_counts,
)

_LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
_NAME = re.compile(r"(\d{8})_\d{3}\.png")
_BOX_NAMES = {"Infiltrate": "Infiltration"}  # the box list abbreviates what the labels spell out
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")


def _find(root: Path, *names: str, what: str) -> Path:
    return find_file(root, *names, *(f"data/{name}" for name in names), what=what)


def _label_vector(text: str, classes: tuple[str, ...]) -> np.ndarray | None:
    """The 0/1 vector of ``"A|B"``; None where a name is unknown or ``No Finding`` has company."""
    vector = np.zeros(len(classes), dtype=np.float32)
    names = text.split("|")
    if names == ["No Finding"]:
        return vector
    for name in names:
        if name not in classes:
            return None
        vector[classes.index(name)] = 1.0
    return vector


def _read_boxes(request: ReadRequest, path: Path) -> dict[str, list[dict]]:
    """Annotations by image name. Columns 2 to 5 hold x, y, w, h whatever the header says."""
    things, frame = request.source.thing_classes, request.source.image_size
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DataError(
            f"cannot be read as a table ({exc})",
            file=path,
            fix=RESTORE_FILE,
        ) from exc
    if not rows or [cell.strip() for cell in rows[0][:2]] != ["Image Index", "Finding Label"]:
        raise DataError(
            f"header reads {rows[0][:3] if rows else []}",
            file=path,
            row=1,
            expected="Image Index,Finding Label,Bbox [x,y,w,h]",
            fix=RESTORE_FILE,
        )
    found: dict[str, list[dict]] = defaultdict(list)
    spoilt: set[str] = set()  # one box lost among several would look like a complete set
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) < 6 or not _NAME.fullmatch(row[0].strip()):
            # Without its name nobody knows which image lacks a box: the whole list is in doubt.
            raise DataError(
                f"row reads {row}",
                file=path,
                row=line,
                expected="<name>.png,<class>,x,y,w,h",
                fix=RESTORE_FILE,
            )
        try:
            name = row[1].strip()
            name = _BOX_NAMES.get(name, name)
            if name not in things:
                raise bad_cell(path, f"row {line}", "Finding Label", name, list(things))
            x, y, w, h = (
                number(cell, file=path, row=line, column=column)
                for cell, column in zip(row[2:6], "xywh", strict=True)
            )
            box = fit_box(x, y, x + w, y + h, frame=frame, file=path, row=line)
        except DataError as error:
            request.report.bad("bad box row", error)
            spoilt.add(row[0].strip())
            continue
        found[row[0].strip()].append(
            {"bbox": box, "bbox_mode": XYXY_ABS, "category_id": things.index(name), "iscrowd": 0}
        )
    return {name: boxes for name, boxes in found.items() if name not in spoilt}


OPTIONS = ("views",)


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``train_val`` or ``test``, in the order of the official list.

    Options:
        views: keep these views only; None keeps all (every image is frontal).
    """
    root, classes = request.root, request.source.cls_classes
    table = _find(root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", what="the label table")
    frame = read_table(table, required=_COLUMNS, usecols=_COLUMNS)
    once = ~frame["Image Index"].duplicated(keep=False).to_numpy()
    twice = ~once & frame.duplicated("Image Index").to_numpy()
    hint = "every image in one row"
    reject(frame, "Image Index", twice, ~once, file=table, expected=hint, report=request.report)
    row_of = {name: row for row, name in enumerate(frame["Image Index"]) if once[row]}
    vectors = {text: _label_vector(text, classes) for text in frame["Finding Labels"].unique()}
    list_path = _find(root, _LISTS[request.part], what="the official list of this part")
    names = read_lines(list_path)
    box_lists = [home / "BBox_List_2017.csv" for home in (root, root / "data")]
    boxes = next((_read_boxes(request, path) for path in box_lists if path.is_file()), {})
    listed = set(names)
    n_boxes = sum(len(found) for name, found in boxes.items() if name in listed)
    warn_counts(request, images=len(names), boxes=n_boxes)
    if request.part != "test" and n_boxes:
        request.report.soft("boxes outside NIH's test part", found=n_boxes, expected=0)
    files = index_by_stem(root, (".png",), full_name=True)
    wanted = view_filter(request)
    columns = {name: frame[name].to_numpy(dtype=object) for name in _COLUMNS}
    for line, name in enumerate(names, start=1):
        record = _record(request, name, line, list_path, table, row_of, columns, vectors, files)
        if record is None or not wanted(record["view"]):
            continue
        if name in boxes:
            record["annotations"] = boxes[name]
        yield record


def _record(request, name, line, list_path, table, row_of, columns, vectors, files):
    """The record of one listed image, or None if something about it is wrong and may be skipped."""
    match, row = _NAME.fullmatch(name), row_of.get(name)
    if match is None or row is None:
        what = "not a name like 00000001_000.png" if match is None else f"not in {table.name}"
        error = DataError(
            f"image {name[:80]!r} is {what}",
            file=list_path,
            row=line,
            fix=RESTORE_FILE + " (and its table)",
        )
        return request.report.bad("listed image without a label row", error)
    vector = vectors[columns["Finding Labels"][row]]
    if vector is None:
        expected = f"names of {list(request.source.cls_classes)} joined by |, or No Finding alone"
        error = bad_cell(table, row, "Finding Labels", columns["Finding Labels"][row], expected)
        return request.report.bad("row with a bad label", error)
    patient = str(columns["Patient ID"][row])
    if not patient.isdigit() or int(patient) != int(match.group(1)):
        error = bad_cell(
            table, row, "Patient ID", patient, f"{int(match.group(1))}, as in the name"
        )
        return request.report.bad("row with a bad patient", error)
    view = columns["View Position"][row]
    if view not in ("PA", "AP", ""):
        error = bad_cell(table, row, "View Position", view, ["AP", "PA"])
        return request.report.bad("row with a bad view", error)
    if name not in files:
        error = missing_image(name, file=table, row=line_of(row), folder=request.root)
        return request.report.bad("image without a file", error)
    return {
        "file_name": files[name],
        "image_id": name[:-4],
        "source": request.source.key,
        "patient_id": match.group(1),
        "view": view or None,
        "labels": vector,
    }
