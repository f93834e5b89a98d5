"""Figures about a heat map: does it lie in the lungs, on the lesion, over how much lung.

All of them take maps and masks in pixels of the film. None says whether a model is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fx_d2.data.masks import instance_reference, load_mask
from fx_d2.data.record import Record, box_xyxy
from fx_d2.data.source import Source

from .stages import Grey, LungMask, Mask

SEVERITY_NOTE = (
    "The severity score is a heuristic: the share of the lung area where the heat map is at least "
    "{level:g} of its maximum. It was not compared with any clinical score."
)
_ORGANS = ("lung", "heart", "clavicle", "cardiomediastinum", "airway", "tube", "line", "probe")


def share_within(values: Grey, region: Mask) -> float:
    """Share of a map's sum that lies in a region; NaN for a map of zeros.

    Args:
        values: (height, width), >= 0.
        region: bool (height, width).
    """
    total = float(values.sum(dtype=np.float64))
    return float(values[region].sum(dtype=np.float64)) / total if total > 0 else math.nan


def even_share(region: Mask, seen: Mask) -> float:
    """What :func:`share_within` is for a map that is even over what the classifier saw: chance.

    Args:
        region: bool (height, width).
        seen: bool (height, width), not empty.
    """
    return float((region & seen).sum() / seen.sum())


def severity(values: Grey, lungs: Mask, level: float) -> float:
    """HEURISTIC: share of the lung area where a map is at least ``level`` of its maximum.

    The maximum is that within the lungs and outside. NaN without lungs; 0 for a map of zeros.

    Args:
        values: (height, width), >= 0.
        lungs: bool (height, width).
        level: within (0, 1].
    """
    if not 0 < level <= 1:
        raise ValueError(f"level is {level}; allowed: above 0, up to 1")
    area = int(lungs.sum())
    if not area:
        return math.nan
    top = float(values.max(initial=0))
    return float((values[lungs] >= level * top).sum() / area) if top > 0 else 0.0


@dataclass(frozen=True)
class LesionEvidence:
    """A map beside one true region.

    Args:
        cls: the class of the truth.
        explained: the class of the map.
        energy: share of the map within the region.
        chance: that of a map that is even over what the classifier saw.
        in_lungs: that of a map that is even over the lungs; NaN where it saw none. What exceeds
            chance alone may show no more than that the lungs were looked at.
        hit: whether the map's maximum lies in the region.
    """

    cls: str
    explained: str
    energy: float
    chance: float
    in_lungs: float
    hit: bool


def lesion_evidence(
    cls: str, explained: str, values: Grey, lesion: Mask, seen: Mask, lungs: Mask
) -> LesionEvidence:
    """Compare a map with a true region.

    Args:
        cls: the class of the truth.
        explained: the class of the map.
        values: (height, width) of the film.
        lesion: bool, likewise.
        seen: bool, likewise: what the classifier was shown.
        lungs: bool, likewise.
    """
    there = lungs & seen
    place = np.unravel_index(int(values.argmax()), values.shape)
    return LesionEvidence(
        cls,
        explained,
        energy=share_within(values, lesion),
        chance=even_share(lesion, seen),
        in_lungs=even_share(lesion, there) if there.any() else math.nan,
        hit=bool(values[place] > 0 and lesion[place]),
    )


def lesions_of(record: Record, source: Source, size: tuple[int, int]) -> dict[str, Mask]:
    """{class: bool (height, width)} of all lesions that a record has boxes or masks of.

    A box counts as its rectangle; organs and tubes are left out; so are classes without a pixel.

    Args:
        record: with ``annotations`` or ``masks``.
        source: its row.
        size: (height, width) of the film.
    """
    found: dict[str, Mask] = {}
    for annotation in record.get("annotations", ()):
        name = source.thing_classes[annotation["category_id"]]
        region = found.setdefault(name, np.zeros(size, dtype=bool))
        reference = annotation.get("segmentation")
        if reference:
            mask = load_mask(instance_reference(reference), *size, resize=source.resize_masks)
            region |= mask
        else:
            x0, y0, x1, y1 = (round(value) for value in box_xyxy(annotation))
            region[max(y0, 0) : y1, max(x0, 0) : x1] = True
    for name, reference in record.get("masks", {}).items():
        if not any(word in name.lower() for word in _ORGANS):
            mask = load_mask(reference, *size, resize=source.resize_masks)
            found[name] = found.get(name, np.zeros(size, dtype=bool)) | mask
    return {name: region for name, region in found.items() if region.any()}


@dataclass(frozen=True)
class LungLimits:
    """What a plausible lung mask looks like.

    Args:
        min_area, max_area: share of the film. Adult frontal films have about 0.2 to 0.5.
    """

    min_area: float = 0.1
    max_area: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.min_area < self.max_area <= 1:
            raise ValueError(
                f"lung areas from {self.min_area} to {self.max_area}; allowed: 0 <= low < high <= 1"
            )


@dataclass(frozen=True)
class Remark:
    """Something a person should look at.

    Args:
        kind: what remarks are counted by.
        text: a sentence.
    """

    kind: str
    text: str


def lung_remarks(lungs: LungMask, limits: LungLimits) -> list[Remark]:
    """What is implausible about a lung mask; nothing where it is empty, which is another matter."""
    if not lungs.mask.any():
        return []
    said = []
    area, pieces, edges = lungs.area, lungs.pieces(), lungs.edges()
    if not limits.min_area <= area <= limits.max_area:
        plausible = f"{limits.min_area:.0%} to {limits.max_area:.0%}"
        text = f"lung mask covers {area:.1%} of the film; plausible are {plausible}"
        said.append(Remark("lung area", text))
    if len(pieces) != 2:
        what = "1 piece" if len(pieces) == 1 else f"{len(pieces)} pieces"
        said.append(Remark("lung pieces", f"lung mask has {what} instead of two"))
    if edges:
        text = f"lung mask runs into the frame: {', '.join(edges)}"
        said.append(Remark("lungs at the frame", text))
    return said


def evidence_remark(
    cls: str, probability: float, in_lung: float, min_in_lung: float
) -> Remark | None:
    """A positive score that the lungs do not explain; None where they do.

    Args:
        cls: the class that is called present.
        probability: of it.
        in_lung: share of its map in the lungs; NaN for a map of zeros.
        min_in_lung: what that has to be, at least.
    """
    kind = "no evidence in the lungs"
    if math.isnan(in_lung):
        return Remark(kind, f"{cls} {probability:.2f} without evidence: its heat map is empty")
    if in_lung < min_in_lung:
        text = (
            f"{cls} {probability:.2f}, but only {in_lung:.0%} of its heat map lies in the lungs; "
            f"at least {min_in_lung:.0%} is expected"
        )
        return Remark(kind, text)
    return None
