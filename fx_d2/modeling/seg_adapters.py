"""Adapters of whole maps: what DoLL calls segmentation adapters (our reconstruction).

A residual bottleneck of 1x1 convolutions, ``x + up(relu(down(x)))``, stands after every stage of
the trunk, as its readers see it, and in the mask decoder after the pyramid pooling and at the end.
``up`` starts at zero, so the model starts bit-identical to the one it was made from. The layers
keep their names: plain checkpoints load into a model with adapters.

A stage's adapter does not feed the next stage. So one pass of a locked trunk serves many targets,
and without ``MODEL.FX.TUNE.NORMS`` no gradient has to go back through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .adapters import SEG_ADAPTERS, mode_of


class MapAdapter(nn.Module):
    """A detour through fewer channels whose result is added; zero at the start.

    Args:
        dim: channels of the map.
        reduction: ``dim`` over the channels in between, which are at least one.
    """

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(dim, max(1, dim // reduction), 1)
        self.up = nn.Conv2d(self.down.out_channels, dim, 1)
        nn.init.kaiming_normal_(self.down.weight, nonlinearity="relu")
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, dim, h, w) -> the same shape."""
        return x + self.up(F.relu(self.down(x)))


# Functions, not closures: a model is copied for its teacher, and each copy reads its own adapter.
def _adapt_stages(
    trunk: nn.Module, _: tuple[Any, ...], features: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    adapters = dict(trunk.get_submodule("map_adapter").named_children())
    return {name: adapters[name](x) if name in adapters else x for name, x in features.items()}


def _adapt_map(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
    return module.get_submodule("map_adapter")(output)


def add_seg_adapters(
    trunk: nn.Module,
    decoder: nn.Module | None,
    node: Any,
    stages: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Add the adapters of ``MODEL.FX.TUNE.MODE`` "seg_adapters", in place; none in other modes.

    Args:
        trunk: a Detectron2 backbone.
        decoder: of the masks; None in a model without masks, whose stages are adapted alone.
        node: ``MODEL.FX.TUNE``.
        stages: of the trunk that are read; None is all. Others would count without learning.

    Returns:
        What got one: stages, then ``pooling`` and ``decoder``.
    """
    mode_of(node)
    if node.MODE != SEG_ADAPTERS:
        return ()
    reduction = int(node.REDUCTION)
    if reduction < 1:
        raise ValueError(f"MODEL.FX.TUNE.REDUCTION is {reduction}; allowed: 1 and more")
    there = trunk.output_shape()
    shapes = {name: there[name] for name in there if stages is None or name in stages}
    trunk.add_module(
        "map_adapter",
        nn.ModuleDict({name: MapAdapter(s.channels, reduction) for name, s in shapes.items()}),
    )
    trunk.register_forward_hook(_adapt_stages)
    added = list(shapes)
    if decoder is None:
        return tuple(added)
    pooling = getattr(decoder, "pooling", None)
    if pooling is not None and not getattr(decoder, "ends_with_pooling", False):
        _attach(pooling, pooling.out_channels, reduction)
        added.append("pooling")
    _attach(decoder, decoder.output_shape()["decoded"].channels, reduction)
    return (*added, "decoder")


def _attach(module: nn.Module, dim: int, reduction: int) -> None:
    module.add_module("map_adapter", MapAdapter(dim, reduction))
    module.register_forward_hook(_adapt_map)
