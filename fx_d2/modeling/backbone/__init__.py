"""Trunks; importing this registers their builders with Detectron2."""

from .smp_encoder import SmpEncoder, build_smp_encoder
from .timm_backbone import TimmBackbone, build_timm_backbone

__all__ = ["SmpEncoder", "TimmBackbone", "build_smp_encoder", "build_timm_backbone"]
