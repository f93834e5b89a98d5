"""COVID-19 Radiography Database: one folder per class, images of 299 px, lung masks of 256 px."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fx_d2.data.sources import get_source
from fx_d2.phantom.cases import patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import draw_view, fixed_frame, photograph
from fx_d2.phantom.truth import label_dict, truth_row
from fx_d2.phantom.writers.base import ARRANGED_PER_PART, Entry, Job, Member, Writer
from fx_d2.phantom.writers.covid import bacterial_case, covid_case, viral_case
from fx_d2.phantom.writers.raster_out import write_mask, write_png
from fx_d2.phantom.writers.sheet_out import write_sheet
from fx_d2.phantom.writers.text_out import write_text

KEY, THREE = "covid_radiography", "covid_radiography_3"
_IMAGE_PX, _MASK_PX = 299, 256
_CASES = {
    "COVID": covid_case,
    "Normal": lambda rng: [],
    "Lung_Opacity": bacterial_case,
    "Viral Pneumonia": viral_case,
}
_SHARES = (0.17, 0.48, 0.29, 0.06)


def resized(mask: np.ndarray, side: int) -> np.ndarray:
    """The nearest pixels of a square bool mask in a frame of another side, centre on centre."""
    take = ((np.arange(side) + 0.5) * mask.shape[0] / side).astype(int)
    return mask[np.ix_(take, take)]


class CovidRadiography(Writer):
    """``COVID-19_Radiography_Dataset/<class>/{images,masks}`` and one workbook per class."""

    keys = (KEY, THREE)
    folders = ("COVID-19_Radiography_Dataset",)

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One image; arranged patients cycle through the four classes."""
        rng = job.rng("images", member.index)
        names = list(_CASES)
        name = names[member.rank % len(names)]
        if member.rank >= ARRANGED_PER_PART:
            name = str(rng.choice(names, p=_SHARES))
        findings = _CASES[name](rng)
        frame = fixed_frame(_IMAGE_PX, job.size_px)
        view = draw_view(rng, LOOKS[KEY])
        shot = photograph(KEY, patient_of(job, member), findings, frame, rng, view=view)
        stem = f"{name}-{member.index + 1}"
        home = f"{self.folders[0]}/{name}"
        mode = "RGB" if member.index % 6 == 5 else "L"
        write_png(job.root / home / "images" / f"{stem}.png", shot.pixels, mode)
        mask = resized(shot.structure("left_lung", "right_lung"), _MASK_PX)
        write_mask(job.root / home / "masks" / f"{stem}.png", mask, "RGB")
        truths = {
            key: truth_row(
                image_id=stem,
                file=f"{home}/images/{stem}.png",
                part=member.part,
                pixels=shot.pixels,
                bits=8,
                labels=label_dict(key, [name]),
                masks={"Lungs": resized(mask, _IMAGE_PX)},
            )
            for key in self.keys
            if name in get_source(key).cls_classes
        }
        return [Entry(member.part, {"class": name, "stem": stem}, truths)]

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Workbooks that name the files (in capitals for one class), and empty class folders."""
        root = job.root / self.folders[0]
        header = ["FILE NAME", "FORMAT", "SIZE", "URL"]
        for name in _CASES:
            for kind in ("images", "masks"):
                (root / name / kind).mkdir(parents=True, exist_ok=True)
            stems = [e.row["stem"] for e in entries if e.row["class"] == name]
            stems = [stem.upper() if name == "Normal" else stem for stem in stems]
            rows = [[stem, "PNG", "256*256", "synthetic"] for stem in stems]
            write_sheet(root / f"{name}.metadata.xlsx", [header, *rows])
        write_text(
            root / "README.md.txt",
            "Synthetic radiographs in the layout of the COVID-19 database.\n",
        )
