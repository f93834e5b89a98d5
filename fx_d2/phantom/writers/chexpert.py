"""CheXpert v1.0-small, and the official test part as it comes with CheXlocalize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fx_d2.data.sources import get_source
from fx_d2.phantom.cases import Case, case_of, names_of, patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.patient import View
from fx_d2.phantom.studio import draw_view, free_frame, photograph
from fx_d2.phantom.truth import code, truth_row
from fx_d2.phantom.vocabulary_map import positive_classes
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_jpeg
from fx_d2.phantom.writers.reports import mined_cells, read_cells
from fx_d2.phantom.writers.text_out import write_csv

KEY = "chexpert"
_LABELS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
)
_HEADER = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{_LABELS}"
_FIRST_PATIENT = {"train": 1, "valid": 64541, "test": 64741}
_SMALL, _LOCALIZE = "CheXpert-v1.0-small", "CheXpert"


@dataclass(frozen=True)
class _Study:
    number: int
    findings: Case
    cells: dict[str, str]


class CheXpert(Writer):
    """``CheXpert-v1.0-small/{train,valid}`` with tables, ``CheXpert/{test,test_labels.csv}``."""

    keys = (KEY,)
    folders = ("chexpert",)
    parts = {"train": 0.7, "valid": 0.15, "test": 0.15}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One or two studies, each a frontal view and sometimes a lateral one."""
        entries = []
        for number in range(1 + member.index % 2):
            rng = job.rng("studies", member.index, number)
            findings = case_of(KEY, member, rng, study=number, count=3)
            names = names_of(findings)
            healthy = set(names) <= {"support_device"}
            positive = positive_classes(KEY, names)
            classes = get_source(KEY).cls_classes
            if member.part == "train":
                cells = mined_cells(positive, classes, rng, healthy=healthy)
            else:
                cells = read_cells(positive, classes, healthy=healthy)
            drawn = draw_view(rng, LOOKS[KEY])
            views: list[View] = ["AP" if drawn == "LL" else drawn]
            if drawn == "LL" or (member.index + number) % 4 == 2:
                views.append("LL")
            study = _Study(number + 1, findings, cells)
            entries += [self._image(job, member, study, k, view) for k, view in enumerate(views, 1)]
        return entries

    def _image(self, job: Job, member: Member, study: _Study, number: int, view: View) -> Entry:
        rng = job.rng("views", member.index, study.number, number)
        patient = patient_of(job, member)
        frame = free_frame(rng, job.size_px, LOOKS[KEY])
        shot = photograph(KEY, patient, study.findings, frame, rng, view=view)
        lateral, test = view == "LL", member.part == "test"
        stem = f"view{number}_{'lateral' if lateral else 'frontal'}"
        person = f"patient{_FIRST_PATIENT[member.part] + member.rank:05d}"
        image = f"{person}/study{study.number}/{stem}"
        inner = f"{member.part}/{image}.jpg"
        file = f"{self.folders[0]}/{_LOCALIZE if test else _SMALL}/{inner}"
        write_jpeg(job.root / file, shot.pixels)
        truth = truth_row(
            image_id=image,
            file=file,
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            patient_id=person,
            # The test table has no column for the view; the file name tells lateral ones.
            view="LL" if lateral else (None if test else view),
            labels={name: code(cell) for name, cell in study.cells.items()},
        )
        facts = {
            "Path": f"{'CheXpert-v1.0' if test else _SMALL}/{inner}",
            "Sex": "Male" if patient.sex == "M" else "Female",
            "Age": patient.age,
            "Frontal/Lateral": "Lateral" if lateral else "Frontal",
            "AP/PA": "" if lateral else view,
        }
        return Entry(member.part, {**facts, **study.cells}, {KEY: truth})

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """The test table has neither sex, age nor view."""
        root = job.root / self.folders[0]
        for part in ("train", "valid"):
            columns = _HEADER.split(",")
            rows = [[e.row[c] for c in columns] for e in entries if e.part == part]
            write_csv(root / _SMALL / f"{part}.csv", _HEADER, rows)
        columns = f"Path,{_LABELS}".split(",")
        rows = [[e.row[c] for c in columns] for e in entries if e.part == "test"]
        write_csv(root / _LOCALIZE / "test_labels.csv", columns, rows)
