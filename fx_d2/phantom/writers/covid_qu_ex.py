"""COVID-QU-Ex: a lung part, and an infection part that repeats some of its images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fx_d2.phantom.cases import patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import draw_view, fixed_frame, photograph
from fx_d2.phantom.truth import label_dict, truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.covid import INFECTED, bacterial_case, covid_case
from fx_d2.phantom.writers.raster_out import write_mask, write_png

KEY = "covid_qu_ex"
_SIDE_PX = 256
_LUNGS, _INFECTION = "Lung Segmentation Data", "Infection Segmentation Data"  # names are doubled
_CASES = {"COVID-19": covid_case, "Normal": lambda rng: [], "Non-COVID": bacterial_case}
_STEMS = {"COVID-19": "covid_{}", "Normal": "Normal ({})", "Non-COVID": "non_COVID ({})"}


class CovidQuEx(Writer):
    """``covid-qu-ex/<part> Data/<part> Data/{Train,Val,Test}/<class>/{images,lung masks,...}``."""

    keys = (KEY,)
    folders = ("covid-qu-ex",)
    parts = {"Train": 0.6, "Val": 0.2, "Test": 0.2}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """Two images of different class; two of three are in the infection part as well."""
        return [self._image(job, member, k) for k in range(2)]

    def _image(self, job: Job, member: Member, k: int) -> Entry:
        rng = job.rng("images", member.index, k)
        names = list(_CASES)
        name = names[(member.rank + k) % len(names)]
        findings = _CASES[name](rng)
        frame = fixed_frame(_SIDE_PX, job.size_px)
        view = draw_view(rng, LOOKS[KEY])
        shot = photograph(KEY, patient_of(job, member), findings, frame, rng, view=view)
        stem = _STEMS[name].format(2 * member.index + k + 1)
        place = f"{member.part}/{name}"
        masks = {"Lungs": shot.structure("left_lung", "right_lung")}
        homes = [_LUNGS]
        if (member.index + k) % 3 != 2:
            homes.append(_INFECTION)
            masks["COVID-19 Infection"] = np.zeros(shot.size, dtype=bool)
            for lesion in shot.lesions() if name == "COVID-19" else ():
                if lesion.name in INFECTED:
                    masks["COVID-19 Infection"] |= lesion.mask
        for home in homes:
            folder = job.root / self.folders[0] / home / home / place
            write_png(folder / "images" / f"{stem}.png", shot.pixels)
            write_mask(folder / "lung masks" / f"{stem}.png", masks["Lungs"])
            if home == _INFECTION:
                infected = masks["COVID-19 Infection"]
                write_mask(folder / "infection masks" / f"{stem}.png", infected)
        truth = truth_row(
            image_id=f"{place}/{stem}",
            file=f"{self.folders[0]}/{_LUNGS}/{_LUNGS}/{place}/images/{stem}.png",
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            labels=label_dict(KEY, [name]),
            masks=masks,
        )
        return Entry(member.part, {}, {KEY: truth})

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Every folder exists even where a small world has nothing to put in it."""
        kinds = {_LUNGS: ("images", "lung masks")}
        kinds[_INFECTION] = (*kinds[_LUNGS], "infection masks")
        for home, folders in kinds.items():
            for part in self.parts:
                for name in _CASES:
                    for folder in folders:
                        path = job.root / self.folders[0] / home / home / part / name / folder
                        path.mkdir(parents=True, exist_ok=True)
