"""Lung vessels as branching, tapering trees, and the fine texture of the lung."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.anatomy import Body, side_sign
from fx_d2.phantom.canvas import (
    Frame,
    add_ellipsoid,
    blur,
    ellipse_points,
    noise_field,
    paint,
    ribbon,
    stroke,
)

_GENERATIONS = 8
_CONTRAST = 2.0  # vessels over their true thickness: a stand-in for what small ones add up to
# Widths into which branches are sorted, so that one call draws many of them.
_WIDTHS_CM = (0.035, 0.05, 0.075, 0.11, 0.16, 0.23, 0.33, 0.46, 0.62)


def grow_tree(
    rng: np.random.Generator, roots: np.ndarray, calibre: float
) -> tuple[np.ndarray, np.ndarray]:
    """Grow branches from ``roots`` (n, 5): x, y, direction (rad), length cm, radius cm.

    Returns:
        Paths (m, 4, 2) in cm and their widths (m,) in cm.
    """
    start, angle = roots[:, :2], roots[:, 2]
    length, radius = roots[:, 3].copy(), roots[:, 4] * calibre
    paths, widths = [], []
    for _ in range(_GENERATIONS):
        bend = rng.normal(0.0, 0.24, (len(start), 2))
        a1, a2 = angle + bend[:, 0], angle + bend[:, 0] + bend[:, 1]
        third = length[:, None] / 3.0
        p1 = start + third * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        p2 = p1 + third * np.stack([np.cos(a1), np.sin(a1)], axis=1)
        p3 = p2 + third * np.stack([np.cos(a2), np.sin(a2)], axis=1)
        paths.append(np.stack([start, p1, p2, p3], axis=1))
        widths.append(2.0 * radius)
        spread = np.abs(rng.normal(0.46, 0.18, (len(start), 2))) * np.array([1.0, -1.0])
        major = rng.random(len(start)) < 0.5
        share = np.where(major[:, None], (0.80, 0.60), (0.60, 0.80))
        stretch = rng.uniform(0.66, 1.0, (len(start), 2))
        start = np.repeat(p3, 2, axis=0)
        angle = (a2[:, None] + spread * (1.25 - 0.7 * share)).ravel()
        length = (length[:, None] * stretch * (0.55 + 0.45 * share)).ravel()
        radius = (radius[:, None] * share).ravel()
    return np.concatenate(paths), np.concatenate(widths)


def lung_roots(body: Body, side: str, rng: np.random.Generator) -> np.ndarray:
    """Segmental vessels (n, 5) leaving one hilum towards all parts of the lung."""
    sign = side_sign(side)
    shift = body.mediastinum_shift + 0.4 * body.anterior_shift
    hilum_y = 0.255 * (body.dome_y["left"] + body.dome_y["right"]) + (1.0 if sign < 0 else 0.2)
    x0 = sign * (body.mediastinum_half + 0.5) + shift
    degrees = np.array([-82.0, -62.0, -40.0, -12.0, 14.0, 38.0, 55.0, 68.0, 80.0, 94.0])
    degrees = degrees + rng.normal(0.0, 7.0, len(degrees))
    radius = np.array([0.17, 0.20, 0.17, 0.13, 0.16, 0.24, 0.31, 0.30, 0.26, 0.17])
    length = np.array([2.6, 3.0, 2.9, 2.6, 2.9, 3.2, 3.4, 3.3, 3.1, 2.6]) * body.half_width / 14.0
    reach = 0.9 * np.linspace(-1.0, 1.0, len(degrees)) * body.hilum
    angle = np.radians(degrees)
    if sign < 0:
        angle = np.pi - angle
    x = np.full(len(degrees), x0) + rng.normal(0.0, 0.25, len(degrees))
    y = hilum_y + reach + rng.normal(0.0, 0.25, len(degrees))
    return np.stack([x, y, angle, length, radius], axis=1)


def vessel_layer(frame: Frame, body: Body, seed: int) -> np.ndarray:
    """Vessel thickness (H, W) in cm of soft tissue, before it is cut to the lung."""
    rng = np.random.default_rng([seed, 23])
    scale = body.half_width / 14.0
    layer = frame.zeros()
    for veins in (False, True):  # drawn apart, so that crossing vessels add up
        trees = []
        for side in ("right", "left"):
            roots = lung_roots(body, side, rng)
            if veins:
                roots[:, 1] += 1.2
                roots[:, 2] += rng.normal(0.0, 0.35, len(roots))
                roots[:, 4] *= 0.72
            trees.append(grow_tree(rng, roots, body.vessel * scale))
        path = np.concatenate([tree[0] for tree in trees])
        width = np.concatenate([tree[1] for tree in trees])
        layer += draw_branches(frame, body, path, width)
    layer += _end_on(frame, body, rng)
    return layer


def _end_on(frame: Frame, body: Body, rng: np.random.Generator) -> np.ndarray:
    """Hila, and vessels and bronchi along the beam: clumps, dots and rings, in cm of tissue."""
    canvas = np.zeros(frame.shape, np.uint8)
    clumps, tubes = frame.zeros(), np.zeros(frame.shape, np.uint8)
    scale = body.half_width / 14.0
    for side in ("right", "left"):
        roots = lung_roots(body, side, rng)
        _hilum(frame, body, side, roots, clumps, tubes, rng)
        for root in roots:
            away = rng.uniform(0.25, 2.2, 2)
            for k, distance in enumerate(away):
                x = root[0] + np.cos(root[2]) * distance * root[3] * 0.6 + rng.normal(0.0, 0.4)
                y = root[1] + np.sin(root[2]) * distance * root[3] * 0.6 + rng.normal(0.0, 0.4)
                size = scale * rng.uniform(0.11, 0.27) / (0.8 + 0.25 * distance)
                level = int(rng.uniform(120, 230))
                paint(frame, canvas, ellipse_points((x, y), (size, 0.9 * size), n=20), level)
                if k and rng.random() < 0.6:  # the bronchus beside its artery
                    spot = (x + 1.7 * size, y)
                    paint(frame, canvas, ellipse_points(spot, (size, size), n=20), 130)
                    paint(frame, canvas, ellipse_points(spot, (0.6 * size, 0.6 * size), n=20), 0)
    dots = blur(canvas.astype(np.float32), 0.045 * frame.px_per_cm) * np.float32(1.0 / 255.0)
    clumps += blur(tubes, 0.10 * frame.px_per_cm).astype(np.float32) * np.float32(1.5 / 255.0)
    return dots + clumps


def _hilum(
    frame: Frame,
    body: Body,
    side: str,
    roots: np.ndarray,
    clumps: np.ndarray,
    tubes: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Interlobar artery as a tapering tube, and a clump of short vessels and nodes around it.

    Adds the artery to ``tubes`` (uint8, grey levels) and the clump to ``clumps`` (cm of tissue).
    """
    scale = body.half_width / 14.0 * body.hilum
    sign = side_sign(side)
    x, y = float(roots[:, 0].mean()) + 0.5 * sign * scale, float(roots[:, 1].mean())
    length, lean = rng.uniform(4.2, 6.0) * scale, rng.uniform(0.25, 0.55)
    drop = np.linspace(0.0, 1.0, 12)
    tube = np.stack([x + sign * lean * length * drop**1.3, y - 0.6 * scale + length * drop], axis=1)
    half = 0.62 * scale * (1.0 - 0.68 * drop) * rng.uniform(0.85, 1.1)
    for share, level in ((1.0, 120), (0.75, 190), (0.45, 235)):
        paint(frame, tubes, ribbon(tube, share * half), level)
    for _ in range(9):
        spot = (x + sign * rng.normal(0.1, 0.55) * scale, y + rng.normal(0.2, 1.25) * scale)
        axes = (rng.uniform(0.30, 0.75) * scale, rng.uniform(0.22, 0.5) * scale)
        turn = float(np.degrees(np.arctan2(spot[1] - y, spot[0] - x)) + rng.normal(0.0, 25.0))
        add_ellipsoid(frame, clumps, spot, axes, rng.uniform(0.6, 1.3) * axes[0] * 1.6, turn, 1.0)


def draw_branches(frame: Frame, body: Body, path: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Branches (m, 4, 2) of given widths (m,) as cm of soft tissue, float32 (H, W)."""
    end = path[:, -1]
    inside = (np.abs(end[:, 0]) < body.half_width + 1.0) & (end[:, 1] > -1.0)
    inside &= (end[:, 1] < body.span + 1.0) & (width * frame.px_per_cm > 0.22)
    path, width = path[inside], width[inside]
    group = np.searchsorted(_WIDTHS_CM, width).clip(0, len(_WIDTHS_CM) - 1)
    wide, fine = np.zeros(frame.shape, np.uint8), np.zeros(frame.shape, np.uint8)
    for g, size in enumerate(_WIDTHS_CM):
        if (chosen := path[group == g]).size:
            target = fine if size < 0.14 else wide
            stroke(frame, target, chosen, size, int(255 * min(1.0, (size / 0.62) ** 0.68)))
    layer = blur(wide.astype(np.float32), 0.035 * frame.px_per_cm)
    layer += fine
    return layer * np.float32(0.62 * _CONTRAST / 255.0)


def lung_texture(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Zero-mean mottle of vessels and septa too small to draw, (H, W), unit variance or so."""
    coarse = noise_field(frame, rng, 1.3)
    middle = noise_field(frame, rng, 0.42)
    fine = noise_field(frame, rng, 0.16)
    return 0.45 * coarse + 0.6 * middle + 0.55 * fine
