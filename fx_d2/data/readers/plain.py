"""The layout for data of one's own: a table, a folder of images, optionally boxes and masks.

::

    <folder>/
      labels.csv                  image,patient,view,split,<one column per class>
      images/<image>              as the column "image" names it
      boxes.json                  COCO; optional. An image it does not list is not annotated
      masks/<class>/<image>.png   optional. A class without a file is not annotated

Of the columns only ``image`` and those of the classes are needed. A label cell is 1, 0, -1
(uncertain) or blank (not annotated). ``split`` is needed where the row names parts other than
``all``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..record import XYXY_ABS, Record
from .base import (
    LABEL_CELLS,
    ReadRequest,
    bad_cell,
    checked_labels,
    counted,
    find_file,
    fit_box,
    line_of,
    missing_image,
    number,
    read_json,
    read_table,
    relative_name,
)

_FIX = "correct this file; fx_d2/data/readers/plain.py describes it"

OPTIONS = ("table", "images", "boxes", "masks", "label_column")


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of a part: the rows whose ``split`` is the part, or every row for ``all``.

    Options:
        table: name of the table (default ``labels.csv``).
        images: folder of the images (default ``images``).
        boxes: name of the COCO file (default ``boxes.json``).
        masks: folder of the masks (default ``masks``).
        label_column: a column that holds one class name, instead of a column per class.
    """
    return counted(request, _records(request))


def _records(request: ReadRequest) -> Iterator[Record]:
    source, report = request.source, request.report
    table = find_file(request.root, request.option("table", "labels.csv"), what="the table")
    folder = find_file(request.root, request.option("images", "images"), what="the image folder")
    single = request.option("label_column")
    columns = [single] if single else list(source.cls_classes)
    frame = read_table(table, required=["image", *columns])
    if single:
        labels, good = _one_hot(request, frame, single, table)
    else:
        labels, good = checked_labels(
            frame, columns, file=table, allowed=LABEL_CELLS, report=report
        )
    if request.part != "all" and "split" not in frame.columns:
        raise DataError(
            f"no column 'split', but part {request.part!r} is asked for",
            file=table,
            row=1,
            fix="add the column, or let the row's splits be carved('all')",
        )
    boxes = _read_boxes(request)
    masks = request.root / request.option("masks", "masks")
    for index, row in enumerate(frame.to_dict("records")):
        if not good[index] or (request.part != "all" and row["split"] != request.part):
            continue
        line = line_of(index)
        try:
            name = relative_name(row["image"], file=table, row=line)
            if not (folder / name).is_file():
                raise missing_image(name, file=table, row=line, folder=folder)
        except DataError as error:
            report.bad("image without a file", error)
            continue
        stem = name.rsplit(".", 1)[0]
        record: Record = {
            "file_name": str(folder / name),
            "image_id": stem,
            "source": source.key,
            "patient_id": row.get("patient") or None,
            "view": row.get("view") or None,
        }
        if source.cls_classes:
            record["labels"] = labels[index]
        if name in boxes:
            facts = boxes[name]
            if facts is None:
                continue  # one of its annotations is bad and was reported
            record |= facts
        found = {c: str(masks / c / f"{stem}.png") for c in source.seg_classes}
        found = {c: path for c, path in found.items() if Path(path).is_file()}
        if found:
            record["masks"] = found
        yield record


def _one_hot(request: ReadRequest, frame: Any, column: str, table: Path) -> tuple[Any, Any]:
    """Labels (N, C) from a column of class names; blank is not annotated."""
    classes = request.source.cls_classes
    labels = np.full((len(frame), len(classes)), np.nan, dtype=np.float32)
    good = np.ones(len(frame), dtype=bool)
    for index, name in enumerate(frame[column]):
        if name in classes:
            labels[index] = np.eye(len(classes), dtype=np.float32)[classes.index(name)]
        elif name:
            error = bad_cell(table, index, column, name, [*classes, "blank"])
            request.report.bad("row with a bad label", error)
            good[index] = False
    return labels, good


def _read_boxes(request: ReadRequest) -> dict[str, dict[str, Any] | None]:
    """``{file name: {"height", "width", "annotations"}}``; None for an image with a bad box."""
    path = request.root / request.option("boxes", "boxes.json")
    if not request.source.thing_classes or not path.is_file():
        return {}
    body = read_json(path, dict)
    lists = [body.get(name) for name in ("images", "categories", "annotations")]
    if not all(isinstance(v, list) and all(isinstance(e, dict) for e in v) for v in lists):
        raise DataError("not a COCO file", file=path, expected="three lists of objects", fix=_FIX)
    images = {str(e.get("id")): e for e in lists[0]}
    names = {str(e.get("id")): e.get("name") for e in lists[1]}
    found: dict[str, dict[str, Any] | None] = {}
    for entry in lists[0]:
        row = f"image {str(entry.get('file_name'))[:80]!r}"
        size = {
            key: int(number(entry.get(key), file=path, row=row, column=key, minimum=1))
            for key in ("height", "width")
        }
        name = relative_name(entry.get("file_name"), file=path, row=row)
        found[name] = {**size, "annotations": []}
    for entry in lists[2]:
        row = f"annotation {str(entry.get('id'))[:40]}"
        image = images.get(str(entry.get("image_id")))
        if image is None:
            raise DataError(
                f"image_id {entry.get('image_id')!r}",
                file=path, row=row, expected="an id of 'images'", fix=_FIX,
            )  # fmt: skip
        try:
            annotation = _annotation(request, entry, names, image, path, row)
        except DataError as error:
            request.report.bad("bad annotation", error)
            found[image["file_name"]] = None
            continue
        facts = found[image["file_name"]]
        if facts is not None:
            facts["annotations"].append(annotation)
    return found


def _annotation(
    request: ReadRequest,
    entry: dict[str, Any],
    names: dict[str, Any],
    image: dict[str, Any],
    path: Path,
    row: str,
) -> dict[str, Any]:
    things = request.source.thing_classes
    name = names.get(str(entry.get("category_id")))
    if name not in things:
        raise DataError(
            f"category_id {entry.get('category_id')!r} ({name!r})",
            file=path, row=row, expected=f"a category named like one of {things}", fix=_FIX,
        )  # fmt: skip
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"bbox {box!r}", file=path, row=row, expected="[x, y, w, h]", fix=_FIX)
    x, y, w, h = (number(value, file=path, row=row, column="bbox") for value in box)
    frame = (int(image["height"]), int(image["width"]))
    annotation = {
        "bbox": fit_box(x, y, x + w, y + h, frame=frame, file=path, row=row),
        "bbox_mode": XYXY_ABS,
        "category_id": things.index(name),
        "iscrowd": int(bool(entry.get("iscrowd"))),
    }
    if request.source.instance_masks:
        if not isinstance(entry.get("segmentation"), (list, dict)) or not entry["segmentation"]:
            raise DataError(
                "no segmentation", file=path, row=row, expected="polygons or RLE", fix=_FIX
            )
        annotation["segmentation"] = entry["segmentation"]
    return annotation
