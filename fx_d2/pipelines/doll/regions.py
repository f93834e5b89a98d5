"""Where things are on an image: true regions of a class, and the anatomy a class has to lie in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fx_d2.data.images import read_image
from fx_d2.data.intensity import IntensityConfig, normalise
from fx_d2.data.lesion_mix.lungs import lung_box
from fx_d2.data.lung_input import LUNG_CLASSES
from fx_d2.data.masks import MaskRef, instance_reference, load_mask
from fx_d2.data.record import Record, box_xyxy
from fx_d2.data.source import Source

Region = npt.NDArray[np.bool_]
Size = tuple[int, int]  # height, width

# A region by the names its masks may have in a record.
_ANATOMY = {
    "lungs": LUNG_CLASSES,
    "heart": ("Heart",),
}


def truth_of(
    name: str, record: Record, source: Source, original: Size, size: Size
) -> Region | None:
    """Where a class truly is, on the grid of a map: every cell that it touches.

    Args:
        name: of the class in the boxes or masks of the source.
        record: of the image.
        source: its row.
        original: of the image.
        size: of the map.

    Returns:
        Bool of ``size``; None where the record has neither box nor mask of the class.
    """
    found: list[Region] = []
    if name in source.thing_classes:
        number = source.thing_classes.index(name)
        for annotation in record.get("annotations", ()):
            if annotation["category_id"] != number:
                continue
            reference = annotation.get("segmentation")
            if reference:
                found.append(_mask(instance_reference(reference), source, original, size))
            else:
                found.append(_box(box_xyxy(annotation), original, size))
    if name in record.get("masks", {}):
        found.append(_mask(record["masks"][name], source, original, size))
    region = np.any(found, axis=0) if found else None
    return region if region is not None and region.any() else None


def anatomy_of(
    name: str, record: Record, source: Source, original: Size, size: Size
) -> Region | None:
    """A region of the body on the grid of a map, or None where it is not known.

    ``lungs`` and ``heart`` are the masks of the record; without them the lungs are the box around
    them that is seen in the image. Any other name is that of a mask of the record.

    Args:
        name: of the region.
        record: of the image.
        source: its row.
        original: of the image.
        size: of the map.
    """
    masks: dict[str, Any] = record.get("masks", {})
    there = [masks[c] for c in _ANATOMY.get(name, (name,)) if c in masks]
    if there:
        region: Region = np.any([_mask(ref, source, original, size) for ref in there], axis=0)
        return region if region.any() else None
    if name != "lungs":
        return None
    box = lung_box(normalise(read_image(record["file_name"]), IntensityConfig()))
    if box is None:
        return None
    return _box(box, (1, 1), size)


def _mask(reference: MaskRef, source: Source, original: Size, size: Size) -> Region:
    full = load_mask(reference, *original, resize=source.resize_masks)
    cover = cv2.resize(full.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return cover > 1e-6


def _box(box: Iterable[float], original: Size, size: Size) -> Region:
    scale = (size[1] / original[1], size[0] / original[0]) * 2
    x0, y0, x1, y1 = (v * s for v, s in zip(box, scale, strict=True))
    region = np.zeros(size, dtype=bool)
    region[max(0, math.floor(y0)) : math.ceil(y1), max(0, math.floor(x0)) : math.ceil(x1)] = True
    return region
