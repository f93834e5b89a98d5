"""VinDr-RibCXR: large PNGs and one column-oriented JSON per part with a ring for every rib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fx_d2.data.sources import get_source
from fx_d2.phantom.cases import drawn_case, patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import free_frame, photograph
from fx_d2.phantom.truth import truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_png
from fx_d2.phantom.writers.runs_out import components, filled, ring_of
from fx_d2.phantom.writers.text_out import write_json

KEY = "vindr_ribcxr"
_UNSEEN_SHARE = 0.3  # of images in which the lowest ribs could not be traced
_WOBBLE_PX = 0.03  # of the clicked points; below what moves a pixel


class RibCxr(Writer):
    """``vindr-ribcxr/data/{train,val}/{img,Vindr_RibCXR_<part>_mask.json}``."""

    keys = (KEY,)
    folders = ("vindr-ribcxr",)
    parts = {"train": 0.8, "val": 0.2}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One image, stored as RGB; a rib that was not traced is the string ``None``."""
        rng = job.rng("images", member.index)
        frame = free_frame(rng, job.size_px, LOOKS[KEY])
        shot = photograph(KEY, patient_of(job, member), drawn_case(KEY, rng), frame, rng)
        stem = f"VinDr_RibCXR_{member.part}_{member.rank:03d}"
        inner = f"data/{member.part}/img/{stem}.png"
        file = f"{self.folders[0]}/{inner}"
        write_png(job.root / file, shot.pixels, "RGB")
        unseen = ("R10", "L10") if rng.random() < _UNSEEN_SHARE else ()
        rings: dict[str, Any] = {}
        masks: dict[str, np.ndarray] = {}
        for rib in get_source(KEY).seg_classes:
            pieces = components(shot.structure(rib)) if rib not in unseen else []
            masks[rib] = np.zeros(shot.size, bool)
            rings[rib] = "None"
            if pieces:
                masks[rib] = filled(pieces[0])
                wobble = rng.uniform(-_WOBBLE_PX, _WOBBLE_PX, 2)
                rings[rib] = [
                    {"x": round(x + float(wobble[0]), 2), "y": round(y + float(wobble[1]), 2)}
                    for x, y in ring_of(pieces[0])
                ]
        truth = truth_row(
            image_id=stem,
            file=file,
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            masks=masks,
        )
        return [Entry(member.part, {"img": inner, **rings}, {KEY: truth})]

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """A column per key, its entries numbered by strings."""
        for part in self.parts:
            rows = [entry.row for entry in entries if entry.part == part]
            columns = ("img", *get_source(KEY).seg_classes)
            body = {name: {str(k): row[name] for k, row in enumerate(rows)} for name in columns}
            folder = job.root / self.folders[0] / "data" / part
            write_json(folder / f"Vindr_RibCXR_{part}_mask.json", body)
