"""The optimizer of a config: every parameter in exactly one group, by the pattern of its name.

Parameters that are locked at the time are grouped too: what is released later must be trained.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from fx_d2.modeling.adapters import NORMS

_logger = logging.getLogger(__name__)

OPTIMIZERS = ("AdamW", "SGD")
TRUNK = "trunk."
# Position tables are looked up, not multiplied: decay pulls rarely used entries to zero.
_TABLES = ("relative_position_bias_table", "pos_embed", "cls_token")
# A block as timm names them: layers_0.blocks.1, stages.2.blocks.0, layer1.0.
_BLOCK = re.compile(r"^.*?(?:layers?|stages?|blocks?)[._]?\d+\.(?:blocks\.)?\d+(?=\.)")


@dataclass
class Patterns:
    """Ordered patterns over parameter names; each has to decide about at least one.

    Args:
        key: of the config, for messages.
        values: {pattern: value}; ``*`` and ``?`` as in file names.
    """

    key: str
    values: dict[str, float]
    used: set[str] = field(default_factory=set)

    def value(self, name: str, default: float) -> float:
        """That of the first pattern matching ``name``."""
        for pattern, value in self.values.items():
            if fnmatchcase(name, pattern):
                self.used.add(pattern)
                return value
        return default

    def check(self, names: Iterable[str]) -> None:
        """Raise for a pattern that decided nothing: a typo would train other rates silently."""
        idle = [p for p in self.values if p not in self.used]
        if idle:
            parts = sorted({n.split(".")[0] for n in names})
            raise ValueError(
                f"{self.key}: {idle[0]!r} decides about no parameter; the model's begin with "
                f"{', '.join(parts)}, and the first pattern that matches wins"
            )


def parse_numbers(key: str, items: Sequence[str]) -> dict[str, float]:
    """``{"trunk.*": 0.1}`` from ``("trunk.*=0.1",)``; numbers are at least 0."""
    result = {}
    for text in items:
        name, separator, number = str(text).rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not (separator and name.strip() and 0 <= value < float("inf")):
            raise ValueError(f"{key} has {text!r}; write 'name=number', the number 0 or more")
        result[name.strip()] = value
    return result


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """(name, parameter, whether it is of a norm layer), shared ones once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".lstrip("."), parameter, isinstance(module, NORMS)


def without_decay(name: str, parameter: nn.Parameter, of_norm: bool) -> bool:
    """Whether weight decay would do harm: norms, biases and other vectors, position tables."""
    return of_norm or parameter.ndim <= 1 or name.endswith(_TABLES)


def layer_of(names: Iterable[str]) -> dict[str, int]:
    """Depth of every trunk parameter, in blocks.

    The stem is 0. What stands between two blocks (the reduction at the start of a stage) counts
    with the later one, and what follows the last block is one deeper.
    """
    trunk = [n for n in names if n.startswith(TRUNK)]
    blocks = [m.group() if (m := _BLOCK.match(n)) else None for n in trunk]
    order = {b: i + 1 for i, b in enumerate(dict.fromkeys(b for b in blocks if b))}
    if not order:
        raise ValueError(
            "SOLVER.FX.LAYER_DECAY: no blocks are known by the parameter names of this trunk"
            f" ({', '.join(trunk[:2]) or 'there is none'}); set it to 1"
        )
    result: dict[str, int] = {}
    depth = len(order) + 1
    for name, block in zip(trunk[::-1], blocks[::-1], strict=True):
        depth = order[block] if block else depth
        result[name] = depth
    stem = blocks.index(next(iter(order)))
    return result | dict.fromkeys(trunk[:stem], 0)


def parameter_groups(cfg: Any, model: nn.Module) -> list[dict[str, Any]]:
    """Groups ``{"params", "lr", "weight_decay", "name"}`` that hold every parameter once.

    ``name`` says what the group is, for the log and the training state.
    """
    fx, base, decay = cfg.SOLVER.FX, float(cfg.SOLVER.BASE_LR), float(cfg.SOLVER.WEIGHT_DECAY)
    factors = Patterns("SOLVER.FX.LR_FACTORS", parse_numbers("SOLVER.FX.LR_FACTORS", fx.LR_FACTORS))
    spared = Patterns("SOLVER.FX.NO_DECAY", dict.fromkeys(fx.NO_DECAY, 1.0))
    if not 0 < fx.LAYER_DECAY <= 1:
        raise ValueError(f"SOLVER.FX.LAYER_DECAY is {fx.LAYER_DECAY}; allowed: above 0, at most 1")
    parameters = list(_named(model))
    depths = layer_of(n for n, _, _ in parameters) if fx.LAYER_DECAY < 1 else {}
    last = max(depths.values(), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter, of_norm in parameters:
        factor = factors.value(name, 1.0) * fx.LAYER_DECAY ** (last - depths.get(name, last))
        spare = spared.value(name, 0.0) or (
            not fx.DECAY_ALL and without_decay(name, parameter, of_norm)
        )
        key = (base * factor, 0.0 if spare else decay)
        title = f"lr {key[0]:.3g}, weight decay {key[1]:.3g}"
        new = {"params": [], "lr": key[0], "weight_decay": key[1], "name": title}
        groups.setdefault(key, new)["params"].append(parameter)
    for patterns in (factors, spared):
        patterns.check(n for n, _, _ in parameters)
    return list(groups.values())


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``SOLVER``; build it while everything that is ever trained exists."""
    fx = cfg.SOLVER.FX
    if fx.OPTIMIZER not in OPTIMIZERS:
        raise ValueError(f"SOLVER.FX.OPTIMIZER is {fx.OPTIMIZER!r}; allowed: {OPTIMIZERS}")
    groups = parameter_groups(cfg, model)
    for group in groups:
        count = sum(p.numel() for p in group["params"])
        _logger.info("%s: %d tensors, %.3g values", group["name"], len(group["params"]), count)
    rate = cfg.SOLVER.BASE_LR
    if fx.OPTIMIZER == "SGD":
        options = {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV}
        return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(groups, lr=rate, **options)
    return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
        groups, lr=rate, fused=True if fx.FUSED else None
    )


class NormClipper:
    """Clips all gradients together to a norm that may depend on the task.

    Args:
        default: largest norm; 0 does not clip.
        by_task: {task: norm}, exceptions.
    """

    def __init__(self, default: float = 0.0, by_task: dict[str, float] | None = None) -> None:
        self.default, self.by_task = default, dict(by_task or {})

    @classmethod
    def from_config(cls, cfg: Any, tasks: Sequence[str]) -> NormClipper:
        """By ``SOLVER.FX.CLIP_NORM`` and ``CLIP_NORM_BY``."""
        by_task = parse_numbers("SOLVER.FX.CLIP_NORM_BY", cfg.SOLVER.FX.CLIP_NORM_BY)
        unknown = sorted(set(by_task) - set(tasks))
        if unknown:
            raise ValueError(f"SOLVER.FX.CLIP_NORM_BY names {unknown}; allowed: {tuple(tasks)}")
        return cls(float(cfg.SOLVER.FX.CLIP_NORM), by_task)

    def __call__(self, parameters: Iterable[nn.Parameter], task: str) -> torch.Tensor | None:
        """Clip in place.

        Returns:
            The norm before, () float; None when this task is not clipped.
        """
        largest = self.by_task.get(task, self.default)
        return nn.utils.clip_grad_norm_(parameters, largest) if largest > 0 else None
