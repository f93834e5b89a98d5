"""Encoders of segmentation_models_pytorch as trunks of dense segmentation."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from .weights import WeightsError, WeightsReport, load_trunk_weights

_DIVISIBILITY = 32
_DEPTH = 5  # halvings
# Those of the hybrid multi-stage document; any other encoder of the library works too.
ZOO = (
    "vgg16",
    "se_resnext50_32x4d",
    "inceptionresnetv2",
    "mobilenet_v2",
    "efficientnet-b2",
)
# What encoders keep of the classifier they were published with. Parameters that never get a
# gradient stop training by several processes, and would be in every checkpoint.
_PAST_THE_LAST_STAGE = {"efficientnet": ("_conv_head", "_bn1")}


def smp_library() -> Any:
    """The package ``segmentation_models_pytorch``, which is an extra.

    Raises:
        ImportError: it is not installed; the message says how.
    """
    try:
        import segmentation_models_pytorch
    except ImportError as exc:
        raise ImportError(
            "encoders and decoders of segmentation_models_pytorch need that package "
            f'({exc}): pip install "fx_d2[seg-zoo]"'
        ) from exc
    return segmentation_models_pytorch


@BACKBONE_REGISTRY.register()
def build_smp_encoder(cfg: CfgNode, input_shape: ShapeSpec) -> SmpEncoder:
    """The encoder ``MODEL.FX.TRUNK.NAME`` for images of ``input_shape.channels`` channels."""
    return SmpEncoder(cfg, input_shape)


class SmpEncoder(Backbone):
    """An encoder of segmentation_models_pytorch with its five stages.

    Attributes:
        network: the library's name.
        net: the encoder; parameter names are the library's.
        weights_report: what became of the pretrained weights; None without any.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        in_channels: int = 1,
        pretrained: str = "",
        norm_momentum: float = 0.0,
    ) -> None:
        """Build the encoder.

        Args:
            name: as the library lists it, such as those of :data:`ZOO`.
            in_channels: channels of the images.
            pretrained: "" for random weights, the library's name of published ones ("imagenet"),
                or a file.
            norm_momentum: weight of a batch in running statistics; 0 is the encoder's own.
        """
        if not 0 <= norm_momentum <= 1:
            raise ValueError(f"MODEL.FX.TRUNK.NORM_MOMENTUM is {norm_momentum}; it is in [0, 1]")
        super().__init__()
        encoders = smp_library().encoders
        if name not in encoders.encoders:
            near = difflib.get_close_matches(name, [*ZOO, *encoders.encoders], n=3, cutoff=0.4)
            raise ValueError(
                f"MODEL.FX.TRUNK.NAME {name!r} is no encoder of segmentation_models_pytorch; "
                + (f"did you mean {', '.join(dict.fromkeys(near))}? " if near else "")
                + f"The document's are {', '.join(ZOO)}"
            )
        self.network = name
        net = encoders.get_encoder(name, in_channels=in_channels, depth=_DEPTH, weights=None)
        strides = [2**level for level in range(1, _DEPTH + 1)]
        if len(net.out_channels) != _DEPTH + 1 or 0 in net.out_channels:
            raise ValueError(
                f"MODEL.FX.TRUNK.NAME {name!r} lacks one of the strides {strides}, which the "
                f"decoders need; the document's encoders are {', '.join(ZOO)}"
            )
        for part in _PAST_THE_LAST_STAGE.get(name.partition("-")[0], ()):
            delattr(net, part)
        self.weights_report: WeightsReport | None = None
        if pretrained:
            settings = encoders.encoders[name]["pretrained_settings"]
            self.weights_report = _load(net, name, settings, pretrained, in_channels)
        if norm_momentum:
            for module in net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.momentum = norm_momentum
        self.net = net
        self._out_features = [f"res{level}" for level in range(1, _DEPTH + 1)]
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = dict(
            zip(self._out_features, net.out_channels[1:], strict=True)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from ``MODEL.FX.TRUNK``."""
        if input_shape.channels != cfg.INPUT.FX.CHANNELS:
            raise ValueError(
                f"images have {cfg.INPUT.FX.CHANNELS} channels (INPUT.FX.CHANNELS), but "
                f"MODEL.PIXEL_MEAN names {input_shape.channels}; give MODEL.PIXEL_MEAN and "
                "MODEL.PIXEL_STD one number for each channel."
            )
        trunk = cfg.MODEL.FX.TRUNK
        if trunk.KWARGS:
            raise ValueError(
                f"MODEL.FX.TRUNK.KWARGS is {dict(trunk.KWARGS)}; build_smp_encoder takes none"
            )
        return {
            "name": trunk.NAME,
            "in_channels": input_shape.channels,
            "pretrained": trunk.PRETRAINED,
            "norm_momentum": trunk.NORM_MOMENTUM,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The stages.

        Args:
            x: normalised images ``(N, C, H, W)``, sides multiples of ``size_divisibility``.

        Returns:
            "res1" to "res5": ``(N, C_i, H / 2^i, W / 2^i)``.
        """
        height, width = x.shape[-2:]
        if height % _DIVISIBILITY or width % _DIVISIBILITY:
            raise ValueError(
                f"images of {height} x {width} px; {self.network} takes sides that are multiples "
                f"of {_DIVISIBILITY}"
            )
        return dict(zip(self._out_features, self.net(x)[1:], strict=True))

    @property
    def size_divisibility(self) -> int:
        """Heights and widths are padded to a multiple of this."""
        return _DIVISIBILITY

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter, by its name here: 0 is the first block.

        A block is what a name says up to its first number; the library registers them in the order
        they are run.
        """
        names = [f"net.{name}" for name, _ in self.net.named_parameters()]
        blocks = [_block_of(name) for name in names]
        order = {block: depth for depth, block in enumerate(dict.fromkeys(blocks))}
        return {name: order[block] for name, block in zip(names, blocks, strict=True)}


def _block_of(name: str) -> str:
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[: numbered + 1])


def _load(
    net: nn.Module,
    name: str,
    settings: Mapping[str, Mapping[str, str]],
    pretrained: str,
    in_channels: int,
) -> WeightsReport:
    """Published weights or those of a file, in place; a first convolution is converted."""
    # The facts that the loader of timm networks looks for; the library's own would ask the model
    # hub in any case, and retry for the better part of a minute where there is no network.
    published = settings.get(pretrained, {})
    if not published and not Path(pretrained).is_file():
        raise WeightsError(
            f'MODEL.FX.TRUNK.PRETRAINED: no file {pretrained}; of {name} it is "", '
            f"{', '.join(map(repr, settings))} (model hub or its local cache) or a .safetensors or "
            ".pth file."
        )
    first = next(key for key, module in net.named_modules() if isinstance(module, nn.Conv2d))
    net.pretrained_cfg = {
        "architecture": name,
        "hf_hub_id": published.get("repo_id"),
        "hf_hub_revision": published.get("revision"),
        "classifier": ("classifier", "last_linear", "_fc", "_conv_head", "_bn1"),
        "first_conv": first,
    }
    return load_trunk_weights(net, "timm" if published else pretrained, in_channels=in_channels)
