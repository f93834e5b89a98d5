"""ChestX-Det: one JSON per part with three parallel lists (names, boxes, polygons) per image.

The lower right corner of a box is the largest vertex of its polygon; the one pixel between an
inclusive and an exclusive corner is below the annotators' precision and is left as written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..masks import empty_mask
from ..record import XYXY_ABS, Record
from .base import (
    RESTORE_FILE,
    ReadRequest,
    counted,
    files_in,
    find_file,
    fit_box,
    missing_image,
    number,
    read_json,
    relative_name,
)

_FOLDERS = ("{0}/{0}", "{0}_data/{0}_data", "{0}_data/{0}", "{0}_data", "{0}")
_MAX_POINTS = 10_000  # the longest ring has 958


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``train`` or ``test``; an image without findings is annotated and empty."""
    return counted(request, _records(request))


def _records(request: ReadRequest) -> Iterator[Record]:
    part = request.part
    path = find_file(
        request.root, f"ChestX_Det_{part}.json", f"annotations/ChestX_Det_{part}.json",
        what="the annotations of this part",
    )  # fmt: skip
    folder = find_file(request.root, *(f.format(part) for f in _FOLDERS), what="the image folder")
    files = files_in(folder, (".png",))
    for number_, entry in enumerate(read_json(path, list)):
        row = f"entry {number_}"
        try:
            if not isinstance(entry, dict):
                raise DataError(f"{str(entry)[:60]!r}", file=path, row=row, expected="an object")
            row = f"entry {number_} ({str(entry.get('file_name'))[:80]})"
            record = _record(request, entry, files, folder, path, row)
        except DataError as error:
            request.report.bad("bad entry", error)
            continue
        yield record


def _record(
    request: ReadRequest, entry: dict, files: dict[str, str], folder: Path, path: Path, row: str
) -> Record:
    name = relative_name(entry.get("file_name"), file=path, row=row)
    stem = name.removesuffix(".png")
    if stem not in files:
        raise missing_image(name, file=path, row=row, folder=folder)
    lists: list[Any] = [entry.get(key) for key in ("syms", "boxes", "polygons")]
    if lists[2] is None:
        raise DataError(
            "no 'polygons'", file=path, row=row, expected="the JSON of ChestX-Det",
            fix="this looks like ChestX-Det10, an older set without polygons; download ChestX-Det",
        )  # fmt: skip
    if not all(isinstance(value, list) for value in lists) or len({len(v) for v in lists}) != 1:
        raise DataError(
            "'syms', 'boxes' and 'polygons' do not belong together",
            file=path,
            row=row,
            expected="three lists of one length",
            fix=RESTORE_FILE,
        )
    size = request.source.image_size
    classes = request.source.thing_classes
    annotations = [
        _annotation(name, box, ring, classes, size, path, row)
        for name, box, ring in zip(*lists, strict=True)
    ]
    labels = np.zeros(len(classes), dtype=np.float32)
    rings: dict[str, list] = {}
    for annotation in annotations:
        labels[annotation["category_id"]] = 1.0
        rings.setdefault(classes[annotation["category_id"]], []).extend(annotation["segmentation"])
    record: Record = {
        "file_name": files[stem],
        "image_id": stem,
        "source": request.source.key,
        "patient_id": None,
        "view": None,
        "labels": labels,
        "annotations": annotations,
        "masks": {c: {"polygons": rings[c]} if c in rings else empty_mask() for c in classes},
    }
    if size is not None:
        record["height"], record["width"] = size
    return record


def _annotation(
    name: Any,
    box: Any,
    ring: Any,
    classes: tuple[str, ...],
    size: tuple[int, int] | None,
    path: Path,
    row: str,
) -> dict[str, Any]:
    fix = RESTORE_FILE
    if name not in classes:
        raise DataError(f"class {name!r}", file=path, row=row, expected=f"{classes}", fix=fix)
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"box {box!r}", file=path, row=row, expected="[x1, y1, x2, y2]", fix=fix)
    corners = fit_box(
        *(number(value, file=path, row=row, column="boxes") for value in box),
        frame=size,
        file=path,
        row=row,
    )
    paired = isinstance(ring, list) and all(isinstance(p, list) and len(p) == 2 for p in ring)
    if not paired or not 3 <= len({str(p) for p in ring}) <= _MAX_POINTS:
        raise DataError(
            f"polygon {str(ring)[:60]!r}", file=path, row=row, expected="at least 3 points [x, y]",
            fix=fix,
        )  # fmt: skip
    flat = [number(v, file=path, row=row, column="polygons") for point in ring for v in point]
    limit = max(size) if size is not None else np.inf
    if min(flat) < -1 or max(flat) > limit + 1:
        raise DataError(
            f"polygon reaches from {min(flat)} to {max(flat)}",
            file=path,
            row=row,
            expected=f"coordinates within {size}",
            fix=fix,
        )
    return {
        "bbox": corners,
        "bbox_mode": XYXY_ABS,
        "category_id": classes.index(name),
        "iscrowd": 0,
        "segmentation": [flat],
    }
