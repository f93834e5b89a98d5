"""A segmentor: dense masks from an encoder and a decoder, and nothing else."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY

from ..backbone.smp_encoder import build_smp_encoder
from ..heads.spec import head_specs
from ..heads.upernet import SMP_DECODERS
from .foundation_x import FoundationX


@META_ARCH_REGISTRY.register()
class Segmentor(FoundationX):
    """A :class:`FoundationX` with heads for masks only, of segmentation_models_pytorch's parts.

    ``MODEL.FX.TRUNK.NAME`` names the encoder, ``MODEL.FX.TRUNK.PRETRAINED`` its weights and
    ``MODEL.FX.SEG.DECODER`` the architecture. Encoder, decoder and heads are ``trunk.*``,
    ``seg_decoder.*`` and ``heads.seg.<source>.*`` as in every model here.
    """

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """The arguments that the config decides."""
        here = "MODEL.META_ARCHITECTURE Segmentor"
        if build_smp_encoder.__name__ != cfg.MODEL.BACKBONE.NAME:
            raise ValueError(
                f"{here} has MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r}; expected "
                f"{build_smp_encoder.__name__!r} (configs/hybrid/lungs.yaml)"
            )
        if cfg.MODEL.FX.SEG.DECODER not in SMP_DECODERS:
            raise ValueError(
                f"{here} has MODEL.FX.SEG.DECODER {cfg.MODEL.FX.SEG.DECODER!r}; allowed: "
                f"{', '.join(SMP_DECODERS)}"
            )
        others = [spec.name for spec in head_specs(cfg) if spec.task != "seg"]
        if others:
            raise ValueError(
                f"{here} learns masks, not {', '.join(others)}; set DATASETS.TASKS to [seg]"
            )
        return super().from_config(cfg)
