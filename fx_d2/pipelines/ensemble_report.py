"""Area against Dice: what every rule of an ensemble, and every model of it, is worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tabulate import tabulate

from fx_d2.data.draw import Picture, Scene, contact_sheet, display, draw_scene
from fx_d2.data.errors import DataError
from fx_d2.data.images import read_image
from fx_d2.data.lung_masks import lungs_of
from fx_d2.data.record import Record
from fx_d2.data.source import Source
from fx_d2.evaluation.segmentation import overlap

from .lung_masks import LungSegmentor
from .mask_ensemble import RULES, Mask, combine

CLEANED = " + cleaning"
_HEAD = ("mask", "Dice", "lowest", "IoU", "recall", "false area", "area", "area / true")


@dataclass
class EnsembleReport:
    """Figures of every mask over the images of a dataset.

    Attributes:
        image_ids: of the images that were measured.
        pixels: {mask: rows of pixels (in both, predicted, true, of the image)}.
        skipped: what could not be measured, and why.
    """

    image_ids: list[str] = field(default_factory=list)
    pixels: dict[str, list[tuple[int, int, int, int]]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add(self, image_id: str, masks: Mapping[str, Mask], truth: Mask) -> None:
        """The masks of one image, by name, and the truth."""
        self.image_ids.append(image_id)
        for name, mask in masks.items():
            counts = (np.count_nonzero(mask & truth), mask.sum(), truth.sum(), truth.size)
            self.pixels.setdefault(name, []).append(tuple(int(n) for n in counts))

    def dice(self, name: str) -> np.ndarray:
        """(N,) of one mask, in the order of ``image_ids``."""
        return overlap(*self._columns(name)[:3])[0]

    def figures(self) -> dict[str, dict[str, float]]:
        """{mask: figures}, each a mean over images.

        ``Dice`` and its ``lowest``, ``IoU``; ``recall`` (share of true lung inside the mask) and
        ``false area`` (mask outside the true lung, as a share of that), both over images with true
        lung; ``area`` (share of the image) and ``area / true``, of all images together.
        """
        found = {}
        for name in self.pixels:
            both, said, true, size = self._columns(name)
            dice, iou = overlap(both, said, true)
            has = true > 0
            means = np.full(2, np.nan)
            if has.any():
                means = np.array([both[has] / true[has], (said - both)[has] / true[has]]).mean(1)
            values = (
                *(dice.mean(), dice.min(), iou.mean(), *means),
                *((said / size).mean(), said.sum() / true.sum() if true.any() else np.nan),
            )
            found[name] = dict(zip(_HEAD[1:], map(float, values), strict=True))
        return found

    def as_json(self) -> dict[str, Any]:
        """Everything, in values that JSON knows."""
        figures = {
            name: {key: None if np.isnan(value) else value for key, value in row.items()}
            for name, row in self.figures().items()
        }
        by_mask = {name: overlap(*self._columns(name)[:3]) for name in self.pixels}
        per_image = [
            {
                "image_id": image_id,
                "dice": {name: float(dice[i]) for name, (dice, _) in by_mask.items()},
                "iou": {name: float(iou[i]) for name, (_, iou) in by_mask.items()},
            }
            for i, image_id in enumerate(self.image_ids)
        ]
        return {
            "images": len(self.image_ids),
            "skipped": self.skipped,
            "figures": figures,
            "per_image": per_image,
        }

    def _columns(self, name: str) -> np.ndarray:
        """(4, N): pixels of one mask, as in ``pixels``."""
        return np.array(self.pixels[name], dtype=np.float64).T

    def as_text(self) -> str:
        """The table in Markdown."""
        rows = [
            [name, *("" if np.isnan(v) else f"{v:.4f}" for v in row.values())]
            for name, row in self.figures().items()
        ]
        return tabulate(rows, _HEAD, "github", disable_numparse=True)

    def worst(self, name: str, count: int) -> list[str]:
        """The ids of the images with the lowest Dice of one mask, the lowest first."""
        order = np.argsort(self.dice(name), kind="stable")[:count]
        return [self.image_ids[i] for i in order]


def masks_of(segmentor: LungSegmentor, probabilities: np.ndarray) -> dict[str, Mask]:
    """By name: of every model, of every rule, and of every rule with the cleaning after it."""
    recipe = segmentor.recipe
    found: dict[str, Mask] = {
        name: given >= recipe.threshold
        for name, given in zip(segmentor.names, probabilities, strict=True)
    }
    for rule in RULES:
        found[rule] = combine(probabilities, rule, recipe.threshold)
        found[rule + CLEANED] = recipe.cleaning(found[rule])
    return found


def measure(
    segmentor: LungSegmentor, records: Iterable[Record], source: Source, *, skip: bool = False
) -> EnsembleReport:
    """Compare the masks of every rule and model with the truth of every record.

    Args:
        segmentor: the models.
        records: of ``source``; those without annotated lungs are left out and counted.
        source: the row.
        skip: leave out images that cannot be read, and count them, in place of an error.
    """
    report = EnsembleReport()
    for record in records:
        try:
            given = segmentor.probabilities(record["file_name"])
            size = (given.shape[1], given.shape[2])
            truth = lungs_of(record, size, resize=source.resize_masks)
        except DataError as exc:
            if not skip:
                raise
            report.skipped.append(str(exc))
            continue
        if truth is None:
            report.skipped.append(f"{record['image_id']}: lungs are not annotated")
            continue
        report.add(record["image_id"], masks_of(segmentor, given), truth)
    return report


def draw_worst(
    segmentor: LungSegmentor,
    records: Sequence[Record],
    source: Source,
    report: EnsembleReport,
    *,
    size_px: int = 384,
) -> Picture:
    """A row per image: the truth, the ensemble's mask, and the outlines of the models.

    Args:
        segmentor: of the report.
        records: the images to draw, in this order.
        source: their row.
        report: with the figures of these images.
        size_px: longer side of a film.
    """
    return contact_sheet(
        [p for r in records for p in _row(segmentor, r, source, report, size_px)], columns=3
    )


def _row(
    segmentor: LungSegmentor, record: Record, source: Source, report: EnsembleReport, size_px: int
) -> Iterator[Picture]:
    image = display(read_image(record["file_name"]).pixels)
    given = segmentor.probabilities(record["file_name"])
    truth = lungs_of(record, (image.shape[0], image.shape[1]), resize=source.resize_masks)
    recipe, place = segmentor.recipe, report.image_ids.index(record["image_id"])
    name = recipe.rule + CLEANED
    dice = report.dice(name)[place]
    if truth is None:
        raise ValueError(f"{record['image_id']} has no annotated lungs")
    yield draw_scene(Scene(image, masks={"truth": truth}, title=record["image_id"]),
                     size_px=size_px, legend=False)  # fmt: skip
    yield draw_scene(Scene(image, masks={name: recipe(given)}, title=f"{name}: Dice {dice:.3f}"),
                     size_px=size_px, legend=False)  # fmt: skip
    outlines = [(n, p >= recipe.threshold) for n, p in zip(segmentor.names, given, strict=True)]
    yield draw_scene(Scene(image, outlines=outlines, title="models"), size_px=size_px)
