"""What is known of a mixed image, by class name, and the record that any row makes of it.

Truth is kept by name because one written dataset can be read as a split of the base source (its
image labels) and as a source of its own (boxes and masks too).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..masks import MaskRef, empty_mask, encode_mask
from ..record import XYXY_ABS, Record
from ..source import Source
from .place import IntBox


@dataclass(frozen=True)
class Lesion:
    """A pasted lesion.

    Args:
        label: its class, a label of the base source.
        box: (x0, y0, x1, y1) in pixels of the result, tight around what was pasted.
        mask: bool (h, w) of ``box``, or None where only a box is known.
        weight: of its pixels.
        patch: its number in the bank.
    """

    label: str
    box: IntBox
    mask: npt.NDArray[np.bool_] | None
    weight: float
    patch: int

    def reference(self, size: tuple[int, int]) -> MaskRef | None:
        """The mask in the frame (height, width) of the image."""
        return None if self.mask is None else encode_mask(self.placed(size))

    def placed(self, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Its pixels in the frame, bool (H, W)."""
        whole = np.zeros(size, dtype=bool)
        x0, y0, x1, y1 = self.box
        whole[y0:y1, x0:x1] = True if self.mask is None else self.mask
        return whole


@dataclass
class Truth:
    """All that is known of a mixed image.

    Args:
        size: (height, width).
        labels: float32 (C,) over the base source's ``cls_classes``.
        lesions: what was pasted.
        boxes: the base's own as (class, box, mask or None), or None: not annotated.
        masks: the base's own by class, those known to be absent included.
    """

    size: tuple[int, int]
    labels: npt.NDArray[np.float32]
    lesions: list[Lesion]
    boxes: list[tuple[str, tuple[float, float, float, float], MaskRef | None]] | None = None
    masks: dict[str, MaskRef] = field(default_factory=dict)

    def to_row(self, *, masks: bool = True) -> dict[str, Any]:
        """As JSON: labels, boxes and masks by name; encoding masks can be left out."""
        boxes = None
        if self.boxes is not None:
            boxes = [_box_row(*entry) for entry in self.boxes]
            boxes += [
                _box_row(x.label, x.box, x.reference(self.size) if masks else None)
                for x in self.lesions
            ]
        found = self.all_masks() if masks else {}
        return {
            "height": self.size[0],
            "width": self.size[1],
            "pasted": [
                {"class": x.label, "box": list(x.box), "weight": x.weight} for x in self.lesions
            ],
            "labels": [None if np.isnan(v) else round(float(v), 6) for v in self.labels],
            "boxes": boxes,
            "masks": {n: _plain(ref) for n, ref in found.items() if ref != empty_mask()},
            "absent": [n for n, ref in found.items() if ref == empty_mask()],
        }

    def all_masks(self) -> dict[str, MaskRef]:
        """The base's masks and what was pasted; a class with a lesion of unknown shape is out."""
        result = dict(self.masks)
        for label in dict.fromkeys(lesion.label for lesion in self.lesions):
            ours = [lesion for lesion in self.lesions if lesion.label == label]
            if label not in result or any(lesion.mask is None for lesion in ours):
                result.pop(label, None)
                continue
            pasted = np.any([lesion.placed(self.size) for lesion in ours], axis=0)
            refs = [encode_mask(pasted)]
            if result[label] != empty_mask():
                refs.insert(0, result[label])
            result[label] = refs[0] if len(refs) == 1 else {"union": refs}
        return result


def _box_row(name: str, box: Any, mask: MaskRef | None) -> dict[str, Any]:
    row: dict[str, Any] = {"class": name, "box": [float(v) for v in box]}
    if mask is not None:
        row["mask"] = _plain(mask)
    return row


def _plain(ref: Any) -> Any:
    """A mask reference that JSON can hold."""
    if isinstance(ref, bytes):
        return ref.decode("ascii")
    if isinstance(ref, dict):
        return {key: _plain(value) for key, value in ref.items()}
    if isinstance(ref, (list, tuple)):
        return [_plain(value) for value in ref]
    return ref.item() if isinstance(ref, np.generic) else ref


def record_of(row: dict[str, Any], source: Source, *, masks: bool = True) -> Record:
    """The truth keys of a record: what ``source`` has classes for.

    Args:
        row: of :meth:`Truth.to_row`.
        source: whose classes count; its ``cls_classes`` are those of the base source.
        masks: whether ``masks`` is filled in.
    """
    record: Record = {
        "source": source.key,
        "height": row["height"],
        "width": row["width"],
        "labels": np.array([np.nan if v is None else v for v in row["labels"]], dtype=np.float32),
        "synthetic": True,
        "pasted": [list(entry["box"]) for entry in row["pasted"]],
    }
    if source.thing_classes and row["boxes"] is not None:
        record["annotations"] = [
            _annotation(entry, source)
            for entry in row["boxes"]
            if entry["class"] in source.thing_classes
        ]
        if source.instance_masks and any("segmentation" not in a for a in record["annotations"]):
            del record["annotations"]  # a target without its mask would teach an empty one
    if masks and source.seg_classes:
        found = {**row["masks"], **{name: empty_mask() for name in row["absent"]}}
        known = {name: found[name] for name in source.seg_classes if name in found}
        if known:
            record["masks"] = known
    return record


def _annotation(entry: dict[str, Any], source: Source) -> dict[str, Any]:
    annotation = {
        "bbox": list(entry["box"]),
        "bbox_mode": XYXY_ABS,
        "category_id": source.thing_classes.index(entry["class"]),
        "iscrowd": 0,
    }
    if "mask" in entry:
        annotation["segmentation"] = entry["mask"]
    return annotation
