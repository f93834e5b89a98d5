"""Which images are mixed: always for the class that is shortest, until none is short.

The stop rule of the poster (more than 15,000 images of every minority class) with the greedy order
of ours. A plan is a pure function of (seed, base labels, bank, what was written before).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..draws import rng_for
from ..errors import DataError
from .classes import union
from .recipe import Kitchen, Recipe, minority


@dataclass
class Stock:
    """What was used and reached so far.

    Args:
        counts: (C,) images per label, written ones included.
        base_uses, patch_uses: how often each was used.
        refused: base images that turned out not to do (their lungs are not seen).
    """

    counts: np.ndarray
    base_uses: Counter[int] = field(default_factory=Counter)
    patch_uses: Counter[int] = field(default_factory=Counter)
    refused: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Planned:
    """One image to be: its number, its base and its draws."""

    number: int
    base: int
    served: int
    recipe: Recipe


class _Pool:
    """Base images drawn at random until each was used often enough."""

    def __init__(self, members: Sequence[int], uses: Counter[int], cap: int) -> None:
        self._members, self._uses, self._cap = [int(m) for m in members], uses, cap

    def draw(self, rng: np.random.Generator) -> int | None:
        while self._members:
            place = int(rng.integers(len(self._members)))
            chosen = self._members[place]
            if not self._cap or self._uses[chosen] < self._cap:
                return chosen
            self._members[place] = self._members[-1]
            self._members.pop()
        return None


class Planner:
    """Plans the images of one base dataset.

    Args:
        kitchen: draws recipes; its ``need`` is kept up to date.
        labels: (N, C) of the base images.
        views: of the base images.
        seed: of every draw.
    """

    def __init__(
        self, kitchen: Kitchen, labels: np.ndarray, views: Sequence[str | None], seed: int
    ) -> None:
        self.kitchen, self.labels, self.seed = kitchen, labels, seed
        arms = [kitchen.arm_of(row, view) for row, view in zip(labels, views, strict=True)]
        self.by_arm = {
            a: [i for i, arm in enumerate(arms) if arm == a] for a in ("cutmix", "mixup")
        }
        # Why a minority class is not served, or no longer.
        self.unserved: dict[str, str] = {}

    def short(self, counts: np.ndarray) -> np.ndarray:
        """Images that each minority class is short of."""
        kitchen = self.kitchen
        return minority(counts, kitchen.classes, len(self.labels), kitchen.settings)

    def plan(self, stock: Stock, start: int, limit: int | None = None) -> Iterator[Planned]:
        """The images that are still needed, numbered from ``start``; ``stock`` is not changed.

        Args:
            stock: what there is.
            start: number of the first.
            limit: most images to plan.
        """
        settings, classes = self.kitchen.settings, self.kitchen.classes
        counts = stock.counts.astype(np.float64)
        base_uses, patch_uses = Counter(stock.base_uses), Counter(stock.patch_uses)
        pools = self._pools(base_uses, stock.refused)
        usable = np.ones(len(self.kitchen.bank), dtype=bool)
        self._note_missing(self.short(counts))
        number, given_up = start, set[int]()
        while limit is None or number < start + limit:
            short = self.short(counts)
            short[list(given_up)] = 0
            if not (short > 0).any():
                return
            served = int(np.argmax(short))
            if classes[served] in self.unserved:
                given_up.add(served)
                continue
            self.kitchen.need = short
            rng = rng_for(self.seed, "lesion mix", number)
            if settings.max_per_patch:
                full = [p for p, n in patch_uses.items() if n >= settings.max_per_patch]
                usable[full] = False
            item = self._item(rng, number, served, pools, usable)
            if item is None:
                given_up.add(served)
                self.unserved[classes[served]] = (
                    f"every base or patch was used as often as allowed (MAX_PER_BASE "
                    f"{settings.max_per_base}, MAX_PER_PATCH {settings.max_per_patch})"
                )
                continue
            base_uses[item.base] += 1
            patch_uses.update(slot[0].patch for slot in item.recipe.slots)
            pasted = [(self.kitchen.bank.patches[s[0].patch].label, 1.0) for s in item.recipe.slots]
            counts += union(self.labels[item.base], classes, pasted) > 0
            number += 1
            yield item

    def _pools(self, uses: Counter[int], refused: set[int]) -> dict[str | int, _Pool]:
        cap = self.kitchen.settings.max_per_base
        pools: dict[str | int, _Pool] = {
            arm: _Pool([i for i in members if i not in refused], uses, cap)
            for arm, members in self.by_arm.items()
        }
        carriers = np.array([i for i in self.by_arm["mixup"] if i not in refused], dtype=np.int64)
        for label in np.flatnonzero(~self.kitchen.has_patches):
            pools[int(label)] = _Pool(carriers[self.labels[carriers, label] == 1], uses, cap)
        return pools

    def _note_missing(self, short: np.ndarray) -> None:
        """Minority classes that cannot be served, by the policy of the settings."""
        settings, classes = self.kitchen.settings, self.kitchen.classes
        for label in np.flatnonzero((short > 0) & ~self.kitchen.has_patches):
            name = classes[label]
            if settings.on_missing == "error":
                raise DataError(
                    f"the bank has no patch of {name!r}, which is short of {int(short[label])} "
                    "images",
                    expected="a patch of every minority class (INPUT.FX.LESION_MIX.ON_MISSING "
                    "'error')",
                    fix="add a source with such boxes to INPUT.FX.LESION_MIX.BANK, or let "
                    "ON_MISSING be 'base' (paste onto images that carry it) or 'skip'",
                )
            if settings.on_missing == "skip":
                self.unserved[name] = "no patch in the bank (ON_MISSING 'skip')"
            elif not any(self.labels[i, label] == 1 for i in self.by_arm["mixup"]):
                self.unserved[name] = "no patch in the bank, and no frontal image carries it"

    def _item(
        self,
        rng: np.random.Generator,
        number: int,
        served: int,
        pools: dict[str | int, _Pool],
        usable: np.ndarray,
    ) -> Planned | None:
        if not self.kitchen.has_patches[served]:
            order: list[tuple[str, str | int]] = [("mixup", served)]
        else:
            arms = ["mixup", "cutmix"]
            if rng.random() >= self.kitchen.settings.mixup_share:
                arms.reverse()
            order = [(arm, arm) for arm in arms]
        for arm, pool in order:
            base = pools[pool].draw(rng)
            if base is None:
                continue
            first = served if self.kitchen.has_patches[served] else None
            capped = None if usable.all() else usable
            if first is not None and capped is not None:
                own = self.kitchen.bank.by_label[self.kitchen.classes[served]]
                if not usable[own].any():
                    return None
            recipe = self.kitchen.draw(rng, arm, self.labels[base], first=first, usable=capped)
            if recipe is not None:
                return Planned(number, base, served, recipe)
        return None
