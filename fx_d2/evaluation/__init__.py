"""Evaluators of classification, localization and segmentation, and how results are written.

Truth comes from the records, in original pixels, and predictions are compared where they belong;
what is not annotated enters no figure. All figures are shares in [0, 1] unless their name says
otherwise.
"""

from __future__ import annotations

from .build import EVALUATORS, FxEvaluator, build_evaluator, evaluator_options
from .classification import ClassificationEvaluator
from .detection import DetectionEvaluator
from .results import Results, format_table, merge_results, prefixed, write_results
from .segmentation import SegmentationEvaluator
from .truth import Truth

__all__ = [
    "EVALUATORS",
    "ClassificationEvaluator",
    "DetectionEvaluator",
    "FxEvaluator",
    "Results",
    "SegmentationEvaluator",
    "Truth",
    "build_evaluator",
    "evaluator_options",
    "format_table",
    "merge_results",
    "prefixed",
    "write_results",
]
