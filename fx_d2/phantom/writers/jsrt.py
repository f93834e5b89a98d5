"""JSRT radiographs (headerless .IMG) with the SCR masks (GIF), two downloads in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fx_d2.phantom.cases import patient_of
from fx_d2.phantom.findings import FindingSpec
from fx_d2.phantom.patient import PatientSpec
from fx_d2.phantom.studio import Lesion, enlarge_mask, fixed_frame, photograph
from fx_d2.phantom.truth import box_entry, label_dict, truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import quantise, write_mask
from fx_d2.phantom.writers.text_out import write_text

KEY = "jsrt"
_SIDE_PX = 2048
_MM_PER_PX = 0.175
_STRUCTURES = {
    "Left Lung": "left_lung",
    "Right Lung": "right_lung",
    "Heart": "heart",
    "Left Clavicle": "left_clavicle",
    "Right Clavicle": "right_clavicle",
}


class Jsrt(Writer):
    """``jsrt/{All247images,Clinical_Information,scratch/fold{1,2}/masks/<structure>}``."""

    keys = (KEY,)
    folders = ("jsrt",)
    parts = {"fold1": 0.5, "fold2": 0.5}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One image with a nodule (JPCLN) or without (JPCNN); fold 1 has the odd numbers."""
        rng = job.rng("images", member.index)
        nodule = member.mode() == "positive" or (member.mode() == "drawn" and rng.random() < 0.62)
        patient = patient_of(job, member)
        frame = fixed_frame(_SIDE_PX, job.size_px)
        case = [FindingSpec("nodule")] if nodule else []
        shot = photograph(KEY, patient, case, frame, rng)
        found = [lesion for lesion in shot.lesions() if lesion.box is not None]
        number = 2 * member.rank + (1 if member.part == "fold1" else 2)
        stem = f"JPC{'L' if found else 'N'}N{number:03d}"
        root = job.root / self.folders[0]
        _write_img(root / "All247images" / f"{stem}.IMG", shot.pixels)
        masks = {name: shot.structure(structure) for name, structure in _STRUCTURES.items()}
        for name, mask in masks.items():
            folder = root / "scratch" / member.part / "masks" / name.lower()
            write_mask(folder / f"{stem}.gif", mask[::2, ::2])
        nodules = [_measured(lesion) for lesion in found]
        truth = truth_row(
            image_id=stem,
            file=f"{self.folders[0]}/All247images/{stem}.IMG",
            part=member.part,
            pixels=shot.pixels,
            bits=12,
            labels=label_dict(KEY, ["Nodule"] if nodules else []),
            boxes=[box_entry("Nodule", _box(*nodule)) for nodule in nodules],
            masks={name: _as_published(mask) for name, mask in masks.items()},
        )
        row = {"line": _clinical_line(stem, patient, nodules, rng), "nodule": bool(nodules)}
        return [Entry(member.part, row, {KEY: truth})]

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Clinical tables: nodules end their lines with CR alone, the others with LF."""
        folder = job.root / self.folders[0] / "Clinical_Information"
        nodules = [e.row["line"] for e in entries if e.row["nodule"]]
        others = [e.row["line"] for e in entries if not e.row["nodule"]]
        write_text(folder / "CLNDAT_EN.txt", "".join(f"{line}\r" for line in nodules))
        write_text(folder / "CNNDAT_EN.TXT", "".join(f"{line}\n" for line in others))


def _write_img(path: Path, pixels: np.ndarray) -> None:
    """Big-endian uint16 without header; 0 is the densest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((4095 - quantise(pixels, 12)).astype(">u2").tobytes())


def _as_published(mask: np.ndarray) -> np.ndarray:
    """What a mask of half the side says about the image."""
    return enlarge_mask(mask[::2, ::2], 2)


def _measured(lesion: Lesion) -> tuple[int, int, int]:
    """Centre x, y in whole pixels and size in whole millimetres."""
    assert lesion.box is not None
    x0, y0, x1, y1 = lesion.box
    size = max(1, round(max(x1 - x0, y1 - y0) * _MM_PER_PX))
    return (x0 + x1) // 2, (y0 + y1) // 2, size


def _box(x: int, y: int, size_mm: int) -> list[float]:
    half = size_mm / _MM_PER_PX / 2
    return [min(max(v, 0.0), float(_SIDE_PX)) for v in (x - half, y - half, x + half, y + half)]


def _clinical_line(
    stem: str,
    patient: PatientSpec,
    nodules: Sequence[tuple[int, int, int]],
    rng: np.random.Generator,
) -> str:
    sex = "Female" if patient.sex == "F" else "Male"
    subtlety, malignant, unknown = int(rng.integers(1, 6)), rng.random() < 0.65, rng.random() < 0.1
    if not nodules:
        return f"{stem}.IMG {patient.age}  {sex.lower()}   non-nodule"
    x, y, size = nodules[0]
    age = "?" if unknown else str(patient.age)
    kind = "malignant" if malignant else "benign"
    diagnosis = "Lung cancer\t(adenocarcinoma)" if malignant else "Granuloma"
    cells = [f"{stem}.IMG", subtlety, size, age, sex, x, y, kind, "l.upper lobe", "S1+2", diagnosis]
    return "\t".join(str(cell) for cell in cells)
