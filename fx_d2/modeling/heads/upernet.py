"""The decoder that the published weights of Foundation X and X+ are for (paper 1.4).

Against :class:`fx_d2.modeling.heads.sem_seg.SegDecoder`: the pyramid pooling keeps all channels of
the last stage, the finest stage enters as it is, a level receives only the one below it, all levels
share one smoothing convolution, and maps are resized with aligned corners. No weights of one can be
turned into weights of the other, so both exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.layers import ShapeSpec
from torch import Tensor, cat, nn
from torch.nn import functional as F

from .sem_seg import MaskDecoder, SegDecoder, _block
from .smp_decoder import FPNDecoder, LinkNetDecoder, SmpDecoder, UNetDecoder


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class WidePooling(nn.Module):
    """Pyramid pooling from the channels of the last stage to as many.

    Args:
        dim: channels of the last stage.
        bins: cells per side; each average has ``dim / len(bins)`` channels.
        norm: of the convolutions.
        dropout: share of the channels dropped in training.
    """

    def __init__(self, dim: int, bins: Sequence[int], norm: str, dropout: float) -> None:
        super().__init__()
        part = dim // len(bins)
        self.bins = tuple(bins)
        self.reduce = nn.ModuleList(_block(dim, part, 1, norm) for _ in self.bins)
        self.fuse = _block(dim + part * len(self.bins), dim, 3, norm)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, dim, h, w) -> (N, dim, h, w)."""
        parts = [x]
        for cells, reduce in zip(self.bins, self.reduce, strict=True):
            parts.append(_resize(reduce(F.adaptive_avg_pool2d(x, cells)), x.shape[-2:]))
        return self.dropout(self.fuse(cat(parts, dim=1)))


class UPerNetDecoder(MaskDecoder):
    """Wide pyramid pooling, pairs of neighbouring levels, one smoothing for all, a fusion.

    Args:
        channels: of each stage, by name, fine to coarse; the finest has ``dim``.
        stride: of the finest stage.
        dim: channels of the result.
        bins: see :class:`WidePooling`.
        norm: of the convolutions.
        dropout: share of the pooled channels dropped in training.
    """

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
        finest, *coarse = channels
        if channels[finest] != dim:
            raise ValueError(
                f'MODEL.FX.SEG.DECODER "upernet" takes {finest} as it is: MODEL.FX.SEG.CHANNELS '
                f"is {dim} and has to be {channels[finest]}"
            )
        self.pooling = WidePooling(channels[coarse[-1]], bins, norm, dropout)
        self.laterals = nn.ModuleDict({k: nn.Conv2d(channels[k], dim, 1) for k in coarse})
        self.smooth = nn.Conv2d(dim, dim, 3, padding=1)
        self.fuse = _block(dim * len(channels), dim, 3, norm)
        self._finest, self._shape = finest, ShapeSpec(channels=dim, stride=stride)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{stage: (N, C, h, w)} -> (N, dim, h, w) at the finest stage."""
        *_, last = self.laterals
        seen = {**features, last: self.pooling(features[last])}
        levels = [features[self._finest]]
        levels += [lateral(seen[name]) for name, lateral in self.laterals.items()]
        pairs = zip(levels[:-1], levels[1:], strict=True)
        smoothed = [self.smooth(fine + _resize(low, fine.shape[-2:])) for fine, low in pairs]
        size = levels[0].shape[-2:]
        return self.fuse(cat([_resize(level, size) for level in (*smoothed, levels[-1])], dim=1))


SMP_DECODERS: dict[str, type[SmpDecoder]] = {
    "unet": UNetDecoder,
    "linknet": LinkNetDecoder,
    "fpn": FPNDecoder,
}
_DECODERS: dict[str, type[MaskDecoder]] = {
    "pyramid": SegDecoder,
    "upernet": UPerNetDecoder,
    **SMP_DECODERS,
}


def build_seg_decoder(cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The decoder named by ``MODEL.FX.SEG.DECODER``."""
    name = cfg.MODEL.FX.SEG.DECODER
    if name not in _DECODERS:
        raise ValueError(f"MODEL.FX.SEG.DECODER is {name!r}; allowed: {', '.join(_DECODERS)}")
    return _DECODERS[name].from_config(cfg, input_shape)
