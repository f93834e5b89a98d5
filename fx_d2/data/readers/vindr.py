"""VinDr-CXR from PhysioNet, and the VinBigData challenge's copy of its training boxes.

Each training image was read by three radiologists on their own, each test image by five in
consensus. An image label is positive when at least ``min_readers`` readers say so (default 1, as
the paper's lists have it); the training boxes of an image and class are fused
(``fx_d2.data.box_fusion``) and keep how many readers drew them. One reader serves three rows of the
source table, which differ in the classes they ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..box_fusion import weighted_boxes_fusion
from ..errors import DataError, ReadReport
from ..record import XYXY_ABS, Record
from ..vocabulary import VINDR_BOXES_14, VINDR_GLOBAL_6, VINDR_LOCAL_22
from .base import (
    BINARY_CELLS,
    RESTORE_FILE,
    ReadRequest,
    bad_cell,
    checked_labels,
    counted,
    files_in,
    find_file,
    fit_box,
    line_of,
    missing_image,
    number,
    read_table,
    reject,
)

_HOMES = ("", "1.0.0", "vindr-cxr/1.0.0", "physionet.org/files/vindr-cxr/1.0.0")
_ALIASES = {"Other disease": "Other diseases"}  # both spellings occur
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_NO_FINDING = "No finding"
# VinBigData has boxes of these classes as VinDr-CXR has them. "Other lesion" is not among them: it
# may include classes that the challenge dropped.
_EXACT_FROM_BOXES = (*(c for c in VINDR_BOXES_14 if c != "Other lesion"), _NO_FINDING)


@dataclass
class _Image:
    """What the tables say about one image."""

    line: int
    labels: np.ndarray | None = None
    boxes: dict[str, dict[str, list[list[float]]]] | None = None  # class -> reader -> boxes
    said: set[tuple[str, str]] = field(default_factory=set)  # (class, reader) of the box table


OPTIONS = ("min_readers", "fuse_iou")


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``train`` or ``test``.

    Options:
        min_readers: readers who must agree on a training label or box (default 1: any).
        fuse_iou: overlap above which boxes of several readers are one (default 0.5).
    """
    return counted(request, _records(request))


def _records(request: ReadRequest) -> Iterator[Record]:
    part, kaggle = request.part, False
    homes = [h for h in _HOMES if (request.root / h / "annotations").is_dir()]
    if not homes:
        find_file(request.root, "annotations", "train.csv", what="VinDr-CXR's annotations")
        kaggle = True
    base = request.root / (homes[0] if homes else "")
    if kaggle and part != "train":
        raise DataError(
            f"the VinBigData challenge has no labels for part {part!r}",
            file=base / "train.csv",
            expected="annotations/image_labels_test.csv of PhysioNet's vindr-cxr",
            fix="download the annotations folder from PhysioNet",
        )
    folder = find_file(base, part, what="the image folder of this part")
    files = files_in(folder, (".dicom", ".dcm"))
    images: dict[str, _Image] = {}
    if kaggle:
        table = base / "train.csv"
        _read_boxes(request, table, images, VINDR_BOXES_14)
        _labels_from_boxes(request, images)
    else:
        table = base / "annotations" / f"image_labels_{part}.csv"
        _read_labels(request, table, images)
        if request.source.thing_classes:
            _read_boxes(request, table.parent / f"annotations_{part}.csv", images, VINDR_LOCAL_22)
    unlabelled = 0
    for image_id, image in images.items():
        if image.labels is None:
            unlabelled += 1
            continue
        if image_id not in files:
            error = missing_image(f"{image_id}.dicom", file=table, row=image.line, folder=folder)
            request.report.bad("image without a file", error)
            continue
        record: Record = {
            "file_name": files[image_id],
            "image_id": image_id,
            "source": request.source.key,
            "patient_id": None,
            "view": None,
            "labels": image.labels,
        }
        if request.source.thing_classes and image.boxes is not None:
            record["annotations"] = _annotations(request, image.boxes)
        yield record
    what = "VinDr-CXR images with boxes but without labels, left out"
    request.report.soft(what, found=unlabelled, expected=0, file=str(table))


def _read_labels(request: ReadRequest, path: Path, images: dict[str, _Image]) -> None:
    """Image labels: one row per image and reader in the training part, else one per image."""
    train = request.part == "train"
    table = find_file(path.parent, path.name, what="the table of image labels")
    frame = read_table(table, required=("image_id", "rad_id") if train else ("image_id",))
    frame = frame.rename(columns=_ALIASES)
    wanted = request.source.cls_classes
    missing = [c for c in (*VINDR_LOCAL_22, *VINDR_GLOBAL_6) if c not in frame.columns]
    if missing:
        raise DataError(
            f"no column {missing[0]!r}; the header reads {list(frame.columns)}",
            file=table,
            row=1,
            expected="image_id and the 28 labels of VinDr-CXR",
            fix=RESTORE_FILE,
        )
    cells, good = checked_labels(
        frame, wanted, file=table, allowed=BINARY_CELLS, report=request.report
    )
    _reject_ids(ReadReport(), frame, table, good)  # raises: whose vote it is, nobody knows
    votes: dict[str, dict[str, np.ndarray]] = {}
    spoilt = set(frame["image_id"][~good])  # two of three votes would be another label
    ids = frame["image_id"].to_numpy(dtype=object)
    readers = frame["rad_id"].to_numpy(dtype=object) if train else np.full(len(frame), "")
    for row in np.flatnonzero(good):
        image_id, reader = ids[row], readers[row]
        images.setdefault(image_id, _Image(line_of(int(row))))
        earlier = votes.setdefault(image_id, {}).setdefault(reader, cells[row])
        if not np.array_equal(earlier, cells[row]):
            expected = "the labels of this reader's earlier row of this image"
            error = bad_cell(table, int(row), "image_id", image_id, expected)
            request.report.bad("row that contradicts an earlier one", error)
            spoilt.add(image_id)
    for image_id in spoilt & set(images):
        del votes[image_id], images[image_id]
    need, usual = (request.option("min_readers", 1), 3) if train else (1, 1)
    for image_id, rows in votes.items():
        images[image_id].labels = (np.sum(list(rows.values()), axis=0) >= need).astype(np.float32)
    odd = sum(len(rows) != usual for rows in votes.values())
    what = "VinDr-CXR images without the usual number of readers (three in train, one row in test)"
    request.report.soft(what, found=odd, expected=0, file=str(table))


def _reject_ids(report: ReadReport, frame: pd.DataFrame, table: Path, good: np.ndarray) -> None:
    wrong = ~frame["image_id"].str.fullmatch("[0-9a-f]{32}").to_numpy(dtype=bool)
    hint = "32 hexadecimal digits"
    reject(frame, "image_id", wrong, good, file=table, expected=hint, report=report)


def _read_boxes(
    request: ReadRequest, path: Path, images: dict[str, _Image], known: tuple[str, ...]
) -> None:
    """Boxes by image, class and reader. The consensus of the test part has no reader."""
    readers = ("rad_id",) if request.part == "train" else ()
    required = ("image_id", "class_name", *readers, *_CORNERS)
    table = find_file(path.parent, path.name, what="the table of boxes")
    frame = read_table(table, required=required)
    good = np.ones(len(frame), dtype=bool)
    # Without its image nobody knows where a box is lacking: a bad id puts the whole table in doubt.
    _reject_ids(ReadReport(), frame, table, good)
    wrong = ~frame["class_name"].isin((*known, _NO_FINDING)).to_numpy()
    report, expected = request.report, [*known, _NO_FINDING]
    reject(frame, "class_name", wrong, good, file=table, expected=expected, report=report)
    if "class_id" in frame.columns:
        ids = {name: str(i) for i, name in enumerate((*VINDR_BOXES_14, _NO_FINDING))}
        wrong = (frame["class_name"].map(ids) != frame["class_id"]).to_numpy(dtype=bool)
        hint = "the challenge's number of this row's class_name"
        reject(frame, "class_id", wrong, good, file=table, expected=hint, report=report)
    columns = {name: frame[name].to_numpy(dtype=object) for name in required}
    spoilt: set[str] = set()
    for row in range(len(frame)):
        image_id, name = columns["image_id"][row], columns["class_name"][row]
        if not good[row]:
            spoilt.add(image_id)
            continue
        image = images.setdefault(image_id, _Image(line_of(row)))
        if image.boxes is None:
            image.boxes = {}
        reader = columns["rad_id"][row] if readers else ""
        image.said.add((name, reader))
        try:
            box = _box([columns[c][row] for c in _CORNERS], name, table, line_of(row))
        except DataError as error:
            report.bad("bad box row", error)
            spoilt.add(image_id)
            continue
        drawn = image.boxes.setdefault(name, {}).setdefault(reader, [])
        if box is not None and box not in drawn:  # a row may stand twice
            drawn.append(box)
    for image_id in spoilt & set(images):
        del images[image_id]


def _box(cells: list[str], name: str, table: Path, line: int) -> list[float] | None:
    if name == _NO_FINDING:
        if any(cells) and cells != ["0", "0", "1", "1"]:  # a copy writes the submission's dummy box
            raise bad_cell(table, f"row {line}", "x_min", cells[0], "blank for No finding")
        return None
    x0, y0, x1, y1 = (
        number(cell, file=table, row=line, column=column)
        for cell, column in zip(cells, _CORNERS, strict=True)
    )
    return fit_box(x0, y0, x1, y1, frame=None, file=table, row=line)


def _labels_from_boxes(request: ReadRequest, images: Mapping[str, _Image]) -> None:
    """Labels where the challenge's boxes tell them exactly; NaN elsewhere."""
    need = request.option("min_readers", 1)
    for image in images.values():
        labels = np.full(len(request.source.cls_classes), np.nan, dtype=np.float32)
        for j, name in enumerate(request.source.cls_classes):
            if name in _EXACT_FROM_BOXES:
                labels[j] = float(sum(said == name for said, _ in image.said) >= need)
        image.labels = labels


def _annotations(
    request: ReadRequest, boxes: dict[str, dict[str, list[list[float]]]]
) -> list[dict[str, Any]]:
    """Fused boxes of the training part, the consensus boxes of the test part as they are."""
    need = request.option("min_readers", 1)
    annotations = []
    for category, name in enumerate(request.source.thing_classes):
        by_reader = boxes.get(name)
        if not by_reader:
            continue
        if request.part == "train":
            # Sorted, so that the result does not depend on the order of rows in the file.
            drawn = [np.array(sorted(by_reader[reader])) for reader in sorted(by_reader)]
            drawn += [np.empty((0, 4))] * (3 - len(drawn))
            fused = weighted_boxes_fusion(drawn, iou_threshold=request.option("fuse_iou", 0.5))
            found = [
                {"bbox": box.tolist(), "n_readers": int(n)}
                for box, n in zip(fused.boxes, fused.n_readers, strict=True)
                if n >= need
            ]
        else:
            found = [{"bbox": box} for drawn in by_reader.values() for box in drawn]
        annotations += [
            {**entry, "bbox_mode": XYXY_ABS, "category_id": category, "iscrowd": 0}
            for entry in found
        ]
    return annotations
