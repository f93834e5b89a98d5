"""JSRT nodules with the SCR masks: two downloads side by side, and their common conversions.

Fold 1 has the odd-numbered images, fold 2 the even-numbered. Nodules are a centre in the 2048-pixel
frame and a size in millimetres of 0.175 mm pixels; masks are 1024-pixel files, scaled by the
mapper. The patient's right is the left of the picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..images import image_size
from ..record import XYXY_ABS, Record
from .base import (
    RESTORE_FILE,
    ReadRequest,
    bad_cell,
    counted,
    files_in,
    find_file,
    line_of,
    number,
    read_table,
)

_NAME = re.compile(r"(JPC(?:LN|NN)(\d{3}))(?:\.IMG)?", re.IGNORECASE)
_FRAME_PX = 2048
_MM_PER_PX = 0.175
_IMAGE_SUFFIXES = (".img", ".dcm", ".dicom", ".png")
_IMAGE_FOLDERS = ("All247images", "All247images/images", "images/images", "images", "")
_CLINICAL_FOLDERS = ("Clinical_Information", "")


@dataclass
class _Nodule:
    x: float
    y: float
    size_mm: float
    row: int


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``fold1`` or ``fold2``: five masks each, and the nodule if there is one."""
    yield from counted(request, _records(request))


def _images(root: Path) -> dict[str, str]:
    """Path by id of every image; folder and suffix differ between the copies that are about."""
    for folder in _IMAGE_FOLDERS:
        if not (root / folder).is_dir():
            continue
        found: dict[str, str] = {}
        for stem, path in files_in(root / folder, _IMAGE_SUFFIXES).items():
            match = _NAME.fullmatch(stem)
            if match:
                found.setdefault(match.group(1).upper(), path)
        if found:
            return found
    find_file(root, "All247images/JPCLN001.IMG", what="the radiographs")
    raise DataError(
        "no radiograph",
        file=root,
        expected="All247images/JPCLN001.IMG and others",
        fix=RESTORE_FILE,
    )


def _masks(root: Path, structure: str) -> dict[str, str]:
    """Mask file by id of one structure, of both folds; folder names have blanks or underscores."""
    plain, joined = structure.lower(), structure.lower().replace(" ", "_")
    found: dict[str, str] = {}
    for base in ("scratch/fold1/masks", "scratch/fold2/masks", "fold1/masks", "fold2/masks",
                 "masks", "All247images/masks"):  # fmt: skip
        for name in (plain, joined, f"{joined}_png"):
            if (root / base / name).is_dir():
                for stem, path in files_in(root / base / name, (".gif", ".png")).items():
                    found.setdefault(stem.upper(), path)
    return found


def _clinical_file(root: Path, name: str) -> Path | None:
    for folder in _CLINICAL_FOLDERS:
        if (root / folder).is_dir():
            for path in sorted((root / folder).iterdir()):
                if path.name.lower() == name.lower():
                    return path
    return None


def _nodules(request: ReadRequest) -> tuple[dict[str, _Nodule], Path]:
    """Nodules by image id, from the society's text file or from the table of the PNG copy."""
    text, table = (_clinical_file(request.root, n) for n in ("CLNDAT_EN.txt", "jsrt_metadata.csv"))
    if text is not None:
        return _nodules_of_text(request, text), text
    if table is not None:
        return _nodules_of_table(request, table), table
    path = find_file(
        request.root,
        "Clinical_Information/CLNDAT_EN.txt",
        "jsrt_metadata.csv",
        what="the list of nodules",
    )
    return {}, path


def _nodules_of_text(request: ReadRequest, path: Path) -> dict[str, _Nodule]:
    """``CLNDAT_EN.txt``: tab-separated, no header, lines ended by a carriage return alone."""
    try:
        text = path.read_bytes().decode("ascii")
    except OSError as exc:
        raise DataError(f"cannot be read ({exc.strerror})", file=path, fix=RESTORE_FILE) from exc
    except UnicodeDecodeError as exc:
        row = re.split(rb"\r\n|\r|\n", exc.object[: exc.start])
        raise DataError(
            "not ASCII text", file=path, row=len(row), expected="ASCII", fix=RESTORE_FILE
        ) from exc
    found: dict[str, _Nodule] = {}
    for line, raw in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not raw.strip():
            continue
        cells = [cell.strip() for cell in raw.split("\t")]
        try:
            match = _NAME.fullmatch(cells[0])
            if match is None or len(cells) < 8 or cells[7] not in ("malignant", "benign"):
                raise DataError(
                    f"row reads {raw!r}",
                    file=path,
                    row=line,
                    expected="file, subtlety, size, age, sex, x, y, malignant or benign, ...",
                    fix=RESTORE_FILE,
                )
            _add(
                found,
                match.group(1).upper(),
                _nodule(cells[5], cells[6], cells[2], path, line),
                path,
            )
        except DataError as error:
            request.report.bad("bad nodule row", error)
    return found


def _nodules_of_table(request: ReadRequest, path: Path) -> dict[str, _Nodule]:
    """``jsrt_metadata.csv`` of the PNG copy."""
    columns = ("study_id", "state", "x", "y", "size")
    frame = read_table(path, required=columns, usecols=columns)
    found: dict[str, _Nodule] = {}
    for i, row in enumerate(frame.to_dict("records")):
        try:
            match = _NAME.fullmatch(row["study_id"].removesuffix(".png"))
            if match is None:
                raise bad_cell(path, i, "study_id", row["study_id"], "a name like JPCLN001.png")
            name = match.group(1).upper()
            states = ("malignant", "benign") if "LN" in name else ("non-nodule",)
            if row["state"] not in states:
                raise bad_cell(path, i, "state", row["state"], list(states))
            if "LN" in name:
                _add(found, name, _nodule(row["x"], row["y"], row["size"], path, line_of(i)), path)
        except DataError as error:
            request.report.bad("bad nodule row", error)
    return found


def _nodule(x: str, y: str, size_mm: str, path: Path, row: int) -> _Nodule:
    numbers = {
        name: number(text, file=path, row=row, column=name, minimum=0)
        for name, text in (("x", x), ("y", y), ("size", size_mm))
    }
    if max(numbers["x"], numbers["y"]) >= _FRAME_PX or not 0 < numbers["size"] <= 100:
        raise DataError(
            f"nodule of {numbers['size']:g} mm at ({numbers['x']:g}, {numbers['y']:g})",
            file=path,
            row=row,
            expected=f"a centre within {_FRAME_PX} x {_FRAME_PX} and 5 to 60 mm",
            fix=RESTORE_FILE,
        )
    return _Nodule(numbers["x"], numbers["y"], numbers["size"], row)


def _add(found: dict[str, _Nodule], name: str, nodule: _Nodule, path: Path) -> None:
    if name in found:
        raise DataError(
            f"image {name} stands a second time",
            file=path,
            row=nodule.row,
            expected="one nodule per image",
            fix=RESTORE_FILE,
        )
    found[name] = nodule


def _box(nodule: _Nodule, size: tuple[int, int]) -> list[float]:
    """The nodule's box in an image of ``size``, cut at its border, which it may reach over."""
    half = nodule.size_mm / _MM_PER_PX / 2
    corners = (nodule.x - half, nodule.y - half, nodule.x + half, nodule.y + half)
    scale = (size[1] / _FRAME_PX, size[0] / _FRAME_PX) * 2
    limits = (size[1], size[0]) * 2
    return [min(max(c * s, 0.0), float(m)) for c, s, m in zip(corners, scale, limits, strict=True)]


def _records(request: ReadRequest) -> Iterator[Record]:
    images = _images(request.root)
    nodules, listed_in = _nodules(request)
    structures = request.source.seg_classes
    masks = {name: _masks(request.root, name) for name in structures}
    has_masks = any(masks.values())
    request.report.soft(
        "SCR masks (a download of their own)",
        found="there" if has_masks else "no folder scratch/fold1/masks",
        expected="there",
        file=str(request.root),
    )
    odd = request.part == "fold1"
    for name in sorted(images):
        if int(name[5:]) % 2 != odd:
            continue
        lacking = [s for s in structures if name not in masks[s]] if has_masks else []
        try:
            if lacking:
                raise DataError(
                    f"no mask of {' and '.join(lacking)}",
                    file=images[name],
                    expected=f"scratch/{request.part}/masks/{lacking[0].lower()}/{name}.gif",
                    fix="complete the SCR download",
                )
            if "LN" in name and name not in nodules:
                raise DataError(
                    f"no row of image {name}, which has a nodule",
                    file=listed_in,
                    expected="one row per image JPCLN001 to JPCLN154",
                    fix=RESTORE_FILE,
                )
            record = _record(request, name, images[name], nodules.get(name))
        except DataError as error:
            request.report.bad("image with a file missing or bad", error)
            continue
        if has_masks:
            record["masks"] = {s: masks[s][name] for s in structures}
        yield record


def _record(request: ReadRequest, name: str, path: str, nodule: _Nodule | None) -> Record:
    size = image_size(path)
    annotations = []
    if nodule is not None:
        annotations.append(
            {
                "bbox": _box(nodule, size),
                "bbox_mode": XYXY_ABS,
                "category_id": 0,
                "iscrowd": 0,
            }
        )
    return {
        "file_name": path,
        "image_id": name,
        "height": size[0],
        "width": size[1],
        "source": request.source.key,
        "patient_id": None,
        "view": None,
        "labels": np.array([float(nodule is not None)], dtype=np.float32),
        "annotations": annotations,
    }
