"""Diffuse disease: fibrosis, interstitial disease, viral pneumonia, emphysema, COPD."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.anatomy import Body
from fx_d2.phantom.canvas import bezier, ellipse_points, fill, noise_field, stroke
from fx_d2.phantom.findings.base import (
    Drawn,
    FindingKind,
    FindingSpec,
    Scene,
    mottle,
    pick_point,
    sides_of,
    zone_rows,
)
from fx_d2.phantom.findings.shapes import Lump, network, soft_region


def _basal_region(scene: Scene, side: str, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Lower and outer part of a lung with a wandering border."""
    lung = scene.lung(side)
    low, high = zone_rows(lung, None)
    row = np.arange(scene.frame.height, dtype=np.float32)[:, None]
    height = (row - low) / max(high - low, 1)
    if scene.view == "LL":
        outer = np.float32(0.0)
    else:
        outer = scene.frame.coarse(lambda x, y: np.abs(x) / np.maximum(scene.body.wall_x(y), 1.0))
    score = height + 0.45 * outer + 0.10 * noise_field(scene.frame, rng, 2.0)
    mask = lung & (score > 1.22 - 0.55 * reach)
    return mask if mask.any() else lung


def draw_fibrosis(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Coarse reticular net at the bases and edges."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        mask = _basal_region(scene, side, 0.3 + 0.6 * severity, rng)
        cover = soft_region(scene.frame, mask, 1.0)
        net = network(scene.frame, rng, 0.55) + 0.6 * network(scene.frame, rng, 0.3)
        share = cover * ((0.20 + 0.22 * severity) * net + 0.08 + 0.10 * severity)
        scene.fill_air(np.clip(share, 0.0, 0.9), vessels_too=False)
        drawn.append(Drawn(mask, side))
    return drawn


def shape_fibrosis(body: Body, spec: FindingSpec) -> None:
    """Stiff lungs are small lungs."""
    for side in sides_of(spec):
        body.dome_y[side] -= 1.3 * float(spec.severity or 0.0)


def draw_ild(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Fine reticulation and micronodules through whole lungs."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        mask = scene.lung(side).copy()
        cover = soft_region(scene.frame, mask, 0.6)
        cover *= np.clip(0.9 + 0.35 * noise_field(scene.frame, rng, 3.0), 0.3, 1.4)
        net = network(scene.frame, rng, 0.38) + 0.5 * network(scene.frame, rng, 0.22)
        share = cover * ((0.17 + 0.18 * severity) * net + 0.05 + 0.08 * severity)
        scene.fill_air(np.clip(share, 0.0, 0.9), vessels_too=False)
        drawn.append(Drawn(mask, side))
    return drawn


def draw_viral(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Diffuse perihilar streaks and haze in both lungs."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        mask = scene.lung(side).copy()
        cover = soft_region(scene.frame, mask, 1.2) * mottle(scene, rng, 2.2)
        net = network(scene.frame, rng, 0.8, 0.3) + 0.6 * network(scene.frame, rng, 0.4, 0.3)
        share = cover * ((0.10 + 0.14 * severity) * net + 0.07 + 0.13 * severity)
        scene.fill_air(np.clip(share, 0.0, 0.9), vessels_too=False)
        drawn.append(Drawn(mask, side))
    return drawn


def _inflate(body: Body, severity: float) -> None:
    """Hyperinflation: low flat domes, deep chest, narrow heart, few vessels."""
    for side in ("left", "right"):
        body.dome_y[side] += 0.8 + 1.4 * severity
        body.lung_air[side] *= 1.06 + 0.10 * severity
    body.cp_drop *= 0.80 - 0.28 * severity
    body.depth *= 1.03 + 0.06 * severity
    body.heart_wide *= 0.95 - 0.08 * severity
    body.vessel *= 0.88 - 0.18 * severity


def shape_emphysema(body: Body, spec: FindingSpec) -> None:
    """Strong hyperinflation."""
    _inflate(body, 0.3 + 0.7 * float(spec.severity or 0.0))


def shape_copd(body: Body, spec: FindingSpec) -> None:
    """Mild hyperinflation with wide hila."""
    _inflate(body, 0.5 * float(spec.severity or 0.0))
    body.hilum *= 1.1


def draw_emphysema(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Destroyed, dark lung with thin-walled bullae, mostly above."""
    drawn = []
    severity = float(spec.severity or 0.0)
    frame = scene.frame
    for side in sides_of(spec):
        lung = scene.lung(side)
        scene.air *= 1.0 + np.float32(0.04 + 0.05 * severity) * lung
        scene.vessels *= 1.0 - np.float32(0.25 + 0.25 * severity) * lung
        walls = np.zeros(frame.shape, np.uint8)
        for _ in range(int(2 + 5 * severity)):
            centre = pick_point(scene, lung, "upper", rng, 0.8)
            size = rng.uniform(0.8, 1.9)
            bulla = ellipse_points(
                centre, (size, size * rng.uniform(0.7, 1.1)), rng.uniform(0, 180)
            )
            scene.air *= 1.0 + np.float32(0.05) * (fill(frame, [bulla]) & lung)
            stroke(frame, walls, [bulla[: int(rng.integers(14, 34))]], 0.06, 160)
        scene.shadow += walls.astype(np.float32) * np.float32(0.5 / 255.0) * lung
        drawn.append(Drawn(lung.copy(), side))
    return drawn


def draw_copd(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Thick bronchial walls; a finding of the whole image, so its mask is empty."""
    canvas = np.zeros(scene.frame.shape, np.uint8)
    lungs = scene.lung("both")
    for _ in range(12):
        start = pick_point(scene, lungs, "middle", rng, 0.6)
        end = (start[0] + rng.normal(0.0, 1.0), start[1] + rng.uniform(0.6, 2.0))
        for gap in (-0.14, 0.14):
            line = bezier([(start[0] + gap, start[1]), (end[0] + gap, end[1])], 5)
            stroke(scene.frame, canvas, [line], 0.06, 230)
    scene.shadow += canvas.astype(np.float32) * np.float32(0.7 / 255.0) * lungs
    return [Drawn(np.zeros(scene.frame.shape, bool), "none")]


def shape_tb_fibrotic(body: Body, spec: FindingSpec) -> None:
    """Old upper-zone scarring pulls the trachea over."""
    if spec.side != "both":
        sign = -1.0 if spec.side == "right" else 1.0
        body.trachea_shift += 0.9 * sign * float(spec.severity or 0.0)


def draw_tb_fibrotic(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Upper-zone scar strands with small dense granulomas."""
    drawn = []
    severity = float(spec.severity or 0.0)
    frame = scene.frame
    for side in sides_of(spec):
        lung = scene.lung(side)
        centre = pick_point(scene, lung, spec.zone, rng, 1.4)
        size = 1.8 + 2.2 * severity
        mask = fill(frame, [Lump.draw(rng, centre, (size, 0.8 * size), 0.25).outline()]) & lung
        canvas = np.zeros(frame.shape, np.uint8)
        for _ in range(int(7 + 10 * severity)):
            a, b = pick_point(scene, mask, None, rng), pick_point(scene, mask, None, rng)
            bend = (
                0.5 * (a[0] + b[0]) + rng.normal(0, 0.3),
                0.5 * (a[1] + b[1]) + rng.normal(0, 0.3),
            )
            stroke(frame, canvas, [bezier([a, bend, b], 8)], rng.uniform(0.06, 0.16), 220)
        scene.shadow += canvas.astype(np.float32) * np.float32((1.2 + severity) / 255.0) * mask
        share = 0.14 * soft_region(frame, mask, 0.8) * mottle(scene, rng, 0.6)
        scene.fill_air(np.clip(share, 0.0, 0.8), vessels_too=False)
        for _ in range(int(rng.integers(2, 6))):
            spot = pick_point(scene, mask, None, rng, 0.2)
            r = rng.uniform(0.12, 0.3)
            Lump.draw(rng, spot, (r, r), 0.2).add(frame, scene.bone, 1.5 * r)
        drawn.append(Drawn(mask, side))
    return drawn


KINDS = (
    FindingKind("fibrosis", ("lung",), 1, "reticular", (6.0, 14.0), draw_fibrosis, shape_fibrosis,
                bilateral=0.7, zones=("lower",)),
    FindingKind("ild", ("lung",), 1, "reticular", (15.0, 25.0), draw_ild, bilateral=0.9),
    FindingKind("viral_pneumonia", ("lung",), 1, "streaky", (15.0, 25.0), draw_viral,
                bilateral=0.9),
    FindingKind("emphysema", ("lung",), -1, "dark", (15.0, 25.0), draw_emphysema, shape_emphysema,
                bilateral=0.95),
    FindingKind("copd", (), 0, "shape", (0.0, 0.0), draw_copd, shape_copd, bilateral=1.0),
    FindingKind("tuberculosis_fibrotic", ("lung",), 1, "strands", (3.0, 7.0), draw_tb_fibrotic,
                shape_tb_fibrotic, bilateral=0.2, zones=("upper",)),
)  # fmt: skip
