"""Where a classifier looks: maps of any callable that gives logits for images.

Nothing here knows data sets, runs or heads: a classifier is a function, a layer is a name.
"""

from __future__ import annotations

from .cam import CAM_METHODS, class_activation
from .integrated_gradients import BASELINES, RULES, IGSettings, integrated_gradients
from .maps import Classifier, Explanation

__all__ = [
    "BASELINES",
    "CAM_METHODS",
    "RULES",
    "Classifier",
    "Explanation",
    "IGSettings",
    "class_activation",
    "integrated_gradients",
]
