"""NIH Shenzhen: the label is the last digit of a file name, age and sex stand in a small text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..record import Record
from .base import ReadRequest, counted, files_in, find_file

_NAME = re.compile(r"CHNCXR_\d{4}_([01])")
_READING = re.compile(
    r"(?P<sex>(?:fe)?male)?\W*(?P<age>\d{1,3})?\s*(?P<unit>mo|m|d|y)?", re.IGNORECASE
)
_MASK_FOLDERS = ("mask/mask", "mask", "masks", "ManualMask")


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of the one part ``all``; ``masks`` where the third-party lung masks are unpacked."""
    return counted(request, _records(request))


def _records(request: ReadRequest) -> Iterator[Record]:
    folder = find_file(
        request.root, "CXR_png", "ChinaSet_AllFiles/CXR_png", what="the image folder"
    )
    home = folder.parent
    masks: dict[str, str] = {}
    for name in _MASK_FOLDERS:
        for base in (home, request.root):
            if not masks and (base / name).is_dir():
                masks = files_in(base / name, (".png",))
    found = files_in(folder, (".png",))
    if not found:
        raise DataError(
            "no PNG file",
            file=folder,
            expected="CHNCXR_0001_0.png and so on",
            fix="see datasets/README.md for the tree this source must have",
        )
    for stem, path in found.items():
        match = _NAME.fullmatch(stem)
        if match is None:
            error = DataError(
                f"file name {Path(path).name!r} tells no label",
                file=path,
                expected="CHNCXR_<4 digits>_<0 or 1>.png",
                fix="remove the file from this folder",
            )
            request.report.bad("image with an odd name", error)
            continue
        record: Record = {
            "file_name": path,
            "image_id": stem,
            "source": request.source.key,
            "patient_id": None,
            "view": None,
            "labels": np.array([float(match.group(1))], dtype=np.float32),
            **_reading(home / "ClinicalReadings" / f"{stem}.txt"),
        }
        if f"{stem}_mask" in masks:
            record["masks"] = {"Lungs": masks[f"{stem}_mask"]}
        yield record


def _reading(path: Path) -> dict[str, object]:
    """Sex and age in years from ``male 45yrs`` and its variants, as far as it is understood."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace").strip()
    except OSError:
        return {}
    match = _READING.match(text.split("\n", 1)[0].strip())
    facts: dict[str, object] = {}
    if match and match["sex"]:
        facts["sex"] = match["sex"].capitalize()
    if match and match["age"]:
        unit = (match["unit"] or "y").lower()
        facts["age"] = int(match["age"]) if unit == "y" else 0
    return facts
