"""ChestX-Det: PNGs of 1024 px, a JSON list per part with parallel classes, boxes and rings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fx_d2.data.sources import get_source
from fx_d2.phantom.cases import case_of, patient_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import Shot, draw_view, fixed_frame, photograph
from fx_d2.phantom.truth import box_entry, label_dict, truth_row
from fx_d2.phantom.vocabulary_map import classes_of
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_png
from fx_d2.phantom.writers.runs_out import Ring, hull_of, rings_of
from fx_d2.phantom.writers.text_out import write_json

KEY = "chestx_det"
_FIRST_NAME = 36_199


class ChestXDet(Writer):
    """``chestx_det/{train,test}/36199.png`` and ``ChestX_Det_{train,test}.json``."""

    keys = (KEY,)
    folders = ("chestx_det",)
    parts = {"train": 0.8, "test": 0.2}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One image; an image without instances is annotated and normal."""
        rng = job.rng("images", member.index)
        case = case_of(KEY, member, rng, count=3)
        frame = fixed_frame(1024, job.size_px)
        view = draw_view(rng, LOOKS[KEY])
        shot = photograph(KEY, patient_of(job, member), case, frame, rng, view=view)
        stem = str(_FIRST_NAME + 5 * member.index)
        file = f"{self.folders[0]}/{member.part}/{stem}.png"
        write_png(job.root / file, shot.pixels)
        instances = _instances(shot)
        masks = {name: np.zeros(shot.size, bool) for name in get_source(KEY).seg_classes}
        for name, _, area in instances:
            masks[name] |= area
        boxes = [(name, _box(ring)) for name, ring, _ in instances]
        truth = truth_row(
            image_id=stem,
            file=file,
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            labels=label_dict(KEY, {name for name, _ in boxes}),
            boxes=[box_entry(name, box) for name, box in boxes],
            masks=masks,
        )
        row = {
            "file_name": f"{stem}.png",
            "syms": [name for name, _ in boxes],
            "boxes": [box for _, box in boxes],
            "polygons": [ring for _, ring, _ in instances],
        }
        return [Entry(member.part, row, {KEY: truth})]

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """One list per part."""
        for part in self.parts:
            rows = [entry.row for entry in entries if entry.part == part]
            write_json(job.root / self.folders[0] / f"ChestX_Det_{part}.json", rows)


def _instances(shot: Shot) -> list[tuple[str, Ring, np.ndarray]]:
    """Class, ring and enclosed area of every instance; diffuse nodules are ringed together."""
    found = []
    for lesion in shot.lesions():
        for name in classes_of(KEY, lesion.name):
            if not lesion.mask.any():
                continue
            if name == "Diffuse Nodule":
                found.append((name, *hull_of(lesion.mask)))
            else:
                found += [(name, ring, area) for ring, area in rings_of(lesion.mask)]
    return found


def _box(ring: Ring) -> list[int]:
    """Smallest and largest corner of a ring; the largest is inclusive."""
    xs, ys = zip(*ring, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]
