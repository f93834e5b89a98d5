"""Whole models; importing this registers them with Detectron2."""

from .ensemble import Ensemble
from .foundation_x import FoundationX
from .fpsm import FPSM
from .segmentor import Segmentor
from .student_teacher import StudentTeacher

__all__ = ["FPSM", "Ensemble", "FoundationX", "Segmentor", "StudentTeacher"]
