"""A consensus map to pixel labels: foreground, background, or neither (255, ignored).

All numbers are a reconstruction: DoLL names none. What is neither is left out of every loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .consensus import Consensus, otsu, top_quantile

IGNORE = 255
# What became of a channel.
KEPT, NEGATIVE = "kept", "negative"
UNKNOWN, UNCERTAIN, CONTRADICTED = "unknown", "uncertain", "contradicted"
LOW_PROBABILITY, NO_FOREGROUND, NO_REGION = "low probability", "no foreground", "no region"
STATES = (
    *(KEPT, NEGATIVE, UNKNOWN, UNCERTAIN, CONTRADICTED),
    *(LOW_PROBABILITY, NO_FOREGROUND, NO_REGION),
)
_BY_CLASS = ("top_share_by", "min_prob_by", "region_by")

Labels = npt.NDArray[np.uint8]
Region = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LabelRules:
    """From maps and image labels to pixel labels.

    Args:
        top_share: foreground lies in this share of the frame with the highest consensus.
        top_share_by: class -> its own.
        otsu: whether foreground also has to be above the threshold of Otsu.
        min_agree: share of the members that have to agree on a foreground pixel.
        max_share: never more foreground than this share of the frame; the highest stays.
        background_percentile: background is what is not above this percentile of the map.
        min_component: connected foreground (8 neighbours) below this share of the frame becomes
            ignored.
        min_prob: a class is kept on an image only if the committee gives it this probability.
        min_prob_by: class -> its own.
        region_by: class -> name of a region (such as ``lungs``) that its foreground has to lie in.
        no_region: an image on which that region is not known: the channel is ignored (``ignore``)
            or not gated (``ungated``).
        no_finding: classes that mean "nothing found": always background, and where they are
            positive all other classes that are not labelled are background too.
        beside_no_finding: classes that say nothing about disease, which "nothing found" does not
            exclude.
    """

    top_share: float = 0.10
    top_share_by: Mapping[str, float] = field(default_factory=dict)
    otsu: bool = True
    min_agree: float = 2 / 3
    max_share: float = 0.35
    background_percentile: float = 60.0
    min_component: float = 0.0005
    min_prob: float = 0.5
    min_prob_by: Mapping[str, float] = field(default_factory=dict)
    region_by: Mapping[str, str] = field(default_factory=dict)
    no_region: str = "ignore"
    no_finding: tuple[str, ...] = ("No Finding", "No finding", "Normal")
    beside_no_finding: tuple[str, ...] = ("Support Devices",)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("min_agree", 0, 1), ("min_prob", 0, 1), ("background_percentile", 0, 100),
            ("min_component", 0, 1), ("max_share", 0, 1), ("top_share", 0, 1),
        ):  # fmt: skip
            _within(name, getattr(self, name), low, high)
        for name in ("top_share", "min_prob"):
            for cls, value in getattr(self, f"{name}_by").items():
                _within(f"{name}_by[{cls!r}]", value, 0, 1)
        for cls, value in {"": self.top_share, **self.top_share_by}.items():
            if not 0 < value <= self.max_share:
                what = f"top_share_by[{cls!r}]" if cls else "top_share"
                raise ValueError(f"{what} is {value}; allowed: (0, max_share = {self.max_share}]")
        if self.no_region not in ("ignore", "ungated"):
            raise ValueError(f"no_region is {self.no_region!r}; allowed: ignore, ungated")

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise where a rule is for a class that there is not."""
        for name in _BY_CLASS:
            for cls in getattr(self, name):
                if cls not in classes:
                    raise ValueError(
                        f"{name} names {cls!r}, which is not a class of the committee: "
                        + ", ".join(classes)
                    )

    def share_of(self, cls: str) -> float:
        """``top_share`` of a class."""
        return float(self.top_share_by.get(cls, self.top_share))

    def probability_of(self, cls: str) -> float:
        """``min_prob`` of a class."""
        return float(self.min_prob_by.get(cls, self.min_prob))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}


def _within(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value!r}; allowed: a number in [{low}, {high}]")


def channel_states(labels: Any, classes: Sequence[str], rules: LabelRules) -> list[str]:
    """What the image labels alone decide of each class; ``KEPT`` is still to be explained.

    Args:
        labels: (K,): 1 positive, 0 negative, -1 uncertain, NaN not annotated.
        classes: their names.
        rules: see there.
    """
    values = dict(zip(classes, np.asarray(labels, dtype=np.float64).tolist(), strict=True))
    healthy = any(values.get(name) == 1 for name in rules.no_finding)
    found = []
    for name, value in values.items():
        if name in rules.no_finding or value == 0:
            found.append(NEGATIVE)
        elif math.isnan(value):
            found.append(NEGATIVE if healthy and name not in rules.beside_no_finding else UNKNOWN)
        elif value == 1:
            # Two labels that cannot both be true: this one is not learned from.
            wrong = healthy and name not in rules.beside_no_finding
            found.append(CONTRADICTED if wrong else KEPT)
        else:
            found.append(UNCERTAIN)
    return found


def pixel_labels(
    found: Consensus, cls: str, rules: LabelRules, region: Region | None = None
) -> Labels:
    """uint8 (H, W) of one class that is present: 1 foreground, 0 background, 255 ignored.

    Args:
        found: the committee's maps of it.
        cls: its name.
        rules: see there.
        region: bool (H, W) that foreground has to lie in, or None. What the committee marks
            outside of it is ignored, not background: one of the two is wrong.
    """
    mean = found.mean
    if region is not None and region.shape != mean.shape:
        raise ValueError(f"the region is {region.shape}, the map {mean.shape}")
    threshold = max(top_quantile(mean, rules.share_of(cls)), otsu(mean) if rules.otsu else 0.0)
    # Shares of members are fractions such as 2/3, which floats do not hold exactly.
    front = (mean >= threshold) & (mean > mean.min()) & (found.agree >= rules.min_agree - 1e-6)
    if region is not None:
        front &= region
    front = _large(_capped(front, mean, rules.max_share), rules.min_component)
    back = (mean <= np.percentile(mean, rules.background_percentile)) & (mean < threshold)
    labels = np.full(mean.shape, IGNORE, dtype=np.uint8)
    labels[back] = 0
    labels[front] = 1
    return labels


def _capped(front: Region, mean: npt.NDArray[np.float32], max_share: float) -> Region:
    """At most ``max_share`` of the frame: the highest values; of equal ones all or none."""
    most = int(max_share * mean.size)
    if int(front.sum()) <= most:
        return front
    if not most:
        return np.zeros_like(front)
    values = np.sort(mean[front])[::-1]
    return front & (mean > values[most])


def _large(front: Region, min_component: float) -> Region:
    """Without components below a share of the frame."""
    if not front.any():
        return front
    _, names, stats, _ = cv2.connectedComponentsWithStats(front.astype(np.uint8), connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= min_component * front.size
    kept[0] = False
    return kept[names]
