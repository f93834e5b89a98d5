"""NIH Shenzhen: PNG films, short readings, and the third-party masks of both lungs."""

from __future__ import annotations

from fx_d2.phantom.cases import patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import draw_view, free_frame, photograph
from fx_d2.phantom.truth import label_dict, truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_mask, write_png
from fx_d2.phantom.writers.text_out import write_text
from fx_d2.phantom.writers.tuberculosis import tuberculosis_case

KEY = "shenzhen"
_AGES = ("{sex} {age}yrs", "{sex} {age}yr", "{sex},{age}yrs", "{sex}{age}yrs")
_READINGS = ("right secondary PTB", "bilateral PTB\n", "\nPTB in the left upper field")


class Shenzhen(Writer):
    """``ChinaSet_AllFiles/{CXR_png,ClinicalReadings,mask/mask}``."""

    keys = (KEY,)
    folders = ("ChinaSet_AllFiles",)

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One film; every fifth is stored as RGB, every seventh has no lung mask."""
        rng = job.rng("images", member.index)
        positive, findings = tuberculosis_case(KEY, member, rng)
        patient = patient_of(job, member)
        look = LOOKS[KEY]
        frame = free_frame(rng, job.size_px, look)
        shot = photograph(KEY, patient, findings, frame, rng, view=draw_view(rng, look))
        stem = f"CHNCXR_{member.index + 1:04d}_{int(positive)}"
        home = job.root / self.folders[0]
        mode = "RGB" if member.index % 5 == 4 else "L"
        write_png(home / "CXR_png" / f"{stem}.png", shot.pixels, mode)
        masks = {"Lungs": shot.structure("left_lung", "right_lung")}
        has_mask = member.index % 7 != 6
        if has_mask:
            write_mask(home / "mask" / "mask" / f"{stem}_mask.png", masks["Lungs"])
        sex = "male" if patient.sex == "M" else "female"
        head = _AGES[member.index % len(_AGES)].format(sex=sex, age=patient.age)
        finding = _READINGS[member.index % len(_READINGS)] if positive else "normal"
        write_text(home / "ClinicalReadings" / f"{stem}.txt", f"{head}\n{finding}\n")
        truth = truth_row(
            image_id=stem,
            file=f"{self.folders[0]}/CXR_png/{stem}.png",
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            labels=label_dict(KEY, ["Tuberculosis"] if positive else []),
            masks=masks if has_mask else None,
        )
        return [Entry(member.part, {}, {KEY: truth})]
