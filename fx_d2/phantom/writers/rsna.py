"""RSNA Pneumonia Detection Challenge, stage 2: JPEG-compressed 8-bit DICOM and three tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fx_d2.phantom.cases import Case, case_such_that, patient_of
from fx_d2.phantom.findings import FindingSpec
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import Shot, draw_view, fixed_frame, photograph
from fx_d2.phantom.truth import box_entry, label_dict, truth_row
from fx_d2.phantom.vocabulary_map import classes_of
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.dicom_out import DicomForm, write_dicom
from fx_d2.phantom.writers.text_out import write_csv

KEY = "rsna"
_NORMAL, _OTHER, _OPACITY = "Normal", "No Lung Opacity / Not Normal", "Lung Opacity"
_OPAQUE = ("pneumonia", "consolidation", "infiltration", "ground_glass")
_NOT_OPAQUE = ("cardiomegaly", "nodule", "pneumothorax", "emphysema", "atelectasis")
_SHARES = {_NORMAL: 0.33, _OTHER: 0.44, _OPACITY: 0.23}
_TEST_IMAGES = 1  # unlabelled, in their own folder


class Rsna(Writer):
    """``rsna-pneumonia-detection-challenge/stage_2_*``."""

    keys = (KEY,)
    folders = ("rsna-pneumonia-detection-challenge",)
    parts = {"stage_2_train": 1.0}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One image; a patient is an image here."""
        rng = job.rng("images", member.index)
        findings = _findings(member, rng)
        shot, name = self._write(job, "stage_2_train_images", member, findings, rng)
        boxes = _boxes(shot)
        label = _OPACITY if boxes else (_OTHER if shot.names() else _NORMAL)
        truth = truth_row(
            image_id=name,
            file=f"{self.folders[0]}/stage_2_train_images/{name}.dcm",
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            patient_id=name,
            labels=label_dict(KEY, [label]),
            boxes=[box_entry(_OPACITY, box) for box in boxes],
        )
        return [Entry(member.part, {"name": name, "class": label, "boxes": boxes}, {KEY: truth})]

    def _write(
        self,
        job: Job,
        folder: str,
        member: Member,
        findings: Case,
        rng: np.random.Generator,
    ) -> tuple[Shot, str]:
        look = LOOKS[KEY]
        name = job.uuid(folder, member.index)
        frame = fixed_frame(1024, job.size_px)
        view = draw_view(rng, look)
        patient = patient_of(job, member)
        shot = photograph(KEY, patient, findings, frame, rng, view=view)
        tags = {
            "PatientID": name,
            "PatientSex": patient.sex,
            "PatientAge": str(patient.age),
            "ViewPosition": view,
            "BodyPartExamined": "CHEST",
            "PixelSpacing": [0.171, 0.171],
        }
        write_dicom(
            job.root / self.folders[0] / folder / f"{name}.dcm",
            shot.pixels,
            DicomForm(bits=8, syntax="jpeg", tags=tags),
            sop=job.uid(folder, "sop", member.index),
            study=job.uid(folder, "study", member.index),
            series=job.uid(folder, "series", member.index),
        )
        return shot, name

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Both tables have one row per box; the classes are repeated with it."""
        root = job.root / self.folders[0]
        labels: list[list[object]] = []
        classes: list[list[object]] = []
        for entry in entries:
            name = entry.row["name"]
            for x0, y0, x1, y1 in entry.row["boxes"]:
                labels.append([name, *(f"{v:.1f}" for v in (x0, y0, x1 - x0, y1 - y0)), 1])
            if not entry.row["boxes"]:
                labels.append([name, None, None, None, None, 0])
            classes += [[name, entry.row["class"]]] * max(len(entry.row["boxes"]), 1)
        write_csv(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", labels)
        write_csv(root / "stage_2_detailed_class_info.csv", "patientId,class", classes)
        tests = []
        for number in range(_TEST_IMAGES):
            stranger = Member(-1 - number, "stage_2_test", number)
            rng = job.rng("test", number)
            tests.append(self._write(job, "stage_2_test_images", stranger, [], rng)[1])
        write_csv(
            root / "stage_2_sample_submission.csv",
            "patientId,PredictionString",
            [[name, "0.5 0 0 100 100"] for name in tests],
        )


def _findings(member: Member, rng: np.random.Generator) -> Case:
    """Arranged patients cycle through the three classes."""
    mode = member.mode()
    if mode == "drawn" and member.rank < 36:
        return [FindingSpec(_NOT_OPAQUE[(member.rank // 3) % len(_NOT_OPAQUE)])]
    if mode == "positive":
        return [FindingSpec(_OPAQUE[(member.rank // 3) % len(_OPAQUE)])]
    if mode == "negative":
        return []
    label = rng.choice(list(_SHARES), p=list(_SHARES.values()))
    tests = {
        _NORMAL: lambda names: not names,
        _OTHER: lambda names: bool(names) and not any(n in _OPAQUE for n in names),
        _OPACITY: lambda names: any(n in _OPAQUE for n in names),
    }
    return case_such_that(KEY, rng, tests[str(label)]) or []


def _boxes(shot: Shot) -> list[tuple[int, int, int, int]]:
    """Boxes of lung opacities, whole pixels within the frame."""
    return [
        lesion.box
        for lesion in shot.lesions()
        if lesion.box is not None and _OPACITY in classes_of(KEY, lesion.name)
    ]
