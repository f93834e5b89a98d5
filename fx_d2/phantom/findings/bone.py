"""Fractures."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.bones import RIB_NAMES, clavicle_half, clavicle_paths
from fx_d2.phantom.canvas import ellipse_points, fill, stroke
from fx_d2.phantom.findings.base import Drawn, FindingKind, FindingSpec, Scene, sides_of


def _crack(
    scene: Scene,
    path: np.ndarray,
    half: float,
    at: int,
    rng: np.random.Generator,
    severity: float,
) -> np.ndarray:
    """Break a bone at one point of its centre line: dark gap, displaced ends, bright overlap."""
    frame = scene.frame
    at = int(np.clip(at, 2, len(path) - 3))
    point = path[at]
    along = path[at + 2] - path[at - 2]
    along = along / max(float(np.linalg.norm(along)), 1e-6)
    across = np.array([-along[1], along[0]])
    slant = rng.normal(0.0, 0.35)
    direction = across + slant * along
    gap = np.zeros(frame.shape, np.uint8)
    line = np.stack([point - 1.25 * half * direction, point + 1.25 * half * direction])
    stroke(frame, gap, [line], 0.16 + 0.22 * severity, 255)
    step = (0.35 + 0.6 * severity) * half * rng.choice([-1.0, 1.0])
    ends = np.zeros(frame.shape, np.uint8)
    for sign in (-1.0, 1.0):
        near = point + sign * 0.22 * along + sign * step * across
        for edge in (-0.8, 0.8):
            a = near + edge * half * across
            stroke(frame, ends, [np.stack([a, a + sign * 0.9 * along])], 0.16, 255)
    scene.bone *= 1.0 - np.float32(0.75) * (gap.astype(np.float32) / 255.0)
    scene.bone += ends.astype(np.float32) * np.float32((0.18 + 0.20 * severity) / 255.0)
    size = 1.25 * half + 0.5
    return fill(
        frame,
        [
            ellipse_points(
                tuple(point), (1.5 * size, size), np.degrees(np.arctan2(along[1], along[0]))
            )
        ],
    )


def draw_rib_fracture(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """One to three neighbouring ribs broken along the side."""
    drawn = []
    severity = float(spec.severity or 0.0)
    ribs = {rib.name: rib for rib in scene.ribs if rib.name in RIB_NAMES}
    for side in sides_of(spec):
        letter = "R" if side == "right" else "L"
        first = int(rng.integers(3, 9))
        place = rng.uniform(0.45, 0.9)
        for k in range(first, min(10, first + int(rng.integers(1, 4))) + 1):
            rib = ribs[f"{letter}{k}"]
            at = int(place * len(rib.posterior))
            half = float(rib.posterior_half[min(at, len(rib.posterior_half) - 1)])
            mask = _crack(scene, rib.posterior, half, at, rng, severity)
            if mask.any():
                drawn.append(Drawn(mask, side))
    return drawn or [Drawn(np.zeros(scene.frame.shape, bool), "none")]


def draw_clavicle_fracture(
    scene: Scene, spec: FindingSpec, rng: np.random.Generator
) -> list[Drawn]:
    """Middle third of a clavicle broken and stepped."""
    drawn = []
    for side in sides_of(spec):
        path = clavicle_paths(scene.body)[side]
        at = int(rng.uniform(0.38, 0.62) * len(path))
        half = float(clavicle_half(scene.body, len(path))[at])
        mask = _crack(scene, path, half, at, rng, float(spec.severity or 0.0))
        drawn.append(Drawn(mask, side))
    return drawn


KINDS = (
    FindingKind("rib_fracture", ("bone", "body", "lung"), 0, "line", (1.0, 2.5), draw_rib_fracture,
                frontal_only=True),
    FindingKind("clavicle_fracture", ("bone", "body", "lung"), 0, "line", (1.0, 3.0),
                draw_clavicle_fracture, frontal_only=True),
)  # fmt: skip
