"""Checks of masks: readable, of the image's size, whole, and where the named structure is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from .examination import Examination
from .findings import Hit, check
from .mask_facts import MaskFact
from .rows import row_hits

MIN_PIECES = 12  # a scattered mask of fewer pieces may be real
LOOSE_SHARE = 0.5  # pieces per straight run
MIN_FILL = 0.22  # real lungs fill 0.45 to 0.75 of their bounding box, a heart more
ORGAN_SHARE = 0.9  # a class present in this share of a source's masks is a structure everybody has
_COMPACT = re.compile(r"^((left|right) lung|lungs?|heart)$", re.IGNORECASE)
MIN_MASKS = 10
# Everybody has these; a disease that nearly every patient of a small set has is still no structure.
_ANATOMY = re.compile(r"lung|heart|rib|clavicle|mediastin|airway|^[LR]\d+$", re.IGNORECASE)
MIN_BOX_IOU = 0.5


def _place(exam: Examination, fact: MaskFact) -> dict[str, Any]:
    place = exam.place(exam.entries[fact.entry])
    kind = "box mask" if fact.instance else "mask"
    place["where"] += f", {kind} {fact.name}"
    return place


def _errors(exam: Examination, kind: str, expected: str) -> Iterator[Hit]:
    for fact in exam.mask_facts:
        if fact.error_kind == kind:
            yield Hit(found=exam.relative(str(fact.error)), expected=expected, **_place(exam, fact))


@check(
    "masks/unreadable",
    "error",
    what="a mask file is missing or damaged, or an encoding cannot be decoded",
    fix="restore the mask from the original download",
    needs_pixels=True,
)
def unreadable(exam: Examination) -> Iterator[Hit]:
    """Masks that cannot be decoded."""
    yield from row_hits(exam, "masks/unreadable")
    yield from _errors(exam, "unreadable", "a mask")


@check(
    "masks/size",
    "error",
    what="a mask has another size than its image",
    fix="use image and mask of the same release; a resized image needs a resized mask",
    needs_pixels=True,
)
def wrong_size(exam: Examination) -> Iterator[Hit]:
    """Masks of another size where the source does not allow for it."""
    yield from _errors(exam, "size", "a mask of the image's size")


@check(
    "masks/frame",
    "error",
    what="run lengths or a mask crop leave the image",
    fix="check the size of the image and which run-length convention the file has",
    needs_pixels=True,
)
def out_of_frame(exam: Examination) -> Iterator[Hit]:
    """Masks that leave the frame."""
    yield from row_hits(exam, "masks/frame")
    yield from _errors(exam, "frame", "runs within the image")


@check(
    "masks/stripes",
    "error",
    what="a mask falls apart into stripes: run lengths of another axis or with wrong gaps",
    fix="check the run-length convention: relative or absolute starts, along rows or columns",
    needs_pixels=True,
)
def stripes(exam: Examination) -> Iterator[Hit]:
    """Masks whose runs lie apart from each other."""
    for fact in exam.mask_facts:
        if fact.pieces >= MIN_PIECES and fact.pieces > LOOSE_SHARE * fact.runs:
            yield Hit(
                found=f"{fact.runs} runs in {fact.pieces} separate pieces",
                expected="runs that lie beside each other",
                **_place(exam, fact),
            )


@check(
    "masks/implausible",
    "warning",
    what="a lung or heart mask that is scattered over its bounding box: sheared by a wrong image "
    "width, or not a lung",
    fix="check that the mask belongs to this image and to its size (original or resized)",
    needs_pixels=True,
)
def implausible(exam: Examination) -> Iterator[Hit]:
    """Masks of compact organs that are not compact."""
    for fact in exam.mask_facts:
        if fact.area_px and fact.fill < MIN_FILL and _COMPACT.search(fact.name):
            yield Hit(
                found=f"it covers {fact.fill:.0%} of its own bounding box",
                expected=f"at least {MIN_FILL:.0%}",
                **_place(exam, fact),
            )


@check(
    "masks/empty",
    "warning",
    what="an empty mask of a structure that nearly every image of the source shows, or of a box",
    fix="look at the image; leave the mask out (not annotated) if it was never drawn",
    needs_pixels=True,
)
def empty(exam: Examination) -> Iterator[Hit]:
    """Empty masks where emptiness is not a true negative."""
    by_class: dict[tuple[str, str], list[MaskFact]] = defaultdict(list)
    for fact in exam.mask_facts:
        if fact.error_kind:
            continue
        if fact.instance and fact.area_px == 0:
            yield Hit(found="no pixel", expected="the marked finding", **_place(exam, fact))
        elif not fact.instance and _ANATOMY.search(fact.name):
            key = exam.source_of(exam.entries[fact.entry]).key
            by_class[key, fact.name].append(fact)
    for facts in by_class.values():
        filled = sum(fact.area_px > 0 for fact in facts)
        if len(facts) < MIN_MASKS or filled < ORGAN_SHARE * len(facts):
            continue
        for fact in facts:
            if fact.area_px == 0:
                yield Hit(
                    found="no pixel",
                    expected=f"a mask, as in {filled} of {len(facts)} images",
                    **_place(exam, fact),
                )


@check(
    "masks/absent",
    "info",
    what="an image without masks in a part where nearly every other has them",
    fix="restore the mask file; the image is otherwise left out of segmentation",
    needs_pixels=True,
)
def absent(exam: Examination) -> Iterator[Hit]:
    """Images whose masks are missing although the part is annotated throughout."""
    per_entry: dict[int, set[str]] = defaultdict(set)
    for fact in exam.mask_facts:
        if not fact.instance:
            per_entry[fact.entry].add(fact.name)
    for part in exam.parts:
        everything = range(part.first, part.first + len(part.records))
        numbers = [n for n in everything if exam.facts.decoded[exam.entries[n].file]]
        if not part.source.seg_classes or len(numbers) < MIN_MASKS:
            continue
        for name in filter(_ANATOMY.search, part.source.seg_classes):
            without = [n for n in numbers if name not in per_entry[n]]
            if not 0 < len(without) <= (1 - ORGAN_SHARE) * len(numbers):
                continue
            for n in without:
                place = exam.place(exam.entries[n])
                place["where"] += f", mask {name}"
                there = len(numbers) - len(without)
                yield Hit(
                    found="not annotated",
                    expected=f"a mask, as in {there} of {len(numbers)} images",
                    **place,
                )


@check(
    "masks/sides",
    "error",
    what="a left structure lies left of its right counterpart: sides exchanged, or image mirrored",
    fix="exchange the two classes, or flip image and masks together (the patient faces the viewer)",
    needs_pixels=True,
)
def sides(exam: Examination) -> Iterator[Hit]:
    """Left and right masks of one image that lie the wrong way round."""
    centres: dict[int, dict[str, MaskFact]] = defaultdict(dict)
    for fact in exam.mask_facts:
        if fact.area_px:
            centres[fact.entry][fact.name] = fact
    for facts in centres.values():
        for name, left in facts.items():
            other = _counterpart(name)
            if other in facts and left.x < facts[other].x:
                yield Hit(
                    found=f"{name} at {left.x:.0%} of the width, {other} at {facts[other].x:.0%}",
                    expected=f"{name} further right in the picture",
                    **_place(exam, left),
                )


@check(
    "masks/box",
    "warning",
    what="the masks of a part and its boxes are not in the same place",
    fix="check that both belong to the same image size and that the run-length convention is right",
    needs_pixels=True,
)
def mask_and_box(exam: Examination) -> Iterator[Hit]:
    """Segmentations whose own box differs from the annotated one."""
    for fact in exam.mask_facts:
        if fact.instance and fact.area_px and fact.box_iou < MIN_BOX_IOU:
            yield Hit(
                found=f"the mask's own box overlaps the annotated one by IoU {fact.box_iou:.2f}",
                expected=f"at least {MIN_BOX_IOU}",
                **_place(exam, fact),
            )


def _counterpart(name: str) -> str | None:
    """The right-hand class of a left-hand one (``Left Lung``, ``left clavicle``, rib ``L3``)."""
    for left, right in (("Left ", "Right "), ("left ", "right ")):
        if name.startswith(left):
            return right + name[len(left) :]
    if name.startswith("L") and name[1:].isdigit():
        return "R" + name[1:]
    return None
