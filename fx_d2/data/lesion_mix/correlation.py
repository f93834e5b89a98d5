"""How findings go together: the phi coefficient of two labels, over images that know both."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


def phi_matrix(labels: np.ndarray) -> np.ndarray:
    """(C, C) phi coefficients with a zero diagonal.

    Args:
        labels: (N, C); above 0 is positive, 0 negative, NaN and below 0 (uncertain) unknown. A pair
            is counted over the images where both are known.

    Returns:
        float64 in [-1, 1]; 0 where one of the two never varies.
    """
    labels = np.asarray(labels, dtype=np.float64)
    known = _known(labels)
    positive = (np.nan_to_num(labels) > 0).astype(np.float64) * known
    both = known.T @ known
    n11 = positive.T @ positive
    n1x = positive.T @ known  # first positive, second known
    nx1 = n1x.T
    spread = n1x * (both - n1x) * nx1 * (both - nx1)
    with np.errstate(divide="ignore", invalid="ignore"):
        phi = (both * n11 - n1x * nx1) / np.sqrt(spread)
    phi = np.where(spread > 0, phi, 0.0)
    np.fill_diagonal(phi, 0.0)
    return phi


def _known(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels, dtype=np.float64)
    return (~np.isnan(labels) & (np.nan_to_num(labels) >= 0)).astype(np.float64)


def standard_errors(labels: np.ndarray) -> np.ndarray:
    """(C, C) how far chance moves a phi coefficient: 1 / sqrt(n) where two classes are unrelated.

    Args:
        labels: as for :func:`phi_matrix`; n are the images on which both are known.
    """
    known = _known(labels)
    return 1.0 / np.sqrt(np.maximum(known.T @ known, 1.0))


def deviations(classes: int, chance: float) -> float:
    """Standard errors that the largest of all pairs passes with probability ``chance``."""
    pairs = classes * (classes - 1) / 2
    return NormalDist().inv_cdf(1 - chance / 2 / pairs) if chance > 0 and pairs else 0.0


def reliability(matrix: np.ndarray, errors: np.ndarray) -> float:
    """The share of the spread of off-diagonal elements that is not chance, from 0 to 1.

    No repetition of the measurement agrees with it better than this (Spearman's attenuation).
    """
    rows, columns = np.triu_indices(len(matrix), k=1)
    spread = float(np.abs(matrix)[rows, columns].var()) if len(rows) else 0.0
    if spread <= 0:
        return 1.0
    return max(0.0, 1.0 - float(np.square(errors[rows, columns]).mean()) / spread)


def weakened(r: float, reliable: float, classes: int, chance: float) -> float:
    """What is left of a correlation of off-diagonal elements that chance has a part in.

    Args:
        r: that would be found of many images.
        reliable: see :func:`reliability`.
        classes: of the matrix.
        chance: probability with which the elements, being so few, give less (Fisher's z).
    """
    pairs = classes * (classes - 1) / 2
    if not chance or reliable >= 1 or pairs <= 3:
        return r
    room = NormalDist().inv_cdf(1 - chance) * np.sqrt((1 - reliable) / (pairs - 3))
    return float(np.tanh(np.arctanh(np.clip(r * reliable, -0.9999, 0.9999)) - room))


def label_counts(labels: np.ndarray) -> np.ndarray:
    """int64 (C,): images on which a class is positive."""
    return (np.nan_to_num(np.asarray(labels, dtype=np.float64)) > 0).sum(axis=0)


@dataclass(frozen=True)
class Comparison:
    """Two correlation matrices, absolute values, diagonals left out.

    Args:
        max_diff: largest difference of an element, or the one furthest beyond chance.
        pair: the two classes it is between, as indices.
        pearson_r: correlation of the elements; 1 where neither matrix varies.
    """

    max_diff: float
    pair: tuple[int, int]
    pearson_r: float


def compare(
    before: np.ndarray, after: np.ndarray, by_chance: np.ndarray | None = None
) -> Comparison:
    """Compare two (C, C) matrices as figure 2d of the poster does.

    Args:
        before: of the images as they were.
        after: of all images.
        by_chance: (C, C) differences that mean nothing; the pair furthest above its own is named.
    """
    rows, columns = np.triu_indices(len(before), k=1)
    if not len(rows):
        return Comparison(0.0, (0, 0), 1.0)
    a, b = np.abs(before)[rows, columns], np.abs(after)[rows, columns]
    beyond = np.abs(a - b) - (0 if by_chance is None else by_chance[rows, columns])
    worst = int(np.argmax(beyond))
    if a.std() < 1e-12 or b.std() < 1e-12:
        r = 1.0 if np.allclose(a, b) else 0.0
    else:
        r = float(np.corrcoef(a, b)[0, 1])
    return Comparison(float(abs(a[worst] - b[worst])), (int(rows[worst]), int(columns[worst])), r)
