"""Trained models from their files alone, one by one or as an ensemble."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from fx_d2.data.sources import get_source
from fx_d2.modeling.meta_arch.ensemble import Ensemble

from .checkpoint import CheckpointError, config_of, load_weights, read_description
from .description import input_settings
from .setup import config_errors

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Trained:
    """A model as it was trained.

    Args:
        model: with its weights, in evaluation mode.
        cfg: of its run, without what belongs to the machine it ran on.
        description: that stands beside the weights.
        weights: the file.
    """

    model: nn.Module
    cfg: CfgNode
    description: dict[str, Any]
    weights: Path

    def origin(self) -> dict[str, Any]:
        """What a result says about where it came from."""
        about = self.description
        return {
            "weights": self.weights.name,
            "weights_sha256": about.get("weights_sha256"),
            "fx_d2": about.get("fx_d2"),
            "git_revision": about.get("git_revision"),
            "output_dir": Path(self.cfg.OUTPUT_DIR).name,
            "seed": int(self.cfg.SEED),
        }


def load_trained(weights: PathLike, device: torch.device) -> Trained:
    """The model that wrote ``weights``, built from the description beside them.

    Raises:
        CheckpointError: the weights cannot be read or belong to another model.
    """
    description = read_description(weights)
    cfg = _prediction_config(description, weights, device)
    with config_errors(), torch.random.fork_rng(devices=[]):
        model = _built(cfg)
    report = load_weights(model, weights)
    if not report.complete:
        raise CheckpointError(
            "weights and description are of different models: "
            + report.summary().splitlines()[1].strip(),
            file=report.path,
            fix=f"predict with fx_d2 {description.get('fx_d2', 'of that time')}",
        )
    return Trained(model, cfg, description, Path(report.path))


def load_ensemble(
    files: Sequence[PathLike], device: torch.device
) -> tuple[Ensemble, list[Trained]]:
    """Models of several runs as one, and each by itself.

    Raises:
        CheckpointError: see :func:`load_trained`; or the members see images in different ways.
        ValueError: they have no head in common.
    """
    members = [load_trained(file, device) for file in files]
    for other in members[1:]:
        check_same_input(members[0], other)
    names = [str(file) for file in files]
    return Ensemble([member.model for member in members], names), members


def evaluated_ensemble(cfg: CfgNode) -> Ensemble | None:
    """The ensemble of ``MODEL.FX.ENSEMBLE``, whose images are those of ``cfg``; None without it."""
    files = list(cfg.MODEL.FX.ENSEMBLE)
    if not files:
        return None
    ensemble, members = load_ensemble(files, torch.device(cfg.MODEL.DEVICE))
    wanted, found = input_settings(cfg), input_settings(members[0].cfg)
    for key in wanted:
        if wanted[key] != found[key]:
            raise CheckpointError(
                f"its images have {key} {found[key]}, those of this config {wanted[key]}",
                file=members[0].weights,
                fix="evaluate with INPUT.FX as it was trained (its .json holds it)",
            )
    ensemble.origin = [member.origin() for member in members]
    return ensemble


def check_same_input(first: Trained, other: Trained) -> None:
    """Raise where two models expect images that were read or resized in different ways."""
    wanted, found = input_settings(first.cfg), input_settings(other.cfg)
    difference = next((key for key in wanted if wanted[key] != found[key]), None)
    if difference is not None:
        raise CheckpointError(
            f"its images have {difference} {found[difference]}, those of {first.weights.name} "
            f"{wanted[difference]}",
            file=other.weights,
            expected="members that see the same image: equal INPUT.FX settings",
            fix="train them with one INPUT.FX, or leave this one out",
        )


def _prediction_config(
    description: Mapping[str, Any], weights: PathLike, device: torch.device
) -> CfgNode:
    """The config of the run, without what belongs to its machine."""
    if not isinstance(description.get("sources"), dict) or not description["sources"]:
        raise CheckpointError("the description names no heads of sources", file=weights)
    if not isinstance(description.get("config"), str):
        raise CheckpointError(
            "the description holds no config", file=weights, fix="save with FxCheckpointer(cfg=...)"
        )
    cfg = config_of(description)
    for source in description["sources"]:
        try:
            get_source(source)
        except KeyError as exc:
            raise CheckpointError(
                f"has heads for source {source!r}, which is not in the table here",
                file=weights,
                fix="import the module that registers it first (docs/add_a_source.md)",
            ) from exc
    cfg.MODEL.FX.SOURCES = tuple(description["sources"])  # whatever datasets it was trained on
    cfg.MODEL.FX.TRUNK.PRETRAINED = ""  # all weights are in the checkpoint
    cfg.MODEL.FX.COMPILE = False  # takes longer than a folder of images
    cfg.MODEL.FX.SEG.SOFT_MASKS = False
    cfg.MODEL.DEVICE = str(device)
    cfg.freeze()
    return cfg


def _built(cfg: CfgNode) -> nn.Module:
    model = build_model(cfg).eval()
    if not hasattr(model, "asking"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no heads to ask for"
        )
    return model
