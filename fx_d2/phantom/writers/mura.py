"""MURA v1.1: limbs, labelled by study, in two lists per part without header lines."""

from __future__ import annotations

from collections.abc import Sequence

from fx_d2.phantom.limb import REGIONS, render_bone
from fx_d2.phantom.look import Look
from fx_d2.phantom.studio import free_frame
from fx_d2.phantom.truth import label_dict, truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_png
from fx_d2.phantom.writers.text_out import write_csv, write_text

KEY = "mura"
_FRAME = Look(bits=8, size_px=(300, 512), aspect=(0.7, 1.4), views=(("PA", 1.0),))
_FIRST_PATIENT = {"train": 1, "valid": 11185}
_ABNORMAL_SHARE = 0.4


class Mura(Writer):
    """``MURA-v1.1/{train,valid}/XR_ELBOW/patient00001/study1_positive/*.png`` and four lists."""

    keys = (KEY,)
    folders = ("MURA-v1.1",)
    parts = {"train": 0.8, "valid": 0.2}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One or two studies of one bone, one to three images each."""
        region = REGIONS[member.index % len(REGIONS)]
        person = f"patient{_FIRST_PATIENT[member.part] + member.rank:05d}"
        entries = []
        for study in range(1 + member.index % 2):
            rng = job.rng("images", member.index, study)
            mode = member.mode(study)
            share = {"positive": 1.0, "negative": 0.0}.get(mode, _ABNORMAL_SHARE)
            abnormal = bool(rng.random() < share)
            verdict = "positive" if abnormal else "negative"
            folder = f"{member.part}/XR_{region.upper()}/{person}/study{study + 1}_{verdict}"
            for number in range(1, 2 + (member.index + study) % 3):
                frame = free_frame(rng, job.size_px, _FRAME)
                pixels = render_bone(region, abnormal, frame.size, rng)
                inner = f"{folder}/image{number}.png"
                file = f"{self.folders[0]}/{inner}"
                mode = "RGB" if (member.index + number) % 4 == 0 else "L"
                write_png(job.root / file, pixels, mode)
                truth = truth_row(
                    image_id=inner.removesuffix(".png"),
                    file=file,
                    part=member.part,
                    pixels=pixels,
                    bits=8,
                    patient_id=person,
                    labels=label_dict(KEY, ["Abnormal"] if abnormal else []),
                )
                row = {
                    "study": f"{self.folders[0]}/{folder}/",
                    "label": int(abnormal),
                    "path": file,
                }
                entries.append(Entry(member.part, row, {KEY: truth}))
        return entries

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """The paths of images, and of studies with a closing slash and their label."""
        root = job.root / self.folders[0]
        for part in self.parts:
            rows = [entry.row for entry in entries if entry.part == part]
            paths = "".join(f"{row['path']}\n" for row in rows)
            write_text(root / f"{part}_image_paths.csv", paths)
            studies = dict.fromkeys((row["study"], row["label"]) for row in rows)
            write_csv(root / f"{part}_labeled_studies.csv", None, studies)
