"""Whole models; importing this registers them with Detectron2."""

from .foundation_x import FoundationX
from .student_teacher import StudentTeacher

__all__ = ["FoundationX", "StudentTeacher"]
