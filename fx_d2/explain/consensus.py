"""Maps of several classifiers to one: clipped, scaled, averaged, and where they agree.

Cross-model consensus averages the maps of a committee, because what one member gets wrong the
others do not repeat. The clip and the scale are a reconstruction of DoLL, which states neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MEMBER_THRESHOLDS = ("otsu", "quantile", "both")
_BINS = 256
Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ConsensusSettings:
    """How maps are made comparable and when a member votes for a pixel.

    Args:
        clip_percentile: values above this percentile of a map are cut to it, so that a few grains
            do not decide about its scale; 100 cuts nothing.
        member_threshold: a member's own threshold: ``otsu`` of its map, the ``quantile`` that
            leaves ``member_share`` of the frame above it, or the higher one of ``both``.
        member_share: see there, in (0, 1].
    """

    clip_percentile: float = 99.0
    member_threshold: str = "otsu"
    member_share: float = 0.2

    def __post_init__(self) -> None:
        if not 50 <= self.clip_percentile <= 100:
            raise ValueError(f"clip_percentile is {self.clip_percentile}; allowed: [50, 100]")
        if self.member_threshold not in MEMBER_THRESHOLDS:
            raise ValueError(
                f"member_threshold is {self.member_threshold!r}; allowed: "
                + ", ".join(MEMBER_THRESHOLDS)
            )
        if not 0 < self.member_share <= 1:
            raise ValueError(f"member_share is {self.member_share}; allowed: (0, 1]")


@dataclass(frozen=True)
class Consensus:
    """What a committee says about one class of one image.

    Args:
        scaled: (M, H, W) float32 in [0, 1], of every member.
        mean: (H, W) float32 in [0, 1].
        agree: (H, W) float32 in [0, 1], share of the members above their own threshold.
        n_members: how many take part (those with a weight above 0).
    """

    scaled: Map
    mean: Map
    agree: Map
    n_members: int


def scaled(values: Any, clip_percentile: float = 99.0) -> Map:
    """A map clipped at a percentile and brought to [0, 1]; a map without contrast becomes 0.

    Args:
        values: (H, W), finite; array or tensor.
        clip_percentile: see :class:`ConsensusSettings`. Where nearly all of the map is flat, so
            that its percentile is its minimum, the maximum is taken instead.
    """
    flat = _finite(values)
    low, high = float(flat.min()), float(np.percentile(flat, clip_percentile))
    if high <= low:
        high = float(flat.max())
    if high <= low:
        return np.zeros(flat.shape, dtype=np.float32)
    return ((np.minimum(flat, high) - low) / (high - low)).astype(np.float32)


def otsu(values: Map) -> float:
    """The threshold that parts a map in [0, 1] best in two (Otsu); above 1 where it is flat."""
    if float(values.max()) <= float(values.min()):
        return 2.0
    counts, edges = np.histogram(values, bins=_BINS, range=(0.0, 1.0))
    share = counts / counts.sum()
    centres = (edges[:-1] + edges[1:]) / 2
    below, moment = np.cumsum(share), np.cumsum(share * centres)
    above = 1 - below
    parted = (below > 0) & (above > 1e-12)
    between = np.full(_BINS, -1.0)
    gap = moment[-1] * below[parted] - moment[parted]
    between[parted] = gap**2 / (below[parted] * above[parted])
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    # Between two modes every threshold is as good: the middle of them.
    return float(edges[int(best[len(best) // 2]) + 1])


def top_quantile(values: Map, share: float) -> float:
    """The value that ``share`` of the pixels reach, at least one of them."""
    count = max(1, int(round(share * values.size)))
    return float(np.partition(values, values.size - count, axis=None)[values.size - count])


def consensus(
    maps: Any, weights: Any = None, settings: ConsensusSettings = ConsensusSettings()
) -> Consensus:
    """The consensus of one class of one image.

    Args:
        maps: (M, H, W) of the members, finite; array or tensor.
        weights: (M,), at least one above 0; None weighs all alike. A member of weight 0 neither
            counts in the mean nor votes.
        settings: see there.
    """
    given = np.asarray(maps, dtype=np.float32)
    if given.ndim != 3 or not given.size:
        raise ValueError(f"maps of shape {given.shape}; expected (members, height, width)")
    share = np.ones(len(given)) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (len(given),) or not np.isfinite(share).all() or (share < 0).any():
        raise ValueError(f"weights {share.tolist()}; expected {len(given)} numbers from 0 up")
    if not share.any():
        raise ValueError("no member has a weight above 0")
    each = np.stack([scaled(single, settings.clip_percentile) for single in given])
    mean = np.tensordot(share / share.sum(), each.astype(np.float64), axes=1).astype(np.float32)
    voting = np.flatnonzero(share > 0)
    votes = [each[m] >= member_threshold(each[m], settings) for m in voting]
    return Consensus(each, mean, np.mean(votes, axis=0, dtype=np.float64).astype(np.float32),
                     len(voting))  # fmt: skip


def member_threshold(values: Map, settings: ConsensusSettings) -> float:
    """From which value on a member votes for a pixel of its scaled map.

    A map without contrast votes nowhere.
    """
    if float(values.max()) <= float(values.min()):
        return 2.0
    found = []
    if settings.member_threshold in ("otsu", "both"):
        found.append(otsu(values))
    if settings.member_threshold in ("quantile", "both"):
        found.append(top_quantile(values, settings.member_share))
    return max(found)


def _finite(values: Any) -> Map:
    found = np.asarray(values, dtype=np.float32)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"a map of shape {found.shape}; expected (height, width)")
    if not np.isfinite(found).all():
        raise ValueError("a map has values that are not numbers")
    return found
