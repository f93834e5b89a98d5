"""The decoders of ``MODEL.FX.SEG.DECODER``: PSPNet here, the others beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.layers import ShapeSpec
from torch import Tensor, cat, nn

from .sem_seg import MaskDecoder, PyramidPooling, SegDecoder, _resize
from .smp_decoder import SMP_DECODERS
from .upernet import UPerNetDecoder


class PSPNetDecoder(MaskDecoder):
    """Pyramid pooling and nothing else: every place sees itself and the whole chest.

    Zhao et al., PSPNet, CVPR 2017, on a trunk whose last stage is dilated to stride 8. Of a trunk
    that cannot be dilated several stages may be named: they are laid side by side at the size of
    the finest one, which then takes the place of the dilation.

    Args:
        channels: of each stage, by name, fine to coarse; usually one.
        stride: of the finest stage.
        dim: channels of each average, and of the result.
        bins: see :class:`PyramidPooling`.
        norm: of the convolutions.
        dropout: share of the channels dropped in training.
    """

    ends_with_pooling = True

    def __init__(
        self,
        channels: Mapping[str, int],
        *,
        stride: int,
        dim: int,
        bins: Sequence[int],
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pooling = PyramidPooling(sum(channels.values()), dim, bins, norm)
        self.dropout = nn.Dropout2d(dropout)
        self._names, self._shape = tuple(channels), ShapeSpec(channels=dim, stride=stride)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{stage: (N, C, h, w)} -> (N, dim, h, w) at the finest stage."""
        finest = features[self._names[0]].shape[-2:]
        levels = [_resize(features[name], finest) for name in self._names[1:]]
        return self.dropout(self.pooling(cat([features[self._names[0]], *levels], dim=1)))


SEG_DECODERS: dict[str, type[MaskDecoder]] = {
    "pyramid": SegDecoder,
    "upernet": UPerNetDecoder,
    "pspnet": PSPNetDecoder,
    **SMP_DECODERS,
}


def build_seg_decoder(cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> MaskDecoder:
    """The decoder named by ``MODEL.FX.SEG.DECODER``."""
    name = cfg.MODEL.FX.SEG.DECODER
    if name not in SEG_DECODERS:
        raise ValueError(f"MODEL.FX.SEG.DECODER is {name!r}; allowed: {', '.join(SEG_DECODERS)}")
    return SEG_DECODERS[name].from_config(cfg, input_shape)
