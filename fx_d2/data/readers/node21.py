"""NODE21: MetaImage files and one CSV row per nodule, in a processed and an original version.

The two versions differ by crop and scale, so images and table must come from the same folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError
from ..record import XYXY_ABS, Record
from .base import (
    RESTORE_FILE,
    ReadRequest,
    bad_cell,
    counted,
    files_in,
    fit_box,
    line_of,
    missing_image,
    number,
    read_table,
)

_FOLDERS = {"processed": ("proccessed_data", "processed_data"), "original": ("original_data",)}
_COLUMNS = ("img_name", "label", "x", "y", "width", "height")
_NAME = re.compile(r"[nc]\d{4}\.mha")
_MAPPINGS = ("filenames_orig_and_new.csv", "non_nodule_filenames_orig_and_new.csv")
_NIH_NAME = re.compile(r"\b(\d{8})_\d{3}\b")


def _home(request: ReadRequest) -> Path:
    """The folder of the version asked for (default: processed, else original)."""
    version = request.option("version")
    if version not in (None, *_FOLDERS):
        raise ValueError(f"option version={version!r} of node21; allowed: {list(_FOLDERS)}")
    tried = []
    for name in _FOLDERS if version is None else (version,):
        for folder in _FOLDERS[name]:
            for base in (request.root / "cxr_images", request.root):
                tried.append(f"{base.name}/{folder}")
                if (base / folder / "metadata.csv").is_file():
                    return base / folder
    if version is None and (request.root / "metadata.csv").is_file():
        return request.root
    raise DataError(
        "no metadata.csv of NODE21",
        file=request.root,
        expected=" or ".join(tried),
        fix="see datasets/README.md for the tree this source must have",
    )


def _origins(home: Path) -> dict[str, tuple[str, str | None]]:
    """Dataset of origin by stem, and the patient where the original name is one of NIH's."""
    origins: dict[str, tuple[str, str | None]] = {}
    for name in _MAPPINGS:
        for folder in (home, home.parent / "original_data"):
            path = folder / name
            if not path.is_file():
                continue
            for row in read_table(path, required=("orig_dataset", "node21_img_id")).to_dict(
                "records"
            ):
                stem = row["node21_img_id"].removesuffix(".mha")
                nih = _NIH_NAME.search(" ".join(map(str, row.values())))
                origins[stem] = (row["orig_dataset"], f"nih14:{nih.group(1)}" if nih else None)
            break
    return origins


def _row(row: dict, index: int, table: Path) -> list[float] | None:
    """The box of a row, None for a row without nodule."""
    line = line_of(index)
    label, x, y, w, h = (
        number(row[name], file=table, row=line, column=name)
        for name in ("label", "x", "y", "width", "height")
    )
    if label not in (0, 1):
        raise bad_cell(table, index, "label", row["label"], "0 or 1")
    if (label == 1) != row["img_name"].startswith("n"):
        raise bad_cell(table, index, "label", row["label"], f"what fits {row['img_name']!r}")
    if label == 0:
        if any((x, y, w, h)):
            raise bad_cell(table, index, "width", row["width"], "zeros where label is 0")
        return None
    return fit_box(x, y, x + w, y + h, frame=None, file=table, row=line)


OPTIONS = ("version",)


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of the one part ``all``.

    Options:
        version: ``processed`` (16 bit, 1024 px) or ``original``; default the one that is there.
    """
    return counted(request, _records(request))


def _records(request: ReadRequest) -> Iterator[Record]:
    home = _home(request)
    table = home / "metadata.csv"
    frame = read_table(table, required=_COLUMNS, usecols=_COLUMNS)
    negative = frame[pd.to_numeric(frame["label"], errors="coerce") == 0]
    zeros = (negative[["x", "y", "width", "height"]].isin(("0", "0.0"))).all(axis=1)
    if len(negative) > 1 and 2 * int(zeros.sum()) < len(negative):
        raise DataError(
            "most rows with label 0 have a box: the columns do not fit their names",
            file=table,
            row=line_of(int(negative.index[~zeros][0])),
            expected="zeros in x, y, width and height where label is 0",
            fix=RESTORE_FILE,
        )
    boxes: dict[str, list[list[float]]] = {}
    lines: dict[str, int] = {}
    spoilt: set[str] = set()
    for index, row in enumerate(frame.to_dict("records")):
        name = row["img_name"]
        if not _NAME.fullmatch(name):
            # Without its name nobody knows which image lacks a box: the whole table is in doubt.
            raise bad_cell(table, index, "img_name", name, "a name like n0001.mha")
        try:
            box = _row(row, index, table)
        except DataError as error:
            request.report.bad("bad row", error)
            spoilt.add(name)
            continue
        lines.setdefault(name, line_of(index))
        known = boxes.setdefault(name, [])
        if box is not None and box not in known:  # a row may stand twice
            known.append(box)
    files = {f"{stem}.mha": path for stem, path in files_in(home / "images", (".mha",)).items()}
    origins = _origins(home)
    for name, found in boxes.items():
        if name in spoilt:
            continue
        if name not in files:
            missing = missing_image(name, file=table, row=lines[name], folder=home / "images")
            request.report.bad("image without a file", missing)
            continue
        origin, patient = origins.get(name[:-4], (None, None))
        record: Record = {
            "file_name": files[name],
            "image_id": name[:-4],
            "source": request.source.key,
            "patient_id": patient,
            "view": None,
            "labels": np.array([float(bool(found))], dtype=np.float32),
            "annotations": [
                {"bbox": box, "bbox_mode": XYXY_ABS, "category_id": 0, "iscrowd": 0}
                for box in found
            ],
        }
        if origin:
            record["origin"] = origin
        yield record
    request.report.soft(
        "NODE21 images without a row in metadata.csv",
        found=len(set(files) - set(boxes) - spoilt),
        expected=0,
        file=str(table),
    )
