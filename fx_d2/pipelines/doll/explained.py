"""One image through a committee: probabilities, maps, pixel labels, and how good they are.

Images are explained one by one, each for its own positive classes; the steps of the path are what
fills a batch. So nothing depends on an image's neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fx_d2.data.record import Record
from fx_d2.data.source import Source
from fx_d2.explain.consensus import Consensus, consensus
from fx_d2.explain.pseudo_labels import (
    IGNORE,
    KEPT,
    LOW_PROBABILITY,
    NO_FOREGROUND,
    NO_REGION,
    Labels,
    channel_states,
    pixel_labels,
)

from .measures import mass, pointing
from .regions import Region, anatomy_of, truth_of
from .settings import DollSettings

if TYPE_CHECKING:
    from fx_d2.pipelines.committee import Committee, Prepared

_DIGITS = 6  # of what a file holds


@dataclass
class Explained:
    """What came of an image.

    Args:
        original: (height, width) of the image.
        size: (h, w) of the masks.
        states: of every class, see :data:`fx_d2.explain.pseudo_labels.STATES`.
        masks: place of a kept class -> its pixel labels.
        quality: place of a kept class -> figures of its mask.
        row: figures for the report.
    """

    original: tuple[int, int]
    size: tuple[int, int]
    states: list[str]
    masks: dict[int, Labels] = field(default_factory=dict)
    quality: dict[int, dict[str, Any]] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)


class Explainer:
    """Explains images by the settings of a run.

    Args:
        committee: classifiers with the same classes.
        source: row of the images.
        settings: of the run.
    """

    def __init__(self, committee: Committee, source: Source, settings: DollSettings) -> None:
        self.committee, self.source, self.settings = committee, source, settings
        self.weights = weights_of(committee, settings)
        self._ig = replace(settings.ig, seed=settings.seed)

    def labels_of(self, record: Record) -> npt.NDArray[np.float32]:
        """(K,) labels of the committee's classes; NaN where the source has no such label."""
        given = record.get("labels")
        found = np.full(len(self.committee.classes), np.nan, dtype=np.float32)
        for k, name in enumerate(self.committee.classes):
            if given is not None and name in self.source.cls_classes:
                found[k] = given[self.source.cls_classes.index(name)]
        return found

    def explain(self, record: Record) -> Explained:
        """Pixel labels of one image.

        Raises:
            DataError: it cannot be read.
        """
        settings, classes = self.settings, self.committee.classes
        seen = self.committee.prepare(record["file_name"])
        original = (int(seen[0].height), int(seen[0].width))
        chances = self.committee.answer([seen]).probabilities[:, 0].double().cpu().numpy()
        mean = (chances * self.weights).sum(axis=0) / self.weights.sum(axis=0)
        labels = self.labels_of(record)
        found = Explained(
            original, self._size(seen), channel_states(labels, classes, settings.labels)
        )
        wanted = []
        for k, name in enumerate(classes):
            if found.states[k] == KEPT and mean[k] < settings.labels.probability_of(name):
                found.states[k] = LOW_PROBABILITY
            elif found.states[k] == KEPT:
                wanted.append(k)
        found.row = {
            # Not annotated and uncertain images say nothing about the committee.
            "labels": [int(v) if v in (0, 1) else None for v in labels],
            "prob": _rounded(chances),
            "mean_prob": _rounded(mean),
            "classes": {},
        }
        if wanted:
            self._label(record, seen, wanted, mean, found)
        found.row["states"] = list(found.states)
        return found

    def _label(
        self,
        record: Record,
        seen: Sequence[Prepared],
        wanted: Sequence[int],
        mean: npt.NDArray[np.float64],
        found: Explained,
    ) -> None:
        """Explain the wanted classes and label their pixels."""
        maps, errors = self._maps(self.settings.explainer, seen, wanted, found.size)
        others = {
            name: self._maps(name, seen, wanted, found.size)[0] for name in self.settings.beside
        }
        region = _Regions(record, self.source, found.original, found.size)
        for i, k in enumerate(wanted):
            error = None if errors is None else errors[:, i]
            found.row["classes"][self.committee.classes[k]] = self._of_class(
                k, float(mean[k]), maps[:, i], error, {n: m[:, i] for n, m in others.items()},
                region, found,
            )  # fmt: skip

    def _of_class(
        self,
        k: int,
        chance: float,
        maps: npt.NDArray[np.float32],
        errors: npt.NDArray[np.float64] | None,
        others: dict[str, npt.NDArray[np.float32]],
        regions: _Regions,
        found: Explained,
    ) -> dict[str, Any]:
        """Label one class; its figures."""
        rules, name = self.settings.labels, self.committee.classes[k]
        gate = rules.region_by.get(name)
        anatomy = None if gate is None else regions.anatomy(gate)
        agreed = self._consensus(maps, k)
        labels = pixel_labels(agreed, name, rules, anatomy)
        front = labels == 1
        if gate is not None and anatomy is None and rules.no_region == "ignore":
            found.states[k] = NO_REGION
        elif not front.any():
            found.states[k] = NO_FOREGROUND
        else:
            found.masks[k] = labels
            found.quality[k] = {
                "consensus_mean": _rounded(agreed.mean[front].mean(dtype=np.float64)),
                "agree": _rounded(agreed.agree[front].mean(dtype=np.float64)),
                "prob": _rounded(chance),
                "n_models": agreed.n_members,
                "q": rules.share_of(name),
                "completeness": None if errors is None else _rounded(errors.max()),
            }
        truth = regions.truth(self.settings.truth_by.get(name, name))
        figures = self._figures(agreed, maps, truth)
        figures["completeness"] = None if errors is None else _rounded(errors)
        figures["area"] = _rounded(front.mean())
        figures["ignored"] = _rounded((labels == IGNORE).mean())
        if truth is not None:
            figures["front_in_truth"] = _share(front & truth, front)
            figures["truth_covered"] = _share(front & truth, truth)
            figures["beside"] = {
                other: self._figures(self._consensus(each, k), each, truth)
                for other, each in others.items()
            }
        return figures

    def _consensus(self, maps: npt.NDArray[np.float32], k: int) -> Consensus:
        return consensus(maps, self.weights[:, k], self.settings.consensus)

    def _figures(
        self, seen: Consensus, maps: npt.NDArray[np.float32], truth: Region | None
    ) -> dict[str, Any]:
        """Hits and mass of the consensus, of every member as a committee of one, and unclipped."""
        if truth is None:
            return {}
        return {
            "chance": round(float(truth.mean()), _DIGITS),
            "pointing": _rounded(pointing(seen.mean, truth)),
            "mass": _rounded(mass(seen.mean, truth)),
            "members": {
                "pointing": [_rounded(pointing(each, truth)) for each in seen.scaled],
                "pointing_unclipped": [_rounded(pointing(each, truth)) for each in maps],
                "mass": [_rounded(mass(each, truth)) for each in seen.scaled],
            },
        }

    def _size(self, seen: Sequence[Prepared]) -> tuple[int, int]:
        """Of the masks: they cover the whole original."""
        largest = max((one.content for one in seen), key=lambda size: size[0] * size[1])
        if not self.settings.mask_px:
            return int(largest[0]), int(largest[1])
        height, width = seen[0].height, seen[0].width
        scale = self.settings.mask_px / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _maps(
        self, method: str, seen: Sequence[Prepared], wanted: Sequence[int], size: tuple[int, int]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64] | None]:
        """Maps (M, len(wanted), h, w) of one explainer, and completeness (M, len(wanted))."""
        names = [self.committee.classes[k] for k in wanted]
        made = self.committee.explain([seen], names, size=size, method=method, settings=self._ig)
        errors = made.completeness
        return (
            made.maps[:, 0].float().cpu().numpy(),
            None if errors is None else errors[:, 0].double().cpu().numpy(),
        )


class _Regions:
    """Places on one image, looked for when they are asked for.

    Args:
        record: of the image.
        source: its row.
        original: (height, width) of the image.
        size: of the maps.
    """

    def __init__(
        self, record: Record, source: Source, original: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self._all = (record, source, original, size)
        self._anatomy: dict[str, Region | None] = {}

    def truth(self, name: str) -> Region | None:
        """Where a class is."""
        return truth_of(name, *self._all)

    def anatomy(self, name: str) -> Region | None:
        """A region of the body."""
        if name not in self._anatomy:
            self._anatomy[name] = anatomy_of(name, *self._all)
        return self._anatomy[name]


def weights_of(committee: Committee, settings: DollSettings) -> npt.NDArray[np.float64]:
    """(M, K) the say of every member in every class: of the settings, else its own."""
    weights = committee.weights.copy()
    for name, row in settings.class_weights.items():
        weights[:, committee.classes.index(name)] = row
    return weights


def _share(part: Region, whole: Region) -> float | None:
    total = int(whole.sum())
    return round(int(part.sum()) / total, _DIGITS) if total else None


def _rounded(value: Any) -> Any:
    """Numbers as a file holds them."""
    return np.round(np.asarray(value, dtype=np.float64), _DIGITS).tolist()
