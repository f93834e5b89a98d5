"""One mask from those of several models, and what is done to a lung mask afterwards.

Arrays in, arrays out: nothing here knows a model or a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fx_d2.data.errors import did_you_mean

Mask = npt.NDArray[np.bool_]  # (H, W)
Probabilities = npt.NDArray[np.floating[Any]]  # (M, H, W) in [0, 1]

# Patterns of votes are counted, so that the work does not grow with the image: 2^M of them.
_MAX_RATERS = 16
_EPSILON = 1e-6


@dataclass(frozen=True)
class Staple:
    """What STAPLE makes of the votes of several raters.

    Attributes:
        probability: float64 (H, W), that the hidden true mask has the pixel.
        sensitivity: (M,) share of the true mask that each rater marks.
        specificity: (M,) share of the rest, within the frame of all marks, that each leaves out.
        iterations: until nothing changed any more.
        converged: whether it came to that.
    """

    probability: npt.NDArray[np.float64]
    sensitivity: npt.NDArray[np.float64]
    specificity: npt.NDArray[np.float64]
    iterations: int
    converged: bool


def staple(
    votes: npt.NDArray[np.bool_], *, max_iters: int = 200, tolerance: float = 1e-6
) -> Staple:
    """Estimate a hidden mask and the quality of its raters together (Warfield et al., 2004).

    Only the smallest frame that holds every mark takes part: with all of an empty background the
    specificity of anybody is near 1, and the result that of a union. The prior is the mean vote
    there.

    Args:
        votes: (M, H, W), what each of at most 16 raters marks.
        max_iters: of the expectation-maximisation.
        tolerance: largest change of a sensitivity or specificity that counts as none.
    """
    votes = np.asarray(votes)
    if votes.ndim != 3 or not votes.size or votes.dtype != bool:
        raise ValueError(
            f"votes of {votes.dtype} {votes.shape}; expected bool (raters, height, width)"
        )
    raters = len(votes)
    if raters > _MAX_RATERS:
        raise ValueError(f"{raters} raters; staple takes at most {_MAX_RATERS}")
    probability = np.zeros(votes.shape[1:])
    marked = votes.any(axis=0)
    if not marked.any():
        nothing = np.full(raters, np.nan)
        return Staple(probability, nothing, np.ones(raters), 0, True)
    rows, columns = (np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0))
    frame = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    codes = np.zeros(marked[frame].shape, dtype=np.int64)
    for rater, vote in enumerate(votes):
        codes |= vote[frame].astype(np.int64) << rater
    counts = np.bincount(codes.ravel(), minlength=2**raters).astype(np.float64)
    patterns = (np.arange(2**raters)[:, None] >> np.arange(raters)) & 1  # (2^M, M)
    prior = _inside((counts @ patterns).sum() / (counts.sum() * raters))

    sensitivity = specificity = np.full(raters, 0.99)  # better than chance: which side is the mask
    weight = np.zeros(len(counts))
    step, change = 0, np.inf
    while step < max_iters and change > tolerance:
        step += 1
        p, q = _inside(sensitivity), _inside(specificity)
        there = np.log(prior) + patterns @ np.log(p) + (1 - patterns) @ np.log(1 - p)
        absent = np.log(1 - prior) + patterns @ np.log(1 - q) + (1 - patterns) @ np.log(q)
        weight = 1 / (1 + np.exp(np.clip(absent - there, -700, 700)))
        mask, rest = counts * weight, counts * (1 - weight)
        new_p = (mask @ patterns) / max(mask.sum(), _EPSILON)
        new_q = (rest @ (1 - patterns)) / max(rest.sum(), _EPSILON)
        change = max(np.abs(new_p - sensitivity).max(), np.abs(new_q - specificity).max())
        sensitivity, specificity = new_p, new_q
    probability[frame] = weight[codes]
    return Staple(probability, sensitivity, specificity, step, bool(change <= tolerance))


def _inside(value: Any) -> Any:
    """Away from 0 and 1, whose logarithms would settle everything."""
    return np.clip(value, _EPSILON, 1 - _EPSILON)


def _union(given: Probabilities, threshold: float) -> Mask:
    return given.max(axis=0) >= threshold


def _majority(given: Probabilities, threshold: float) -> Mask:
    return 2 * (given >= threshold).sum(axis=0) > len(given)


def _mean(given: Probabilities, threshold: float) -> Mask:
    return given.mean(axis=0, dtype=np.float32) >= threshold


def _intersection(given: Probabilities, threshold: float) -> Mask:
    return given.min(axis=0) >= threshold


def _staple(given: Probabilities, threshold: float) -> Mask:
    return staple(given >= threshold).probability >= 0.5


# The document only says that its rule loses no lung, which is the union; the others are measured
# beside it. "majority" is more than half of the models.
RULES: dict[str, Callable[[Probabilities, float], Mask]] = {
    "union": _union,
    "majority": _majority,
    "mean": _mean,
    "intersection": _intersection,
    "staple": _staple,
}


def combine(probabilities: Probabilities, rule: str, threshold: float = 0.5) -> Mask:
    """One mask from those of several models.

    Args:
        probabilities: (M, H, W), of M models; bool counts as 0 and 1.
        rule: a key of :data:`RULES`.
        threshold: probability from which a pixel belongs to a mask, in (0, 1].
    """
    given = np.asarray(probabilities)
    if given.ndim != 3 or not given.size:
        raise ValueError(f"masks of shape {given.shape}; expected (models, height, width)")
    if given.dtype == bool:
        given = given.astype(np.float32)
    if given.dtype.kind != "f" or not (given.min() >= 0 and given.max() <= 1):
        raise ValueError(f"masks of {given.dtype}; expected bool or probabilities from 0 to 1")
    check_rule(rule)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; allowed: above 0, at most 1")
    return RULES[rule](given, threshold)


def check_rule(rule: str) -> None:
    """Raise for a rule that does not exist."""
    if rule not in RULES:
        near = did_you_mean(rule, RULES)
        raise ValueError(f"no rule {rule!r}.{near} Rules are {', '.join(RULES)}")


@dataclass(frozen=True)
class Cleaning:
    """What becomes of a lung mask after the models, in this order.

    Args:
        components: largest connected parts (of eight neighbours) that are kept; 0 keeps all.
        least: a part smaller than this share of the largest is a speck, not a lung.
        fill: enclosed background of at most this share of the mask becomes mask. A larger one is
            what lies between two lungs whose masks touch above and below the heart.
        dilate: by this share of the image's longer side the mask grows, so that lung at its border
            is not lost; below one pixel it does nothing. A reconstruction of the document's wish:
            0.005 is about a pixel of a network of 256, by which a mask may well end short, and
            costs a twentieth of the lungs' area where it does not. 0.02 costs a quarter.
    """

    components: int = 2
    least: float = 0.05
    fill: float = 0.1
    dilate: float = 0.005

    def __post_init__(self) -> None:
        if self.components < 0:
            raise ValueError(f"components is {self.components}; it is at least 0")
        for name, most in (("least", 1.0), ("fill", 1.0), ("dilate", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: from 0 to {most:g}")

    def __call__(self, mask: Mask) -> Mask:
        """A new bool (H, W)."""
        mask = np.asarray(mask)
        if mask.ndim != 2 or mask.dtype != bool:
            raise ValueError(f"a mask of {mask.dtype} {mask.shape}; expected bool (height, width)")
        if not mask.any():
            return mask.copy()
        mask = _largest(mask, self.components, self.least)
        if self.fill:
            mask = _filled(mask, self.fill * np.count_nonzero(mask))
        return _dilated(mask, self.dilate * max(mask.shape)) if self.dilate else mask


def _largest(mask: Mask, count: int, least: float) -> Mask:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = np.argsort(-areas, kind="stable")  # of equal ones that which begins higher up
    kept = [i + 1 for i in order[: count or None] if areas[i] >= least * areas.max()]
    return np.isin(labels, kept)


def _filled(mask: Mask, most_px: float) -> Mask:
    """Background without a way to the border of the image becomes mask, if it is small enough."""
    # With a frame around it: what a lung cuts off by reaching the border of the image is outside.
    around = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(around, connectivity=4)
    holes = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] <= most_px)
    holes = holes[(holes != 0) & (holes != labels[0, 0])]  # 0 is the mask itself
    return mask | np.isin(labels, holes)[1:-1, 1:-1]


def _dilated(mask: Mask, radius_px: float) -> Mask:
    """Every pixel whose centre is at most ``radius_px`` from that of one in the mask."""
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= radius_px + 1e-4
