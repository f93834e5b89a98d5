"""The pyramid of localization: a norm of its own for every stage, then Detectron2's FPN."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor

from fx_d2.modeling.backbone.channel_norm import ChannelNorm


class StageNorms(Backbone):
    """One LayerNorm per stage: a transformer's raw stages differ in scale by orders of magnitude.

    A backbone from stages to stages, so that Detectron2's FPN can stand on it.
    """

    def __init__(self, input_shape: Mapping[str, ShapeSpec], in_features: list[str]) -> None:
        """Build the norms.

        Args:
            input_shape: channels and stride of every stage.
            in_features: stages to norm, highest resolution first; others are left out.
        """
        super().__init__()
        self._out_features = list(in_features)
        self._out_feature_channels = {f: input_shape[f].channels for f in in_features}
        self._out_feature_strides = {f: input_shape[f].stride for f in in_features}
        for feature, channels in self._out_feature_channels.items():
            self.add_module(feature, ChannelNorm(channels))

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stages to normed stages, each ``(N, C, H, W)``."""
        return {f: self.get_submodule(f)(features[f]) for f in self._out_features}


def build_norm_fpn(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> FPN:
    """Per-stage LayerNorms and an FPN with one more, pooled level: "p2" to "p6".

    The module takes the trunk's stages, not images: ``fpn(trunk(x)) -> {"p2": ..., "p6": ...}``.

    Args:
        cfg: ``MODEL.FPN`` as in Detectron2. ``IN_FEATURES`` empty uses every stage; of three
            stages from stride 8 on, as in the paper, the levels are "p3" to "p6".
        input_shape: the trunk's ``output_shape()``.

    Returns:
        The FPN; its ``output_shape()`` and ``size_divisibility`` are Detectron2's.
    """
    names = list(cfg.MODEL.FPN.IN_FEATURES) or list(input_shape)
    unknown = [name for name in names if name not in input_shape]
    if unknown:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES {unknown} are no stages of the trunk, which has "
            f"{', '.join(input_shape)}."
        )
    return FPN(
        bottom_up=StageNorms(input_shape, sorted(names, key=lambda f: input_shape[f].stride)),
        in_features=sorted(names, key=lambda f: input_shape[f].stride),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
