"""Round things: nodules, masses, calcifications, cavities, cysts."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.canvas import fill, stroke
from fx_d2.phantom.findings.base import (
    Drawn,
    FindingKind,
    FindingSpec,
    Scene,
    feathered,
    mottle,
    pick_point,
    sides_of,
)
from fx_d2.phantom.findings.shapes import Lump


def _solid(
    scene: Scene,
    side: str,
    zone: str | None,
    diameter: float,
    rng: np.random.Generator,
    roughness: float,
    density: float,
) -> tuple[np.ndarray, Lump]:
    """Add one lump of soft tissue inside a lung."""
    centre = pick_point(scene, scene.lung(side), zone, rng, 0.5 * diameter + 0.3)
    axes = (0.5 * diameter * rng.uniform(0.9, 1.1), 0.5 * diameter * rng.uniform(0.85, 1.05))
    lump = Lump.draw(rng, centre, axes, roughness)
    # Denser than a sphere in its middle and without its sharp rim: partial volume and breathing.
    lump.add(scene.frame, scene.shadow, 1.06 * density * diameter, 0.66)
    return fill(scene.frame, [lump.outline()]), lump


def draw_nodule(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """A round opacity below 3 cm."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        diameter = 0.9 + 1.9 * severity
        mask, _ = _solid(scene, side, spec.zone, diameter, rng, 0.05, 1.0 + 0.5 * rng.random())
        drawn.append(Drawn(mask, side))
    return drawn


def draw_mass(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """A lobulated or spiculated opacity above 3 cm."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        diameter = 3.1 + 4.0 * severity
        mask, lump = _solid(scene, side, spec.zone, diameter, rng, 0.13, 0.75)
        if rng.random() < 0.6:
            _spicules(scene, lump, scene.lung(side), rng)
        drawn.append(Drawn(mask, side))
    return drawn


def _spicules(scene: Scene, lump: Lump, lung: np.ndarray, rng: np.random.Generator) -> None:
    """Thin strands from the surface into the lung."""
    canvas = np.zeros(scene.frame.shape, np.uint8)
    outline = lump.outline()
    for k in rng.integers(0, len(outline), 16):
        outward = outline[k] - lump.centre
        start = lump.centre + 0.9 * outward
        stroke(
            scene.frame,
            canvas,
            [np.stack([start, start + outward * rng.uniform(0.2, 0.5)])],
            0.07,
            200,
        )
    scene.shadow += canvas.astype(np.float32) * np.float32(0.9 / 255.0) * lung


def draw_diffuse_nodules(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Dozens of small nodules; one instance per lung, its mask the area they occupy."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        lung = scene.lung(side)
        points = []
        for _ in range(int(25 + 45 * severity)):
            centre = pick_point(scene, lung, None, rng, 0.4)
            size = rng.uniform(0.16, 0.30 + 0.25 * severity)
            Lump.draw(rng, centre, (size, size), 0.1).add(
                scene.frame, scene.shadow, 3.8 * size, 0.45
            )
            points.append((centre, size + 0.35))
        discs = [Lump.draw(rng, c, (r, r), 0.0).outline(16) for c, r in points]
        drawn.append(Drawn(fill(scene.frame, discs) & lung, side))
    return drawn


def draw_calcification(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """One to three dense spots close together."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        first = pick_point(scene, scene.lung(side), spec.zone, rng, 0.8)
        outlines = []
        for _ in range(int(rng.integers(1, 4))):
            size = 0.18 + 0.32 * severity * rng.uniform(0.5, 1.0)
            lump = Lump.draw(rng, first, (size, size), 0.18)
            lump.add(scene.frame, scene.bone, 1.6 * size, 0.4)
            outlines.append(lump.outline())
            first = (first[0] + rng.normal(0.0, 0.5), first[1] + rng.normal(0.0, 0.5))
        drawn.append(Drawn(fill(scene.frame, outlines), side))
    return drawn


def _ring(
    scene: Scene,
    side: str,
    zone: str | None,
    rng: np.random.Generator,
    *,
    diameter: float,
    wall: float,
) -> tuple[np.ndarray, np.ndarray, Lump]:
    """A hollow sphere of tissue; returns its outer and inner mask and the outer lump."""
    centre = pick_point(scene, scene.lung(side), zone, rng, 0.5 * diameter + 0.2)
    outer = Lump.draw(rng, centre, (0.5 * diameter, 0.47 * diameter), 0.06)
    hole = max(0.2, 0.5 * diameter - wall)
    inner = Lump(centre, (hole, 0.94 * hole), outer.angle_deg, outer.amplitude, outer.phase)
    solid = scene.frame.zeros()
    outer.add(scene.frame, solid, diameter)
    inner.add(scene.frame, solid, -2.0 * hole)
    scene.shadow += np.maximum(solid, 0.0)
    outside = fill(scene.frame, [outer.outline()])
    inside = fill(scene.frame, [inner.outline()])
    scene.vessels *= 1.0 - inside
    scene.texture *= 1.0 - 0.8 * inside
    gas = scene.frame.zeros()
    inner.add(scene.frame, gas, 0.35 * hole)  # the lung that would be there is not
    scene.shadow -= gas
    return outside, inside, outer


def draw_cavity(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Thick-walled cavity."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        diameter = 2.2 + 2.6 * severity
        outside, _, _ = _ring(
            scene, side, spec.zone, rng, diameter=diameter, wall=0.30 + 0.3 * rng.random()
        )
        drawn.append(Drawn(outside, side))
    return drawn


def draw_tb_cavity(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Upper-zone cavity inside a patchy infiltrate; the mask covers both."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        outside, inside, lump = _ring(
            scene, side, spec.zone, rng, diameter=2.0 + 1.8 * severity, wall=0.45
        )
        reach = (1.5 * lump.axes[0] + 0.5, 1.5 * lump.axes[1] + 0.5)
        halo = fill(scene.frame, [Lump.draw(rng, lump.centre, reach, 0.2).outline()])
        mask = (halo & scene.lung(side)) | outside
        share = 0.5 * feathered(scene, mask, 1.2) * mottle(scene, rng, 0.6) * ~inside
        scene.fill_air(np.clip(share, 0.0, 0.9))
        drawn.append(Drawn(mask, side))
    return drawn


def draw_cyst(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Hair-thin wall around a dark hole."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        outside, inside, _ = _ring(
            scene, side, spec.zone, rng, diameter=1.8 + 2.4 * severity, wall=0.10
        )
        scene.air *= 1.0 + np.float32(0.06) * inside
        drawn.append(Drawn(outside, side))
    return drawn


def draw_other_lesion(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """A smooth opacity of no particular kind, in lung or on the chest wall."""
    drawn = []
    for side in sides_of(spec):
        mask, _ = _solid(
            scene, side, spec.zone, 1.5 + 3.0 * float(spec.severity or 0.0), rng, 0.2, 0.6
        )
        drawn.append(Drawn(mask, side))
    return drawn


KINDS = (
    FindingKind("nodule", ("lung", "pleura"), 1, "smooth", (0.9, 2.8), draw_nodule),
    FindingKind("mass", ("lung", "pleura", "mediastinum"), 1, "lobulated", (3.1, 7.1), draw_mass),
    FindingKind("lung_tumor", ("lung", "pleura", "mediastinum"), 1, "lobulated", (3.1, 7.1),
                draw_mass, zones=("upper", "upper", "middle", "lower")),
    FindingKind("diffuse_nodules", ("lung",), 1, "nodular", (0.3, 1.0), draw_diffuse_nodules,
                bilateral=0.9),
    FindingKind("calcification", ("lung", "pleura"), 1, "dense", (0.4, 1.5), draw_calcification),
    FindingKind("lung_cavity", ("lung", "pleura"), 1, "ring", (2.2, 4.8), draw_cavity,
                zones=("upper", "middle")),
    FindingKind("tuberculosis_cavity", ("lung", "pleura"), 1, "ring", (3.0, 6.5), draw_tb_cavity,
                bilateral=0.1, zones=("upper",)),
    FindingKind("lung_cyst", ("lung", "pleura"), 0, "thin ring", (1.8, 4.2), draw_cyst),
    FindingKind("other_lesion", ("lung", "pleura", "mediastinum"), 1, "smooth", (1.5, 4.5),
                draw_other_lesion),
)  # fmt: skip
