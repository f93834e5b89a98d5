"""NIH Montgomery: PNG films, one mask per lung, clinical readings."""

from __future__ import annotations

from fx_d2.phantom.cases import patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import free_frame, photograph
from fx_d2.phantom.truth import label_dict, truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_mask, write_png
from fx_d2.phantom.writers.text_out import write_text
from fx_d2.phantom.writers.tuberculosis import tuberculosis_case

KEY = "montgomery"
_READINGS = ("improved", "stable", "active disease in the upper lobe", "cavity, right apex")


class Montgomery(Writer):
    """``MontgomerySet/{CXR_png,ManualMask/{leftMask,rightMask},ClinicalReadings}``."""

    keys = (KEY,)
    folders = ("MontgomerySet",)

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One film; every fourth is stored with 16 bits."""
        rng = job.rng("images", member.index)
        positive, findings = tuberculosis_case(KEY, member, rng)
        patient = patient_of(job, member)
        frame = free_frame(rng, job.size_px, LOOKS[KEY])
        shot = photograph(KEY, patient, findings, frame, rng)
        stem = f"MCUCXR_{3 * member.index + 1:04d}_{int(positive)}"  # ids have gaps
        folder = job.root / self.folders[0]
        deep = member.index % 4 == 3
        write_png(folder / "CXR_png" / f"{stem}.png", shot.pixels, "I;16" if deep else "L")
        lungs = {
            "Left Lung": shot.structure("left_lung"),
            "Right Lung": shot.structure("right_lung"),
        }
        for side, name in (("left", "Left Lung"), ("right", "Right Lung")):
            write_mask(folder / "ManualMask" / f"{side}Mask" / f"{stem}.png", lungs[name])
        finding = _READINGS[int(rng.integers(len(_READINGS)))] if positive else "normal"
        write_text(
            folder / "ClinicalReadings" / f"{stem}.txt",
            f"Patient's Sex: {patient.sex}\nPatient's Age: {patient.age:03d}Y\n{finding}\n",
        )
        truth = truth_row(
            image_id=stem,
            file=f"{self.folders[0]}/CXR_png/{stem}.png",
            part=member.part,
            pixels=shot.pixels,
            bits=16 if deep else 8,
            labels=label_dict(KEY, ["Tuberculosis"] if positive else []),
            masks=lungs,
        )
        return [Entry(member.part, {}, {KEY: truth})]
