"""TBX11K: 512 px RGB images in folders by kind, COCO lists of every image, VOC in film size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fx_d2.phantom.cases import Case, case_such_that, patient_of
from fx_d2.phantom.findings import FindingSpec
from fx_d2.phantom.studio import Shot, fixed_frame, photograph
from fx_d2.phantom.truth import box_entry, label_dict, truth_row
from fx_d2.phantom.vocabulary_map import TB_ACTIVE, TB_OLD, classes_of
from fx_d2.phantom.writers.base import ARRANGED_PER_PART, Entry, Job, Member, Writer
from fx_d2.phantom.writers.raster_out import write_png
from fx_d2.phantom.writers.text_out import write_json, write_text
from fx_d2.phantom.writers.tuberculosis import is_tuberculosis

KEY = "tbx11k"
_SIDE_PX = 512
_CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")
_KINDS = {"positive": "tb", "negative": "health", "drawn": "sick"}
_SHARES = {"health": 0.4545, "sick": 0.4545, "tb": 0.091}
_PREFIX = {"health": "h", "sick": "s", "tb": "tb"}
_SICK = ("consolidation", "pleural_effusion", "cardiomegaly", "nodule", "atelectasis")
_FILM_PX = 3000  # the VOC files are in the frame of the film
_HEALTHY_FROM = 601  # ids of images without tuberculosis in a list start there or later


class Tbx11k(Writer):
    """``TBX11K/{imgs,annotations/{json,xml},lists}``."""

    keys = (KEY,)
    folders = ("TBX11K",)
    parts = {"TBX11K_train": 0.78, "TBX11K_val": 0.22}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """One image; arranged patients cycle through tuberculosis, healthy, otherwise sick."""
        rng = job.rng("images", member.index)
        kind = _KINDS[member.mode()]
        if member.rank >= ARRANGED_PER_PART:
            kind = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
        shot = self._shoot(job, member, _case(kind, member, rng), rng)
        name = f"{kind}/{_PREFIX[kind]}{member.index + 1:04d}"
        write_png(job.root / self.folders[0] / "imgs" / f"{name}.png", shot.pixels, "RGB")
        boxes = _boxes(shot, rng)
        if boxes:
            film = _FILM_PX + int(rng.integers(-400, 400))
            body = _voc(name, boxes, film)
            write_text(
                job.root / self.folders[0] / f"annotations/xml/{name.split('/')[1]}.xml", body
            )
        truth = truth_row(
            image_id=name,
            file=f"{self.folders[0]}/imgs/{name}.png",
            part=member.part,
            pixels=shot.pixels,
            bits=8,
            labels=label_dict(KEY, ["Tuberculosis"] if kind == "tb" else []),
            # A tuberculous image without a box is not annotated: tb1199 of the real set is one.
            boxes=None if kind == "tb" and not boxes else [box_entry(c, b) for c, b in boxes],
        )
        return [Entry(member.part, {"name": f"{name}.png", "boxes": boxes}, {KEY: truth})]

    def _shoot(self, job: Job, member: Member, case: Case, rng: np.random.Generator) -> Shot:
        frame = fixed_frame(_SIDE_PX, job.size_px)
        return photograph(KEY, patient_of(job, member), case, frame, rng)

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Lists and COCO files of both parts, of both together, and of the unlabelled test part."""
        stranger = Member(-1, "all_test", 0)
        shot = self._shoot(job, stranger, [], job.rng("test"))
        write_png(job.root / self.folders[0] / "imgs/test/test_0001.png", shot.pixels, "RGB")
        train, val = ([e.row for e in entries if e.part == part] for part in self.parts)
        lists = {
            "TBX11K_train": train,
            "TBX11K_val": val,
            "TBX11K_trainval": train + val,
            "all_train": train,
            "all_val": val,
            "all_trainval": train + val,
            "all_test": [{"name": "test/test_0001.png", "boxes": []}],
        }
        root = job.root / self.folders[0]
        for name, rows in lists.items():
            write_json(root / f"annotations/json/{name}.json", _coco(rows))
            write_text(root / f"lists/{name}.txt", "".join(f"{row['name']}\n" for row in rows))
        only = [row for row in train + val if row["name"].startswith("tb/")]
        write_json(root / "annotations/json/TBX11K_trainval_only_tb.json", _coco(only))


def _case(kind: str, member: Member, rng: np.random.Generator) -> Case:
    if kind == "health":
        return []
    if kind == "sick":
        case = case_such_that(KEY, rng, lambda names: bool(names) and not is_tuberculosis(names))
        return case or [FindingSpec(_SICK[member.index % len(_SICK)])]
    number = member.rank // 3
    names = [(TB_ACTIVE[number % 2],), TB_OLD, (TB_ACTIVE[0], *TB_OLD)][number % 3]
    return [FindingSpec(name, severity=float(rng.uniform(0.5, 1.0))) for name in names]


def _boxes(shot: Shot, rng: np.random.Generator) -> list[tuple[str, list[float]]]:
    """Category and x0, y0, x1, y1 with fractions of a pixel, as single-precision floats."""
    boxes = []
    for lesion in shot.lesions():
        shift = rng.uniform(-0.4, 0.4, 4)
        for name in classes_of(KEY, lesion.name):
            if lesion.box is not None:
                corners = np.clip(np.array(lesion.box) + shift, 0.0, _SIDE_PX).astype(np.float32)
                boxes.append((name, [float(v) for v in corners]))
    return boxes


def _coco(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A list as the provider numbers it: tuberculosis first, the others from 601 on."""
    ranked = sorted(rows, key=lambda row: not row["name"].startswith("tb/"))  # stable
    tuberculous = sum(row["name"].startswith("tb/") for row in rows)
    images, annotations = [], []
    for k, row in enumerate(ranked):
        number = k + 1 if k < tuberculous else max(_HEALTHY_FROM, tuberculous + 1) + k - tuberculous
        images.append({
            "id": number, "file_name": row["name"], "width": _SIDE_PX, "height": _SIDE_PX,
            "date_captured": "2020-06-24 12:42:41.793194", "license": 1, "coco_url": "",
            "flickr_url": "",
        })  # fmt: skip
        for name, (x0, y0, x1, y1) in row["boxes"]:
            annotations.append({
                "id": len(annotations) + 1, "image_id": number,
                "category_id": _CATEGORIES.index(name) + 1, "iscrowd": 0,
                "area": int((x1 - x0) * (y1 - y0)), "bbox": [x0, y0, x1 - x0, y1 - y0],
                "width": _SIDE_PX, "height": _SIDE_PX,
            })  # fmt: skip
    categories = [
        {"id": k, "name": name, "supercategory": "Tuberculosis"}
        for k, name in enumerate(_CATEGORIES, start=1)
    ]
    return {"categories": categories, "images": images, "annotations": annotations}


def _voc(name: str, boxes: Sequence[tuple[str, Sequence[float]]], film: int) -> str:
    """Pascal VOC: whole, 1-based corners in the frame of the film."""
    lines = ["<annotation>", f"  <filename>{name.split('/')[1]}.png</filename>"]
    lines.append(f"  <size><width>{film}</width><height>{film}</height><depth>3</depth></size>")
    for category, box in boxes:
        corners = [round(v * film / _SIDE_PX) + 1 for v in box]
        tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
        lines.append(f"  <object><name>{category}</name><bndbox>{inner}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])
