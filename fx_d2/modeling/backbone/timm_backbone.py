"""Any timm network with feature levels as a Detectron2 backbone."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.models import group_parameters
from torch import Tensor, nn

from .channel_norm import ChannelNorm
from .conv_stem import MOMENTUM, ConvStem
from .presets import UNPADDED, network_name
from .weights import WeightsReport, load_trunk_weights

_STAGE_OF_STRIDE = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}
_DIVISIBILITY = 32
# Arguments that make a network independent of the input size. The last one matters as much as the
# others: a Swin built at 224 px has no window shift left in its last stage, and keeps none at
# larger sizes, where its output is then off by a third of its range.
_ANY_SIZE = {"strict_img_size": False, "dynamic_img_size": True, "always_partition": True}

logger = logging.getLogger(__name__)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The trunk of ``MODEL.FX.TRUNK`` for images of ``input_shape.channels`` channels."""
    return TimmBackbone(cfg, input_shape)


class TimmBackbone(Backbone):
    """A timm network, cut after its last feature level, with its final norm kept aside.

    ``forward`` gives the raw stages; localization and segmentation norm them in their own way.
    ``pooled`` is the tap for classification: the final norm and the mean over positions.

    Attributes:
        network: the timm name, with the tag of the published weights.
        net: the timm network without head and final norm; parameter names are timm's.
        norm: the final norm, over the channels of the last stage (Identity if there is none).
        built_size: (height, width) that is the only one the network takes; None is any.
        pixel_mean: what the published weights expect to be subtracted, on images in [0, 1].
        pixel_std: what they expect to be divided by afterwards.
        weights_report: what became of the pretrained weights; None without any.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        in_channels: int = 3,
        pretrained: str = "",
        drop_path: float = 0.0,
        grad_checkpoint: bool = False,
        norm: Literal["auto", "layer", "none"] = "auto",
        img_size: tuple[int, int] = (224, 224),
        stem: Literal["own", "conv"] = "own",
        stem_momentum: float = MOMENTUM,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the network.

        Args:
            name: a preset (presets.py) or a timm name.
            in_channels: channels of the images.
            pretrained: "" for random weights, "timm" for the published ones, or a file.
            drop_path: largest chance that a block is skipped in training.
            grad_checkpoint: recompute activations in the backward pass.
            norm: "auto" keeps the network's own final norm, "layer" is a new LayerNorm, "none"
                has none.
            img_size: (height, width) for networks that must know it, rounded up to 32.
            stem: "conv" puts :class:`ConvStem` in the place of a patch embedding.
            stem_momentum: of the running statistics of that stem.
            kwargs: further arguments of the timm network.
        """
        super().__init__()
        if stem not in ("own", "conv"):
            raise ValueError(f'MODEL.FX.TRUNK.STEM {stem!r}; it is "own" or "conv".')
        if norm not in ("auto", "layer", "none"):
            raise ValueError(f'MODEL.FX.TRUNK.NORM {norm!r}; it is "auto", "layer" or "none".')
        self.network = network_name(name)
        net, self.built_size = _create(self.network, in_channels, drop_path, img_size, kwargs or {})
        if stem == "conv":
            _embed_by_convolutions(net, self.network, in_channels, stem_momentum)
        self.weights_report: WeightsReport | None = None
        if pretrained:
            self.weights_report = load_trunk_weights(net, pretrained, in_channels=in_channels)
            level = logging.INFO if self.weights_report.complete else logging.WARNING
            logger.log(level, "%s", self.weights_report)
        self.pixel_mean = tuple(net.pretrained_cfg.get("mean") or ())
        self.pixel_std = tuple(net.pretrained_cfg.get("std") or ())

        levels = _levels(net, self.network)
        self._out_features = list(levels)
        self._out_feature_strides = {k: info["reduction"] for k, (_, info) in levels.items()}
        self._out_feature_channels = {k: info["num_chs"] for k, (_, info) in levels.items()}
        channels = self._out_feature_channels[self._out_features[-1]]
        own, self._pool_first = _take_final_norm(net, channels, self.network)
        self.norm = {"auto": own, "layer": ChannelNorm(channels), "none": nn.Identity()}[norm]
        indices = [index for index, _ in levels.values()]
        # Head and layers past the last level would be parameters without a gradient.
        self._indices = list(net.prune_intermediate_layers(indices, prune_norm=True))
        if grad_checkpoint:
            try:
                net.set_grad_checkpointing(True)
            except AssertionError as exc:
                raise ValueError(
                    f"MODEL.FX.TRUNK.GRAD_CHECKPOINT: {self.network} cannot; set it to False."
                ) from exc
        self.net = net

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from ``MODEL.FX.TRUNK``."""
        trunk = cfg.MODEL.FX.TRUNK
        side = cfg.INPUT.FX.SIZE
        if input_shape.channels != cfg.INPUT.FX.CHANNELS:
            raise ValueError(
                f"images have {cfg.INPUT.FX.CHANNELS} channels (INPUT.FX.CHANNELS), but "
                f"MODEL.PIXEL_MEAN names {input_shape.channels}; give MODEL.PIXEL_MEAN and "
                "MODEL.PIXEL_STD one number for each channel."
            )
        return {
            "name": trunk.NAME,
            "in_channels": input_shape.channels,
            "pretrained": trunk.PRETRAINED,
            "drop_path": trunk.DROP_PATH,
            "grad_checkpoint": trunk.GRAD_CHECKPOINT,
            "norm": trunk.NORM,
            "img_size": tuple(trunk.IMG_SIZE) or (side, side),
            "stem": trunk.STEM,
            "stem_momentum": trunk.STEM_MOMENTUM,
            "kwargs": _plain(trunk.KWARGS),
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The raw stages.

        Args:
            x: normalised images ``(N, C, H, W)``. Zeros are added at the right and bottom up to a
                multiple of 32, and the stages cover what was added.

        Returns:
            "res2", "res3", "res4" and "res5" (those the network has): ``(N, C_i, H_i, W_i)`` at
            strides 4, 8, 16, 32.
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % _DIVISIBILITY, 0, -height % _DIVISIBILITY))
        if self.built_size is not None and tuple(x.shape[-2:]) != self.built_size:
            raise ValueError(
                f"{self.network} has attention tables for {self.built_size[0]} x "
                f"{self.built_size[1]} px and got {height} x {width}; resize the images "
                "(INPUT.FX.SIZE) or build it for that size (MODEL.FX.TRUNK.IMG_SIZE)."
            )
        maps = self.net.forward_intermediates(x, indices=self._indices, intermediates_only=True)
        for stage, found in zip(self._out_features, maps, strict=True):
            stride = self._out_feature_strides[stage]
            if found.shape[-2] * stride != x.shape[-2] or found.shape[-1] * stride != x.shape[-1]:
                raise ValueError(
                    f"{self.network} cannot be a trunk: its stage of stride {stride} is "
                    f"{found.shape[-2]} x {found.shape[-1]} for {x.shape[-2]} x {x.shape[-1]} px."
                )
        return dict(zip(self._out_features, maps, strict=True))

    def pooled(
        self,
        features: Mapping[str, Tensor],
        content_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """The last stage, normed and averaged over positions: what a classifier takes.

        Networks that average before they norm (ConvNeXt) do so here.

        Args:
            features: what ``forward`` gave.
            content_sizes: per image (height, width) in pixels that is image, not padding; other
                positions are left out. None averages over everything.

        Returns:
            ``(N, C)`` with the channels of the last stage.
        """
        last = self._out_features[-1]
        x = features[last]
        if not self._pool_first:
            x = self.norm(x)
        if content_sizes is None:
            x = x.mean((2, 3))
        else:
            inside = _inside(x, content_sizes, self._out_feature_strides[last])
            x = (x * inside).sum((2, 3)) / inside.sum((2, 3))
        return self.norm(x) if self._pool_first else x

    @property
    def size_divisibility(self) -> int:
        """Heights and widths are padded to a multiple of this."""
        return _DIVISIBILITY

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter, by its name here: 0 is the stem, the final norm is deepest.

        For learning rates that fall with the distance from the output.
        """
        matcher = self.net.group_matcher(coarse=False)
        ids = group_parameters(self.net, matcher, reverse=True)
        known = {name: ids[name] for name, _ in self.net.named_parameters()}
        # timm numbers groups with gaps (a final norm is group 99999).
        order = {old: new for new, old in enumerate(sorted(set(known.values())))}
        result = {f"net.{name}": order[old] for name, old in known.items()}
        result |= {f"norm.{name}": len(order) for name, _ in self.norm.named_parameters()}
        return result


def _create(
    network: str,
    in_channels: int,
    drop_path: float,
    img_size: tuple[int, int],
    kwargs: Mapping[str, Any],
) -> tuple[nn.Module, tuple[int, int] | None]:
    """The whole timm network without classifier, and the size it is bound to, if it is."""
    given = {"num_classes": 0, "in_chans": in_channels, **kwargs}
    try:
        probe = _probe(network, given)
        accepts = inspect.signature(type(probe).__init__).parameters
        given = {**{k: v for k, v in _ANY_SIZE.items() if k in accepts}, **given}
        if drop_path or "drop_path_rate" in accepts:  # 0 too: timm's Swin has a default of 0.1
            given.setdefault("drop_path_rate", drop_path)
        free = given.get("dynamic_img_size") or not given.get("strict_img_size", True)
        bound = bool(probe.pretrained_cfg.get("fixed_input_size")) and not free
        if bound and "img_size" in accepts:
            given.setdefault(
                "img_size", tuple(-(-s // _DIVISIBILITY) * _DIVISIBILITY for s in img_size)
            )
        net = timm.create_model(network, **given)
        if network.partition(".")[0] in UNPADDED:
            _pad(net)
    except TypeError as exc:
        raise ValueError(
            f"timm's {network} cannot be built with {given}: {exc}. See MODEL.FX.TRUNK.KWARGS"
            f"{' and DROP_PATH (0 if it has none)' if drop_path else ''}."
        ) from exc
    if not bound:
        return net, None
    size = given.get("img_size", net.pretrained_cfg["input_size"][1:])
    return net, (size, size) if isinstance(size, int) else tuple(size)


def _embed_by_convolutions(net: nn.Module, network: str, in_channels: int, momentum: float) -> None:
    """Patches of 4 x 4 px are embedded by a few convolutions instead of one matrix.

    A radiograph is smooth: neighbouring pixels are nearly equal, and what matters differs from them
    by a few percent. Convolutions with batch normalisation bring that out within a few steps, which
    a network that starts from random patches needs many epochs for.
    """
    try:
        patches = net.get_submodule("patch_embed.proj")
    except AttributeError:
        patches = None
    if not isinstance(patches, nn.Conv2d) or patches.stride != (4, 4):
        raise ValueError(
            f'MODEL.FX.TRUNK.STEM "conv" replaces an embedding of 4 x 4 px patches; {network} '
            'has none: set it to "own".'
        )
    stem = ConvStem(in_channels, patches.out_channels, momentum=momentum)
    net.get_submodule("patch_embed").add_module("proj", stem)


def _pad(net: nn.Module) -> None:
    """Maps of exactly a half, a quarter and so on: every kernel that has no padding gets it."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and tuple(module.padding) == (0, 0):
            module.padding = tuple(side // 2 for side in module.kernel_size)
        elif isinstance(module, nn.MaxPool2d) and module.padding == 0:
            module.padding = int(module.kernel_size) // 2


def _probe(network: str, given: Mapping[str, Any]) -> nn.Module:
    """The network once more, to see which arguments its class takes."""
    try:
        with torch.device("meta"):  # no memory, no time
            return timm.create_model(network, **given)
    except (RuntimeError, NotImplementedError):  # a few compute something while they are built
        return timm.create_model(network, **given)


def _levels(net: nn.Module, network: str) -> dict[str, tuple[int, dict[str, Any]]]:
    """Stage name -> (index among timm's levels, its facts); the deepest level of each stride."""
    if not hasattr(net, "forward_intermediates") or not hasattr(net, "feature_info"):
        raise ValueError(f"timm {timm.__version__} gives no feature levels of {network}.")
    info = net.feature_info
    facts = info if isinstance(info, list) else info.get_dicts()
    found = {
        _STAGE_OF_STRIDE[fact["reduction"]]: (index, fact)
        for index, fact in enumerate(facts)
        if fact["reduction"] in _STAGE_OF_STRIDE
    }
    if not found:
        strides = [fact["reduction"] for fact in facts]
        raise ValueError(f"{network} has strides {strides}; some of 4, 8, 16, 32 are needed.")
    return found


def _take_final_norm(net: nn.Module, channels: int, network: str) -> tuple[nn.Module, bool]:
    """The network's final norm over NCHW with its weights, and whether it follows the pooling."""
    for path, pool_first in (("norm", False), ("head.norm", True), ("fc_norm", True)):
        try:
            module = net.get_submodule(path)
        except AttributeError:
            continue
        layer_norm = isinstance(module, nn.LayerNorm) and module.bias is not None
        if layer_norm and module.normalized_shape == (channels,):
            norm = ChannelNorm(channels, eps=module.eps)
            norm.load_state_dict(module.state_dict())
            return norm, pool_first
        if not isinstance(module, nn.Identity):
            logger.warning("%s: its final %s is left out", network, type(module).__name__)
    return nn.Identity(), False


def _inside(x: Tensor, content_sizes: Sequence[tuple[int, int]], stride: int) -> Tensor:
    """``(N, 1, H, W)``, 1 at positions that see part of the image."""
    if len(content_sizes) != x.shape[0]:
        raise ValueError(f"{len(content_sizes)} content sizes for {x.shape[0]} images.")
    inside = torch.zeros(x.shape[0], 1, *x.shape[2:])
    for row, (height, width) in zip(inside, content_sizes, strict=True):
        row[:, : max(1, -(-height // stride)), : max(1, -(-width // stride))] = 1.0
    return inside.to(x.device, x.dtype)


def _plain(node: Any) -> Any:
    """A config value without config types; timm takes tuples where a config file has lists."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    return tuple(_plain(v) for v in node) if isinstance(node, (list, tuple)) else node
