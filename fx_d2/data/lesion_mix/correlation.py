"""How findings go together: the phi coefficient of two labels, over images that know both."""

from __future__ import annotations

from dataclasses import dataclass

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
    known = (~np.isnan(labels) & (np.nan_to_num(labels) >= 0)).astype(np.float64)
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


def label_counts(labels: np.ndarray) -> np.ndarray:
    """int64 (C,): images on which a class is positive."""
    return (np.nan_to_num(np.asarray(labels, dtype=np.float64)) > 0).sum(axis=0)


@dataclass(frozen=True)
class Comparison:
    """Two correlation matrices, absolute values, diagonals left out.

    Args:
        max_diff: largest difference of an element.
        pair: the two classes it is between, as indices.
        pearson_r: correlation of the elements; 1 where neither matrix varies.
    """

    max_diff: float
    pair: tuple[int, int]
    pearson_r: float


def compare(before: np.ndarray, after: np.ndarray) -> Comparison:
    """Compare two (C, C) matrices as figure 2d of the poster does."""
    rows, columns = np.triu_indices(len(before), k=1)
    if not len(rows):
        return Comparison(0.0, (0, 0), 1.0)
    a, b = np.abs(before)[rows, columns], np.abs(after)[rows, columns]
    worst = int(np.argmax(np.abs(a - b)))
    if a.std() < 1e-12 or b.std() < 1e-12:
        r = 1.0 if np.allclose(a, b) else 0.0
    else:
        r = float(np.corrcoef(a, b)[0, 1])
    return Comparison(float(abs(a[worst] - b[worst])), (int(rows[worst]), int(columns[worst])), r)
