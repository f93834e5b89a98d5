"""Trunks, heads and meta-architectures; importing it registers them with Detectron2."""

from . import backbone, heads, meta_arch

__all__ = ["backbone", "heads", "meta_arch"]
