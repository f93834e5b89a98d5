"""Contact sheets: for every class some radiographs with its masks, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fx_d2.data.draw import Picture, Scene, contact_sheet, display, draw_scene
from fx_d2.data.errors import DataError
from fx_d2.data.images import read_image
from fx_d2.data.masks import load_mask
from fx_d2.data.picture_files import file_name, save_png
from fx_d2.data.pseudo_masks import shard_path
from fx_d2.data.readers.pseudo_masks import read_shard
from fx_d2.data.record import PackedRecords, box_xyxy
from fx_d2.data.source import Source
from fx_d2.explain.pseudo_labels import KEPT

from .shards import Job, read_measures

SHEET_FOLDER = "sheets"
_PICTURES = 12
_SIDE_PX = 224
IGNORED = "ignored"


def write_sheets(job: Job, records: PackedRecords, shards: int, names: Sequence[str]) -> list[Path]:
    """A PNG per class that has masks; the same images at every call.

    Args:
        job: of the run.
        records: of the dataset, as the shards were cut from.
        shards: how many there are.
        names: the classes to draw.

    Returns:
        The files.
    """
    chosen = _chosen(job, shards, names)
    pictures: dict[str, list[Picture]] = {name: [] for name in chosen}
    for number in sorted({shard for places in chosen.values() for shard, _ in places}):
        body = read_shard(shard_path(job.folder, number), job.classes, job.fingerprint)
        masks = {(a["image_id"], a["category_id"]): a for a in body["annotations"]}
        ids = {entry["image_id"]: entry["id"] for entry in body["images"]}
        for name, places in chosen.items():
            for shard, place in places:
                if shard == number:
                    record = records[number * job.settings.shard_images + place]
                    key = (ids[record["image_id"]], job.classes.index(name) + 1)
                    truth = job.settings.truth_by.get(name, name)
                    pictures[name].append(_picture(name, truth, record, masks[key], job.source))
    files = []
    for name, drawn in pictures.items():
        files.append(job.folder / SHEET_FOLDER / f"{file_name(name)}.png")
        save_png(files[-1], contact_sheet(drawn))
    return files


def _chosen(job: Job, shards: int, names: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """(shard, place within it) of the images to draw, spread over the dataset."""
    places: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for number in range(shards):
        for i, row in enumerate(read_measures(job.folder, number)):
            for name in names if "failed" not in row else ():
                if row["states"][job.classes.index(name)] == KEPT:
                    places[name].append((number, i))
    return {
        name: [found[i * len(found) // _PICTURES] for i in range(_PICTURES)]
        if len(found) > _PICTURES
        else found
        for name, found in places.items()
        if found
    }


def _picture(
    name: str, truth: str, record: dict[str, Any], annotation: dict[str, Any], source: Source
) -> Picture:
    try:
        image = display(read_image(record["file_name"]).pixels)
    except DataError as exc:
        raise DataError(
            f"an image that was explained cannot be read now ({exc.problem})",
            file=record["file_name"], fix="restore it and call the tool again",
        ) from exc  # fmt: skip
    scale = min(1.0, _SIDE_PX / max(image.shape))
    full = image.shape
    size = (max(1, round(full[0] * scale)), max(1, round(full[1] * scale)))
    small = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    scene = Scene(np.asarray(small, dtype=np.float32), title=f"{name}  {record['image_id']}")
    scene.masks = {
        name: load_mask(annotation["segmentation"], *size, resize=True),
        IGNORED: load_mask(annotation["ignore"], *size, resize=True),
    }
    if truth in source.thing_classes:
        number = source.thing_classes.index(truth)
        for box in record.get("annotations", ()):
            if box["category_id"] == number:
                x0, y0, x1, y1 = (v * scale for v in box_xyxy(box))
                scene.boxes.append(("truth", (x0, y0, x1, y1), ""))
    return draw_scene(scene, (name, IGNORED, "truth"), size_px=_SIDE_PX, legend=False)
