"""VinDr-CXR as PhysioNet has it, three readers per training image, and CheXmask's organs of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fx_d2.data.sources import get_source
from fx_d2.phantom.cases import arranged_case, case_of, patient_of
from fx_d2.phantom.findings.base import box_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import draw_view, free_frame, photograph
from fx_d2.phantom.truth import box_entry, label_dict, truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.dicom_out import DicomForm, write_dicom
from fx_d2.phantom.writers.organ_table import ORGANS, organ_row, write_organ_table
from fx_d2.phantom.writers.text_out import write_csv
from fx_d2.phantom.writers.vindr_readers import Reading, consensus, fused_boxes, three_readings

PAPER, LOCAL, GLOBAL, MASKS = "vindr_cxr", "vindr_local", "vindr_global", "chexmask_vindr"
_HOME = "vindr-cxr/1.0.0"
_MASK_FOLDER = "chexmask-cxr-segmentation-data"
_LOCAL_LABELS = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,"
    "Edema,Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,"
    "Mediastinal shift,Nodule/Mass,Pleural effusion,Pleural thickening,Pneumothorax,"
    "Pulmonary fibrosis,Rib fracture,Other lesion"
)
_GLOBAL_LABELS = "COPD,Lung tumor,Pneumonia,Tuberculosis,Other diseases,No finding"
_COLUMNS = tuple(f"{_LOCAL_LABELS},{_GLOBAL_LABELS}".split(","))
_LOW_QUALITY_EVERY = 8  # rows of CheXmask that its users leave out
_BITS = (12, 14, 16)


class VinDr(Writer):
    """``vindr-cxr/1.0.0/{annotations,train,test}``, and CheXmask's folder beside it."""

    keys = (PAPER, LOCAL, GLOBAL, MASKS)
    folders = ("vindr-cxr", _MASK_FOLDER)
    parts = {"train": 0.8, "test": 0.2}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One image and what its readers say."""
        rng = job.rng("images", member.index)
        case = case_of(PAPER, member, rng, table=LOCAL, count=3)
        if member.mode() == "positive":
            known = [f.name for f in case]
            case += [f for f in arranged_case(GLOBAL, member, count=1) if f.name not in known]
        look = LOOKS[PAPER]
        frame = free_frame(rng, job.size_px, look)
        view = draw_view(rng, look)
        shot = photograph(PAPER, patient_of(job, member), case, frame, rng, view=view)
        image_id = job.hex_id(32, member.index)
        form = _form(member.index)
        file = f"{_HOME}/{member.part}/{image_id}.dicom"
        ids = {level: job.uid(level, member.index) for level in ("study", "series", "sop")}
        write_dicom(job.root / file, shot.pixels, form, **ids)
        alone = member.part == "train"
        readings = three_readings(shot, rng) if alone else [consensus(shot)]
        organs = {name: shot.structure(structure) for name, structure in ORGANS.items()}
        good = member.index % _LOW_QUALITY_EVERY != _LOW_QUALITY_EVERY - 1
        shared = {
            "image_id": image_id,
            "file": file,
            "part": member.part,
            "pixels": shot.pixels,
            "bits": form.bits,
        }
        row = {
            "image_id": image_id,
            "readings": readings,
            "organs": organ_row(image_id, organs, good=good, rng=rng),
        }
        return [Entry(member.part, row, _truth(shared, readings, organs if good else None))]

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Both kinds of table for both parts; only those of the training part name readers."""
        folder = job.root / _HOME / "annotations"
        for part in self.parts:
            named = part == "train"
            labels: list[list[object]] = []
            boxes: list[list[object]] = []
            for entry in entries:
                if entry.part != part:
                    continue
                for reading in entry.row["readings"]:
                    who = [entry.row["image_id"], *([reading.reader] if named else [])]
                    said = reading.labels()
                    labels.append([*who, *(int(name in said) for name in _COLUMNS)])
                    for name, box in reading.boxes:
                        boxes.append([*who, name, *(repr(v) for v in box)])
                    if not reading.boxes:
                        boxes.append([*who, "No finding", None, None, None, None])
            key = ["image_id", *(["rad_id"] if named else [])]
            write_csv(folder / f"image_labels_{part}.csv", [*key, *_COLUMNS], labels)
            header = [*key, "class_name", "x_min", "y_min", "x_max", "y_max"]
            write_csv(folder / f"annotations_{part}.csv", header, boxes)
        table = job.root / _MASK_FOLDER / "1.0.0/OriginalResolution/VinDr-CXR.csv"
        write_organ_table(table, [entry.row["organs"] for entry in entries])


def _form(index: int) -> DicomForm:
    """Depth, compression, polarity and window vary from file to file."""
    return DicomForm(
        bits=_BITS[index % len(_BITS)],
        syntax=("explicit", "jpeg2000", "implicit")[(index // 2) % 3],
        monochrome1=index % 4 == 1,
        window=index % 8 != 6,
        tags={"RescaleSlope": "1", "RescaleIntercept": "0"} if index % 2 else {},
    )


def _truth(
    shared: dict[str, Any], readings: Sequence[Reading], organs: dict[str, np.ndarray] | None
) -> dict[str, dict[str, Any]]:
    """Truth by source: a label counts when any reader says so, boxes are those of all readers."""
    said = set().union(*(reading.labels() for reading in readings))
    truth = {}
    for key in (PAPER, LOCAL, GLOBAL):
        source = get_source(key)
        boxes = None
        if source.thing_classes:
            pairs = fused_boxes(readings)
            boxes = [box_entry(name, box) for name, box in pairs if name in source.thing_classes]
        labels = label_dict(key, said & set(source.cls_classes))
        truth[key] = truth_row(labels=labels, boxes=boxes, **shared)
    if organs is not None:
        boxes = [box_entry(name, box_of(mask) or ()) for name, mask in organs.items()]
        truth[MASKS] = truth_row(boxes=boxes, masks=organs, **shared)
    return truth
