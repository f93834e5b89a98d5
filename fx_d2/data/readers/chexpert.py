"""CheXpert v1.0 and v1.0-small, with the test labels that come with CheXlocalize.

The full release arrives as several zip files, and what a batch unpacks to differs between tools: a
folder named like the zip with the patients inside, or one shared ``train`` folder. So a row's
``Path`` is taken from ``patient.../`` on, and the patient looked up in whichever folders are there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..record import Record
from .base import (
    LABEL_CELLS,
    ReadRequest,
    bad_cell,
    checked_labels,
    read_table,
    reject,
    view_filter,
    warn_counts,
)

_TABLES = {
    "train": ("train.csv",),
    "valid": ("valid.csv", "val_labels.csv"),
    "test": ("test_labels.csv", "groundtruth.csv", "test.csv"),
}
_FOLDERS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
_PATH = r"(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<image>view\d+_(?:frontal|lateral))\.jpg$"
_SEXES = ("Male", "Female", "Unknown", "")
_VIEWS = ("AP", "PA", "LL", "RL", "")


def _homes(root: Path) -> list[Path]:
    """``root`` and the folders that the downloads unpack to, two levels deep."""
    homes = [root]
    for _ in range(2):
        for home in list(homes):
            try:
                names = sorted(e.name for e in os.scandir(home) if e.is_dir())
            except OSError:
                continue
            homes += [home / n for n in names if n.lower().startswith("chex")]
    return list(dict.fromkeys(homes))


def _find_table(homes: list[Path], part: str) -> Path:
    for name in _TABLES[part]:
        for home in homes:
            if (home / name).is_file():
                return home / name
    raise DataError(
        f"no label table of CheXpert's {part} part",
        file=homes[0] / _TABLES[part][0],
        expected=" or ".join(_TABLES[part]) + " there, or in a CheXpert* folder below",
        fix="see datasets/README.md for the tree this source must have"
        + (" (the test part comes with CheXlocalize)" if part == "test" else ""),
    )


class _Patients:
    """Finds the folder that holds a patient; lists folders only when there is more than one."""

    def __init__(self, homes: list[Path], part: str) -> None:
        folders = [home / name for home in homes for name in _FOLDERS[part]]
        if part == "train":  # batches: "CheXpert-v1.0 batch 2 (train 1)/patient.../"
            folders += [home for home in homes[1:] if "batch" in home.name.lower()]
        self.folders = [str(folder) for folder in folders if folder.is_dir()]
        if not self.folders:
            raise DataError(
                f"no image folder of CheXpert's {part} part",
                file=homes[0],
                expected=f"{_FOLDERS[part][0]}/patient.../study.../view....jpg",
                fix="see datasets/README.md for the tree this source must have",
            )
        self._where: dict[str, str] = {}
        if len(self.folders) > 1:
            for folder in self.folders:
                for entry in os.scandir(folder):
                    if entry.name.startswith("patient"):
                        self._where.setdefault(entry.name, folder)

    def folder_of(self, patient: str) -> str | None:
        return self._where.get(patient) if len(self.folders) > 1 else self.folders[0]


def _views(frame: pd.DataFrame, images: pd.Series) -> list[str | None]:
    """The ``AP/PA`` column, ``LL`` for a lateral view, None where the table has no column."""
    lateral = images.str.endswith("lateral").tolist()
    stated = frame["AP/PA"].tolist() if "AP/PA" in frame.columns else [""] * len(frame)
    pairs = zip(lateral, stated, strict=True)
    return ["LL" if side else (view or None) for side, view in pairs]


OPTIONS = ("views",)


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``train``, ``valid`` or ``test``; one table row is one image.

    No file is looked at one by one: with 223,414 rows that would take longer than everything else.

    Options:
        views: keep these views only, e.g. ``("AP", "PA")``; None keeps all.
    """
    classes = request.source.cls_classes
    homes = _homes(request.root)
    table = _find_table(homes, request.part)
    columns = ("Path", "Sex", "Age", "AP/PA", *classes)
    frame = read_table(table, required=("Path", *classes), usecols=columns)
    parts = frame["Path"].str.extract(_PATH)
    where: dict[str, Any] = {"file": table, "report": request.report}
    labels, good = checked_labels(frame, classes, allowed=LABEL_CELLS, **where)
    path_like = "<folder>/train/patient00001/study1/view1_frontal.jpg or the like"
    reject(frame, "Path", parts["patient"].isna().to_numpy(), good, expected=path_like, **where)
    if "AP/PA" in frame.columns:
        wrong = ~frame["AP/PA"].isin(_VIEWS).to_numpy()
        reject(frame, "AP/PA", wrong, good, expected=list(_VIEWS), **where)
    if "Sex" in frame.columns:
        wrong = ~frame["Sex"].isin(_SEXES).to_numpy()
        reject(frame, "Sex", wrong, good, expected=list(_SEXES), **where)
    ages = np.full(len(frame), np.nan)
    if "Age" in frame.columns:
        ages = pd.to_numeric(frame["Age"], errors="coerce").to_numpy(dtype=float)
        wrong = ~((ages >= 0) & (ages <= 150)) & (frame["Age"] != "").to_numpy()
        reject(frame, "Age", wrong, good, expected="years from 0 to 150", **where)
    views = _views(frame, parts["image"].fillna(""))
    sexes = frame["Sex"].tolist() if "Sex" in frame.columns else [""] * len(frame)
    warn_counts(request, images=len(frame), patients=parts["patient"].nunique())
    patients = _Patients(homes, request.part)
    wanted = view_filter(request)
    rows = zip(parts["patient"], parts["study"], parts["image"], strict=True)
    for row, (patient, study, image) in enumerate(rows):
        if not good[row] or not wanted(views[row]):
            continue
        folder = patients.folder_of(patient)
        if folder is None:
            error = bad_cell(
                table, row, "Path", frame["Path"].iloc[row], f"a patient below {patients.folders}"
            )
            request.report.bad("patient without a folder", error)
            continue
        yield {
            "file_name": f"{folder}/{patient}/{study}/{image}.jpg",
            "image_id": f"{patient}/{study}/{image}",
            "source": request.source.key,
            "patient_id": patient,
            "study_id": f"{patient}/{study}",
            "view": views[row],
            "age": None if np.isnan(ages[row]) else int(ages[row]),
            "sex": sexes[row] or None,
            "labels": labels[row],
        }
