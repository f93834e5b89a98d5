"""Every choice of the lesion mix: what the poster states, and what had to be reconstructed.

``INPUT.FX.LESION_MIX`` in a config has the same names in capitals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import did_you_mean

_CHOICES = {
    "on_missing": ("base", "skip", "error"),
    "first": ("deficit", "uniform"),
    "partner": ("patch", "base"),
    "partner_draw": ("argmax", "proportional"),
    "blend": ("both", "second"),
    "alpha_means": ("patch", "see_through"),
    "placement": ("lung", "frame"),
    "no_lungs": ("skip", "usual"),
    "shape": ("mask", "box"),
    "match": ("surround", "none"),
}
_SHARES = ("prob", "mixup_share", "alpha", "max_box_share", "max_source_share")


@dataclass(frozen=True)
class MixSettings:
    """How lesions are chosen, placed and blended.

    Args:
        prob: online: chance that an image of the base source is mixed, in [0, 1].
        class_map: ``"source/class=label"`` or ``"source/class="`` (no label), above the table of
            :mod:`.classes`.
        exclude: classes that are anatomy out of shape, not a lesion to paste.
        min_box_px: a box with a shorter side in its own image gives no patch.
        max_box_share: nor does one that covers more of its image than this.
        margin: of context that a patch keeps, as a share of its box.
        bank_px: longer side of the frame that patches are stored at.
        target: images that every minority class shall have; up to 1 a share of the base images.
        max_per_base, max_per_patch: how often one may be used; 0 is without limit.
        on_missing: a minority class without a patch: ``base`` pastes onto images that carry it,
            ``skip`` leaves and counts it, ``error`` stops.
        mixup_share: share of MixUp images among those for a class that has patches.
        n_patches: fewest and most patches of a CutMix image.
        first: the class of the first patch: by ``deficit``, or ``uniform`` over all patches.
        partner: MixUp's second patch correlates most with the first ``patch`` or with the ``base``.
        partner_draw: ``argmax``, or drawn ``proportional`` to the correlation.
        blend: MixUp's alpha holds for ``both`` patches, or for the ``second`` only.
        alpha: of MixUp, in [0, 1].
        alpha_means: alpha is the weight of the ``patch``, or of what one can ``see_through``.
        soft_labels: a blended lesion counts its weight instead of 1.
        placement: a patch keeps its place within the ``lung`` box, or within the ``frame``.
        no_lungs: an image on which the lungs are not seen is left out (``skip``), or taken to have
            them where they ``usual``ly are.
        zoom: smallest and largest factor of a patch's size.
        shift: largest shift of its place, as a share of the lung box (or the frame).
        shape: pasted are the pixels of the ``mask`` where there is one, or the whole ``box``.
        match: grey levels are brought to those of the ``surround``, or not (``none``).
        feather: width of the soft edge as a share of the shorter side; 0 is a hard edge.
        max_diff, min_r: limits of the audit: largest change of a correlation, and smallest Pearson
            correlation of the off-diagonal elements before and after.
        chance: of few images a correlation is noise. Both limits leave room for what sampling alone
            does to one of the pairs with this probability; 0 takes them literally.
        max_source_share: largest share of a class's images that one bank source may give.
    """

    prob: float = 0.0
    class_map: tuple[str, ...] = ()
    exclude: tuple[str, ...] = (
        "Cardiomegaly",
        "Aortic enlargement",
        "Enlarged PA",
        "Mediastinal shift",
    )
    min_box_px: float = 16.0
    max_box_share: float = 0.6
    margin: float = 0.1
    bank_px: int = 1024
    target: float = 15000.0
    max_per_base: int = 30
    max_per_patch: int = 0
    on_missing: str = "base"
    mixup_share: float = 0.5
    n_patches: tuple[int, int] = (1, 3)
    first: str = "deficit"
    partner: str = "patch"
    partner_draw: str = "argmax"
    blend: str = "both"
    alpha: float = 0.6
    alpha_means: str = "patch"
    soft_labels: bool = False
    placement: str = "lung"
    no_lungs: str = "skip"
    zoom: tuple[float, float] = (0.8, 1.2)
    shift: float = 0.03
    shape: str = "mask"
    match: str = "surround"
    feather: float = 0.08
    max_diff: float = 0.10
    min_r: float = 0.90
    chance: float = 0.05
    max_source_share: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                hint = did_you_mean(str(value), allowed)
                raise ValueError(f"{_key(name)} is {value!r}; allowed: {', '.join(allowed)}.{hint}")
        for name in _SHARES:
            self._within(name, 0, 1)
        for name in ("shift", "feather"):
            self._within(name, 0, 0.5)
        self._within("margin", 0, 1)
        self._within("max_diff", 0, 2)
        self._within("min_r", -1, 1)
        self._within("chance", 0, 0.5)
        self._within("min_box_px", 1, math.inf)
        self._within("bank_px", 32, 4096)
        for name in ("max_per_base", "max_per_patch"):
            self._within(name, 0, math.inf)
        if not (math.isfinite(self.target) and self.target > 0):
            raise ValueError(
                f"{_key('target')} is {self.target}; allowed: a number of images, or a share of "
                "the base images up to 1"
            )
        for name, low in (("n_patches", 1), ("zoom", 0.1)):
            pair = getattr(self, name)
            if len(pair) != 2 or not low <= pair[0] <= pair[1] <= 10:
                raise ValueError(
                    f"{_key(name)} is {tuple(pair)}; allowed: (low, high) within [{low}, 10]"
                )

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not (low <= value <= high):
            upper = f", {high}]" if math.isfinite(high) else ", ...)"
            raise ValueError(f"{_key(name)} is {value}; allowed: [{low}{upper}")

    @property
    def mixup_weight(self) -> float:
        """Weight of a blended patch's pixels."""
        return self.alpha if self.alpha_means == "patch" else 1.0 - self.alpha

    def target_of(self, n_images: int) -> int:
        """The number of images that every minority class shall have."""
        return math.ceil(self.target * n_images) if self.target <= 1 else math.ceil(self.target)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MixSettings:
        """The inverse of :meth:`to_dict`."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"unknown lesion mix setting {unknown[0]!r}.{did_you_mean(unknown[0], known)}"
            )
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)

    @classmethod
    def from_config(cls, cfg: Any) -> MixSettings:
        """The settings among the keys of ``INPUT.FX.LESION_MIX``."""
        node = cfg.INPUT.FX.LESION_MIX
        return cls.from_dict({f.name: node[f.name.upper()] for f in fields(cls)})


def _key(name: str) -> str:
    return f"INPUT.FX.LESION_MIX.{name.upper()}"
