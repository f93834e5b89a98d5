"""What stands between the trunk's stages and the heads."""

from .norm_fpn import StageNorms, build_norm_fpn

__all__ = ["StageNorms", "build_norm_fpn"]
