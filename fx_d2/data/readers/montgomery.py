"""NIH Montgomery: one lung mask per side, tuberculosis in the file name.

``leftMask`` is the patient's left lung, which is the right side of the picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..record import Record
from .base import ReadRequest, counted, files_in, find_file

_NAME = re.compile(r"MCUCXR_\d{4}_([01])")
_SIDES = {"Left Lung": "leftMask", "Right Lung": "rightMask"}
_SEX = re.compile(r"Sex:\s*([MF])", re.IGNORECASE)
_AGE = re.compile(r"Age:\s*(\d{1,3})\s*Y", re.IGNORECASE)


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of the one published part, ``all``."""
    yield from counted(request, _records(request))


def _records(request: ReadRequest) -> Iterator[Record]:
    images = find_file(
        request.root, "CXR_png", "MontgomerySet/CXR_png", what="the image folder CXR_png"
    )
    masks = {
        name: files_in(
            find_file(images.parent, f"ManualMask/{folder}", what=f"the masks of {name}"),
            (".png", ".gif"),
        )
        for name, folder in _SIDES.items()
    }
    for stem, path in files_in(images, (".png",)).items():
        match = _NAME.fullmatch(stem)
        lacking = [name for name in _SIDES if stem not in masks[name]]
        if match is None:
            error = DataError(
                "not a file name of this dataset",
                file=path,
                expected="MCUCXR_<4 digits>_<0 or 1>.png",
                fix="restore the name, or move the file elsewhere",
            )
            request.report.bad("image with a foreign name", error)
            continue
        if lacking:
            error = DataError(
                f"no mask of {' and '.join(lacking)}",
                file=path,
                expected=f"{stem}.png (or .gif) in ManualMask/{_SIDES[lacking[0]]}",
                fix="complete the download",
            )
            request.report.bad("image without a mask", error)
            continue
        yield {
            "file_name": path,
            "image_id": stem,
            "source": request.source.key,
            "patient_id": None,
            "view": None,
            "labels": np.array([match.group(1)], dtype=np.float32),
            "masks": {name: masks[name][stem] for name in _SIDES},
            **_reading(images.parent / "ClinicalReadings" / f"{stem}.txt"),
        }


def _reading(path: Path) -> dict[str, Any]:
    """Age in years and sex where the clinical reading states them; nothing depends on either."""
    try:
        text = path.read_bytes()[:4096].decode("latin-1")
    except OSError:
        return {}
    sex, age = _SEX.search(text), _AGE.search(text)
    found: dict[str, Any] = {}
    if sex:
        found["sex"] = sex.group(1).upper()
    if age:
        found["age"] = int(age.group(1))
    return found
