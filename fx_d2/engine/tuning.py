"""Fine-tuning by config: what is locked, and that nothing is locked at random weights."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from fx_d2.modeling.adapters import lock_for_tuning

from .setup import ConfigError
from .weights import read_weights, resolve


def tune(cfg: Any, model: nn.Module) -> None:
    """Lock what ``MODEL.FX.TUNE`` does not train; nothing happens in mode "full".

    Args:
        cfg: of the run.
        model: whose parameters; the optimizer knows them all already.
    """
    node = cfg.MODEL.FX.TUNE
    if node.MODE == "full":
        return
    if cfg.CYCLE.NAME:
        raise ConfigError(
            f"MODEL.FX.TUNE.MODE {node.MODE!r} and CYCLE.NAME {cfg.CYCLE.NAME!r} both say what is "
            "trained; set one of them back"
        )
    lock_for_tuning(model, node)
    locked = [name for name, p in model.named_parameters() if not p.requires_grad]
    fresh = _random(cfg, model, locked)
    if fresh:
        parts = dict.fromkeys(_part(name) for name in fresh)
        raise ConfigError(
            f"MODEL.FX.TUNE.MODE {node.MODE!r} would lock {', '.join(parts)} at random weights: "
            f"{cfg.MODEL.WEIGHTS or 'MODEL.WEIGHTS is empty and'} does not have it. Name weights "
            f"that do, or train it too: MODEL.FX.TUNE.ALSO \"('{next(iter(parts))}.*',)\""
        )


def _random(cfg: Any, model: nn.Module, locked: list[str]) -> list[str]:
    """Locked parameters that no file gives a value."""
    given = set[str]()
    if cfg.MODEL.WEIGHTS:
        if "://" in cfg.MODEL.WEIGHTS or not Path(cfg.MODEL.WEIGHTS).expanduser().exists():
            return []  # a resumed run needs the file no longer, and one that starts says so
        given = set(read_weights(resolve(cfg.MODEL.WEIGHTS)))
    trunk = ("trunk.*",) if cfg.MODEL.FX.TRUNK.PRETRAINED else ()
    return [n for n in locked if n not in given and not any(fnmatchcase(n, p) for p in trunk)]


def _part(name: str) -> str:
    return ".".join(name.split(".")[: 3 if name.startswith("heads.") else 1])
