"""Fluid, air and scar in the pleural space; free air elsewhere."""

from __future__ import annotations

from functools import partial

import numpy as np

from fx_d2.phantom.anatomy import Body, cavity_outline, dome_line, side_sign
from fx_d2.phantom.canvas import bezier, blur, fill, noise_field, ribbon, shifted, soft_fill, stroke
from fx_d2.phantom.findings.airspace import hilum_of
from fx_d2.phantom.findings.base import Drawn, FindingKind, FindingSpec, Scene, sides_of, zone_rows


def shape_effusion(body: Body, spec: FindingSpec) -> None:
    """A large effusion pushes the mediastinum away."""
    severity = float(spec.severity or 0.0)
    if spec.side != "both" and severity > 0.7:
        body.mediastinum_shift -= side_sign(spec.side or "right") * 2.0 * (severity - 0.7)


def draw_effusion(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Fluid from the costophrenic angle up, its upper border a meniscus rising to the wall."""
    drawn = []
    severity = float(spec.severity or 0.0)
    frame = scene.frame
    for side in sides_of(spec):
        lung = scene.lung(side)
        if scene.view == "LL":
            mask = lung & _lateral_level(scene, lung, severity)
            cover = blur(mask.astype(np.float32), 0.3 * frame.px_per_cm)
            scene.fill_air(np.clip(0.8 * cover, 0.0, 0.95))
            drawn.append(Drawn(mask, side))
            continue
        level = frame.coarse(partial(_meniscus, scene.body, side, severity))
        mask = lung & (level > 0.0)
        cavity = scene.chest.cavity[side] if scene.chest is not None else lung
        cover = np.clip(level / (0.9 + 0.8 * severity) + 0.2, 0.0, 1.0) * (level > 0.0) * cavity
        scene.fill_air(0.96 * cover)
        _dull_recess(scene, side, severity)
        drawn.append(Drawn(mask, side))
    return drawn


def _meniscus(body: Body, side: str, severity: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Depth in cm below the fluid's upper surface; negative above it."""
    floor = body.dome_y[side] + body.cp_drop
    height = 2.2 + 12.5 * severity**1.3
    wall = np.maximum(body.wall_x(y), 1.0)
    distance = np.maximum(wall - side_sign(side) * x, 0.0)
    # The surface is highest at the wall and falls by about a third of the height inwards.
    slope = 0.42 * min(height, 6.0) * (1.0 - np.exp(-distance / 2.2))
    return y - (floor - height + slope)


def _dull_recess(scene: Scene, side: str, severity: float) -> None:
    """The posterior recess below the dome fills first."""
    sign = side_sign(side)

    def recess(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        below = np.clip((y - scene.body.dome_y[side] + 0.8) / 0.5, 0.0, 1.0)
        return below * np.clip((sign * x + 0.5) / 1.5, 0.0, 1.0)

    dull = np.float32(min(1.0, 0.6 + severity)) * scene.frame.coarse(recess)
    scene.air *= 1.0 - dull * ~scene.lung(side)


def _lateral_level(scene: Scene, lung: np.ndarray, severity: float) -> np.ndarray:
    """Pixels below a level that rises towards the back of a lateral lung field."""
    low, high = zone_rows(lung, None)
    columns = np.flatnonzero(lung.any(axis=0))
    row = np.arange(scene.frame.height, dtype=np.float32)[:, None]
    col = np.arange(scene.frame.width, dtype=np.float32)[None, :]
    back = np.clip((col - columns[0]) / max(int(np.ptp(columns)), 1), 0.0, 1.0)
    height = (0.08 + 0.34 * severity) * (0.5 + 0.7 * back**2)
    return row > high - (high - low) * height


def shape_pneumothorax(body: Body, spec: FindingSpec) -> None:
    """Tension pushes the mediastinum away."""
    severity = float(spec.severity or 0.0)
    if spec.side != "both" and severity > 0.75:
        body.mediastinum_shift -= side_sign(spec.side or "right") * 4.0 * (severity - 0.75)


def draw_pneumothorax(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Air between wall and lung, widest at the apex: no vessels, and a thin pleural line."""
    drawn = []
    severity = float(spec.severity or 0.0)
    frame, body = scene.frame, scene.body
    for side in sides_of(spec):
        outline = cavity_outline(body, side)
        hilum = np.array(hilum_of(scene, side)) + np.array((side_sign(side) * 0.8, 1.0))
        height = np.clip(outline[:, 1] / body.span, 0.0, 1.0)
        shrink = np.interp(height, (0.0, 0.35, 0.7, 0.97), (1.0, 0.62, 0.26, 0.0))
        shrink[: len(dome_line(body, side))] = 0.0  # the base stays where it is
        shrink *= 0.10 + 0.46 * severity**1.2
        inner = hilum + (outline - hilum) * (1.0 - shrink[:, None])
        collapsed = fill(frame, [inner])
        mask = scene.lung(side) & ~collapsed
        cover = (1.0 - soft_fill(frame, [inner])) * scene.lung(side)
        scene.air *= 1.0 + np.float32(0.26) * cover
        scene.vessels *= 1.0 - cover
        scene.texture *= 1.0 - 0.92 * cover
        cavity = scene.chest.cavity[side] if scene.chest is not None else scene.lung(side)
        scene.air *= 1.0 - np.float32(0.10 + 0.25 * severity) * (collapsed & cavity)
        canvas = np.zeros(frame.shape, np.uint8)
        stroke(frame, canvas, [inner[36:]], 0.09, 255)
        scene.shadow += canvas.astype(np.float32) * np.float32(1.3 / 255.0) * scene.lung(side)
        drawn.append(Drawn(mask, side))
    return drawn


def draw_thickening(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """A band of scar along the wall, or a cap over the apex."""
    drawn = []
    severity = float(spec.severity or 0.0)
    frame, body = scene.frame, scene.body
    for side in sides_of(spec):
        sign = side_sign(side)
        thick = 0.45 + 0.95 * severity
        top, bottom = {"upper": (-0.1, 0.22), "middle": (0.28, 0.62), "lower": (0.55, 0.93)}[
            spec.zone or "middle"
        ]
        y = np.linspace(top, bottom + 0.05 * rng.random(), 36) * body.span
        wall = body.wall_x(np.maximum(y, 0.0))
        if spec.zone == "upper":  # follow the cavity over its top
            line = cavity_outline(body, side)[-34:-2]
            wave = thick * (
                0.75 + 0.3 * np.sin(np.linspace(0.0, 9.0, len(line)) + rng.uniform(0, 6))
            )
            ends = np.sin(np.linspace(0.15, np.pi - 0.15, len(line))) ** 0.6
            band = ribbon(line, wave * ends)
        else:
            wave = thick * (0.8 + 0.25 * np.sin(np.linspace(0.0, 8.0, 36) + rng.uniform(0, 6)))
            wave *= np.sin(np.linspace(0.1, np.pi - 0.1, 36)) ** 0.5
            outer = np.stack([sign * (wall + 0.3), y], axis=1)
            inner = np.stack([sign * (wall - wave), y], axis=1)[::-1]
            band = np.concatenate([outer, inner])
        cavity = scene.chest.cavity[side] if scene.chest is not None else scene.lung(side)
        mask = fill(frame, [band]) & cavity
        cover = blur(mask.astype(np.float32), 0.06 * frame.px_per_cm) * cavity
        scene.shadow += np.float32(1.6 + 2.4 * severity) * cover
        drawn.append(Drawn(mask, side))
    return drawn


def draw_pneumoperitoneum(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Black crescent between a dome, now a thin line, and the liver."""
    drawn = []
    severity = float(spec.severity or 0.0)
    frame = scene.frame
    for side in sides_of(spec):
        line = dome_line(scene.body, side)[6:-9]
        bow = np.sin(np.linspace(0.0, np.pi, len(line)))
        thick = (0.5 + 1.9 * severity) * bow
        top = line + np.stack([np.zeros(len(line)), np.full(len(line), 0.28)], axis=1)
        below = top + np.stack([np.zeros(len(line)), thick], axis=1)
        crescent = np.concatenate([top, below[::-1]])
        mask = fill(frame, [crescent])
        cover = soft_fill(frame, [crescent])
        scene.shadow -= np.float32(5.0 + 5.0 * severity) * cover
        drawn.append(Drawn(mask, side))
    return drawn


def draw_pneumomediastinum(
    scene: Scene, spec: FindingSpec, rng: np.random.Generator
) -> list[Drawn]:
    """Dark streaks along the heart and up into the neck, with the lifted pleura as a line."""
    frame, body = scene.frame, scene.body
    severity = float(spec.severity or 0.0)
    outlines = []
    lines = np.zeros(frame.shape, np.uint8)
    for sign in (-1.0, 1.0):
        edge = sign * (body.mediastinum_half + 0.25) + body.mediastinum_shift
        for offset, top, bottom in ((0.0, 1.0, 12.0), (-1.1, -5.0, 6.0)):
            x = edge + sign * offset
            path = bezier(
                [
                    (x + rng.normal(0, 0.2), top),
                    (x + sign * 0.5, 0.5 * (top + bottom)),
                    (x, bottom),
                ],
                20,
            )
            half = (0.14 + 0.20 * severity) * np.sin(np.linspace(0.2, np.pi - 0.2, 20))
            outlines.append(ribbon(path, half))
            stroke(frame, lines, [shifted(path, sign * (0.25 + 0.2 * severity), 0.0)], 0.07, 255)
    cover = soft_fill(frame, outlines)
    mask = fill(frame, outlines)
    cover = blur(cover, 0.05 * frame.px_per_cm)
    scene.shadow -= np.float32(1.5 + 1.5 * severity) * cover
    scene.shadow += lines.astype(np.float32) * np.float32(0.9 / 255.0) * ~mask
    return [Drawn(mask, "both")]


def draw_subcutaneous(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Gas spreading in streaks between the muscles of the chest wall and neck."""
    drawn = []
    severity = float(spec.severity or 0.0)
    frame, body = scene.frame, scene.body
    for side in sides_of(spec):
        sign = side_sign(side)
        y = np.linspace(-3.0, (0.45 + 0.4 * severity) * body.span, 30)
        inner = np.maximum(body.wall_x(np.maximum(y, 0.0)), 0.5 * body.half_width) + 0.9
        outer = inner + 1.6 + 1.4 * severity
        region = np.concatenate(
            [np.stack([sign * inner, y], axis=1), np.stack([sign * outer, y], axis=1)[::-1]]
        )
        mask = fill(frame, [region])
        streaks = noise_field(frame, rng, 1.5, aspect=0.25) + 0.6 * noise_field(frame, rng, 0.6)
        gas = np.clip(0.55 + 0.65 * streaks, 0.0, 2.0) * soft_fill(frame, [region])
        scene.shadow -= np.float32(1.2 + 1.8 * severity) * blur(gas, 0.04 * frame.px_per_cm)
        drawn.append(Drawn(mask, side))
    return drawn


KINDS = (
    FindingKind("pleural_effusion", ("lung", "pleura"), 1, "smooth", (2.0, 16.0), draw_effusion,
                shape_effusion, bilateral=0.35, zones=("lower",)),
    FindingKind("pneumothorax", ("lung", "pleura"), -1, "dark", (2.0, 18.0), draw_pneumothorax,
                shape_pneumothorax, bilateral=0.02, zones=("upper",), frontal_only=True),
    FindingKind("pleural_thickening", ("lung", "pleura", "mediastinum"), 1, "band", (0.5, 12.0),
                draw_thickening, bilateral=0.2, zones=("upper", "middle", "lower"),
                frontal_only=True),
    FindingKind("pneumoperitoneum", ("abdomen",), -1, "dark", (3.0, 10.0), draw_pneumoperitoneum,
                bilateral=0.4, zones=("lower",), frontal_only=True),
    FindingKind("pneumomediastinum", ("mediastinum", "lung", "body"), -1, "streaks", (8.0, 16.0),
                draw_pneumomediastinum, bilateral=1.0, frontal_only=True),
    FindingKind("subcutaneous_emphysema", ("body",), -1, "streaks", (8.0, 20.0), draw_subcutaneous,
                bilateral=0.3, frontal_only=True),
)  # fmt: skip
