"""MIMIC-CXR-JPG 2.0.0, and the CXR-LT 2023 labels of the same images in splits of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fx_d2.data.sources import get_source
from fx_d2.phantom.cases import case_of, names_of, patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import draw_view, free_frame, photograph
from fx_d2.phantom.truth import code, label_dict, truth_row
from fx_d2.phantom.vocabulary_map import positive_classes
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer, allot
from fx_d2.phantom.writers.raster_out import write_jpeg
from fx_d2.phantom.writers.reports import mined_cells
from fx_d2.phantom.writers.text_out import write_csv

KEY, LONG_TAIL = "mimic_cxr", "cxr_lt"
_HOME = "mimic-cxr-jpg/2.0.0"
_LABELS_FOLDER = "cxr-lt-multi-label-long-tailed-classification-on-chest-x-rays-2.0.0"
_LABELS = (  # alphabetical, unlike CheXpert's own table
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
_METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,"
    "StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning"
)
_VIEW_NAMES = {"AP": "antero-posterior", "PA": "postero-anterior", "LATERAL": "lateral"}
_LONG_TAIL_PARTS = {"train": 0.7, "development": 0.1, "test": 0.2}
_UNLABELLED_EVERY = 5  # a study of every fifth patient has no row in the label tables


def ids(index: int, study: int) -> tuple[str, str]:
    """``subject_id`` and ``study_id``, of eight digits in a world of any size, no two alike.

    Args:
        index: of the patient.
        study: of this patient, from 0.
    """
    subject = 10_000_000 + 9_973 * index % 10_000_000
    return str(subject), str(50_000_000 + (20_011 * index + 7 * study) % 50_000_000)


class Mimic(Writer):
    """``mimic-cxr-jpg/2.0.0/files/p10/...`` with packed tables, and CXR-LT's folder beside it."""

    keys = (KEY, LONG_TAIL)
    folders = ("mimic-cxr-jpg", _LABELS_FOLDER)
    parts = {"train": 0.7, "validate": 0.15, "test": 0.15}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One or two studies, each a frontal view and sometimes a lateral one."""
        entries = []
        studies = 1 + member.index % 2
        for study in range(studies):
            rng = job.rng("studies", member.index, study)
            findings = case_of(LONG_TAIL, member, rng, study=study, count=3)
            names = names_of(findings)
            positive = positive_classes(KEY, names)
            healthy = set(names) <= {"support_device"}
            classes = get_source(KEY).cls_classes
            cells = mined_cells(positive, classes, rng, healthy=healthy)
            if member.index % _UNLABELLED_EVERY == 4 and study == studies - 1:
                cells = {}
            frontal = draw_view(rng, LOOKS[KEY])
            views = [frontal, "LATERAL"] if (member.index + study) % 3 == 1 else [frontal]
            case = {"findings": findings, "cells": cells, "long_tail": _long_tail(names)}
            entries += [
                self._image(job, member, study, k, view, case) for k, view in enumerate(views)
            ]
        return entries

    def _image(
        self, job: Job, member: Member, study: int, k: int, view: str, case: dict[str, Any]
    ) -> Entry:
        rng = job.rng("views", member.index, study, k)
        projection = "LL" if view == "LATERAL" else view
        frame = free_frame(rng, job.size_px, LOOKS[KEY])
        patient = patient_of(job, member)
        shot = photograph(KEY, patient, case["findings"], frame, rng, view=projection)
        subject, study_id = ids(member.index, study)
        digits = job.hex_id(32, member.index, study, k) + job.hex_id(
            8, "tail", member.index, study, k
        )
        dicom_id = "-".join(digits[i : i + 8] for i in range(0, 40, 8))
        path = f"files/p{subject[:2]}/p{subject}/s{study_id}/{dicom_id}.jpg"
        write_jpeg(job.root / _HOME / path, shot.pixels)
        shared: dict[str, Any] = {
            "image_id": dicom_id,
            "file": f"{_HOME}/{path}",
            "pixels": shot.pixels,
            "bits": 8,
            "patient_id": subject,
            "view": view,
        }
        labels = {name: code(case["cells"].get(name, "")) for name in get_source(KEY).cls_classes}
        places = [
            part for part, n in allot(_LONG_TAIL_PARTS, job.patients).items() for _ in range(n)
        ]
        other_part = places[(member.index + job.patients // 2) % job.patients]
        tail = label_dict(LONG_TAIL, case["long_tail"])
        row = {
            "dicom_id": dicom_id, "subject_id": subject, "study_id": study_id, "path": path,
            "view": view, "size": shot.size, "cells": case["cells"], "part": other_part,
            "tail": tail,
        }  # fmt: skip
        truth = {
            KEY: truth_row(part=member.part, labels=labels, **shared),
            LONG_TAIL: truth_row(part=other_part, labels=tail, **shared),
        }
        return Entry(member.part, row, truth)

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Packed tables; labels are per study, everything else per image."""
        home = job.root / _HOME
        rows = [entry.row for entry in entries]
        studies = {(r["subject_id"], r["study_id"]): r["cells"] for r in rows if r["cells"]}
        labelled = [
            [subject, study, *(cells[name] for name in _LABELS.split(","))]
            for (subject, study), cells in studies.items()
        ]
        for labeller in ("chexpert", "negbio"):
            header = f"subject_id,study_id,{_LABELS}"
            write_csv(home / f"mimic-cxr-2.0.0-{labeller}.csv.gz", header, labelled)
        write_csv(
            home / "mimic-cxr-2.0.0-split.csv.gz",
            "dicom_id,study_id,subject_id,split",
            [[e.row["dicom_id"], e.row["study_id"], e.row["subject_id"], e.part] for e in entries],
        )
        described = [
            [
                r["dicom_id"], r["subject_id"], r["study_id"], "CHEST (PORTABLE AP)", r["view"],
                *r["size"], 21800506, "213014.531", "CHEST (PORTABLE AP)", _VIEW_NAMES[r["view"]],
                "Erect",
            ]
            for r in rows
        ]  # fmt: skip
        write_csv(home / "mimic-cxr-2.0.0-metadata.csv.gz", _METADATA, described)
        self._write_long_tail(job, rows)

    def _write_long_tail(self, job: Job, rows: Sequence[dict[str, Any]]) -> None:
        classes = get_source(LONG_TAIL).cls_classes
        header = [
            "dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning",
            "path", *classes,
        ]  # fmt: skip
        for part in _LONG_TAIL_PARTS:
            table = [
                [
                    r["dicom_id"], r["subject_id"], r["study_id"], r["view"],
                    _VIEW_NAMES[r["view"]], r["path"], *(r["tail"][name] for name in classes),
                ]
                for r in rows
                if r["part"] == part
            ]  # fmt: skip
            write_csv(job.root / _LABELS_FOLDER / "cxr-lt-2023" / f"{part}.csv", header, table)


def _long_tail(names: Sequence[str]) -> set[str]:
    """The 26 labels of some findings; support devices do not contradict ``No Finding``."""
    positive = positive_classes(LONG_TAIL, names)
    if not positive - {"Support Devices"}:
        positive.add("No Finding")
    return positive
