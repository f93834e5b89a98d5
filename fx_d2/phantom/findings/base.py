"""What a finding is, the scene it is drawn into, and the helpers that place and shape it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from fx_d2.phantom.anatomy import Body
from fx_d2.phantom.canvas import Frame, blur, noise_field
from fx_d2.phantom.chest import Chest
from fx_d2.phantom.patient import View

ZONES = ("upper", "middle", "lower")


@dataclass(frozen=True)
class FindingSpec:
    """A finding to draw; what is None is drawn at random from what the finding allows.

    Attributes:
        name: Canonical name, see `FINDING_NAMES`.
        side: ``"left"``, ``"right"`` (the patient's) or ``"both"``.
        zone: ``"upper"``, ``"middle"`` or ``"lower"``.
        severity: 0 barely visible to 1 gross.
    """

    name: str
    side: str | None = None
    zone: str | None = None
    severity: float | None = None


@dataclass(frozen=True)
class Finding:
    """Exact truth of one drawn instance.

    Attributes:
        name: Canonical name.
        mask: bool (H, W); empty for findings of the whole image.
        box: Tight x0, y0, x1, y1 around the mask, maxima exclusive; None when the mask is empty.
        laterality: ``"left"``, ``"right"``, ``"both"`` or ``"none"``.
        instance: Running number within the image.
        texture: One word: ``"smooth"``, ``"mottled"``, ``"reticular"``, ``"line"`` ...
        severity: As drawn, 0 to 1.
        distractor: True for a hard negative, which is no finding of any label set.
        part: Which device it is, for support devices; blank elsewhere.
    """

    name: str
    mask: np.ndarray
    box: tuple[int, int, int, int] | None
    laterality: str
    instance: int
    texture: str
    severity: float
    distractor: bool = False
    part: str = ""


@dataclass
class Scene:
    """Thickness maps (H, W) that findings may change, in cm along the beam.

    ``soft`` is the whole body, ``air`` lung, ``vessels`` the vessels in it, ``texture``
    unit-variance mottle, ``bone`` compact bone. ``shadow`` counts nodules and plaques: soft tissue
    on top of everything else (negative where gas replaces tissue).
    """

    frame: Frame
    view: View
    body: Body
    structures: dict[str, np.ndarray]
    soft: np.ndarray
    air: np.ndarray
    vessels: np.ndarray
    texture: np.ndarray
    bone: np.ndarray
    metal: np.ndarray
    shadow: np.ndarray
    chest: Chest | None
    ribs: list

    def lung(self, side: str) -> np.ndarray:
        """Visible lung field of a side, or of both."""
        if side == "both":
            return self.structures["left_lung"] | self.structures["right_lung"]
        return self.structures[f"{side}_lung"]

    def fill_air(self, share: np.ndarray, vessels_too: bool = True) -> None:
        """Replace a share (H, W) of the aerated depth by fluid or tissue."""
        if self.chest is not None:
            share = self._spill(share)
        self.air *= 1.0 - share
        self.texture *= 1.0 - 0.6 * share
        if vessels_too:  # the silhouette sign: vessels vanish in opaque lung
            self.vessels *= 1.0 - 0.8 * share

    def _spill(self, share: np.ndarray) -> np.ndarray:
        """Carry a share on into the lung in front of and behind the heart's rim.

        The visible lung ends at the silhouette, but lung overlaps it; without this a bright patch
        would be parted from the heart by a dark seam.
        """
        assert self.chest is not None
        visible = self.lung("both")
        hidden = (self.chest.cavity["left"] | self.chest.cavity["right"]) & ~visible
        sigma = 0.6 * self.frame.px_per_cm
        near = blur(visible.astype(np.float32), sigma)
        carried = blur((share * visible).astype(np.float32), sigma) / np.maximum(near, 0.08)
        return np.where(hidden, np.maximum(share, carried * np.minimum(1.0, 4.0 * near)), share)


@dataclass(frozen=True)
class Drawn:
    """What a drawing function hands back for one instance."""

    mask: np.ndarray
    side: str
    part: str = ""


DrawFn = Callable[[Scene, FindingSpec, np.random.Generator], list[Drawn]]
ShapeFn = Callable[[Body, FindingSpec], None]


@dataclass(frozen=True)
class FindingKind:
    """How one finding looks and where it may be.

    Attributes:
        name: Canonical name.
        where: What may hold the mask: lung, pleura, heart, mediastinum, bone, abdomen, body.
        sign: +1 brightens, -1 darkens, 0 both or neither (shape changes).
        texture: One word for the inside.
        size_cm: Typical smallest and largest extent.
        draw: Adds the finding to a scene and returns its instances.
        shape: Changes the body before it is drawn; optional.
        bilateral: Share of cases that touch both sides.
        zones: Zones it prefers; one is drawn from them.
        severity: Range of severities drawn at random.
        frontal_only: Drawn on frontal views only; on a lateral one the mask is empty.
        distractor: A hard negative.
    """

    name: str
    where: tuple[str, ...]
    sign: int
    texture: str
    size_cm: tuple[float, float]
    draw: DrawFn
    shape: ShapeFn | None = None
    bilateral: float = 0.0
    zones: tuple[str, ...] = ZONES
    severity: tuple[float, float] = (0.25, 0.95)
    frontal_only: bool = False
    distractor: bool = False


def resolve(spec: FindingSpec, kind: FindingKind, rng: np.random.Generator) -> FindingSpec:
    """Fill in what a spec leaves open; always consumes the same number of draws."""
    both, left, zone, severity = rng.random(4)
    side = "both" if both < kind.bilateral else ("left" if left < 0.5 else "right")
    low, high = kind.severity
    return replace(
        spec,
        side=spec.side or side,
        zone=spec.zone or kind.zones[int(zone * len(kind.zones))],
        severity=low + (high - low) * severity if spec.severity is None else spec.severity,
    )


def rng_for_finding(seed: int, name: str, occurrence: int) -> np.random.Generator:
    """A stream of its own, so that one finding's draws never move another's."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), occurrence])


def box_of(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Tight box x0, y0, x1, y1 (maxima exclusive) of a mask, None if it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return None
    cols = np.flatnonzero(mask.any(axis=0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def sides_of(spec: FindingSpec) -> tuple[str, ...]:
    """Sides a resolved spec touches."""
    return ("right", "left") if spec.side == "both" else (spec.side or "right",)


def zone_rows(lung: np.ndarray, zone: str | None) -> tuple[int, int]:
    """First and last row (exclusive) of a third of a lung field."""
    rows = np.flatnonzero(lung.any(axis=1))
    if len(rows) == 0:
        return 0, lung.shape[0]
    low, high = int(rows[0]), int(rows[-1]) + 1
    if zone not in ZONES:
        return low, high
    third = (high - low) / 3.0
    k = ZONES.index(zone)
    return int(low + k * third), max(int(low + (k + 1) * third), int(low + k * third) + 1)


def pick_point(
    scene: Scene,
    lung: np.ndarray,
    zone: str | None,
    rng: np.random.Generator,
    margin_cm: float = 0.0,
) -> tuple[float, float]:
    """A random point in cm inside a mask, at least ``margin_cm`` from its border if possible."""
    u = rng.random()
    step = max(1, int(0.2 * scene.frame.px_per_cm))
    small = lung[::step, ::step]
    low, high = (v // step for v in zone_rows(lung, zone))
    allowed = small
    reach = int(round(margin_cm * scene.frame.px_per_cm / step))
    for shrink in (reach, reach // 2, 0):
        allowed = _shrink(small, shrink)
        allowed[:low] = False
        allowed[high + 1 :] = False
        if allowed.any():
            break
    else:
        allowed = small if small.any() else np.ones_like(small)
    cells = np.argwhere(allowed)
    row, col = cells[int(u * len(cells))] * step
    x, y = scene.frame.to_cm(np.float32(col), np.float32(row))
    return float(x), float(y)


def _shrink(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Erode by a square without depending on the border."""
    if pixels < 1:
        return mask.copy()
    padded = np.pad(mask, pixels).astype(np.uint8)
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return cv2.erode(padded, kernel)[pixels:-pixels, pixels:-pixels].astype(bool)


def feathered(scene: Scene, mask: np.ndarray, edge_cm: float) -> np.ndarray:
    """Mask as float coverage that fades inwards over ``edge_cm``; zero outside the mask."""
    sigma = max(0.35, 0.5 * edge_cm * scene.frame.px_per_cm)
    soft = blur(mask.astype(np.float32), sigma)
    # Steep near the rim, so that most of a patch is opaque, yet still above zero at it.
    return np.clip(1.6 * soft - 0.55, 0.05, 1.0) * mask if edge_cm > 0.3 else soft * mask


def mottle(
    scene: Scene, rng: np.random.Generator, scale_cm: float, amount: float = 0.35
) -> np.ndarray:
    """Patchy modulation around 1, (H, W), never negative."""
    field = 0.7 * noise_field(scene.frame, rng, scale_cm)
    field += 0.45 * noise_field(scene.frame, rng, 0.4 * scale_cm)
    return np.clip(1.0 + amount * field, 0.1, 1.6)
