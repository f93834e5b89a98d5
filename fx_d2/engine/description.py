"""What stands beside weights: config, sources with their classes, input path, revision."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from torch import nn

import fx_d2

from .weights import FORMAT, CheckpointError


def class_lists(model: nn.Module) -> dict[str, dict[str, list[str]]]:
    """``{source: {task: class names in the order of the head's outputs}}``.

    Told by the model's ``specs``; one without them has no heads of sources.
    """
    result: dict[str, dict[str, list[str]]] = {}
    for spec in getattr(model, "specs", ()):
        result.setdefault(spec.source, {})[spec.task] = list(spec.classes)
    return result


def input_settings(cfg: CfgNode) -> dict[str, Any]:
    """How a file becomes what the network sees; the same wherever they are used."""
    fx = cfg.INPUT.FX
    return {
        "size": fx.SIZE,
        "resize": fx.RESIZE,
        "channels": fx.CHANNELS,
        "intensity": {key.lower(): value for key, value in fx.INTENSITY.items()},
        # Where masks come from belongs to the machine, what they do to the model.
        "lungs": {k.lower(): v for k, v in fx.LUNGS.items() if k != "SOURCE"},
    }


@lru_cache(maxsize=1)
def git_revision() -> str | None:
    """The commit of this package's own checkout, ``+changes`` behind it; None when installed."""
    root = Path(fx_d2.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None  # a repository further up is somebody else's
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        answers.append(done.stdout.strip())
    return f"{answers[0]}+changes" if answers[0] and answers[1] else answers[0] or None


def describe(cfg: CfgNode | None, model: nn.Module) -> dict[str, Any]:
    """What stands beside weights: enough to build the model again and feed it as in training.

    Args:
        cfg: of the run; None leaves out what only it knows.
        model: whose weights they are.
    """
    result: dict[str, Any] = {
        "format": FORMAT,
        "fx_d2": fx_d2.__version__,
        "torch": str(torch.__version__),
        "git_revision": git_revision(),
        "sources": class_lists(model),
    }
    if cfg is not None:
        result |= {"input": input_settings(cfg), "config": cfg.dump()}
    return result


def config_of(description: Mapping[str, Any]) -> CfgNode:
    """The config a checkpoint was trained with, as :func:`read_description` gave it."""
    cfg = get_cfg()
    fx_d2.add_fx_config(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode.load_cfg(description["config"]))
    except (KeyError, ValueError, TypeError, AssertionError, yaml.YAMLError) as exc:
        raise CheckpointError(
            f"the config in the checkpoint is not one of this version ({exc})",
            fix=f"use fx_d2 {description.get('fx_d2', 'of that time')}",
        ) from exc
    return cfg
