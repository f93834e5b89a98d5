"""COVID-19 chest X-ray segmentations: mixed image files, coloured mask crops, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fx_d2.data.sources import get_source
from fx_d2.phantom.cases import drawn_case, patient_of
from fx_d2.phantom.findings import FindingSpec
from fx_d2.phantom.findings.base import box_of
from fx_d2.phantom.look import LOOKS
from fx_d2.phantom.studio import Shot, draw_view, free_frame, photograph
from fx_d2.phantom.truth import truth_row
from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_jpeg, write_png
from fx_d2.phantom.writers.text_out import write_csv

KEY = "covid19_seg"
_HEADER = (
    "#,Taxonomy,Class,Template Name,File Folder,Filename,Image,Tag,Mask,Resolution,Top,Left,Width,"
    "Height,Points,Text Annotation,Minimal Top,Minimal Left,Minimal Width,Minimal Height,Attributes"
)
_ORGANS = {
    "Left Lung": ("left_lung",),
    "Right Lung": ("right_lung",),
    "Cardiomediastinum": ("heart", "mediastinum"),
    "Airways": ("trachea",),
}
_LESIONS = {
    "covid_pneumonia": "Ground Glass Opacities",
    "ground_glass": "Ground Glass Opacities",
    "consolidation": "Consolidation",
    "pneumothorax": "Pneumothorax",
    "chest_tube": "Tubings",
    "ecg_leads": "Monitoring Probes",
    "tracheal_tube": "Endotracheal Tube",
    "feeding_tube": "Nosogastric Tube",
    "central_line": "Central Venous Line",
    "port": "Central Venous Line",
}
_COLOURS = ((0, 124, 33), (212, 60, 10), (90, 90, 200), (200, 190, 20))
_FILES = (("jpg", "L"), ("png", "RGBA"), ("jpeg", "RGB"), ("png", "L"))
_BLANK_EVERY = 5  # images with a row of probes that nobody outlined


class Covid19Seg(Writer):
    """``covid19_seg/{images,masks,structure.csv}``."""

    keys = (KEY,)
    folders = ("covid19_seg",)

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One or two days of one patient."""
        return [self._image(job, member, day) for day in range(1 + member.index % 2)]

    def _image(self, job: Job, member: Member, day: int) -> Entry:
        rng = job.rng("images", member.index, day)
        case = drawn_case(KEY, rng)
        if member.mode(day) == "positive":
            names = ("covid_pneumonia", "consolidation", "support_device", "ecg_leads")
            case = [FindingSpec(name) for name in names]
        view = draw_view(rng, LOOKS[KEY])
        frame = free_frame(rng, job.size_px, LOOKS[KEY])
        shot = photograph(KEY, patient_of(job, member), case, frame, rng, view=view)
        suffix, mode = _FILES[(member.index + day) % len(_FILES)]
        person = f"phantom-pneumonia-{member.index + 1}"
        stem = f"{person}-day{3 * day}-{view}"
        home = job.root / self.folders[0]
        path = home / "images" / f"{stem}.{suffix}"
        if suffix == "png":
            write_png(path, shot.pixels, mode)
        else:
            write_jpeg(path, shot.pixels, mode)
        masks = _masks(shot)
        rows = []
        unseen = "Monitoring Probes"
        if (2 * member.index + day) % _BLANK_EVERY == 3 and not masks[unseen].any():
            del masks[unseen]
            rows.append(_row(unseen, path.name, shot, "", (0, 0, shot.size[1], shot.size[0])))
        for number, (name, mask) in enumerate(masks.items()):
            box = box_of(mask)
            if box is not None:
                crop = f"{job.hex_id(32, stem)}_{job.hex_id(17, stem, name)}.png"
                _write_crop(home / "masks" / crop, mask, box, _COLOURS[number % len(_COLOURS)])
                rows.append(_row(name, path.name, shot, crop, box))
        truth = truth_row(
            image_id=stem,
            file=f"{self.folders[0]}/images/{path.name}",
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            patient_id=person,
            view=view,
            masks=masks,
        )
        return Entry(member.part, {"rows": rows}, {KEY: truth})

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """One row per outlined structure."""
        rows = [row for entry in entries for row in entry.row["rows"]]
        numbered = [[k, *row] for k, row in enumerate(rows, start=13)]
        write_csv(job.root / self.folders[0] / "structure.csv", _HEADER, numbered)


def _masks(shot: Shot) -> dict[str, np.ndarray]:
    """Every class of the source; findings and devices that are not there are empty."""
    masks = {name: np.zeros(shot.size, bool) for name in get_source(KEY).seg_classes}
    for name, structures in _ORGANS.items():
        masks[name] = shot.structure(*structures)
    for lesion in shot.lesions(look_alikes=True):
        name = _LESIONS.get(lesion.part or lesion.name)
        if name is not None:
            masks[name] = masks[name] | lesion.mask
    return masks


def _row(
    name: str, filename: str, shot: Shot, crop: str, box: tuple[int, int, int, int]
) -> list[object]:
    """Cells after the number; a row without a mask leaves its minimal box blank."""
    x0, y0, x1, y1 = box
    place = [y0, x0, x1 - x0, y1 - y0]
    minimal = place if crop else [None] * 4
    digest = crop.split("_")[0] or "0" * 32
    return [
        None, f"COVID-19 {name}", name, None, filename, f"images/{digest}.jpg",
        f"tags/{crop}" if crop else None, f"masks/{crop}" if crop else None,
        f"{shot.size[1]}x{shot.size[0]}", *place, None, "undefined", *minimal, None,
    ]  # fmt: skip


def _write_crop(
    path: Path, mask: np.ndarray, box: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> None:
    """The mask within its box, coloured on opaque black."""
    x0, y0, x1, y1 = box
    crop = mask[y0:y1, x0:x1]
    pixels = np.zeros((*crop.shape, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[crop, :3] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG", compress_level=2)
