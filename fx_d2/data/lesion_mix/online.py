"""The lesion mix within the mapper: the same recipes and pixels as in a written dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..draws import rng_for
from ..formats.contract import LoadedImage
from ..record import Record
from .build import Prepared, read_prepared
from .mixer import LesionMixer, Mixed
from .place import DoesNotFit
from .settings import MixSettings
from .truth import record_of


class OnlineMix:
    """Mixes some of the training images of the base source.

    Args:
        prepared: bank and statistics, as the tool left them.
        settings: how; ``prob`` decides how many.
    """

    def __init__(self, prepared: Prepared, settings: MixSettings) -> None:
        self.prepared, self.settings = prepared, settings
        self.kitchen = prepared.kitchen(settings)
        self.mixer = LesionMixer(prepared.base, prepared.bank, settings)

    @classmethod
    def from_config(cls, cfg: Any) -> OnlineMix | None:
        """The mix of a config, or None where ``PROB`` is 0."""
        settings = MixSettings.from_config(cfg)
        if not settings.prob:
            return None
        folder = cfg.INPUT.FX.LESION_MIX.FOLDER
        if not folder:
            raise ValueError(
                f"INPUT.FX.LESION_MIX.PROB is {settings.prob}, but FOLDER names no bank; make one "
                "with tools/make_lesion_mix.py --prepare-only"
            )
        prepared = read_prepared(Path(folder))
        for name in cfg.DATASETS.TRAIN:
            known = (*prepared.datasets, *_written(cfg, prepared.base.key))
            if name.startswith(f"{prepared.base.key}_") and name not in known:
                raise ValueError(
                    f"DATASETS.TRAIN has {name}, but the mix in {folder} was prepared for "
                    f"{', '.join(prepared.datasets)}: patients of others may be held out"
                )
        return cls(prepared, settings)

    def __call__(
        self, record: Record, loaded: LoadedImage, seed: int, position: tuple[int | str, ...],
        *, masks: bool = True,
    ) -> tuple[Record, LoadedImage]:  # fmt: skip
        """The record and its image, mixed or as they came.

        Args:
            record: of a training image.
            loaded: its pixels.
            seed: with ``position`` it decides every draw.
            position: where in the schedule the image stands.
            masks: whether the task needs masks.
        """
        base = self.prepared.base
        if record["source"] != base.key or record.get("synthetic"):
            return record, loaded
        rng = rng_for(seed, "lesion mix", *position)
        if rng.random() >= self.settings.prob:
            return record, loaded
        arm = self.kitchen.arm_of(record["labels"], record["view"])
        recipe = None if arm is None else self.kitchen.draw(rng, arm, record["labels"])
        if recipe is None:
            return record, loaded
        try:
            mixed = self.mixer.apply(record, loaded, recipe)
        except DoesNotFit:
            return record, loaded
        return self._record(record, mixed, masks), mixed.image

    def _record(self, record: Record, mixed: Mixed, masks: bool) -> Record:
        made = record_of(mixed.truth.to_row(masks=masks), self.prepared.base, masks=masks)
        kept = {k: v for k, v in record.items() if k not in ("annotations", "masks")}
        # Another id: what is kept by id (decoded masks) is of the image without the lesion.
        return {**kept, **made, "image_id": f"{record['image_id']}+mix"}


def _written(cfg: Any, base: str) -> list[str]:
    return [f"{base}_{text.partition('=')[0].strip()}" for text in cfg.DATASETS.LESION_MIX]
