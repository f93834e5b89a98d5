"""Does a classifier need the lungs? The same classes told from all of an image, and from parts.

Images of one class often come from one hospital, and a letter in a corner, the border or the frame
then tells the class. Two readings find out, and neither replaces the other:

* a trained model is shown the whole image, only the lungs, and all but the lungs;
* models trained on each of these are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode

from fx_d2.data.build import source_of
from fx_d2.data.errors import DataError
from fx_d2.evaluation import Results

from .ensemble import Trained, load_trained
from .scoring import score
from .setup import ConfigError, config_errors

WHOLE, LUNGS = "none", "mask"
# Without the lungs, and without the box around them, in which their outline would still be seen.
WITHOUT_LUNGS = ("background", "frame")
SHOWN = {
    "none": "the whole image",
    "mask": "only the lungs",
    "crop": "the box around the lungs",
    "mask+crop": "only the lungs, enlarged",
    "background": "all but the lungs",
    "frame": "all but the lungs' box",
}
# The words for what is left without the lungs.
HIGH, ABOVE_CHANCE, AT_CHANCE, UNTOLD = "high", "above chance", "at chance", "untold"
_CHANCE = 0.5
_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Row:
    """A model on one kind of input.

    Args:
        weights: the file.
        trained_on: the lung mode it was trained with.
        shown: the lung mode it is evaluated with.
        figures: of :class:`~fx_d2.evaluation.ClassificationEvaluator`.
        notes: of it.
    """

    weights: str
    trained_on: str
    shown: str
    figures: dict[str, float]
    notes: dict[str, Any] = field(repr=False)

    @property
    def auc(self) -> tuple[float, float, float]:
        """Mean AUC and its interval."""
        found = self.figures
        return found["AUC"], found["AUC_low"], found["AUC_high"]


@dataclass(frozen=True)
class Verdict:
    """What a row without lungs says.

    Args:
        shown: its lung mode.
        level: ``high``, ``above chance``, ``at chance``; or ``untold``, where the model does not
            even tell the classes from what it is compared with.
        text: a sentence for people.
    """

    shown: str
    level: str
    text: str


def modes_for(trained_on: str) -> tuple[str, ...]:
    """The inputs a trained model is shown: whole, lungs as it knows them, and without lungs."""
    lungs = trained_on if trained_on not in (WHOLE, *WITHOUT_LUNGS) else LUNGS
    return (WHOLE, lungs, *WITHOUT_LUNGS)


def evaluate_parts(
    weights: str | Path,
    dataset: str,
    *,
    modes: Sequence[str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[Row]:
    """Score a trained model on parts of the images of a dataset, one after the other.

    Args:
        weights: a file with its description beside it, or a run's folder.
        dataset: registered name.
        modes: lung modes; None is :func:`modes_for` of its training, ``("own",)`` that alone.
        options: ``KEY VALUE ...`` over the config of its run.

    Raises:
        CheckpointError, ConfigError: weights, dataset or an option cannot be used.
        DataError: no image could be scored.
    """
    trained = load_trained(weights, _device(options))
    own = str(trained.cfg.INPUT.FX.LUNGS.MODE)
    chosen = modes_for(own) if modes is None else [own if m == "own" else m for m in modes]
    for mode in chosen:
        cfg = _config(trained, dataset, mode, options)
        results = score(cfg, trained.model)
        key = f"{source_of(dataset).key}/cls"
        yield _row(trained, own, mode, results, key)


def _device(options: Sequence[str]) -> torch.device:
    given = dict(zip(options[::2], options[1::2], strict=False))
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(given.get("MODEL.DEVICE", default))


def _config(trained: Trained, dataset: str, mode: str, options: Sequence[str]) -> CfgNode:
    if len(options) % 2:
        raise ConfigError(f"overrides are KEY VALUE pairs; {options[-1]!r} has no value")
    cfg = trained.cfg.clone()
    cfg.defrost()
    with config_errors():
        row = source_of(dataset)
        cfg.merge_from_list(list(options))
    cfg.DATASETS.TEST, cfg.DATASETS.TASKS = (dataset,), ("cls",)
    cfg.INPUT.FX.LUNGS.MODE = mode
    cfg.INPUT.FX.LESION_MIX.PROB = 0.0
    cfg.TEST.FX.BOOTSTRAP = cfg.TEST.FX.BOOTSTRAP or _BOOTSTRAP  # a verdict needs the interval
    cfg.freeze()
    heads = {spec.name for spec in cast(Any, trained.model).specs}
    if f"{row.key}/cls" not in heads:
        raise ConfigError(
            f"{trained.weights} has no head for labels of {row.key!r}, to which {dataset} belongs; "
            f"its heads are {', '.join(sorted(heads))}"
        )
    return cfg


def _row(trained: Trained, own: str, mode: str, results: Results, key: str) -> Row:
    figures, notes = dict(results.get(key, {})), results.notes.get(key, {})
    if not math.isfinite(figures.get("AUC", math.nan)) or "AUC_low" not in figures:
        raise DataError(
            f"no AUC of {key} when {SHOWN[mode]} is shown",
            expected="images of at least two classes",
            fix="evaluate on a larger split",
        )
    return Row(str(trained.weights), own, mode, figures, notes)


def verdicts(rows: Sequence[Row], *, high: float = 0.75) -> list[Verdict]:
    """What the rows without lungs say, against the best of the others.

    Args:
        rows: of one reading.
        high: a mean AUC from here on is high; so is half of what the best other row has above
            chance.
    """
    others = [row for row in rows if row.shown not in WITHOUT_LUNGS]
    best = max(others, key=lambda row: row.auc[0], default=None)
    return [_verdict(row, best, high) for row in rows if row.shown in WITHOUT_LUNGS]


def _verdict(row: Row, best: Row | None, high: float) -> Verdict:
    auc, low, top = row.auc
    figure = f"AUC {auc:.3f} (95 % {low:.3f} to {top:.3f}) from {SHOWN[row.shown]}"
    against = f", {best.auc[0]:.3f} from {SHOWN[best.shown]}" if best else ""
    share = 0.0
    if best is not None and best.auc[0] > _CHANCE:
        share = (auc - _CHANCE) / (best.auc[0] - _CHANCE)
    if low > _CHANCE and (auc >= high or share >= 0.5):
        kept = f", {share:.0%} of what is above chance there" if share > 0 else ""
        return Verdict(
            row.shown,
            HIGH,
            f"SHORTCUT: {figure}{against}{kept}. The classes can be told without the lungs; "
            "figures on whole images say little about disease.",
        )
    if low > _CHANCE:
        text = f"Something outside the lungs helps: {figure}{against}."
        return Verdict(row.shown, ABOVE_CHANCE, text)
    if best is None or best.auc[1] <= _CHANCE:
        text = f"Nothing can be said: {figure}{against}; the classes are not told anywhere."
        return Verdict(row.shown, UNTOLD, text)
    return Verdict(
        row.shown, AT_CHANCE, f"No shortcut seen: {figure}{against}, no better than chance."
    )
