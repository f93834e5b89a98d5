"""Area under the ROC curve and average precision, weighted, for many sets of weights at once.

A bootstrap by patient needs both a thousand times for every class. A replicate is a column of
weights (how often each patient was drawn), and one sparse product turns all columns into the
weight between neighbouring positives, which is all that either area depends on.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy import sparse
from tqdm import tqdm

from fx_d2.data.draws import rng_for

_MAX_CELLS = 4_000_000  # of one intermediate array; bounds the memory


def areas(
    scores: np.ndarray, truth: np.ndarray, owner: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and average precision of one class, for every column of ``weights``.

    Equal scores are one step of the curve (as in scikit-learn), so neither figure depends on the
    order of the images.

    Args:
        scores: (N,) float.
        truth: (N,) bool.
        owner: (N,) row of ``weights`` that an image takes its weight from.
        weights: (P, B) non-negative.

    Returns:
        Two arrays (B,); NaN where the weighted images are all positive or all negative.
    """
    order = np.argsort(-scores, kind="stable")
    truth, owner = truth[order], owner[order]
    tied = np.concatenate([[0], np.cumsum(np.diff(scores[order]) != 0)])
    steps = int(tied[-1]) + 1
    positive_step = np.zeros(steps, dtype=bool)
    positive_step[tied[truth]] = True
    # Negatives between two steps that hold a positive can be taken together: one bin before each
    # such step, one for the step itself, one after the last.
    bin_of_step = 2 * np.cumsum(positive_step) - positive_step.astype(np.int64)
    bins = bin_of_step[tied]
    shape = (int(bin_of_step[-1]) + 1, len(weights))
    n_columns = weights.shape[1]
    chunk = max(1, _MAX_CELLS // shape[0])
    auc, precision = np.empty(n_columns), np.empty(n_columns)
    of_positives = _counts(bins[truth], owner[truth], shape)
    of_negatives = _counts(bins[~truth], owner[~truth], shape)
    for start in range(0, n_columns, chunk):
        part = weights[:, start : start + chunk]
        auc[start : start + chunk], precision[start : start + chunk] = _areas_of_bins(
            of_positives @ part, of_negatives @ part
        )
    return auc, precision


def _counts(bins: np.ndarray, owner: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    return sparse.coo_array((np.ones(len(bins)), (bins, owner)), shape=shape).tocsr()


def _areas_of_bins(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC and AP (B,) from the weights (bins, B) at falling score."""
    tp, fp = np.cumsum(positives, axis=0), np.cumsum(negatives, axis=0)
    total_p, total_n = tp[-1], fp[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = ((tp - positives / 2) * negatives).sum(axis=0) / (total_p * total_n)
        precision = np.where(positives > 0, tp / (tp + fp), 0.0)
        average = (precision * positives).sum(axis=0) / total_p
    bad = (total_p <= 0) | (total_n <= 0)
    auc[bad], average[bad] = np.nan, np.nan
    return auc, average


def replicates(
    scores: np.ndarray,
    truth: np.ndarray,
    patients: np.ndarray,
    *,
    n: int,
    seed: int,
    name: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and AP of every class in ``n`` bootstrap replicates by patient.

    A replicate draws as many patients as there are, with all their images, the same for all
    classes: a mean over classes is taken within a replicate.

    Args:
        scores: (N, C).
        truth: (N, C) of 0, 1 and NaN.
        patients: (N,) number of the patient, 0..P-1.
        n: replicates.
        seed: of the draws.
        name: shown at the progress bar; also part of the position of the draws.

    Returns:
        Two arrays (n, C); NaN where a replicate has one label value only.
    """
    n_patients = int(patients.max()) + 1
    n_classes = scores.shape[1]
    auc, average = np.full((n, n_classes), np.nan), np.full((n, n_classes), np.nan)
    rng = rng_for(seed, "bootstrap", name)
    chunk = max(1, _MAX_CELLS // n_patients)
    with tqdm(
        total=n * n_classes, desc=f"bootstrap {name}", delay=2, file=sys.stderr, unit=" curves"
    ) as bar:
        for start in range(0, n, chunk):
            size = min(chunk, n - start)
            drawn = rng.integers(n_patients, size=(size, n_patients))
            drawn += np.arange(size)[:, None] * n_patients
            weights = np.bincount(drawn.ravel(), minlength=size * n_patients)
            weights = np.ascontiguousarray(weights.reshape(size, n_patients).T, dtype=np.float64)
            for c in range(n_classes):
                known = ~np.isnan(truth[:, c])
                if known.any():
                    auc[start : start + size, c], average[start : start + size, c] = areas(
                        scores[known, c], truth[known, c] == 1, patients[known], weights
                    )
                bar.update(size)
    return auc, average


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """The percentile interval of finite ``values``; None where fewer than two are."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
