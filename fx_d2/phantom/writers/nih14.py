"""NIH ChestX-ray14 as the Kaggle copy unpacks it: twelve image folders, two tables, two lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fx_d2.data.sources import get_source
from fx_d2.phantom.cases import case_of, patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import Shot, draw_view, fixed_frame, photograph
from fx_d2.phantom.truth import box_entry, label_dict, truth_row
from fx_d2.phantom.vocabulary_map import classes_of, positive_classes
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_png
from fx_d2.phantom.writers.text_out import write_csv, write_text

KEY = "nih14"
_ENTRY_HEADER = (  # the commas within the brackets are the provider's
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
_BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
_BOX_NAMES = {"Infiltration": "Infiltrate"}
_NOISE_SHARE = 0.04  # report mining drops a class, or finds one that is not there
_MAX_BOXES = 4


class Nih14(Writer):
    """``nih14/{images_001..012/images,Data_Entry_2017_v2020.csv,BBox_List_2017.csv,*_list.txt}``."""

    keys = (KEY,)
    folders = ("nih14",)
    parts = {"train_val": 0.75, "test": 0.25}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """A first image and up to two follow-ups."""
        return [self._image(job, member, k) for k in range(1 + member.index % 3)]

    def _image(self, job: Job, member: Member, follow_up: int) -> Entry:
        rng = job.rng("images", member.index, follow_up)
        look = LOOKS[KEY]
        patient = patient_of(job, member)
        findings = case_of(KEY, member, rng, study=follow_up, count=3)
        view = draw_view(rng, look)
        frame = fixed_frame(1024, job.size_px)
        shot = photograph(KEY, patient, findings, frame, rng, view=view)
        labels = _mined(positive_classes(KEY, shot.names()), member, follow_up, rng)
        number = member.index + 1
        stem = f"{number:08d}_{follow_up:03d}"
        inner = f"images_{1 + member.index % 12:03d}/images/{stem}.png"
        mode = "RGBA" if (member.index + follow_up) % 5 == 3 else "L"
        write_png(job.root / self.folders[0] / inner, shot.pixels, mode)
        boxes = _boxes(shot, labels) if member.part == "test" else []
        truth = truth_row(
            image_id=stem,
            file=f"{self.folders[0]}/{inner}",
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            patient_id=f"{number:08d}",
            view=view,
            labels=label_dict(KEY, labels),
            boxes=[box_entry(name, box) for name, box in boxes] or None,
        )
        width, height = int(rng.integers(1143, 3828)), int(rng.integers(1143, 3828))
        cells = [f"{stem}.png", "|".join(labels) or "No Finding", follow_up, number]
        cells += [patient.age, patient.sex, view, width, height, 0.143, 0.143]
        return Entry(member.part, {"cells": cells, "boxes": boxes}, {KEY: truth})

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Tables and lists; the lists end without a line feed."""
        root = job.root / self.folders[0]
        write_csv(
            root / "Data_Entry_2017_v2020.csv", _ENTRY_HEADER, [e.row["cells"] for e in entries]
        )
        rows = []
        for entry in entries:
            for name, (x0, y0, x1, y1) in entry.row["boxes"]:
                numbers = (f"{v:.12g}" for v in (x0, y0, x1 - x0, y1 - y0))
                rows.append([entry.row["cells"][0], _BOX_NAMES.get(name, name), *numbers])
        write_csv(root / "BBox_List_2017.csv", _BOX_HEADER, rows)
        for part in self.parts:
            names = [e.row["cells"][0] for e in entries if e.part == part]
            write_text(root / f"{part}_list.txt", "\n".join(names))


def _mined(
    positive: set[str], member: Member, follow_up: int, rng: np.random.Generator
) -> list[str]:
    """Labels in alphabetical order; those of cases that are not arranged carry noise."""
    classes = get_source(KEY).cls_classes
    luck, pick = rng.random(), int(rng.integers(len(classes)))
    labels = set(positive)
    if member.mode(follow_up) == "drawn" and luck < _NOISE_SHARE:
        labels ^= {classes[pick]}
    return sorted(labels)


def _boxes(
    shot: Shot, labels: Sequence[str]
) -> list[tuple[str, tuple[float, float, float, float]]]:
    """At most four boxes of labelled classes, with a margin and fractions of a pixel."""
    boxes = []
    for lesion in shot.lesions():
        for name in classes_of(KEY, lesion.name):
            if lesion.box is None or name not in get_source(KEY).thing_classes:
                continue
            if name not in labels:
                continue
            grown = [
                lesion.box[0] - 1.5,
                lesion.box[1] - 1.5,
                lesion.box[2] + 1.5,
                lesion.box[3] + 1.5,
            ]
            x0, y0, x1, y1 = (min(max(v / 1.003, 0.0), 1023.0) for v in grown)
            boxes.append((name, (x0, y0, x1, y1)))
    return boxes[:_MAX_BOXES]
