"""Tuning a pretrained trunk with few new parameters, and what each way of tuning trains.

One mechanism: a :class:`Branch` beside a layer of the trunk, whose second layer starts at zero, so
that the model starts bit-identical to the one it was made from. The layers keep their names, so
plain checkpoints load into a model with branches. A LoRA branch reads the input of a linear layer
and is itself linear: :func:`fold_lora` makes it part of that layer's weight. An adapter reads the
output of a layer, has a non-linearity, and stays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from .freeze import set_trainable

_logger = logging.getLogger(__name__)

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_DOWN, _UP = ".lora.down.weight", ".lora.up.weight"
SEG_ADAPTERS = "seg_adapters"
_SHARED = ("cls_encoder.*", "loc_encoder.*", "loc_decoder.*", "seg_decoder.*")


@dataclass(frozen=True)
class Mode:
    """A way of tuning.

    Args:
        trained: patterns of the parameters it trains; one may be of a part that a model lacks.
        branch: name of the branches it adds to the trunk, or "".
        modules: patterns, inside the trunk, of the modules that get one.
    """

    trained: tuple[str, ...]
    branch: str = ""
    modules: tuple[str, ...] = ()


MODES: dict[str, Mode] = {
    "full": Mode(("*",)),
    # What a lock phase trains: the part that belongs to one source or one task.
    "heads": Mode(("heads.*", "cls_encoder.*", "loc_decoder.*")),
    "last_blocks": Mode(("heads.*", *_SHARED, "trunk.norm.*")),
    "lora": Mode(
        ("heads.*", *_SHARED, "*.lora.*"), "lora", ("*.attn.qkv", "*.attn.proj", "*.mlp.fc?")
    ),
    "adapters": Mode(("heads.*", *_SHARED, "*.adapter.*"), "adapter", ("*.attn", "*.mlp")),
    # Of DoLL: in whole maps instead of blocks, see seg_adapters.py; the decoder is locked too.
    SEG_ADAPTERS: Mode(("heads.*", "cls_encoder.*", "loc_decoder.*", "*.map_adapter.*")),
}


class Branch(nn.Module):
    """A narrow detour whose result is added; zero at the start.

    Args:
        in_dim: channels it reads, the last dimension.
        out_dim: channels it gives.
        rank: channels in between.
        scale: of the result.
        linear: no non-linearity and no biases, as LoRA; else GELU and biases, as an adapter.
    """

    def __init__(
        self, in_dim: int, out_dim: int, rank: int, *, scale: float = 1.0, linear: bool = False
    ) -> None:
        super().__init__()
        self.down = nn.Linear(in_dim, rank, bias=not linear)
        self.act = nn.Identity() if linear else nn.GELU()
        self.up = nn.Linear(rank, out_dim, bias=not linear)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        if self.up.bias is not None:
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        return self.up(self.act(self.down(x))) * self.scale


def _add_lora(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + module.get_submodule("lora")(inputs[0])


def _add_adapter(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + module.get_submodule("adapter")(output)


def add_branches(trunk: nn.Module, node: Any) -> tuple[str, ...]:
    """Add the branches of ``MODEL.FX.TUNE`` to a trunk, in place.

    Args:
        trunk: whose linear layers, or blocks with channels last, get branches.
        node: of the config.

    Returns:
        The names of the modules that got one; none where the mode has no branches.
    """
    mode = mode_of(node)
    if not mode.branch:
        return ()
    rank, alpha = int(node.RANK), float(node.ALPHA)
    if rank < 1:
        raise ValueError(f"MODEL.FX.TUNE.RANK is {rank}; allowed: 1 and more")
    found: dict[str, nn.Module] = {}
    for pattern in tuple(node.MODULES) or mode.modules:
        hits = {n: m for n, m in trunk.named_modules() if n and fnmatchcase(n, pattern)}
        if not hits and node.MODULES:
            raise ValueError(
                f"MODEL.FX.TUNE.MODULES: {pattern!r} is no module of the trunk; some are "
                f"{', '.join(_examples(trunk))}"
            )
        found |= hits
    if not found:
        raise ValueError(
            f"MODEL.FX.TUNE.MODE {node.MODE!r} finds nothing like {' '.join(mode.modules)} in this "
            f"trunk; name MODEL.FX.TUNE.MODULES, such as {', '.join(_examples(trunk))}"
        )
    for name, module in found.items():
        _attach(name, module, mode.branch, rank, alpha)
    return tuple(found)


def _attach(name: str, module: nn.Module, branch: str, rank: int, alpha: float) -> None:
    if branch == "lora":
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"MODEL.FX.TUNE.MODULES: {name} is a {type(module).__name__}; LoRA is for Linear"
            )
        dims = module.in_features, module.out_features
        module.lora = Branch(*dims, rank, scale=alpha / rank, linear=True)
        module.register_forward_hook(_add_lora)
        return
    # The last linear layer inside writes what the module gives.
    inside = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if not inside:
        raise ValueError(
            f"MODEL.FX.TUNE.MODULES: {name} ends with no Linear; adapters are for blocks whose "
            "channels are last"
        )
    width = inside[-1].out_features
    module.adapter = Branch(width, width, rank)
    module.register_forward_hook(_add_adapter)


def _examples(trunk: nn.Module) -> list[str]:
    return [n for n, m in trunk.named_modules() if isinstance(m, nn.Linear)][:3]


def mode_of(node: Any) -> Mode:
    """The row of ``MODEL.FX.TUNE.MODE``."""
    if node.MODE not in MODES:
        raise ValueError(f"MODEL.FX.TUNE.MODE is {node.MODE!r}; allowed: {', '.join(MODES)}")
    return MODES[node.MODE]


def trained_patterns(model: nn.Module, node: Any) -> tuple[str, ...]:
    """Patterns of the parameters that ``MODEL.FX.TUNE`` trains.

    Args:
        model: with parts named as in FoundationX.
        node: of the config.
    """
    names = [name for name, _ in model.named_parameters()]
    patterns = [p for p in mode_of(node).trained if any(fnmatchcase(n, p) for n in names)]
    if node.MODE == "last_blocks":
        patterns += _last_blocks(model.get_submodule("trunk"), int(node.LAST_BLOCKS))
    if node.MODE == SEG_ADAPTERS and node.NORMS:
        patterns += [name for name in norm_parameters(model) if name not in patterns]
    return (*patterns, *node.ALSO)


def norm_parameters(model: nn.Module) -> list[str]:
    """Names of the scales and shifts of all norms: few values that move every channel."""
    return [
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters(recurse=False)
    ]


def _last_blocks(trunk: nn.Module, count: int) -> list[str]:
    """The parameters of the deepest blocks; a trunk's depths are those of its layer decay."""
    depths = {n: d for n, d in trunk.layer_ids().items() if n.startswith("net.")}
    blocks = sorted(set(depths.values()))[1:]  # the first is the stem
    if not 1 <= count <= len(blocks):
        raise ValueError(f"MODEL.FX.TUNE.LAST_BLOCKS is {count}; allowed: 1 to {len(blocks)}")
    return [f"trunk.{name}" for name, depth in depths.items() if depth in blocks[-count:]]


def lock_for_tuning(model: nn.Module, node: Any) -> tuple[int, int]:
    """Train what ``MODEL.FX.TUNE`` says and lock the rest; the share is logged.

    Returns:
        Values that are trained, and values of the model.
    """
    set_trainable(model, trained_patterns(model, node))
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total = sum(size for size, _ in sizes)
    trained = sum(size for size, wanted in sizes if wanted)
    share = 100 * trained / total
    _logger.info("%s: %d of %d values are trained (%.3g %%)", node.MODE, trained, total, share)
    return trained, total


def fold_lora(weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The weights of a model with LoRA branches as those of the same model without.

    Args:
        weights: with ``<layer>.weight``, ``<layer>.lora.down.weight`` and ``...up.weight``.
        alpha: ``MODEL.FX.TUNE.ALPHA`` of that model; the rank stands in the shapes.
    """
    result = {name: value for name, value in weights.items() if ".lora." not in name}
    for layer, down, up in _lora_pairs(weights):
        plain = result[f"{layer}.weight"]
        # In double precision, so that the sum is the only rounding.
        change = (up.double() @ down.double()) * (alpha / down.shape[0])
        result[f"{layer}.weight"] = (plain.double() + change).to(plain.dtype)
    return result


def _lora_pairs(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name in weights:
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            if f"{layer}{_UP}" not in weights or f"{layer}.weight" not in weights:
                raise ValueError(f"the LoRA branch of {layer} is not whole")
            yield layer, weights[name], weights[f"{layer}{_UP}"]
