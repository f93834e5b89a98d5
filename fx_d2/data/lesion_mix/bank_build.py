"""Cuts the lesions out of sources with boxes: each image is read once, in parts that resume."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..atomic import replacing, write_atomically
from ..cache_build import shrink
from ..catalog import patient_of
from ..errors import DataError
from ..formats.contract import LoadedImage
from ..images import read_image
from ..intensity import normalise
from ..masks import instance_reference, load_mask
from ..record import Record, box_xyxy
from ..source import Source
from ..sources import get_source
from ..transforms import FxResizeTransform
from .bank import BANK_NAME, FORMAT, GREY, Patch, part_name
from .classes import class_map
from .parts import cut, run_parts
from .place import DoesNotFit, placed_by
from .settings import MixSettings

_PART_IMAGES = 32


@dataclass(frozen=True)
class Harvest:
    """What patches are cut out of.

    Args:
        datasets: names, for the header.
        records: those with boxes to cut.
        labels: source -> {box class: label or None}.
        skipped: what is left out, by reason.
        needs_masks: a lesion without its pixels is of no use, the base source having masks of
            every box.
    """

    datasets: tuple[str, ...]
    records: Sequence[Record]
    labels: dict[str, dict[str, str | None]]
    skipped: Counter[str] = field(default_factory=Counter)
    needs_masks: bool = False


def harvest(
    records_by_name: Mapping[str, Sequence[Record]], base: Source, settings: MixSettings
) -> Harvest:
    """Which records have boxes of use for the labels of ``base``; the rest is counted.

    Raises:
        DataError: a dataset of a source that has no boxes at all.
    """
    chosen: list[Record] = []
    labels: dict[str, dict[str, str | None]] = {}
    skipped: Counter[str] = Counter()
    for name, records in records_by_name.items():
        source = get_source(records[0]["source"])
        if not source.thing_classes:
            raise DataError(
                f"{name} has no boxes to cut patches out of",
                expected="sources with boxes, such as chestx_det, vindr_local or nih14",
                fix="take it out of INPUT.FX.LESION_MIX.BANK",
            )
        labels[source.key] = class_map(source, base.cls_classes, settings.class_map)
        for excluded in settings.exclude:
            if excluded in labels[source.key]:
                labels[source.key][excluded] = None
        useful = 0
        for record in records:
            if "annotations" not in record:
                skipped[f"{name}: image without annotated boxes"] += 1
                continue
            names = [source.thing_classes[a["category_id"]] for a in record["annotations"]]
            for unused in (n for n in names if labels[source.key][n] is None):
                skipped[f"{name}: class {unused!r} is excluded or no label of {base.key}"] += 1
            if any(labels[source.key][n] is not None for n in names):
                chosen.append(record)
                useful += 1
        if not useful:
            skipped[f"{name}: source without a usable box"] += 1
    return Harvest(tuple(records_by_name), chosen, labels, skipped, base.instance_masks)


def build_bank(
    folder: Path,
    found: Harvest,
    settings: MixSettings,
    *,
    workers: int = 1,
    progress: bool = True,
) -> None:
    """Write the bank into ``folder``; parts that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = cut(found.records, _PART_IMAGES)
    work = partial(_write_part, folder, settings, found.labels, found.needs_masks)
    done = partial(_part_is_there, folder)
    run_parts(parts, work, done, workers=workers, what="cutting patches", progress=progress)
    skipped = Counter(found.skipped)
    count = 0
    for number in range(len(parts)):
        notes = json.loads((folder / part_name(number, "json")).read_text(encoding="utf-8"))
        skipped.update(notes["skipped"])
        count += notes["patches"]
    header = {
        "format": FORMAT,
        "datasets": list(found.datasets),
        "parts": len(parts),
        "patches": count,
        "skipped": dict(sorted(skipped.items())),
    }
    write_atomically(folder / BANK_NAME, json.dumps(header, indent=1) + "\n")


def _part_is_there(folder: Path, number: int, _: Sequence[Record]) -> bool:
    return (folder / part_name(number, "json")).is_file()


def _write_part(
    folder: Path,
    settings: MixSettings,
    labels: dict[str, dict[str, str | None]],
    needs_masks: bool,
    number: int,
    records: Sequence[Record],
) -> None:
    skipped: Counter[str] = Counter()
    rows: list[str] = []
    with ExitStack() as stack:
        # Moved into place last one first: the notes say that the part is whole, so they go last.
        notes = stack.enter_context(replacing(folder / part_name(number, "json")))
        index = stack.enter_context(replacing(folder / part_name(number, "jsonl")))
        pixels = stack.enter_context(replacing(folder / part_name(number, "bin")))
        offset = 0
        with pixels.open("wb") as stream:
            for record in records:
                for patch, data in _patches_of(record, settings, labels, skipped, number):
                    if needs_masks and not patch.has_mask:
                        skipped[f"{patch.source}: {patch.name}: box without a mask"] += 1
                        continue
                    patch = Patch(**{**vars(patch), "offset": offset})
                    stream.write(data)
                    offset += len(data)
                    rows.append(json.dumps(patch.to_row()))
        index.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        notes.write_text(
            json.dumps({"patches": len(rows), "skipped": dict(skipped)}), encoding="utf-8"
        )


def _patches_of(
    record: Record,
    settings: MixSettings,
    labels: dict[str, dict[str, str | None]],
    skipped: Counter[str],
    part: int,
) -> list[tuple[Patch, bytes]]:
    source = get_source(record["source"])
    loaded = read_image(record["file_name"])
    full = loaded.facts.height, loaded.facts.width
    small = LoadedImage(shrink(loaded.pixels, settings.bank_px, "long"), loaded.facts)
    grey = normalise(small)
    frame = (grey.shape[0], grey.shape[1])
    sized = {**record, "height": full[0], "width": full[1]}
    try:
        lungs = placed_by(grey, sized, settings)
    except DoesNotFit as exc:
        skipped[f"{source.key}: {exc}"] += 1
        return []
    found = []
    for annotation in record["annotations"]:
        name = source.thing_classes[annotation["category_id"]]
        label = labels[source.key][name]
        if label is None:
            continue
        x0, y0, x1, y1 = box_xyxy(annotation)
        reason = None
        if min(x1 - x0, y1 - y0) < settings.min_box_px:
            reason = f"box below {settings.min_box_px:g} px"
        elif (x1 - x0) * (y1 - y0) > settings.max_box_share * full[0] * full[1]:
            reason = f"box above {settings.max_box_share:g} of its image"
        mask = None if reason else _mask(annotation, record, name, full, frame)
        if mask is not None and not mask.any():
            reason = "empty mask"
        if reason:
            skipped[f"{source.key}: {name}: {reason}"] += 1
            continue
        scale = (frame[1] / full[1], frame[0] / full[0])
        box = _whole((x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1]), frame)
        if mask is not None:
            box = _tight(mask)
        crop = _with_margin(box, settings.margin, frame)
        inside = np.s_[crop[1] : crop[3], crop[0] : crop[2]]
        data = np.rint(grey[inside] * GREY).astype("<u2").tobytes()
        if mask is not None:
            data += np.packbits(mask[inside]).tobytes()
        patch = Patch(
            source=source.key,
            image_id=record["image_id"],
            patient=patient_of(record),
            name=name,
            label=label,
            frame=frame,
            box=box,
            crop=crop,
            lungs=lungs,
            has_mask=mask is not None,
            part=part,
            offset=0,
        )
        found.append((patch, data))
    return found


def _mask(
    annotation: dict[str, Any],
    record: Record,
    name: str,
    full: tuple[int, int],
    frame: tuple[int, int],
) -> npt.NDArray[np.bool_] | None:
    """The lesion's pixels in the bank's frame; without a mask of its own its class's in its box."""
    source = get_source(record["source"])
    resize = FxResizeTransform(*full, *frame)
    if annotation.get("segmentation"):
        ref = instance_reference(annotation["segmentation"])
        whole = load_mask(ref, *full, resize=source.resize_masks)
    elif name in record.get("masks", {}):
        whole = load_mask(record["masks"][name], *full, resize=source.resize_masks)
        x0, y0, x1, y1 = _whole(box_xyxy(annotation), full)
        inside = np.zeros_like(whole)
        inside[y0:y1, x0:x1] = whole[y0:y1, x0:x1]
        whole = inside
    else:
        return None
    return resize.apply_segmentation(whole.astype(np.uint8)).astype(bool)


def _whole(box: Sequence[float], frame: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole pixels that a box touches, at least one each way."""
    x0 = min(max(int(np.floor(box[0] + 1e-6)), 0), frame[1] - 1)
    y0 = min(max(int(np.floor(box[1] + 1e-6)), 0), frame[0] - 1)
    x1 = min(max(int(np.ceil(box[2] - 1e-6)), x0 + 1), frame[1])
    y1 = min(max(int(np.ceil(box[3] - 1e-6)), y0 + 1), frame[0])
    return (x0, y0, x1, y1)


def _tight(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _with_margin(
    box: tuple[int, int, int, int], margin: float, frame: tuple[int, int]
) -> tuple[int, int, int, int]:
    # At least two pixels, so that a small lesion has a surround to compare with.
    x = max(2, round(margin * (box[2] - box[0]))) if margin else 0
    y = max(2, round(margin * (box[3] - box[1]))) if margin else 0
    return (
        max(box[0] - x, 0),
        max(box[1] - y, 0),
        min(box[2] + x, frame[1]),
        min(box[3] + y, frame[0]),
    )
