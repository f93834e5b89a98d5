"""VinDr-RibCXR: twenty ribs per image as polygons in a column-oriented JSON file.

A rib that the annotators could not see is written as the string ``None``. All twenty ribs were
looked for in every image, so such a rib is annotated and empty: a true negative, not a missing
annotation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import DataError
from ..images import image_size
from ..record import Record
from ..tree import walk_files
from .base import (
    RESTORE_FILE,
    ReadRequest,
    counted,
    find_file,
    missing_image,
    read_json,
    relative_name,
)

_BORDER = 0.05  # share of the image by which an annotator's point may lie outside


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``train`` or ``val``, in the order of the JSON file."""
    yield from counted(request, _records(request))


def _files(root: Path) -> dict[str, str]:
    """Every file below ``root`` by its path in lower case: copies differ in their folders' case."""
    found: dict[str, str] = {}
    for folder, names in walk_files(root):
        for name in names:
            path = os.path.join(folder, name)
            found[Path(path).relative_to(root).as_posix().lower()] = path
    return found


def _annotation_file(request: ReadRequest, files: dict[str, str]) -> Path:
    name = f"Vindr_RibCXR_{request.part}_mask.json"
    for key, path in files.items():
        if key.rsplit("/", 1)[-1] == name.lower():
            return Path(path)
    return find_file(request.root, f"data/{request.part}/{name}", what="the rib annotations")


def _records(request: ReadRequest) -> Iterator[Record]:
    files = _files(request.root)
    path = _annotation_file(request, files)
    body = read_json(path, dict)
    ribs = request.source.seg_classes
    for key in ("img", *ribs):
        if not isinstance(body.get(key), dict):
            raise DataError(
                f"{key!r} is {type(body.get(key)).__name__}",
                file=path,
                expected="an object with one entry per image",
                fix=RESTORE_FILE,
            )
    by_name = {key.rsplit("/", 1)[-1]: value for key, value in files.items()}
    seen: set[str] = set()
    for key, name in body["img"].items():
        row = f"img {key!r}"
        try:
            record = _record(request, body, key, _find_image(name, files, by_name, path, row), path)
            if record["image_id"] in seen:
                raise DataError(
                    f"image {name!r} stands a second time", file=path, row=row, fix=RESTORE_FILE
                )
        except DataError as error:
            request.report.bad("bad image entry", error)
            continue
        seen.add(record["image_id"])
        yield record


def _find_image(
    name: Any, files: dict[str, str], by_name: dict[str, str], path: Path, row: str
) -> str:
    """The image of an entry: its path below the folder, else its file name, whatever the case."""
    wanted = PurePosixPath(relative_name(name, file=path, row=row).lower())
    found = files.get(str(wanted)) or by_name.get(wanted.name)
    if found is None or not found.lower().endswith(".png"):
        raise missing_image(str(name), file=path, row=row, folder=path.parent)
    return found


def _record(request: ReadRequest, body: dict[str, Any], key: str, image: str, path: Path) -> Record:
    size = image_size(image)
    masks = {
        rib: {"size": list(size), "polygons": _rings(body[rib], key, rib, size, path)}
        for rib in request.source.seg_classes
    }
    return {
        "file_name": image,
        "image_id": Path(image).stem,
        "height": size[0],
        "width": size[1],
        "source": request.source.key,
        "patient_id": None,
        "view": None,
        "masks": masks,
    }


def _rings(
    column: dict[str, Any], key: str, rib: str, size: tuple[int, int], path: Path
) -> list[list[float]]:
    points: Any = column.get(key)
    if points == "None":
        return []
    try:
        ring = np.array([(point["x"], point["y"]) for point in points], dtype=np.float64)
    except (TypeError, KeyError, ValueError, OverflowError):
        ring = np.empty(0)
    frame = np.array([size[1], size[0]], dtype=np.float64)
    margin = _BORDER * frame
    inside = ring.ndim == 2 and len(ring) >= 3 and bool(np.isfinite(ring).all())
    if not inside or (ring < -margin).any() or (ring > frame + margin).any():
        raise DataError(
            f"rib {rib} is {points!r}"[:120],
            file=path,
            row=f"img {key!r}",
            expected=f"'None', or 3 or more points {{x, y}} within {size[1]} x {size[0]}",
            fix=RESTORE_FILE,
        )
    return [ring.ravel().tolist()]
