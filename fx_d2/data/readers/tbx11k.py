"""TBX11K from its COCO lists, and the simplified copy (one CSV) that circulates on Kaggle.

Every image of a list is kept: healthy and sick-but-not-tuberculous images are annotated and empty.
The XML files are not used; their corners are in the frame of the original film.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..record import XYXY_ABS, Record
from .base import (
    RESTORE_FILE,
    ReadRequest,
    bad_cell,
    counted,
    find_file,
    fit_box,
    index_by_stem,
    line_of,
    missing_image,
    number,
    read_json,
    read_table,
    relative_name,
)

_CLASS_OF_FOLDER = {"tb": 1.0, "health": 0.0, "sick": 0.0}
_FOLDER_OF_TYPE = {"healthy": "health", "sick_but_no_tb": "sick", "tb": "tb"}
_CATEGORIES = {"ActiveTuberculosis": 0, "ObsoletePulmonaryTuberculosis": 1}
_SIMPLE_BOX = re.compile(
    r"\{\s*'xmin':\s*([-\d.e+]+),\s*'ymin':\s*([-\d.e+]+),"
    r"\s*'width':\s*([-\d.e+]+),\s*'height':\s*([-\d.e+]+)\s*\}"
)
_SIMPLE_COLUMNS = (
    "fname",
    "image_height",
    "image_width",
    "source",
    "bbox",
    "target",
    "tb_type",
    "image_type",
)


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``TBX11K_train`` or ``TBX11K_val`` (or another list in ``annotations/json``).

    The label is 1 for an image below ``tb/``. A tuberculous image without a box (``tb/tb1199.png``)
    is not annotated for boxes rather than empty.
    """
    for home in ("", "TBX11K"):
        if (request.root / home / "annotations").is_dir():
            return counted(request, _from_json(request, request.root / home))
    for home in ("", "tbx11k-simplified"):
        if (request.root / home / "data.csv").is_file():
            return counted(request, _from_csv(request, request.root / home))
    raise DataError(
        "neither annotations/json (TBX11K) nor data.csv (tbx11k-simplified)",
        file=request.root,
        fix="see datasets/README.md for the tree this source must have",
    )


def _record(request, image_id: str, path: str, size: tuple[int, int], boxes: list[dict]) -> Record:
    tuberculous = _CLASS_OF_FOLDER.get(image_id.split("/")[0], np.nan)
    record: Record = {
        "file_name": path,
        "image_id": image_id,
        "height": size[0],
        "width": size[1],
        "source": request.source.key,
        "patient_id": None,
        "view": None,
        "labels": np.array([tuberculous], dtype=np.float32),
    }
    if boxes or tuberculous == 0:
        record["annotations"] = boxes
    return record


def _entries(body: dict, name: str, file: Path) -> list[dict]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(
            f"no list {name!r} of objects", file=file, expected="a COCO file", fix=RESTORE_FILE
        )
    return value


def _from_json(request: ReadRequest, home: Path) -> Iterator[Record]:
    path = find_file(
        home, f"annotations/json/{request.part}.json", f"annotations/{request.part}.json",
        what="the list of this part",
    )  # fmt: skip
    body = read_json(path, dict)
    categories = {}
    for entry in _entries(body, "categories", path):
        categories[_key(entry, "id", path)] = _CATEGORIES.get(str(entry.get("name")))
    boxes: dict[Any, list[dict]] = defaultdict(list)
    images = {_key(entry, "id", path): entry for entry in _entries(body, "images", path)}
    spoilt: set[int | str] = set()
    for entry in _entries(body, "annotations", path):
        # An annotation of no known image stops everything: nobody knows which image lacks a box.
        image = _image_of(entry, images, path)
        try:
            box = _coco_box(entry, image, categories, path)
            boxes[entry["image_id"]].append(box)
        except DataError as error:
            request.report.bad("bad annotation", error)
            spoilt.add(entry["image_id"])
    for image_key, entry in images.items():
        if image_key in spoilt:
            continue
        row = f"image {str(entry.get('file_name'))[:80]!r}"
        try:
            name = relative_name(entry.get("file_name"), file=path, row=row)
            size = _size(entry, path, row)
            if not (home / "imgs" / name).is_file():
                raise missing_image(name, file=path, row=row, folder=home / "imgs")
        except DataError as error:
            request.report.bad("bad image entry", error)
            continue
        image_id = name.removesuffix(".png")
        yield _record(request, image_id, str(home / "imgs" / name), size, boxes[image_key])


def _key(entry: dict, name: str, file: Path) -> int | str:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        row = f"entry {str(entry)[:60]}"
        raise DataError(
            f"{name} is {value!r}", file=file, row=row, expected="a number", fix=RESTORE_FILE
        )
    return value


def _size(entry: dict, path: Path, row: str) -> tuple[int, int]:
    size = (entry.get("height"), entry.get("width"))
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise DataError(
            f"height, width = {size}", file=path, row=row, expected="pixels", fix=RESTORE_FILE
        )
    return size  # type: ignore[return-value]


def _image_of(entry: dict, images: dict, path: Path) -> dict:
    row = f"annotation {str(entry.get('id'))[:40]}"
    image = images.get(_key(entry, "image_id", path))
    if image is None:
        raise DataError(
            f"image_id {entry.get('image_id')!r}", file=path, row=row, expected="an id of 'images'",
            fix=RESTORE_FILE,
        )  # fmt: skip
    return image


def _coco_box(entry: dict, image: dict, categories: dict, path: Path) -> dict[str, Any]:
    row = f"annotation {str(entry.get('id'))[:40]}"
    category = categories.get(_key(entry, "category_id", path))
    if category is None:
        raise DataError(
            f"category_id {entry.get('category_id')!r}",
            file=path,
            row=row,
            expected=f"the id of one of {list(_CATEGORIES)}: other categories have no boxes",
            fix=RESTORE_FILE,
        )
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(
            f"bbox {box!r}", file=path, row=row, expected="[x, y, w, h]", fix=RESTORE_FILE
        )
    x, y, w, h = (number(v, file=path, row=row, column="bbox") for v in box)
    frame = _size(image, path, row)
    corners = fit_box(x, y, x + w, y + h, frame=frame, file=path, row=row)
    return {"bbox": corners, "bbox_mode": XYXY_ABS, "category_id": category, "iscrowd": 0}


def _from_csv(request: ReadRequest, home: Path) -> Iterator[Record]:
    """One row per box; the rows of an image are brought together."""
    path = home / "data.csv"
    frame = read_table(path, required=_SIMPLE_COLUMNS)
    part = {"TBX11K_train": "train", "TBX11K_val": "val"}.get(request.part)
    if part is None:
        raise DataError(
            f"no part {request.part!r}",
            file=path,
            expected="TBX11K_train or _val",
            fix=RESTORE_FILE,
        )
    files = index_by_stem(home / "images", (".png",), full_name=True)
    boxes: dict[str, list[dict]] = defaultdict(list)
    facts: dict[str, tuple[str, tuple[int, int]]] = {}
    spoilt: set[str] = set()
    for index, row in enumerate(frame.to_dict("records")):
        name = str(row["fname"])
        if row["source"] != part:
            if row["source"] not in ("train", "val"):
                error = bad_cell(path, index, "source", row["source"], ["train", "val"])
                request.report.bad("row with a bad source", error)
            continue
        try:
            image_id, size, box = _simple_row(row, index, path)
            if name not in files:
                raise missing_image(name, file=path, row=line_of(index), folder=home / "images")
        except DataError as error:
            request.report.bad("bad row", error)
            spoilt.add(name)
            continue
        facts[name] = (image_id, size)
        if box is not None:
            boxes[name].append(box)
    for name, (image_id, size) in facts.items():
        if name not in spoilt:
            yield _record(request, image_id, files[name], size, boxes[name])


def _simple_row(row: dict, index: int, path: Path) -> tuple[Any, tuple[int, int], dict | None]:
    """Image id, (height, width) and the box of one row, or None where it reads ``none``."""
    line = line_of(index)
    kind = _FOLDER_OF_TYPE.get(row["image_type"])
    if kind is None:
        raise bad_cell(path, index, "image_type", row["image_type"], list(_FOLDER_OF_TYPE))
    if (row["target"] == "tb") != (kind == "tb"):
        raise bad_cell(path, index, "target", row["target"], f"what fits type {row['image_type']}")
    height, width = (
        int(number(row[name], file=path, row=line, column=name, minimum=1))
        for name in ("image_height", "image_width")
    )
    image_id = f"{kind}/{row['fname'].removesuffix('.png')}"
    if row["bbox"].lower() == "none":
        return image_id, (height, width), None
    match = _SIMPLE_BOX.fullmatch(row["bbox"].replace('"', "'"))
    if match is None:
        raise bad_cell(path, index, "bbox", row["bbox"], "none, or {'xmin': .., 'ymin': .., ..}")
    x, y, w, h = (number(t, file=path, row=line, column="bbox") for t in match.groups())
    corners = fit_box(x, y, x + w, y + h, frame=(height, width), file=path, row=line)
    kinds = {"active": 0, "latent": 1, "obsolete": 1}
    category = next((c for word, c in kinds.items() if word in row["tb_type"].lower()), None)
    if category is None:
        raise bad_cell(path, index, "tb_type", row["tb_type"], "an active or latent type")
    box = {"bbox": corners, "bbox_mode": XYXY_ABS, "category_id": category, "iscrowd": 0}
    return image_id, (height, width), box
