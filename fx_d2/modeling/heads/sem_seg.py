"""Dense masks: a decoder shared by all sources, and a light predictor per source.

Channels are independent sigmoids, because structures of a radiograph lie over each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, cat, nn
from torch.nn import functional as F

from ..losses import MASK_LOSSES, DiceOver, mask_bce, soft_dice
from .spec import HeadSpec, specs_of, stage_channels


def _block(in_dim: int, out_dim: int, kernel: int, norm: str) -> nn.Sequential:
    """Convolution, norm, ReLU."""
    if norm == "GN":
        # Detectron2's 32 groups would have four values each in the average over the whole image:
        # too few to normalise by, and not every width divides into 32.
        layer = nn.GroupNorm(math.gcd(8, out_dim) if out_dim > 8 else 1, out_dim)
    else:
        layer = get_norm(norm, out_dim)
    conv = nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2, bias=layer is None)
    return nn.Sequential(conv, *([layer] if layer is not None else []), nn.ReLU())


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """The last stage beside its averages over 1, 4, ... cells: what the whole chest looks like.

    Args:
        in_dim: channels of the last stage.
        dim: channels of each average, and of the result.
        bins: cells per side.
        norm: of the convolutions.
    """

    def __init__(self, in_dim: int, dim: int, bins: Sequence[int], norm: str) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.reduce = nn.ModuleList(_block(in_dim, dim, 1, norm) for _ in self.bins)
        self.fuse = _block(in_dim + dim * len(self.bins), dim, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_dim, h, w) -> (N, dim, h, w)."""
        parts = [x]
        for cells, reduce in zip(self.bins, self.reduce, strict=True):
            parts.append(_resize(reduce(F.adaptive_avg_pool2d(x, cells)), x.shape[-2:]))
        return self.fuse(cat(parts, dim=1))


class MaskDecoder(nn.Module):
    """A decoder of ``MODEL.FX.SEG``: stages of the trunk to one map, which all sources share."""

    _shape: ShapeSpec

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> MaskDecoder:
        """The decoder of ``MODEL.FX.SEG``."""
        node = cfg.MODEL.FX.SEG
        if node.CHANNELS < 1:
            raise ValueError(
                f"MODEL.FX.SEG.CHANNELS is {node.CHANNELS}; DECODER {node.DECODER!r} has no width "
                "of its own, name one, such as 128"
            )
        channels = stage_channels(tuple(node.IN_FEATURES), input_shape, "MODEL.FX.SEG")
        return cls(
            channels,
            stride=input_shape[next(iter(channels))].stride,
            dim=node.CHANNELS,
            bins=node.BINS,
            norm=node.NORM,
            dropout=node.DROPOUT,
        )

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The shape of the one map."""
        return {"decoded": self._shape}


class SegDecoder(MaskDecoder):
    """Pyramid pooling on the last stage, a feature pyramid upwards from it, all levels fused.

    Args:
        channels: of each stage, by name, fine to coarse.
        stride: of the finest stage.
        dim: channels inside and of the result.
        bins: see :class:`PyramidPooling`.
        norm: of the convolutions.
        dropout: share of the channels dropped in training.
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
        *fine, last = channels
        self.pooling = PyramidPooling(channels[last], dim, bins, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.laterals = nn.ModuleDict({k: _block(channels[k], dim, 1, norm) for k in fine})
        self.smooth = nn.ModuleDict({k: _block(dim, dim, 3, norm) for k in fine})
        self.fuse = _block(dim * len(channels), dim, 3, norm)
        self._last, self._shape = last, ShapeSpec(channels=dim, stride=stride)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{stage: (N, C, h, w)} -> (N, dim, h, w) at the finest stage."""
        top = self.dropout(self.pooling(features[self._last]))
        levels = [top]
        for name in reversed(list(self.laterals)):
            lateral = self.laterals[name](features[name])
            top = lateral + _resize(top, lateral.shape[-2:])
            levels.append(self.smooth[name](top))
        finest = levels[-1].shape[-2:]
        return self.fuse(cat([_resize(level, finest) for level in levels], dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class MultiSourceSegHead(nn.Module):
    """A convolution per source on the decoded map, as attributes named by source."""

    @configurable
    def __init__(
        self,
        *,
        specs: Sequence[HeadSpec],
        in_dim: int,
        loss: str = "bce_dice",
        dice_over: DiceOver = "channel",
    ) -> None:
        """Build the heads.

        Args:
            specs: of the sources with masks.
            in_dim: channels of the decoded map.
            loss: a key of ``MASK_LOSSES``.
            dice_over: what one Dice runs over, see :func:`fx_d2.modeling.losses.soft_dice`.
        """
        super().__init__()
        if loss not in MASK_LOSSES:
            raise ValueError(f"MODEL.FX.SEG.LOSS is {loss!r}; allowed: {', '.join(MASK_LOSSES)}")
        if dice_over not in get_args(DiceOver):
            raise ValueError(
                f"MODEL.FX.SEG.DICE_OVER is {dice_over!r}; allowed: {', '.join(get_args(DiceOver))}"
            )
        self.specs = {spec.source: spec for spec in specs}
        self.loss, self.dice_over = loss, dice_over
        for spec in specs:
            predictor = nn.Conv2d(in_dim, len(spec.classes), 3, padding=1)
            nn.init.trunc_normal_(predictor.weight, std=0.01)
            # Findings cover little of the image; starting at one half would first unlearn that.
            nn.init.constant_(predictor.bias, -2.0)
            self.add_module(spec.source, predictor)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """The arguments that the config decides."""
        (shape,) = input_shape.values()
        return {
            "specs": specs_of(cfg, "seg"),
            "in_dim": shape.channels,
            "loss": cfg.MODEL.FX.SEG.LOSS,
            "dice_over": cfg.MODEL.FX.SEG.DICE_OVER,
        }

    def forward(self, decoded: Tensor, source: str, size: Sequence[int]) -> Tensor:
        """(N, D, h, w) -> float32 logits (N, C, *size) of one source."""
        return _resize(self.get_submodule(source)(decoded).float(), size)

    def losses(self, logits: Tensor, masks: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The parts of the loss.

        Args:
            logits: (N, C, H, W).
            masks: (N, C, H, W) of 0 and 1.
            known: bool (N, C), which of them are annotated.
        """
        found = {}
        if "bce" in self.loss:
            found["loss_seg_bce"] = mask_bce(logits, masks, known)
        if "dice" in self.loss:
            found["loss_seg_dice"] = soft_dice(logits, masks, known, over=self.dice_over)
        return found
