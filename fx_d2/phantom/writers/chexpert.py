"""CheXpert v1.0-small, and the official test part as it comes with CheXlocalize."""

from __future__ import annotations

from collections.abc import Sequence

from fx_d2.data.sources import get_source
from fx_d2.phantom.cases import findings_of, patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import draw_view, free_frame, photograph
from fx_d2.phantom.truth import code, truth_row
from fx_d2.phantom.vocabulary_map import positive_classes
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_jpeg
from fx_d2.phantom.writers.reports import mined_cells, read_cells
from fx_d2.phantom.writers.text_out import write_csv

KEY = "chexpert"
_LABELS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
_HEADER = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{_LABELS}"
_FIRST_PATIENT = {"train": 1, "valid": 64541, "test": 64741}
_SMALL, _LOCALIZE = "CheXpert-v1.0-small", "CheXpert"


class CheXpert(Writer):
    """``chexpert/CheXpert-v1.0-small/{train,valid}`` with CSVs, ``chexpert/CheXpert/{test,test_labels.csv}``."""

    keys = (KEY,)
    folders = ("chexpert",)
    parts = {"train": 0.7, "valid": 0.15, "test": 0.15}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One or two studies, each a frontal view and sometimes a lateral one."""
        entries = []
        for study in range(1 + member.index % 2):
            rng = job.rng("images", member.index, study)
            findings = findings_of(KEY, member, rng, study)
            names = [finding.name for finding in findings]
            positive = positive_classes(KEY, names)
            healthy = not positive - {"Support Devices"}
            classes = get_source(KEY).cls_classes
            if member.part == "train":
                cells = mined_cells(positive, classes, rng, healthy=healthy)
            else:
                cells = read_cells(positive, classes, healthy=healthy)
            frontal = draw_view(rng, LOOKS[KEY])
            views = ["AP" if frontal == "LL" else frontal]
            if frontal == "LL" or (member.index + study) % 4 == 2:
                views.append("LL")
            for number, view in enumerate(views, start=1):
                entries.append(self._image(job, member, study, number, view, findings, cells))
        return entries

    def _image(self, job, member, study, number, view, findings, cells) -> Entry:
        rng = job.rng("views", member.index, study, number)
        patient = patient_of(job, member)
        look = LOOKS[KEY]
        shot = photograph(
            KEY, patient, findings, free_frame(rng, job.size_px, look), rng, view=view
        )
        lateral = view == "LL"
        stem = f"view{number}_{'lateral' if lateral else 'frontal'}"
        person = f"patient{_FIRST_PATIENT[member.part] + member.rank:05d}"
        inner = f"{member.part}/{person}/study{study + 1}/{stem}.jpg"
        base = _LOCALIZE if member.part == "test" else _SMALL
        file = f"{self.folders[0]}/{base}/{inner}"
        write_jpeg(job.root / file, shot.pixels)
        tells_view = member.part != "test"
        truth = truth_row(
            image_id=f"{person}/study{study + 1}/{stem}",
            file=file,
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            patient_id=person,
            view=view if tells_view or lateral else None,
            labels={name: code(cell) for name, cell in cells.items()},
        )
        facts = {
            "Path": f"{'CheXpert-v1.0' if member.part == 'test' else _SMALL}/{inner}",
            "Sex": "Male" if patient.sex == "M" else "Female",
            "Age": patient.age,
            "Frontal/Lateral": "Lateral" if lateral else "Frontal",
            "AP/PA": "" if lateral else view,
        }
        return Entry(member.part, {**facts, **cells}, {KEY: truth})

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
