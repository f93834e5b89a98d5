"""Which parameters are trained, declared by the patterns of their names.

Locked is still: no gradient, none stored that an optimizer could apply, and layers whose outputs
or buffers depend on the mode (norms with running statistics, dropout, drop path) as in prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


class NamePatterns:
    """Patterns over names, ``*`` and ``?`` as in file names.

    Args:
        patterns: full names among them are looked up; hundreds of them are no slower than one.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._wild = tuple(p for p in self.patterns if set(p) & set("*?["))
        self._plain = frozenset(self.patterns) - frozenset(self._wild)

    def match(self, name: str) -> bool:
        """Whether one of them is that of ``name``."""
        return name in self._plain or any(fnmatchcase(name, p) for p in self._wild)

    def idle(self, names: Iterable[str]) -> list[str]:
        """Those that match none of the names."""
        names = set(names)
        return [p for p in self.patterns if p not in names and not self._hits(p, names)]

    def _hits(self, pattern: str, names: set[str]) -> bool:
        return pattern in self._wild and any(fnmatchcase(name, pattern) for name in names)


def group_parameters(
    model: nn.Module, groups: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The names of the parameters of each group: every parameter stands in exactly one.

    A pattern may be idle (not every model has every part), so that a group may be empty.

    Args:
        model: whose parameters.
        groups: {name: patterns}.

    Raises:
        ValueError: a parameter, or one shared by two modules, is in no group or in several.
    """
    compiled = {group: NamePatterns(patterns) for group, patterns in groups.items()}
    by_tensor: dict[int, tuple[str, list[str]]] = {}
    members: dict[str, list[str]] = {group: [] for group in groups}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found = [group for group, patterns in compiled.items() if patterns.match(name)]
        if not found:
            raise ValueError(
                f"parameter {name} is in no group; the groups are "
                + ", ".join(f"{group} ({' '.join(p)})" for group, p in groups.items())
            )
        first, already = by_tensor.setdefault(id(parameter), (name, found))
        if len(found) > 1 or already != found:
            names = name if name == first else f"{first}, shared with {name},"
            both = sorted({*found, *already})
            raise ValueError(f"parameter {names} is in the groups {' and '.join(both)}; one only")
        if name == first:
            members[found[0]].append(name)
    return {group: tuple(names) for group, names in members.items()}


def set_trainable(model: nn.Module, patterns: Sequence[str], *, layers: str = "eval") -> int:
    """Train the parameters that the patterns name, and lock all others.

    Stands until the next call, whoever calls ``model.train()`` meanwhile: locked layers are put in
    evaluation mode again before every forward pass. ``set_trainable(model, ["*"])`` releases all.

    Args:
        model: whose parameters; wrapped models are unwrapped by the caller.
        patterns: of the names of what is trained; each has to name something.
        layers: ``eval``, or ``train`` to lock parameters only: running statistics of locked norms
            then go on moving.

    Returns:
        How many values are trained.
    """
    if layers not in ("eval", "train"):
        raise ValueError(f"layers is {layers!r}; allowed: 'eval', 'train'")
    named = list(model.named_parameters(remove_duplicate=False))
    chosen = NamePatterns(patterns)
    if idle := chosen.idle(name for name, _ in named):
        parts = dict.fromkeys(name.split(".")[0] for name, _ in named)
        raise ValueError(
            f"pattern {idle[0]!r} names no parameter; the model's begin with {', '.join(parts)}"
        )
    trained = {id(parameter) for name, parameter in named if chosen.match(name)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
        if id(parameter) not in trained:
            parameter.grad = None  # a stored one would move it at the next step
    _keep_in_eval(model, _locked_layers(model, chosen) if layers == "eval" else [])
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _locked_layers(model: nn.Module, patterns: NamePatterns) -> list[nn.Module]:
    """Layers that nothing trained belongs to.

    Layers, not whole branches: containers of Detectron2 read their mode to decide whether they
    return losses, and a locked RPN still has to.
    """
    locked = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        holds = bool(own) or next(module.buffers(recurse=False), None) is not None
        if module is model or not (holds or next(module.children(), None) is None):
            continue
        if any(p.requires_grad for p in own) if own else patterns.match(f"{name}."):
            continue
        locked.append(module)
    return locked


class _Stillness:
    """A forward pre-hook of the model that keeps layers in evaluation mode."""

    def __init__(self) -> None:
        self.layers: list[nn.Module] = []

    def __call__(self, model: nn.Module, _: Any) -> None:
        if model.training:
            self.quieten()

    def quieten(self) -> None:
        for layer in self.layers:
            layer.training = False


def quieten(model: nn.Module) -> None:
    """Put locked layers in evaluation mode now, as the next forward pass would."""
    if (stillness := _stillness_of(model)) is not None:
        stillness.quieten()


def _stillness_of(model: nn.Module) -> _Stillness | None:
    hooks = model._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, _Stillness)), None)


def _keep_in_eval(model: nn.Module, layers: list[nn.Module]) -> None:
    stillness = _stillness_of(model)
    if stillness is None:
        stillness = _Stillness()
        model.register_forward_pre_hook(stillness)
    for layer in stillness.layers:
        layer.training = model.training
    stillness.layers = layers
    stillness.quieten()
