"""Heads of all sources per task; importing this registers them with Detectron2."""

from .classifier import CLASSIFIER_REGISTRY, MultiSourceClassifier, build_classifier
from .pyramid import PyramidClassifier
from .roi import MultiSourceROIHeads
from .sem_seg import MultiSourceSegHead
from .spec import HeadSpec, head_specs, select_heads

__all__ = [
    "CLASSIFIER_REGISTRY",
    "HeadSpec",
    "MultiSourceClassifier",
    "MultiSourceROIHeads",
    "MultiSourceSegHead",
    "PyramidClassifier",
    "build_classifier",
    "head_specs",
    "select_heads",
]
