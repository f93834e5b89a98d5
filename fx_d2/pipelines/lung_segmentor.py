"""Any fx_d2 checkpoint with lung masks as a function from a film to a map of lung probability."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from fx_d2.data.formats.contract import LoadedImage
from fx_d2.data.lung_input import LUNG_CLASSES
from fx_d2.data.mapper import FxMapper
from fx_d2.data.record import Record
from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.engine.ensemble import Trained, load_trained
from fx_d2.engine.step import precision_of
from fx_d2.modeling.heads.spec import HeadSpec

from .stages import Film, Grey

PathLike = str | os.PathLike[str]


class FilmReader:
    """Reads the film that a record carries; it may be decoded already.

    Args:
        voi: as the model of this reader expects it.
    """

    def __init__(self, voi: str) -> None:
        self._voi = voi

    def read(self, record: Record) -> LoadedImage:
        """The image of ``record``."""
        return cast(Any, record)["film"].loaded(self._voi)


class LungSegmentor:
    """A trained model whose masks include the lungs.

    Args:
        trained: the model.
        name: of it, in tables; default the name of its folder.
        head: its source, where several of its heads have lungs.

    Raises:
        CheckpointError: it has no masks of lungs; or several heads have and none is named.
    """

    def __init__(self, trained: Trained, *, name: str = "", head: str = "") -> None:
        self.trained, self.model, self.cfg = trained, trained.model, trained.cfg
        self.name = name or trained.weights.parent.name
        self.spec = _lung_head(trained, head)
        self.classes = tuple(c for c in self.spec.classes if c in LUNG_CLASSES)
        cast(Any, self.model).soft_masks = True  # rules such as the mean look at probabilities
        reader = FilmReader(self.cfg.INPUT.FX.INTENSITY.VOI)
        self._mapper = FxMapper(self.cfg, False, reader=reader, targets=False)

    @classmethod
    def load(
        cls, weights: PathLike, device: torch.device, *, name: str = "", head: str = ""
    ) -> LungSegmentor:
        """From a ``.safetensors`` file or the output folder of a run.

        Raises:
            CheckpointError: it cannot be read, or is no lung segmentor.
        """
        return cls(load_trained(weights, device), name=name, head=head)

    def __call__(self, film: Film) -> Grey:
        """Probability of lung, float32 (height, width) of the film.

        Raises:
            DataError: the film cannot be read.
        """
        record = {"file_name": str(film.path), "image_id": "film", "source": self.spec.source}
        sample = self._mapper(cast(Record, {**record, "film": film}), "seg", ("hybrid",))
        model = cast(Any, self.model)
        with torch.inference_mode(), precision_of(self.cfg), model.asking([self.spec.name]):
            (found,) = model([sample])
        masks = found["masks"][self.spec.source]
        result = np.zeros(film.size, dtype=np.float32)
        for name in self.classes:
            np.maximum(result, masks[name].float().cpu().numpy(), out=result)
        return result


def _lung_head(trained: Trained, wanted: str) -> HeadSpec:
    specs: Sequence[HeadSpec] = cast(Any, trained.model).specs
    having = [s for s in specs if s.task == "seg" and set(s.classes) & set(LUNG_CLASSES)]
    names = [spec.name for spec in having]
    if not having:
        raise CheckpointError(
            f"this is no lung segmentor: its heads are {', '.join(s.name for s in specs)}",
            file=trained.weights,
            expected=f"a mask of {' or '.join(LUNG_CLASSES)}",
            fix="name a model trained on lung masks as segmentor",
        )
    chosen = [spec for spec in having if wanted in (spec.source, spec.name)] if wanted else having
    if len(chosen) != 1:
        problem = f"has no lung head {wanted!r}" if wanted else "several heads have lungs"
        raise CheckpointError(
            problem,
            file=trained.weights,
            expected=f"one of {', '.join(names)}",
            fix="name it with --segmentor PATH@SOURCE",
        )
    return chosen[0]
