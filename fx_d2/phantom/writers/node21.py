"""NODE21's processed data: 16-bit MetaImage files and one table with a row per nodule."""

from __future__ import annotations

from collections.abc import Sequence

from fx_d2.phantom.cases import case_such_that, patient_of
from fx_d2.phantom.findings import FindingSpec
from fx_d2.phantom.studio import fixed_frame, photograph
from fx_d2.phantom.truth import box_entry, label_dict, truth_row
from fx_d2.phantom.vocabulary_map import NODULES
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.metaimage_out import write_mha
from fx_d2.phantom.writers.raster_out import quantise
from fx_d2.phantom.writers.text_out import write_csv

KEY = "node21"
_HOME = "cxr_images/proccessed_data"  # the double c is the provider's
_POSITIVE_SHARE = 0.23


class Node21(Writer):
    """``node21/cxr_images/proccessed_data/{images,metadata.csv}``."""

    keys = (KEY,)
    folders = ("node21",)

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One image with one to three nodules, or with none; every third file is compressed."""
        rng = job.rng("images", member.index)
        mode = member.mode()
        positive = mode == "positive" or (mode == "drawn" and rng.random() < _POSITIVE_SHARE)
        other = case_such_that(KEY, rng, lambda names: not set(names) & set(NODULES)) or []
        count = 1 + int(rng.random() < 0.25) + int(rng.random() < 0.1) if positive else 0
        case = [*other, *[FindingSpec("nodule")] * count]
        frame = fixed_frame(1024, job.size_px)
        shot = photograph(KEY, patient_of(job, member), case, frame, rng)
        found = [lesion for lesion in shot.lesions() if lesion.name == "nodule"]
        boxes = [lesion.box for lesion in found if lesion.box is not None]
        stem = f"{'n' if boxes else 'c'}{member.index + 1:04d}"
        file = f"{self.folders[0]}/{_HOME}/images/{stem}.mha"
        compressed = member.index % 3 == 2
        write_mha(job.root / file, quantise(shot.pixels, 16), compressed=compressed)
        truth = truth_row(
            image_id=stem,
            file=file,
            part=member.part,
            pixels=shot.pixels,
            bits=16,
            labels=label_dict(KEY, ["Nodule"] if boxes else []),
            boxes=[box_entry("Nodule", box) for box in boxes],
        )
        return [Entry(member.part, {"name": f"{stem}.mha", "boxes": boxes}, {KEY: truth})]

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """A row per nodule, zeros where there is none, under an unnamed leading index."""
        rows: list[list[object]] = []
        for entry in sorted(entries, key=lambda e: e.row["name"], reverse=True):
            name = entry.row["name"]
            for x0, y0, x1, y1 in entry.row["boxes"]:
                rows.append([len(rows), y1 - y0, name, 1, x1 - x0, x0, y0])
            if not entry.row["boxes"]:
                rows.append([len(rows), 0, name, 0, 0, 0, 0])
        table = job.root / self.folders[0] / _HOME / "metadata.csv"
        write_csv(table, ",height,img_name,label,width,x,y", rows)
