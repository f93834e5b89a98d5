"""Whole models; importing this registers them with Detectron2."""

from .foundation_x import FoundationX

__all__ = ["FoundationX"]
