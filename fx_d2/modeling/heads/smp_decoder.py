"""The decoders of U-Net, LinkNet and FPN from segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..backbone.smp_encoder import smp_library
from .sem_seg import MaskDecoder
from .spec import stage_channels


class SmpDecoder(MaskDecoder):
    """Stages of a trunk to one map by a decoder of the library, whose norms are its own.

    Attributes:
        needs: the stages it reads, fine to coarse.
        stride: of the map.
        own_width: channels of the map where the config leaves them open, the library's default.
    """

    needs: ClassVar[tuple[str, ...]] = ("res1", "res2", "res3", "res4", "res5")
    stride: ClassVar[int] = 1
    own_width: ClassVar[int]

    def __init__(self, channels: Sequence[int], *, dim: int, dropout: float) -> None:
        """Build the decoder.

        Args:
            channels: of the stages that it needs.
            dim: channels of the map.
            dropout: share of the channels of the map dropped in training, where it has that.
        """
        super().__init__()
        self.net = self._build(channels, dim, dropout)
        smp_library().base.initialization.initialize_decoder(self.net)  # as its whole models do
        self._shape = ShapeSpec(channels=dim, stride=self.stride)

    def _build(self, channels: Sequence[int], dim: int, dropout: float) -> nn.Module:
        raise NotImplementedError

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> MaskDecoder:
        """The decoder of ``MODEL.FX.SEG``; it always reads the stages that it needs."""
        node = cfg.MODEL.FX.SEG
        missing = [name for name in cls.needs if name not in input_shape]
        if missing:
            raise ValueError(
                f'MODEL.FX.SEG.DECODER "{node.DECODER}" needs {", ".join(missing)}; the trunk has '
                f"{', '.join(input_shape)} (MODEL.BACKBONE.NAME build_smp_encoder has all)"
            )
        channels = stage_channels(cls.needs, input_shape, "MODEL.FX.SEG")
        dim = node.CHANNELS or cls.own_width
        return cls(list(channels.values()), dim=dim, dropout=node.DROPOUT)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{stage: (N, C, h, w)} -> (N, dim, H, W), H the height of the images / ``stride``."""
        stages = [features[name] for name in self.needs]
        if self.stride > 1:
            return self.net(stages)
        count, _, height, width = stages[0].shape
        # The library's list begins with the image, of which decoders read the size alone.
        image = stages[0].new_empty(count, 0, 2 * height, 2 * width)
        return self.net([image, *stages])


class UNetDecoder(SmpDecoder):
    """Every level beside the one below it, enlarged, and two convolutions.

    The levels have 16, 8, 4, 2 and 1 times the channels of the map.
    """

    own_width = 16

    def _build(self, channels: Sequence[int], dim: int, dropout: float) -> nn.Module:
        widths = [dim * factor for factor in (16, 8, 4, 2, 1)]
        decoder = smp_library().decoders.unet.decoder.UnetDecoder
        return decoder(encoder_channels=[0, *channels], decoder_channels=widths)


class LinkNetDecoder(SmpDecoder):
    """Every level added to the one below it, enlarged by a transposed convolution."""

    own_width = 32

    def _build(self, channels: Sequence[int], dim: int, dropout: float) -> nn.Module:
        decoder = smp_library().decoders.linknet.decoder.LinknetDecoder
        return decoder(encoder_channels=[0, *channels], prefinal_channels=dim)


class FPNDecoder(SmpDecoder):
    """A feature pyramid twice as wide as the map, its levels enlarged and added.

    It reads no stage finer than stride 4, so that it works on any trunk.
    """

    needs = ("res2", "res3", "res4", "res5")
    stride = 4
    own_width = 128

    def _build(self, channels: Sequence[int], dim: int, dropout: float) -> nn.Module:
        if dim % 32:
            raise ValueError(
                f'MODEL.FX.SEG.CHANNELS is {dim}; DECODER "fpn" normalises 32 groups of channels '
                "and needs a multiple of that"
            )
        decoder = smp_library().decoders.fpn.decoder.FPNDecoder
        return decoder(
            encoder_channels=list(channels),
            encoder_depth=len(channels),
            pyramid_channels=2 * dim,
            segmentation_channels=dim,
            dropout=dropout,
        )
