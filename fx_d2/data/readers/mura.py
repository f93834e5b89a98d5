"""MURA v1.1: bone radiographs labelled by study, in two lists without header lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..record import Record
from .base import (
    RESTORE_FILE,
    ReadRequest,
    bad_cell,
    find_file,
    read_lines,
    read_table,
    warn_counts,
)

_STUDY = r"(?:[^/]+/)?(train|valid)/XR_([A-Z]+)/(patient\d+)/(study\d+)_(positive|negative)"
_STUDY_PATH = re.compile(_STUDY + r"/?")
_IMAGE_PATH = re.compile(_STUDY + r"/([^/]+)\.png")
_VERDICT = {"0": "negative", "1": "positive"}


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``train`` or ``valid``; the id is the path without its suffix."""
    lists = [f"{request.part}_labeled_studies.csv", f"{request.part}_image_paths.csv"]
    studies_file, images_file = (
        find_file(request.root, name, f"MURA-v1.1/{name}", what=f"the list {name}")
        for name in lists
    )
    labels = _read_studies(request, studies_file)
    seen: set[str] = set()
    used: set[str] = set()
    for line, text in enumerate(read_lines(images_file), start=1):
        if text.rsplit("/", 1)[-1].startswith("._"):
            continue  # left behind by macOS; no image
        match = _IMAGE_PATH.fullmatch(text)
        if match is None or match.group(1) != request.part or text in seen:
            error = DataError(
                f"path {text!r}" + (" stands a second time" if text in seen else ""),
                file=images_file,
                row=line,
                expected=f"{request.part}/XR_<bone>/patient<n>/study<n>_<verdict>/<name>.png",
                fix=RESTORE_FILE,
            )
            request.report.bad("bad image path", error)
            continue
        seen.add(text)
        record = _record(request, match, labels, images_file, line)
        if record is not None:
            used.add(record["study_id"])
            yield record
    warn_counts(request, images=len(seen), studies=len(used))


def _read_studies(request: ReadRequest, path: Path) -> dict[str, float]:
    """Label by study path below the part's folder."""
    frame = read_table(path, header=("study", "label"))
    labels: dict[str, float] = {}
    for i, (study, label) in enumerate(zip(frame["study"], frame["label"], strict=True)):
        match = _STUDY_PATH.fullmatch(study)
        row = f"row {i + 1}"  # there is no header line
        if match is None or match.group(1) != request.part:
            error = bad_cell(path, row, "study", study, f"a study of {request.part}")
        elif _VERDICT.get(label) is None:
            error = bad_cell(path, row, "label", label, sorted(_VERDICT))
        elif _VERDICT[label] != match.group(5):
            error = bad_cell(path, row, "label", label, f"the verdict in {study!r}")
        else:
            labels["/".join(match.groups()[1:])] = float(label)
            continue
        request.report.bad("bad study row", error)
    return labels


def _record(
    request: ReadRequest, match: re.Match[str], labels: dict[str, float], file: Path, line: int
) -> Record | None:
    part, bone, patient, study, verdict, name = match.groups()
    key = f"{bone}/{patient}/{study}/{verdict}"
    if key not in labels:
        error = DataError(
            f"study of {match.group(0)!r} has no label",
            file=file,
            row=line,
            expected=f"its study in {part}_labeled_studies.csv",
            fix="restore both lists from one download",
        )
        request.report.bad("image without a study label", error)
        return None
    below = f"{part}/XR_{bone}/{patient}/{study}_{verdict}/{name}"
    return {
        "file_name": f"{file.parent}/{below}.png",
        "image_id": below,
        "source": request.source.key,
        "patient_id": patient,
        "view": None,
        "study_id": f"XR_{bone}/{patient}/{study}",
        "body_part": bone,
        "labels": np.array([labels[key]], dtype=np.float32),
    }
