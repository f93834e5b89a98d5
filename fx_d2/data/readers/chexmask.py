"""CheXmask organs on VinDr-CXR: one table of run lengths beside the tree of images.

Masks come from a segmentation model, so a row is used from an estimated Dice on (``min_dice_rca``).
The table has no split: an image is in the part whose folder it lies in. Run lengths count along the
rows from 1, absolutely, in the original frame; the table in the folder ``Preprocessed`` is in
another frame and is refused. The patient's right lung is in the left half of the picture.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import DataError, ReadReport
from ..masks import check_runs, pack_runs
from ..record import XYXY_ABS, Record
from .base import (
    MAX_SIDE_PX,
    RESTORE_FILE,
    ReadRequest,
    bad_cell,
    files_in,
    find_file,
    fit_box,
    number,
    warn_counts,
)

_SCORE = "Dice RCA (Mean)"
_COLUMNS = ("image_id", _SCORE, "Landmarks", "Left Lung", "Right Lung", "Heart", "Height", "Width")
_POINTS = {"Right Lung": (0, 44), "Left Lung": (44, 94), "Heart": (94, 120)}
_SUFFIXES = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")
_LINE_BYTES = 1 << 22  # the longest real rows have some 100,000
_BAR_BYTES = 200 << 20  # about two seconds of reading

OPTIONS = ("masks_folder", "min_dice_rca")


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``train`` or ``test``.

    Options:
        masks_folder: name of the CheXmask download, beside the images' folder.
        min_dice_rca: rows with a smaller estimated Dice are left out, and counted in the report.
    """
    table = _table(request)
    root = find_file(request.root, request.part, f"1.0.0/{request.part}", what="the image folder")
    images, threshold = files_in(root, _SUFFIXES), float(request.option("min_dice_rca", 0.0))
    # VinDr-CXR's own readers keep every image; an image without a good mask still has its side.
    request.report.left_out[request.part] = set(images)
    seen: set[str] = set()
    n_low = 0
    for line, row in _rows(table):
        image = row["image_id"]
        if image not in images:
            continue  # of the other part, or not downloaded; the count below tells
        try:
            if image in seen:
                raise bad_cell(table, f"row {line}", "image_id", image, "one row per image")
            seen.add(image)
            score = number(row[_SCORE], file=table, row=line, column=_SCORE, minimum=0)
            if score < threshold:
                n_low += 1
                continue
            record = _record(request, row, images[image], table, line)
        except DataError as error:
            request.report.bad("bad mask row", error)
            continue
        yield record
    if n_low:
        request.report.notes.append(
            f"{request.source.key} {request.part}: {n_low} of {len(seen)} images left out, "
            f"{_SCORE} below {threshold:g}"
        )
    _tell_missing(request.report, images, seen, table)
    warn_counts(request, images=len(seen))


def _tell_missing(report: ReadReport, images: dict[str, str], seen: set[str], table: Path) -> None:
    report.soft(
        "images without a mask row", found=len(images) - len(seen), expected=0, file=str(table)
    )


def _table(request: ReadRequest) -> Path:
    folder, name = str(request.option("masks_folder")), "VinDr-CXR.csv"
    beside = request.root.parent
    places = [f"{folder}/{v}OriginalResolution/{name}" for v in ("1.0.0/", "")] + [
        f"{folder}/{v}{name}" for v in ("1.0.0/", "")
    ]
    padded = [beside / folder / v / "Preprocessed" / name for v in ("1.0.0", "")]
    there = [path for path in padded if path.exists()]
    if there and not any((beside / place).exists() for place in places):
        raise DataError(
            "only the Preprocessed table is there; its masks are in a padded 1024 x 1024 frame",
            file=there[0],
            expected="OriginalResolution/VinDr-CXR.csv",
            fix="download the OriginalResolution folder too",
        )
    return find_file(beside, *places, what="the CheXmask table")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, wanted cells) of every row; the table is gigabytes, so one row at a time."""
    fix = RESTORE_FILE
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            with tqdm(
                total=size, unit="B", unit_scale=True, desc=path.name, disable=size < _BAR_BYTES
            ) as bar:
                rows = csv.reader(_lines(stream, path, bar))
                header = [cell.strip() for cell in next(rows, [])]
                missing = [name for name in _COLUMNS if name not in header]
                if missing:
                    raise DataError(
                        f"no column {missing[0]!r}; the header reads {header[:12]}",
                        file=path,
                        row=1,
                        expected=f"columns {list(_COLUMNS)}",
                        fix="use VinDr-CXR.csv, with its header line",
                    )
                place = {name: header.index(name) for name in _COLUMNS}
                for cells in rows:
                    if not cells:
                        continue
                    if len(cells) != len(header):
                        raise DataError(
                            f"{len(cells)} cells",
                            file=path,
                            row=rows.line_num,
                            expected=f"{len(header)}, as in the header",
                            fix=f"{fix} (is it cut off?)",
                        )
                    yield rows.line_num, {n: cells[i].strip() for n, i in place.items()}
    except OSError as exc:
        raise DataError(f"cannot be read ({exc.strerror})", file=path, fix=fix) from exc
    except csv.Error as exc:
        raise DataError(f"not a table ({exc})", file=path, row=rows.line_num, fix=fix) from exc


def _lines(stream, path: Path, bar: tqdm) -> Iterator[str]:
    for line, raw in enumerate(iter(lambda: stream.readline(_LINE_BYTES), b""), start=1):
        problem = None
        if len(raw) >= _LINE_BYTES:
            problem = f"a row longer than {_LINE_BYTES >> 20} MiB"
        elif b"\0" in raw:
            problem = "NUL byte in a text file"
        try:
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError:
            problem = problem or "not UTF-8 text"
        if problem:
            raise DataError(
                problem,
                file=path,
                row=line,
                expected="a CSV file",
                fix=RESTORE_FILE,
            )
        bar.update(len(raw))
        yield text


def _record(
    request: ReadRequest, row: dict[str, str], image: str, table: Path, line: int
) -> Record:
    sides = [number(row[n], file=table, row=line, column=n, minimum=1) for n in ("Height", "Width")]
    for name, side in zip(("Height", "Width"), sides, strict=True):
        if side != int(side) or side > MAX_SIDE_PX:
            raise bad_cell(
                table, f"row {line}", name, row[name], f"whole pixels, at most {MAX_SIDE_PX}"
            )
    size = (int(sides[0]), int(sides[1]))
    masks: dict[str, Any] = {}
    annotations = []
    for category, organ in enumerate(request.source.thing_classes):
        reference, box = _organ(row, organ, size, table, line)
        masks[organ] = reference
        annotations.append(
            {
                "bbox": box,
                "bbox_mode": XYXY_ABS,
                "category_id": category,
                "iscrowd": 0,
                "segmentation": reference,
            }
        )
    return {
        "file_name": image,
        "image_id": row["image_id"],
        "height": size[0],
        "width": size[1],
        "source": request.source.key,
        "patient_id": None,
        "view": None,
        "annotations": annotations,
        "masks": masks,
    }


def _organ(
    row: dict[str, str], organ: str, size: tuple[int, int], table: Path, line: int
) -> tuple[dict[str, Any], list[float]]:
    """Mask reference and box of one organ: from its run lengths, else from its landmarks."""
    runs = row[organ]
    if runs:
        box = check_runs(runs, "absolute_rows_1", size, file=str(table), row=line)
        reference = {
            "size": list(size),
            "runs": pack_runs(runs),
            "convention": "absolute_rows_1",
        }
        return reference, [float(x) for x in box]
    numbers = re.findall(r"-?\d+(?:\.\d+)?", row["Landmarks"][:20000])
    if len(numbers) != 240:
        raise DataError(
            f"no run lengths for {organ}, and {len(numbers)} numbers in the landmarks",
            file=table,
            row=line,
            expected="run lengths, or 240 landmark coordinates",
            fix="restore this row from the original file",
        )
    first, last = _POINTS[organ]
    points = np.array(numbers, dtype=np.float64).reshape(-1, 2)[first:last]
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0) + 1
    frame = [float(x) for x in fit_box(x0, y0, x1, y1, frame=size, file=table, row=line)]
    return {"size": list(size), "polygons": [points.ravel().tolist()]}, frame
