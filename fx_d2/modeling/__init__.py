"""Networks: trunk, necks, heads, losses. Importing this registers them with Detectron2."""

from . import backbone as _backbone  # noqa: F401  (registers build_timm_backbone)
