"""Opacities that fill air spaces: consolidation and its relatives, oedema, collapse."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from fx_d2.phantom.anatomy import Body, side_sign
from fx_d2.phantom.canvas import bezier, blur, fill, noise_field, ribbon, stroke
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
from fx_d2.phantom.findings.shapes import Lump, network


def patch(
    scene: Scene,
    side: str,
    zone: str | None,
    size_cm: float,
    rng: np.random.Generator,
    outer: bool = False,
) -> np.ndarray:
    """Mask of an irregular patch inside one lung; ``outer`` keeps to the periphery."""
    lung = scene.lung(side)
    where = lung
    if outer and scene.view != "LL":
        x = scene.frame.coarse(lambda x, y: np.abs(x) / np.maximum(scene.body.wall_x(y), 1.0))
        where = lung & (x > 0.62)
        where = where if where.any() else lung
    centre = pick_point(scene, where, zone, rng, 0.0 if outer else 0.35 * size_cm)
    stretch = rng.uniform(0.75, 1.2, 2)
    axes = (0.5 * size_cm * stretch[0], 0.5 * size_cm * stretch[1])
    main = Lump.draw(rng, centre, axes, 0.24)
    outlines = [main.outline()]
    # Lobules around the rim: an opacity in air spaces has no smooth outline.
    rim = main.outline(48)
    for k in rng.integers(0, 48, 7):
        size = size_cm * rng.uniform(0.09, 0.20)
        outlines.append(Lump.draw(rng, tuple(rim[k]), (size, 0.8 * size), 0.2).outline(24))
    return fill(scene.frame, outlines) & lung


def hilum_of(scene: Scene, side: str) -> tuple[float, float]:
    """Where bronchi and vessels enter a lung."""
    body = scene.body
    if scene.view == "LL":
        return 0.5, 0.26 * (body.dome_y["left"] + body.dome_y["right"])
    x = side_sign(side) * (body.mediastinum_half + 0.3) + body.mediastinum_shift
    return x, 0.26 * (body.dome_y["left"] + body.dome_y["right"])


def _bronchogram(scene: Scene, mask: np.ndarray, side: str, rng: np.random.Generator) -> np.ndarray:
    """Air-filled bronchi (H, W in [0, 1]) that fork through an opacity, away from the hilum."""
    canvas = np.zeros(scene.frame.shape, np.uint8)
    hilum = np.array(hilum_of(scene, side))
    target = np.array(pick_point(scene, mask, None, rng, 0.8))
    reach = target - hilum
    angle = float(np.arctan2(reach[1], reach[0]))
    start = hilum + 0.55 * reach
    stems = [(start, angle, rng.uniform(1.6, 2.4), 0.16)]
    scale = scene.body.half_width / 14.0
    for _ in range(4):
        grown = []
        for point, heading, length, wide in stems:
            bend = heading + rng.normal(0.0, 0.25)
            middle = point + 0.5 * length * scale * np.array([np.cos(heading), np.sin(heading)])
            end = middle + 0.5 * length * scale * np.array([np.cos(bend), np.sin(bend)])
            stroke(scene.frame, canvas, [bezier([point, middle, end], 8)], wide * scale, 200)
            for sign in (-1.0, 1.0):
                fork = bend + sign * rng.uniform(0.2, 0.7)
                grown.append((end, fork, length * rng.uniform(0.5, 0.9), 0.74 * wide))
        stems = grown
    layer = blur(canvas, 0.05 * scene.frame.px_per_cm).astype(np.float32) / np.float32(255.0)
    return layer * mask


def fluffy(
    scene: Scene,
    mask: np.ndarray,
    side: str,
    edge_cm: float,
    rng: np.random.Generator,
    amount: float = 0.25,
) -> np.ndarray:
    """Coverage (H, W) of a cloud: dense in its middle, uneven, fading out before the mask's rim.

    It does not fade towards pleura and heart, whose outline an opacity takes over. It is above
    zero everywhere in the mask and zero outside.
    """
    px = scene.frame.px_per_cm
    healthy = scene.lung(side) & ~mask
    depth = cv2.distanceTransform((~healthy).astype(np.uint8), cv2.DIST_L2, 3)
    depth = np.minimum(depth * np.float32(1.0 / (edge_cm * px)), 1.2)
    field = noise_field(scene.frame, rng, 1.5)
    # The border wanders, but less and less towards the rim: noise there would be a cut edge.
    level = np.clip(depth + np.float32(amount) * field * np.minimum(1.6 * depth, 1.0), 0.0, 1.0)
    level = blur(level * level * (3.0 - 2.0 * level), 0.12 * px)
    fine = np.float32(0.5 * amount) * noise_field(scene.frame, rng, 0.6)
    return np.clip(level * (1.0 + fine + np.float32(0.5 * amount) * field), 0.04, 1.2) * mask


def _consolidate(
    scene: Scene,
    spec: FindingSpec,
    rng: np.random.Generator,
    *,
    size_cm: tuple[float, float],
    opacity: tuple[float, float],
    edge_share: float,
    patchy: float,
    bronchogram: bool,
) -> list[Drawn]:
    """One patch per side whose air is partly replaced."""
    drawn = []
    severity = float(spec.severity or 0.0)
    size = size_cm[0] + (size_cm[1] - size_cm[0]) * severity
    level = opacity[0] + (opacity[1] - opacity[0]) * severity
    for side in sides_of(spec):
        mask = patch(scene, side, spec.zone, size * scene.body.half_width / 14.0, rng)
        share = level * fluffy(scene, mask, side, edge_share * size, rng, patchy)
        if bronchogram:
            share *= 1.0 - 0.22 * _bronchogram(scene, mask, side, rng)
        scene.fill_air(np.clip(share, 0.0, 0.97))
        drawn.append(Drawn(mask, side))
    return drawn


def draw_consolidation(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Dense patch with air bronchograms."""
    return _consolidate(
        scene, spec, rng, size_cm=(4.8, 10.5), opacity=(0.34, 0.68), edge_share=0.28, patchy=0.15,
        bronchogram=True,
    )  # fmt: skip


def draw_infiltration(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Fainter, patchier, with vague borders."""
    return _consolidate(
        scene, spec, rng, size_cm=(5.0, 9.0), opacity=(0.24, 0.42), edge_share=0.32, patchy=0.24,
        bronchogram=False,
    )  # fmt: skip


def draw_tb_infiltrate(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Upper-zone patchy, nodular infiltrate."""
    drawn = _consolidate(
        scene, spec, rng, size_cm=(4.0, 8.0), opacity=(0.26, 0.52), edge_share=0.29, patchy=0.24,
        bronchogram=False,
    )  # fmt: skip
    for item in drawn:
        for _ in range(14):
            centre = pick_point(scene, item.mask, None, rng, 0.3)
            size = rng.uniform(0.15, 0.4)
            Lump.draw(rng, centre, (size, size), 0.15).add(scene.frame, scene.shadow, 2.2 * size)
    return drawn


def draw_ground_glass(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Hazy veil through which vessels stay visible."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        mask = patch(scene, side, spec.zone, 5.5 + 5.0 * severity, rng)
        share = (0.22 + 0.20 * severity) * fluffy(scene, mask, side, 2.0, rng, 0.15)
        scene.fill_air(np.clip(share, 0.0, 0.9), vessels_too=False)
        drawn.append(Drawn(mask, side))
    return drawn


def draw_covid(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Bilateral, peripheral, lower-zone ground glass; one instance per lung."""
    drawn = []
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        total = np.zeros(scene.frame.shape, bool)
        cover = scene.frame.zeros()
        for zone in ("lower", "lower", "middle", "upper")[: 2 + round(2 * severity)]:
            mask = patch(scene, side, zone, rng.uniform(4.0, 6.0) + 2.0 * severity, rng, outer=True)
            cover = np.maximum(cover, fluffy(scene, mask, side, 1.35, rng, 0.17))
            total |= mask
        share = (0.26 + 0.28 * severity) * cover
        share += 0.05 * cover * network(scene.frame, rng, 0.6)
        scene.fill_air(np.clip(share, 0.0, 0.9), vessels_too=False)
        drawn.append(Drawn(total, side))
    return drawn


def shape_edema(body: Body, spec: FindingSpec) -> None:
    """Wide vessels and hila, a somewhat large heart."""
    severity = float(spec.severity or 0.0)
    body.vessel *= 1.15 + 0.25 * severity
    body.hilum *= 1.1 + 0.15 * severity
    body.heart_wide *= 1.04


def draw_edema(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Perihilar bat-wing haze on both sides and Kerley B lines at the bases."""
    drawn = []
    severity = float(spec.severity or 0.0)
    frame = scene.frame
    for side in sides_of(spec):
        x0, y0 = hilum_of(scene, side)
        reach = 4.2 + 2.4 * severity

        field = frame.coarse(_wing(x0, y0 + 1.5, reach)) * scene.lung(side)
        share = (0.22 + 0.34 * severity) * field * mottle(scene, rng, 0.9, 0.22)
        share += 0.07 * scene.lung(side)
        scene.fill_air(np.clip(share, 0.0, 0.92), vessels_too=False)
        _kerley_lines(scene, side, rng, severity)
        mask = (field > 0.18) & scene.lung(side)
        drawn.append(Drawn(mask, side))
    return drawn


def _wing(x0: float, y0: float, reach: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Smooth bump around a hilum, taller than wide."""

    def bump(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-(((x - x0) / reach) ** 2 + ((y - y0) / (1.25 * reach)) ** 2))

    return bump


def _kerley_lines(scene: Scene, side: str, rng: np.random.Generator, severity: float) -> None:
    """Short horizontal septal lines at the lateral base."""
    if scene.view == "LL":
        return
    canvas = np.zeros(scene.frame.shape, np.uint8)
    sign = side_sign(side)
    low = scene.body.dome_y[side] + 0.5 * scene.body.cp_drop
    for y in low - np.arange(1.0, 6.5, 0.55):
        wall = float(scene.body.wall_x(y)) - 0.15
        end = wall - rng.uniform(0.9, 1.8)
        line = np.array([(sign * wall, y), (sign * end, y + rng.normal(0.0, 0.08))])
        stroke(scene.frame, canvas, [line], 0.07, 255)
    line_cm = np.float32((0.6 + 0.8 * severity) / 255.0)
    scene.shadow += canvas.astype(np.float32) * line_cm * scene.lung(side)


def shape_atelectasis(body: Body, spec: FindingSpec) -> None:
    """Volume loss: the dome rises and the mediastinum moves towards the collapse."""
    severity = float(spec.severity or 0.0)
    for side in sides_of(spec):
        body.dome_y[side] -= 0.4 + 1.6 * severity
        if spec.side != "both":
            body.mediastinum_shift += side_sign(side) * 0.9 * severity
            body.trachea_shift += side_sign(side) * 0.4 * severity


def draw_atelectasis(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """A plate-like band or, when severe, a wedge from the hilum to the base."""
    drawn = []
    severity = float(spec.severity or 0.0)
    frame, body = scene.frame, scene.body
    for side in sides_of(spec):
        lung = scene.lung(side)
        if severity < 0.55 or scene.view == "LL":
            length, wide = 5.0 + 4.0 * severity, 0.45 + 1.0 * severity
            x, y = pick_point(scene, lung, "lower", rng, 1.2)
            slope = rng.normal(0.0, 0.18)
            line = bezier(
                [
                    (x - length / 2, y - slope * length),
                    (x, y - 0.3),
                    (x + length / 2, y + slope * length),
                ]
            )
            taper = 0.5 * wide * np.sin(np.linspace(0.2, np.pi - 0.2, len(line)))
            mask = fill(frame, [ribbon(line, taper)]) & lung
            level = 0.45
        else:
            hx, hy = hilum_of(scene, side)
            sign = side_sign(side)
            base = body.dome_y[side] + 0.8
            wide = 3.5 + 4.0 * severity
            edge = bezier(
                [(hx, hy + 1.0), (hx + sign * 0.4 * wide, hy + 4.5), (hx + sign * wide, base + 2.0)]
            )
            outline = np.concatenate([edge, [(hx - sign, base + 2.0), (hx - sign, hy + 1.0)]])
            cavity = scene.chest.cavity[side] if scene.chest is not None else lung
            mask = fill(frame, [outline]) & cavity  # a collapsed lower lobe hides behind the heart
            level = 0.78
        share = level * feathered(scene, mask, 0.25) * mottle(scene, rng, 2.5, 0.2)
        scene.fill_air(np.clip(blur(share, 0.07 * frame.px_per_cm), 0.0, 0.95))
        drawn.append(Drawn(mask, side))
    return drawn


_LOW = ("middle", "lower", "lower", "upper")
KINDS = (
    FindingKind("consolidation", ("lung",), 1, "air bronchogram", (4.5, 10.0), draw_consolidation,
                bilateral=0.2, zones=_LOW),
    FindingKind("pneumonia", ("lung",), 1, "air bronchogram", (4.5, 10.0), draw_consolidation,
                bilateral=0.25, zones=("lower", "lower", "middle", "upper")),
    FindingKind("infiltration", ("lung",), 1, "mottled", (5.0, 9.0), draw_infiltration,
                bilateral=0.35),
    FindingKind("ground_glass", ("lung",), 1, "haze", (5.5, 10.5), draw_ground_glass,
                bilateral=0.5, zones=("lower", "middle")),
    FindingKind("covid_pneumonia", ("lung",), 1, "haze", (4.0, 8.0), draw_covid,
                bilateral=0.92, zones=("lower",)),
    FindingKind("edema", ("lung",), 1, "haze", (8.0, 14.0), draw_edema, shape_edema,
                bilateral=1.0, zones=("middle",)),
    FindingKind("atelectasis", ("lung", "heart", "mediastinum"), 1, "plate or wedge",
                (4.0, 9.0), draw_atelectasis, shape_atelectasis, bilateral=0.2, zones=("lower",)),
    FindingKind("tuberculosis_infiltrate", ("lung",), 1, "nodular", (4.0, 8.0), draw_tb_infiltrate,
                bilateral=0.3, zones=("upper", "upper", "upper", "middle")),
)  # fmt: skip
