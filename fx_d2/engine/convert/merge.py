"""Fold the LoRA branches of a tuned checkpoint into its plain weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from fx_d2.engine.weights import (
    CheckpointError,
    CheckpointFiles,
    Weights,
    read_description,
    read_weights,
    write_checkpoint,
)
from fx_d2.modeling.adapters import fold_lora


def merged_lora(path: str | os.PathLike[str]) -> tuple[Weights, dict[str, Any]]:
    """The weights and the description of a tuned checkpoint, as those of a model without branches.

    Args:
        path: a checkpoint of fx_d2 that was trained with LoRA.
    """
    path = Path(path)
    about = read_description(path)
    try:
        cfg = CfgNode.load_cfg(about["config"])
        alpha = float(cfg.MODEL.FX.TUNE.ALPHA)
        cfg.MODEL.FX.TUNE.MODE = "full"
    except (KeyError, AttributeError, ValueError, TypeError, yaml.YAMLError) as exc:
        raise CheckpointError(
            "the description does not say how LoRA was trained (MODEL.FX.TUNE)", file=path
        ) from exc
    return fold_lora(read_weights(path), alpha), {**about, "config": cfg.dump()}


def write_merged(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write :func:`merged_lora` as a checkpoint of its own."""
    weights, about = merged_lora(path)
    about.pop("weights_sha256", None)
    write_checkpoint(CheckpointFiles(Path(out)), weights, about, None)
    return Path(out)
