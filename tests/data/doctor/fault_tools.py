"""What a planted fault is, and editing of the files it is written into."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image

Plant = Callable[[Path], None]


@dataclass(frozen=True)
class Fault:
    """A fault and what the doctor has to say about it.

    Args:
        check: id of the check that must find it.
        sources: that are looked at.
        plant: writes it into the root.
        severity: of the finding.
        says: fragments of the finding's line.
        also: other checks that rightly report it as well.
    """

    name: str
    check: str
    sources: tuple[str, ...]
    plant: Plant
    severity: str = "error"
    says: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


FAULTS: list[Fault] = []


def fault(
    check: str,
    *sources: str,
    severity: str = "error",
    says: Sequence[str] = (),
    also: Sequence[str] = (),
) -> Callable[[Plant], Plant]:
    def keep(plant: Plant) -> Plant:
        FAULTS.append(
            Fault(plant.__name__, check, sources, plant, severity, tuple(says), tuple(also))
        )
        return plant

    return keep


# ---------------------------------------------------------------------- editing
def nih(root: Path, name: str) -> Path:
    return next(root.glob(f"nih14/images_*/images/{name}.png"))


def nih_names(root: Path, part: str) -> list[str]:
    return (root / f"nih14/{part}_list.txt").read_text().split()


def repaint(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    pixels = np.asarray(Image.open(path).convert("L"))
    Image.fromarray(np.ascontiguousarray(change(pixels))).save(path)


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.reader(stream))


def put_rows(path: Path, table: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(table)


def edit_cell(path: Path, pick: Callable[[dict[str, str]], bool], **changes: str) -> None:
    """Change cells of the first row that ``pick`` takes; columns by name, ``_`` for a blank."""
    table = rows(path)
    names = [name.strip() for name in table[0]]
    row = next(r for r in table[1:] if pick(dict(zip(names, r, strict=False))))
    for name, value in changes.items():
        row[names.index(name.replace("_", " ") if name not in names else name)] = value
    put_rows(path, table)


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def change_dicom(path: Path, **tags: Any) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


RSNA = "rsna-pneumonia-detection-challenge"
RSNA_LABELS = f"{RSNA}/stage_2_train_labels.csv"
CHEXPERT = "chexpert/CheXpert-v1.0-small"
