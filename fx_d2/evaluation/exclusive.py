"""Figures of classes that exclude each other: all of them together, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# A probability of 0 for the true class would be an infinite loss.
_LEAST = 1e-7


def most_probable(scores: np.ndarray) -> np.ndarray:
    """Bool (N, C), true for the first most probable class."""
    return np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]


def calibration_error(confidence: np.ndarray, right: np.ndarray, n_bins: int) -> float:
    """Mean gap between confidence and frequency over equal bins, weighted by their images."""
    bins = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    gap = np.bincount(bins, weights=confidence - right, minlength=n_bins)
    return float(np.abs(gap).sum() / len(confidence))


def confusion(scores: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """How many images of each class are said to be of each class.

    Args:
        scores: (N, C) probabilities.
        labels: (N, C); images with an unknown class, or none, are left out.
        classes: C names.

    Returns:
        ``classes``, and ``table``: a row per true class with the number of each that was said.
    """
    true, said, _ = _answers(scores, labels)
    n = len(classes)
    pairs = np.bincount(true * n + said, minlength=n**2)
    return {"classes": list(classes), "table": pairs.reshape(n, n).tolist()}


def multiclass_figures(scores: np.ndarray, labels: np.ndarray, n_bins: int) -> dict[str, float]:
    """Accuracy, kappa, cross-entropy and top-label calibration over all classes together."""
    true, said, scores = _answers(scores, labels)
    if not len(true):
        return {}
    n_classes = labels.shape[1]
    pairs = np.bincount(true * n_classes + said, minlength=n_classes**2)
    table = pairs.reshape(n_classes, n_classes) / len(true)
    accuracy = float(np.trace(table))
    chance = float(table.sum(axis=0) @ table.sum(axis=1))
    of_true = scores[np.arange(len(true)), true]
    figures = {
        "accuracy": accuracy,
        "ECE": calibration_error(scores.max(axis=1), (true == said).astype(float), n_bins),
        "log_loss": float(-np.log(np.maximum(of_true, _LEAST)).mean()),
    }
    if chance < 1:  # else truth and prediction are one and the same class throughout
        figures["kappa"] = (accuracy - chance) / (1 - chance)
    return figures


def _answers(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True class and answer of the images whose class is known, and their scores."""
    whole = ~np.isnan(labels).any(axis=1) & (labels == 1).any(axis=1)
    scores, labels = scores[whole], labels[whole]
    return labels.argmax(axis=1), scores.argmax(axis=1), scores
