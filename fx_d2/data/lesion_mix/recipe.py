"""What is pasted onto an image: drawn first, from numbers alone, and only then carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..source import Source
from .bank import PatchBank
from .classes import has_disease, is_finding_free, is_no_finding, plain
from .place import Paste
from .settings import MixSettings

ARMS = ("cutmix", "mixup")
# Patches of one class tried in turn until one fits beside what is there.
_ALTERNATIVES = 4
# A class without any correlation to the first may still come with it, this seldom.
_UNRELATED = 0.02


@dataclass(frozen=True)
class Recipe:
    """The draws of one mixed image.

    Args:
        arm: ``cutmix`` or ``mixup``.
        slots: what is pasted one after the other; each a few pastes of one class, of which the
            first one that fits is taken. Without the first slot there is no image.
    """

    arm: str
    slots: tuple[tuple[Paste, ...], ...]

    def to_row(self) -> dict[str, Any]:
        """As JSON."""
        return {"arm": self.arm, "slots": [[asdict(p) for p in slot] for slot in self.slots]}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Recipe:
        """The inverse of :meth:`to_row`."""
        return cls(row["arm"], tuple(tuple(Paste(**p) for p in slot) for slot in row["slots"]))


class Kitchen:
    """Draws recipes for one base source.

    Args:
        base: its row.
        bank: of patches.
        settings: how.
        need: float (C,): how much every label is wanted; at first its deficit.
        phi: (C, C) correlation of the labels over the base images.
    """

    def __init__(
        self,
        base: Source,
        bank: PatchBank,
        settings: MixSettings,
        need: np.ndarray,
        phi: np.ndarray,
    ) -> None:
        self.base, self.bank, self.settings = base, bank, settings
        self.need, self.phi = np.asarray(need, dtype=np.float64), np.abs(phi)
        self.classes = base.cls_classes
        self._numbers = [np.array(bank.by_label.get(c, ()), dtype=np.int64) for c in self.classes]
        self.has_patches = np.array([bool(len(numbers)) for numbers in self._numbers])

    def arm_of(self, labels: np.ndarray, view: str | None) -> str | None:
        """The arm an image can be the base of; None for a lateral view, or neither nor."""
        frontal = self.base.frontal_views
        if frontal is not None and view is not None and view not in frontal:
            return None
        if is_finding_free(labels, self.classes):
            return "cutmix"
        return "mixup" if has_disease(labels, self.classes) else None

    def draw(
        self,
        rng: np.random.Generator,
        arm: str,
        labels: np.ndarray,
        *,
        first: int | None = None,
        usable: np.ndarray | None = None,
    ) -> Recipe | None:
        """A recipe, or None when no patch is left.

        Args:
            rng: of the draws.
            arm: one of ``ARMS``.
            labels: (C,) of the base image.
            first: label that is to be served; drawn where it is None.
            usable: bool over the patches; None is all.
        """
        there = self._there(usable)
        if not there.any():
            return None
        if first is None or not there[first]:
            first = self._first(rng, there, usable)
        if arm == "cutmix":
            chosen = self._cutmix(rng, first, there)
            weights = [1.0] * len(chosen)
        else:
            chosen = [first, *self._partner(rng, first, labels, there)]
            alpha = self.settings.mixup_weight
            weights = [alpha if self.settings.blend == "both" else 1.0, alpha]
        # All at once: a call for every number would take longer than the rest.
        draws = rng.random((len(chosen), _ALTERNATIVES, 4)).tolist()
        slots = [
            tuple(self._paste(numbers, label, weight, usable) for numbers in drawn)
            for label, weight, drawn in zip(chosen, weights, draws, strict=False)
        ]
        return Recipe(arm, tuple(slots))

    def _there(self, usable: np.ndarray | None) -> np.ndarray:
        if usable is None:
            return self.has_patches
        return np.array([bool(len(self._of(label, usable))) for label in range(len(self.classes))])

    def _of(self, label: int, usable: np.ndarray | None) -> np.ndarray:
        numbers = self._numbers[label]
        return numbers if usable is None else numbers[usable[numbers]]

    def _first(self, rng: np.random.Generator, there: np.ndarray, usable: np.ndarray | None) -> int:
        wanted = np.maximum(self.need, 0) * there
        if self.settings.first == "uniform" or not wanted.any():
            wanted = np.array([len(self._of(label, usable)) for label in range(len(there))])
        return int(rng.choice(len(wanted), p=wanted / wanted.sum()))

    def _cutmix(self, rng: np.random.Generator, first: int, there: np.ndarray) -> list[int]:
        low, high = self.settings.n_patches
        n = int(rng.integers(low, high + 1))
        chosen = [first]
        while len(chosen) < n:
            # More of what is wanted anyway, and rather what goes with the first.
            wanted = (self.phi[first] + _UNRELATED) * there * (self.need > 0)
            wanted[chosen] = 0
            if not wanted.any():
                break
            chosen.append(int(rng.choice(len(wanted), p=wanted / wanted.sum())))
        return chosen

    def _partner(
        self, rng: np.random.Generator, first: int, labels: np.ndarray, there: np.ndarray
    ) -> list[int]:
        """The label of MixUp's second patch, or none where nothing correlates."""
        strength = self.phi[first]
        if self.settings.partner == "base":
            rows = [i for i, name in enumerate(self.classes) if labels[i] == 1 and _counts(name)]
            strength = self.phi[rows].max(axis=0) if rows else np.zeros_like(strength)
        wanted = strength * there
        wanted[first] = 0
        if not wanted.any():
            return []
        if self.settings.partner_draw == "argmax":
            return [int(np.argmax(wanted))]
        return [int(rng.choice(len(wanted), p=wanted / wanted.sum()))]

    def _paste(
        self, draws: Sequence[float], label: int, weight: float, usable: np.ndarray | None
    ) -> Paste:
        """One paste from four numbers in [0, 1)."""
        numbers = self._of(label, usable)
        (low, high), shift = self.settings.zoom, self.settings.shift
        return Paste(
            patch=int(numbers[int(draws[0] * len(numbers))]),
            zoom=low + draws[1] * (high - low),
            dx=shift * (2 * draws[2] - 1),
            dy=shift * (2 * draws[3] - 1),
            weight=weight,
        )


def minority(
    counts: np.ndarray, classes: tuple[str, ...], n_images: int, settings: MixSettings
) -> np.ndarray:
    """Images that each minority class is short of, (C,); No Finding is none."""
    short = np.maximum(settings.target_of(n_images) - np.asarray(counts), 0).astype(np.float64)
    short[[i for i, name in enumerate(classes) if not _counts(name)]] = 0
    return short


def _counts(name: str) -> bool:
    return not is_no_finding(name) and plain(name) != "support devices"
