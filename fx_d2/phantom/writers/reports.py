"""Labels mined from reports: certain, uncertain, negative, or not mentioned at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

UNCERTAIN_SHARE = 0.12  # of what is there
_NEGATED_SHARE = 0.18  # of what is not there
_DOUBTED_SHARE = 0.03


def mined_cells(
    positive: set[str], classes: Sequence[str], rng: np.random.Generator, *, healthy: bool
) -> dict[str, str]:
    """One study as cells ``1.0``, ``0.0``, ``-1.0`` or blank.

    ``No Finding`` is 1.0 or blank, and support devices do not contradict it.

    Args:
        positive: classes that are there.
        classes: all of them.
        rng: one number per class is drawn.
        healthy: nothing but support devices is there.
    """
    cells = {}
    for name in classes:
        luck = rng.random()
        if name == "No Finding":
            cells[name] = "1.0" if healthy else ""
        elif name in positive:
            cells[name] = "-1.0" if luck < UNCERTAIN_SHARE else "1.0"
        elif luck < _NEGATED_SHARE:
            cells[name] = "0.0"
        else:
            cells[name] = "-1.0" if luck < _NEGATED_SHARE + _DOUBTED_SHARE else ""
    return cells


def read_cells(positive: set[str], classes: Sequence[str], *, healthy: bool) -> dict[str, str]:
    """One study as a radiologist labelled it: 1.0 or 0.0 everywhere."""
    shown = positive | ({"No Finding"} if healthy else set())
    return {name: "1.0" if name in shown else "0.0" for name in classes}
