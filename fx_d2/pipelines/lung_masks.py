"""Lung masks of radiographs by the trained models of one or several runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fx_d2.data.lung_input import LUNG_CLASSES_TEXT, lung_classes
from fx_d2.engine.weights import resolve
from fx_d2.modeling.heads.spec import select_heads
from fx_d2.modeling.meta_arch.foundation_x import FoundationX
from fx_d2.predictor import Image, Predictor

from .mask_ensemble import Cleaning, Mask, check_rule, combine

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class MaskRecipe:
    """From probabilities to the mask.

    Args:
        rule: a key of :data:`fx_d2.pipelines.mask_ensemble.RULES`.
        threshold: probability from which a pixel belongs to a mask.
        cleaning: of the combined mask.
    """

    rule: str = "union"
    threshold: float = 0.5
    cleaning: Cleaning = field(default_factory=Cleaning)

    def __post_init__(self) -> None:
        check_rule(self.rule)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; allowed: above 0, at most 1")

    def __call__(self, probabilities: npt.NDArray[np.floating[Any]]) -> Mask:
        """The mask (H, W) from probabilities (M, H, W)."""
        return self.cleaning(combine(probabilities, self.rule, self.threshold))


class LungSegmentor:
    """Masks of the lungs by the models of several runs, combined by a rule and cleaned.

    ::

        lungs = LungSegmentor(["output/a", "output/b", "output/c"])
        lungs("film.dcm")                # bool (height, width), pixels of the original
        lungs.probabilities("film.dcm")  # (3, height, width), each model by itself

    Any checkpoint with masks of lungs will do, a Foundation X as well as a Segmentor; the models
    may expect images of different sizes.

    Args:
        weights: a ``.safetensors`` file or the output folder of a run, for each model.
        heads: the source whose lungs are taken, for each model; () where each has only one with
            lungs.
        recipe: what becomes of the probabilities.
        device: as of :class:`fx_d2.predictor.Predictor`.

    Raises:
        CheckpointError: weights cannot be read.
        ValueError: a model has no masks of lungs, or several sources of them and none is named,
            or it expects films that are prepared by lung masks.
    """

    def __init__(
        self,
        weights: Sequence[PathLike],
        *,
        heads: Sequence[str] = (),
        recipe: MaskRecipe | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if not weights:
            raise ValueError("no weights are named; give a file or a run's folder for each model")
        if heads and len(heads) != len(weights):
            raise ValueError(f"{len(heads)} heads for {len(weights)} models; name one for each")
        self.recipe = recipe or MaskRecipe()
        given = heads or [""] * len(weights)
        self.members = tuple(
            _Member(file, head, device) for file, head in zip(weights, given, strict=True)
        )
        self.names = _distinct([member.name for member in self.members])

    def probabilities(self, image: Image) -> npt.NDArray[np.float32]:
        """(M, height, width) of the lungs, in pixels of the original.

        Raises:
            DataError: the image cannot be read.
        """
        return np.stack([member.probability(image) for member in self.members])

    def __call__(self, image: Image) -> Mask:
        """The lungs, bool (height, width)."""
        return self.recipe(self.probabilities(image))

    def origin(self) -> list[dict[str, Any]]:
        """What a result says about the models."""
        pairs = zip(self.names, self.members, strict=True)
        return [{"name": name, **member.origin()} for name, member in pairs]


class _Member:
    """One model and its head with lungs."""

    def __init__(self, weights: PathLike, head: str, device: str | torch.device | None) -> None:
        predictor = Predictor(weights, device=device)
        found = {
            name.partition("/")[0]: lungs
            for name, classes in predictor.heads.items()
            if name.endswith("/seg") and (lungs := lung_classes(classes))
        }
        if not found:
            raise ValueError(
                f"{weights}: no masks of lungs among its heads {', '.join(predictor.heads)}; "
                f"expected the classes {LUNG_CLASSES_TEXT}"
            )
        if head and head not in found:
            raise ValueError(f"{weights}: no lungs of {head!r}; it has those of {', '.join(found)}")
        if not head and len(found) > 1:
            raise ValueError(f"{weights}: has lungs of {', '.join(found)}; name one of them")
        self.source = head or next(iter(found))
        self.classes = found[self.source]
        shown = predictor.cfg.INPUT.FX.LUNGS.MODE
        if shown != "none":
            raise ValueError(
                f"{weights}: learned from films that were prepared by their lung masks "
                f"(INPUT.FX.LUNGS.MODE {shown!r}), which is what it is to find here; name a "
                "segmentor trained with MODE none"
            )
        asked = select_heads(predictor.model.specs, [(self.source, "seg")])
        predictor.asked = tuple(spec.name for spec in asked)
        for module in predictor.model.modules():
            if isinstance(module, FoundationX):
                module.soft_masks = True
        self._predictor, file = predictor, resolve(weights)
        self.name = file.parent.name if file.stem.startswith("model_") else file.stem

    def probability(self, image: Image) -> npt.NDArray[np.float32]:
        masks: Mapping[str, torch.Tensor] = self._predictor(image)["masks"][self.source]
        return np.max([masks[name].float().cpu().numpy() for name in self.classes], axis=0)

    def origin(self) -> dict[str, Any]:
        about = self._predictor.description
        return {
            "weights_sha256": about.get("weights_sha256"),
            "source": self.source,
            "classes": list(self.classes),
        }


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names; where one comes again, with its number."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(result)
