"""Trunks; importing this registers ``build_timm_backbone`` with Detectron2."""

from .timm_backbone import TimmBackbone, build_timm_backbone

__all__ = ["TimmBackbone", "build_timm_backbone"]
