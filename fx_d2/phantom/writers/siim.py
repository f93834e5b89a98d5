"""SIIM-ACR Pneumothorax: the stage-1 tree of DICOM folders with the tables of both stages."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from fx_d2.phantom.cases import Case, case_of, patient_of
from fx_d2.phantom.findings.base import box_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import Shot, draw_view, fixed_frame, photograph
from fx_d2.phantom.truth import box_entry, label_dict, truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.dicom_out import DicomForm, write_dicom
from fx_d2.phantom.writers.runs_out import components, relative_column_runs
from fx_d2.phantom.writers.text_out import write_csv

KEY = "siim_acr"
_CLASS = "Pneumothorax"
_STAGE_1_TEST_EVERY = 6  # images that only the stage-2 table labels


class Siim(Writer):
    """``dicom-images-{train,test}/<study>/<series>/<sop>.dcm`` and the tables of both stages."""

    keys = (KEY,)
    folders = ("siim-acr-pneumothorax",)
    parts = {"train": 1.0}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One image; every other pneumothorax is outlined twice, with overlap."""
        rng = job.rng("images", member.index)
        case = case_of(KEY, member, rng)
        later = member.index % _STAGE_1_TEST_EVERY == _STAGE_1_TEST_EVERY - 1
        tree = "dicom-images-test" if later else "dicom-images-train"
        ids = {level: job.uid(level, member.index) for level in ("study", "series", "sop")}
        inner = f"{tree}/{ids['study']}/{ids['series']}/{ids['sop']}.dcm"
        shot = self._write(job, inner, member, case, rng, ids)
        outlines = _outlines(shot, twice=member.index % 2 == 0)
        mask = np.logical_or.reduce([np.zeros(shot.size, bool), *outlines])
        truth = truth_row(
            image_id=ids["sop"],
            file=f"{self.folders[0]}/{inner}",
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            labels=label_dict(KEY, [_CLASS] if outlines else []),
            boxes=[box_entry(_CLASS, box_of(outline) or ()) for outline in outlines],
            masks={_CLASS: mask},
        )
        runs = [relative_column_runs(outline) for outline in outlines] or ["-1"]
        row = {"name": ids["sop"], "runs": runs, "stage": 2 if later else 1}
        return [Entry(member.part, row, {KEY: truth})]

    def _write(
        self,
        job: Job,
        inner: str,
        member: Member,
        case: Case,
        rng: np.random.Generator,
        ids: dict[str, str],
    ) -> Shot:
        patient = patient_of(job, member)
        view = draw_view(rng, LOOKS[KEY])
        frame = fixed_frame(1024, job.size_px)
        shot = photograph(KEY, patient, case, frame, rng, view=view)
        tags = {
            "PatientID": job.uuid("person", member.index),
            "PatientSex": patient.sex,
            "PatientAge": "413" if member.index % 10 == 3 else str(patient.age),
            "ViewPosition": view,
            "BodyPartExamined": "CHEST",
            "PixelSpacing": [0.168, 0.168],
            "ConversionType": "WSD",
        }
        path = job.root / self.folders[0] / inner
        write_dicom(path, shot.pixels, DicomForm(bits=8, syntax="jpeg", tags=tags), **ids)
        return shot

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Stage 1 writes a blank before its second name and its values; stage 2 does not."""
        root = job.root / self.folders[0]
        first = [
            [entry.row["name"], f" {runs}"]
            for entry in entries
            if entry.row["stage"] == 1
            for runs in entry.row["runs"]
        ]
        write_csv(root / "train-rle.csv", "ImageId, EncodedPixels", first)
        second = [[entry.row["name"], runs] for entry in entries for runs in entry.row["runs"]]
        write_csv(root / "stage_2_train.csv", "ImageId,EncodedPixels", second)
        name = f"ID_{job.hex_id(9, 'unlabelled')}"
        ids = {level: job.uid(level, "unlabelled") for level in ("study", "series", "sop")}
        stranger = Member(-1, "stage_2", 0)
        inner = f"stage_2_images/{name}.dcm"
        self._write(job, inner, stranger, [], job.rng("unlabelled"), ids)
        write_csv(root / "stage_2_sample_submission.csv", "ImageId,EncodedPixels", [[name, "-1"]])


def _outlines(shot: Shot, *, twice: bool) -> list[np.ndarray]:
    """One mask per connected piece; ``twice`` adds a second, wider one of the first's base."""
    found = [
        piece
        for lesion in shot.lesions()
        if lesion.name == "pneumothorax"
        for piece in components(lesion.mask)
    ]
    if found and twice:
        base = found[0].copy()
        rows = np.flatnonzero(base.any(axis=1))
        base[: int(rows[len(rows) // 2])] = False
        found.append(cv2.dilate(base.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool))
    return found
