"""COVID-19 chest X-ray segmentations: coloured mask crops, placed in the image by one table.

What a row's absence means depends on the class. A finding or a device that is not listed for an
image was looked for and not found: an empty mask. An organ cannot be absent from a chest; where one
is not listed, it was not outlined, and the class is not annotated there. The same holds for a row
whose mask is blank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError
from ..masks import empty_mask
from ..record import Record
from .base import (
    ReadRequest,
    bad_cell,
    counted,
    find_file,
    line_of,
    missing_image,
    number,
    read_table,
    relative_name,
)

_COLUMNS = ("Class", "Filename", "Mask", "Resolution", "Top", "Left", "Width", "Height")
_PREFIX = "COVID-19 "
_ORGANS = ("Left Lung", "Right Lung", "Cardiomediastinum", "Airways")
_RESOLUTION = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_SERIES = (
    re.compile(r"(.+)-day-?\d+.*"),  # days of one patient's stay
    re.compile(r"(nejm[a-z]+\d+)_f\d+.*"),  # figures of a report on one patient
    re.compile(r"(SARS-.+-g\w+?)[a-z]?-Fig\d+[a-z]?.*"),
    re.compile(r"(auntminnie)-[a-z]-(.+)"),  # views a, b, c of one entry
    re.compile(r"(.+rapidly-progressive.*?)-(?:\d+-(?:hours|days)|admission)"),
)
_VIEW = re.compile(r"[-.](PA|AP)$")


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of the one published part, ``all``, in the order of the table."""
    yield from counted(request, _records(request))


def _patient(stem: str) -> str | None:
    """What the name tells about the patient: images of one series share it, others tell nothing."""
    stem = _VIEW.sub("", stem)
    for pattern in _SERIES:
        match = pattern.fullmatch(stem)
        if match:
            series = re.sub(r"-day-?\d+$", "", "-".join(match.groups()))
            return re.sub(r"(-g\w+?\d)[a-z]-Fig\d+[a-z]$", r"\1", series)
    return None


def _records(request: ReadRequest) -> Iterator[Record]:
    root = find_file(request.root, "structure.csv", what="the table structure.csv").parent
    table = root / "structure.csv"
    frame = read_table(table, required=_COLUMNS, usecols=_COLUMNS)
    frame["line"] = [line_of(i) for i in range(len(frame))]
    unknown: Counter[str] = Counter()
    for name, rows in frame.groupby("Filename", sort=False):
        try:
            yield _record(request, root, str(name), rows, unknown)
        except DataError as error:  # one bad row drops the image: its class would look absent
            request.report.bad("image with a bad row", error)
    if unknown:
        request.report.soft(
            "classes outside this source's list",
            found=dict(unknown),
            expected={},
            file=str(table),
        )


def _record(
    request: ReadRequest, root: Path, name: str, rows: pd.DataFrame, unknown: Counter[str]
) -> Record:
    table, first = root / "structure.csv", int(rows["line"].iloc[0])
    image = root / "images" / relative_name(name, file=table, row=first)
    if not image.is_file():
        raise missing_image(name, file=table, row=first, folder=root / "images")
    size: tuple[int, int] | None = None
    crops: dict[str, list[dict[str, Any]]] = {}
    unseen: set[str] = set()
    other = False
    for row in rows.to_dict("records"):
        line, title = int(row["line"]), str(row["Class"]).removeprefix(_PREFIX)
        size = _size(row, size, table, line)
        if title not in request.source.seg_classes:
            unknown[title] += 1
            other = True
        elif not row["Mask"]:
            unseen.add(title)
        else:
            crop, found = _crop(row, size, root, line), crops.setdefault(title, [])
            if crop not in found:  # a row that stands twice says nothing more
                found.append(crop)
    if not crops:
        raise bad_cell(
            table, f"row {first}", "Class", rows["Class"].iloc[0], list(request.source.seg_classes)
        )
    assert size is not None  # a group has at least one row
    masks: dict[str, Any] = {}
    for title in request.source.seg_classes:
        if title in unseen:
            continue
        if title in crops:
            found = crops[title]
            masks[title] = found[0] if len(found) == 1 else {"size": list(size), "union": found}
        elif title not in _ORGANS and not other:
            # A class under a name we do not know might be this one: then nothing is claimed.
            masks[title] = empty_mask()
    stem = Path(name).stem
    view = _VIEW.search(stem)
    return {
        "file_name": str(image),
        "image_id": stem,
        "height": size[0],
        "width": size[1],
        "source": request.source.key,
        "patient_id": _patient(stem),
        "view": view.group(1) if view else None,
        "masks": masks,
    }


def _size(
    row: dict[str, Any], size: tuple[int, int] | None, table: Path, line: int
) -> tuple[int, int]:
    """(height, width) of the row's image; the table writes width x height."""
    match = _RESOLUTION.fullmatch(row["Resolution"])
    if match is None:
        raise bad_cell(table, f"row {line}", "Resolution", row["Resolution"], "<width>x<height>")
    found = (int(match.group(2)), int(match.group(1)))
    if size is not None and found != size:
        expected = f"{size[1]}x{size[0]}, as in the image's other rows"
        raise bad_cell(table, f"row {line}", "Resolution", row["Resolution"], expected)
    return found


def _crop(row: dict[str, Any], size: tuple[int, int], root: Path, line: int) -> dict[str, Any]:
    table = root / "structure.csv"
    mask = relative_name(row["Mask"], file=table, row=line)
    path = root / "masks" / Path(mask).name
    if not path.is_file():
        raise missing_image(mask, file=table, row=line, folder=root / "masks")
    left, top, width, height = (
        number(row[name], file=table, row=line, column=name, minimum=0)
        for name in ("Left", "Top", "Width", "Height")
    )
    whole = all(value == int(value) for value in (left, top, width, height))
    if not whole or width < 1 or height < 1 or left + width > size[1] or top + height > size[0]:
        raise DataError(
            f"crop of {width:g} x {height:g} at left {left:g}, top {top:g}",
            file=table,
            row=line,
            expected=f"whole pixels within {size[1]} x {size[0]} (width x height)",
            fix="restore this row from the original file",
        )
    return {"size": list(size), "file": str(path), "left": int(left), "top": int(top)}
