"""The truth sidecar: what each published file says when it is read correctly. No reader uses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from fx_d2.data.sources import get_source

THUMB_PX = 32
_CODES = {"1": 1, "0": 0, "-1": -1}


def thumb(pixels: np.ndarray) -> list[list[int]]:
    """32 x 32 area means of a displayed image, float (H, W) in [0, 1], as 0..255."""
    small = cv2.resize(
        pixels.astype(np.float32), (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA
    )
    return np.rint(np.clip(small, 0.0, 1.0) * 255.0).astype(int).tolist()


def rle(mask: np.ndarray) -> dict[str, Any]:
    """A bool (H, W) mask as COCO run lengths that JSON can hold."""
    # OpenCV transposes in blocks, several times faster than a strided copy.
    columns_first = cv2.transpose(np.ascontiguousarray(mask, dtype=np.uint8)).T
    packed = coco_mask.encode(columns_first)
    return {"size": [int(v) for v in packed["size"]], "counts": packed["counts"].decode("ascii")}


def label_dict(source_key: str, positive: Iterable[str]) -> dict[str, int | None]:
    """0 or 1 over the source's classes; a positive class must be one of them."""
    classes = get_source(source_key).cls_classes
    chosen = set(positive)
    unknown = chosen - set(classes)
    if unknown:
        raise ValueError(f"{source_key} has no class {sorted(unknown)}")
    return {name: int(name in chosen) for name in classes}


def code(text: str) -> int | None:
    """A cell of a label table (``"1.0"``, ``"0"``, ``"-1.0"``, blank) as 1, 0, -1 or None."""
    return None if text == "" else _CODES[text.removesuffix(".0")]


def box_entry(category: str, xyxy: Sequence[float]) -> dict[str, Any]:
    """One box of the sidecar."""
    return {"category": category, "xyxy": [float(v) for v in xyxy]}


def truth_row(
    *,
    image_id: str,
    file: str,
    part: str,
    pixels: np.ndarray,
    bits: int,
    patient_id: str | None = None,
    view: str | None = None,
    labels: Mapping[str, int | None] | None = None,
    boxes: Sequence[Mapping[str, Any]] | None = None,
    masks: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """One line of ``_truth/<source>.jsonl``.

    Args:
        image_id: the id the dataset itself uses.
        file: path relative to the world.
        part: published part.
        pixels: displayed image, float (H, W) in [0, 1], bright = dense.
        bits: real depth of the stored values.
        patient_id: None where the dataset does not tell.
        view: None where the dataset does not tell.
        labels: over the source's ``cls_classes``; None when it has none.
        boxes: of :func:`box_entry`; None when not annotated, ``[]`` when nothing was found.
        masks: bool (H, W) by segmentation class; None when not annotated.
    """
    return {
        "image_id": image_id,
        "file": file,
        "patient_id": patient_id,
        "part": part,
        "height": int(pixels.shape[0]),
        "width": int(pixels.shape[1]),
        "bits": bits,
        "view": view,
        "labels": None if labels is None else dict(labels),
        "boxes": None if boxes is None else [dict(box) for box in boxes],
        "masks": None if masks is None else {name: rle(mask) for name, mask in masks.items()},
        "thumb": thumb(pixels),
    }
