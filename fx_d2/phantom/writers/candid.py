"""CANDID-PTX: DICOM files named by their UID alone, and tables with run lengths and reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fx_d2.phantom.cases import case_of, patient_of
from fx_d2.phantom.findings.base import box_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import Shot, draw_view, fixed_frame, photograph
from fx_d2.phantom.truth import box_entry, label_dict, truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.dicom_out import DicomForm, write_dicom
from fx_d2.phantom.writers.runs_out import relative_column_runs
from fx_d2.phantom.writers.text_out import write_csv

KEY = "candid_ptx"
_CLASS = "Pneumothorax"
_BLANK_EVERY = 9  # images whose outline is not known
_SIDES = {"chest_tube": "chest_tube.csv", "rib_fracture": "acute_rib_fracture.csv"}
_REPORTS = {
    True: 'CXR AP, "erect": pneumothorax, no shift of the mediastinum.',
    False: "CXR: lungs clear, no pneumothorax.",
}


class CandidPtx(Writer):
    """``candid_ptx/{dataset/<uid>,Pneumothorax_reports.csv,chest_tube.csv,...}``."""

    keys = (KEY,)
    folders = ("candid_ptx",)

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One or two images of one patient."""
        return [self._image(job, member, k) for k in range(1 + member.index % 2)]

    def _image(self, job: Job, member: Member, k: int) -> Entry:
        rng = job.rng("images", member.index, k)
        case = case_of(KEY, member, rng, study=k)
        frame = fixed_frame(1024, job.size_px)
        view = draw_view(rng, LOOKS[KEY])
        shot = photograph(KEY, patient_of(job, member), case, frame, rng, view=view)
        sop, study = job.uid("sop", member.index, k), job.uid("study", member.index, k)
        file = f"{self.folders[0]}/dataset/{sop}"
        person = f"P{member.index + 1:05d}"
        form = DicomForm(
            bits=8,
            monochrome1=(member.index + k) % 5 == 2,
            tags={"PatientID": person, "ViewPosition": view, "BodyPartExamined": "CHEST"},
        )
        series = job.uid("series", member.index, k)
        write_dicom(job.root / file, shot.pixels, form, sop=sop, study=study, series=series)
        mask = _union(shot, "pneumothorax")
        known = (2 * member.index + k) % _BLANK_EVERY != _BLANK_EVERY - 1
        box = box_of(mask)
        positive = box is not None
        truth = truth_row(
            image_id=sop,
            file=file,
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            patient_id=person,
            labels=label_dict(KEY, [_CLASS] if positive else []) if known else {_CLASS: None},
            boxes=([box_entry(_CLASS, box)] if box else []) if known else None,
            masks={_CLASS: mask} if known else None,
        )
        runs = relative_column_runs(mask) if positive else "-1"
        report = [sop, study, f"{person}_{k + 1}", runs if known else "", _REPORTS[positive]]
        other = {
            name: relative_column_runs(_union(shot, name))
            for name in _SIDES
            if name in shot.names()
        }
        return Entry(member.part, {"report": report, "other": other}, {KEY: truth})

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """The reports begin with a byte order mark; the other tables list positives only."""
        root = job.root / self.folders[0]
        write_csv(
            root / "Pneumothorax_reports.csv",
            "SOPInstanceUID,StudyInstanceUID,filename,EncodedPixels,Report",
            [entry.row["report"] for entry in entries],
            encoding="utf-8-sig",
        )
        for name, table in _SIDES.items():
            rows = [
                [entry.row["report"][0], f"A_{k:05d}", entry.row["other"][name]]
                for k, entry in enumerate(entries)
                if entry.row["other"].get(name)
            ]
            write_csv(root / table, "anon_SOPUID,annotation_id,mask_rle", rows)


def _union(shot: Shot, name: str) -> np.ndarray:
    masks = [lesion.mask for lesion in shot.lesions() if lesion.name == name]
    return np.logical_or.reduce([np.zeros(shot.size, bool), *masks])
