"""How well a map hits the place that it should: the pointing game, and mass within."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fx_d2.evaluation.curves import areas


def pointing(values: npt.NDArray[np.float32], region: npt.NDArray[np.bool_]) -> float:
    """Share of a map's highest pixels that lie in the region: 1 is a hit, 0 a miss.

    Several pixels may share the highest value, since maps are clipped; picking one of them would
    be luck. A map without contrast points nowhere and misses.
    """
    top = values.max()
    if not top > values.min():
        return 0.0
    return float(region[values == top].mean())


def mass(values: npt.NDArray[np.float32], region: npt.NDArray[np.bool_]) -> float:
    """Share of a map's sum that lies in the region; 0 where the sum is 0."""
    total = float(values.sum(dtype=np.float64))
    return float(values[region].sum(dtype=np.float64)) / total if total > 0 else 0.0


def auc(scores: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve; None without both kinds."""
    if not truth.any() or truth.all():
        return None
    found, _ = areas(scores, truth, np.zeros(len(scores), dtype=np.int64), np.ones((1, 1)))
    return float(found[0])
