"""Simple limb radiographs for the out-of-domain bone source: long bones, joints, soft tissue."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.canvas import (
    Frame,
    bezier,
    blur,
    ellipse_points,
    noise_field,
    paint,
    ribbon,
    shifted,
    soft_fill,
    stroke,
)

REGIONS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
_TUBE = ((1.0, 0.80), (0.90, 1.0), (0.70, 0.55), (0.45, 0.48))

Bone = tuple[np.ndarray, np.ndarray]  # centre line (N, 2) and half width (N,)


def _long_bone(
    start: tuple[float, float], end: tuple[float, float], half: float, n: int = 40
) -> Bone:
    """A shaft that flares at both ends."""
    t = np.linspace(0.0, 1.0, n)
    path = np.stack(
        [start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])], axis=1
    )
    flare = (
        1.0
        + 0.55 * np.exp(-(((t - 0.03) / 0.09) ** 2))
        + 0.55 * np.exp(-(((t - 0.97) / 0.09) ** 2))
    )
    ends = np.minimum(1.0, np.sqrt(np.minimum(t, 1.0 - t) / 0.03 + 0.15))
    return path, half * flare * ends


def _finger(x: float, y: float, length: float, half: float, lean: float) -> list[Bone]:
    """Phalanges of one ray from the knuckle upwards."""
    bones, base = [], np.array([x, y])
    for share, width in ((0.46, 1.0), (0.31, 0.85), (0.23, 0.7)):
        tip = base + np.array([lean * share * length, -share * length])
        bones.append(_long_bone(tuple(base), (tip[0], tip[1] + 0.06 * length), half * width))
        base = tip
    return bones


def _hand(scale: float) -> list[Bone]:
    """Carpals, metacarpals and phalanges."""
    bones: list[Bone] = []
    for k, x in enumerate((-2.6, -1.0, 0.6, 2.1)):
        lean = 0.10 * (k - 1.5)
        top = 1.4 + 0.25 * abs(k - 1.2)
        bones.append(_long_bone((0.55 * x, 6.0), (x, top), 0.36))
        bones += _finger(x, top - 0.2, 7.6 - 0.8 * abs(k - 1.4), 0.38, lean)
    bones.append(_long_bone((-1.8, 6.4), (-4.2, 3.0), 0.42))
    bones += _finger(-4.3, 2.8, 4.6, 0.40, -0.35)
    rng = np.random.default_rng(5)
    for x in (-1.6, -0.5, 0.6, 1.6):
        for y in (6.9, 8.1):
            c = np.array([x, y]) + rng.normal(0.0, 0.08, 2)
            path = np.stack([np.full(12, c[0]), c[1] + np.linspace(-0.55, 0.55, 12)], axis=1)
            bones.append((path, 0.62 * np.sqrt(1.0 - np.linspace(-0.97, 0.97, 12) ** 2)))
    bones.append(_long_bone((-1.0, 20.0), (-0.9, 8.9), 0.85))
    bones.append(_long_bone((1.5, 20.0), (1.4, 9.2), 0.62))
    return [(path * scale, half * scale) for path, half in bones]


def _skeleton(region: str) -> tuple[list[Bone], float, tuple[float, float]]:
    """Bones, field of view (cm) and its centre."""
    if region == "hand":
        return _hand(1.0), 22.0, (-0.5, 2.5)
    if region == "wrist":
        return _hand(1.0), 14.0, (0.0, 8.6)
    if region == "finger":
        return (
            [*_finger(0.0, 5.0, 9.0, 0.55, 0.04), _long_bone((0.1, 12.0), (0.0, 5.3), 0.6)],
            12.0,
            (0, 2),
        )
    if region == "forearm":
        return (
            [
                _long_bone((-1.4, -12.0), (-1.2, 12.0), 0.75),
                _long_bone((1.4, -13.0), (1.3, 12.0), 0.7),
            ],
            28.0,
            (0, 0),
        )
    if region == "humerus":
        return (
            [
                _long_bone((0.0, -14.0), (0.6, 14.0), 1.25),
                _long_bone((-0.4, 15.0), (-0.5, 30.0), 0.9),
            ],
            32.0,
            (0, 1),
        )
    if region == "elbow":
        return [
            _long_bone((-0.4, -20.0), (0.0, 0.0), 1.35), _long_bone((-1.1, 0.7), (-2.2, 20.0), 0.8),
            _long_bone((0.9, 0.3), (1.2, 20.0), 0.95),
        ], 18.0, (0, 0)  # fmt: skip
    return [
        _long_bone((3.4, 1.0), (5.0, 26.0), 1.5), _long_bone((-11.0, -4.0), (2.0, -4.6), 0.75),
        _long_bone((-0.2, -1.0), (-3.5, 12.0), 0.8), _long_bone((-9.0, -1.0), (-0.2, 1.5), 0.6),
    ], 24.0, (-1, 4)  # fmt: skip


def render_bone(
    region: str, abnormal: bool, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Render a limb.

    Args:
        region: One of `REGIONS`; any case and an ``XR_`` prefix are accepted.
        abnormal: Adds a displaced fracture line or metal hardware.
        size: (H, W) in pixels.
        rng: Source of everything drawn at random.

    Returns:
        float32 (H, W) in [0, 1], bright = dense.
    """
    name = region.lower().removeprefix("xr_")
    if name not in REGIONS:
        raise ValueError(f"unknown region {region!r}; known: {', '.join(REGIONS)}")
    height, width = size
    bones, field, centre = _skeleton(name)
    frame = Frame(
        height, width, min(height, width) / (field * rng.uniform(0.95, 1.15)),
        (centre[0] + rng.normal(0.0, 0.5), centre[1] + rng.normal(0.0, 0.5)),
        float(np.radians(rng.normal(0.0, 9.0))),
    )  # fmt: skip
    mirror = np.array([1.0 if rng.random() < 0.5 else -1.0, 1.0])
    bones = [(path * mirror, half * rng.uniform(0.92, 1.08)) for path, half in bones]
    victim = int(rng.integers(len(bones)))
    hardware = rng.random() < 0.4
    layer = np.zeros(frame.shape, np.float32)
    metal = np.zeros(frame.shape, np.uint8)
    for k, (path, half) in enumerate(bones):
        hurt = abnormal and k == victim
        if hurt and not hardware:
            path = _break(path, half, rng)
        layer = np.maximum(
            layer, _bone_layer(frame, path, half, gap=hurt and not hardware, rng=rng)
        )
        if hurt and hardware:
            _screw_plate(frame, metal, path, half)
    flesh = _flesh(frame, bones)
    grain = 1.0 + 0.10 * noise_field(frame, rng, 0.12) + 0.08 * noise_field(frame, rng, 0.4)
    path_length = 0.26 * flesh + 0.95 * layer * grain + 2.2 * metal.astype(np.float32) / 255.0
    signal = 1.0 - np.exp(-path_length)
    signal += 0.008 * rng.standard_normal(frame.shape, dtype=np.float32)
    return np.clip(signal / 0.92, 0.0, 1.0).astype(np.float32)


def _bone_layer(
    frame: Frame, path: np.ndarray, half: np.ndarray, *, gap: bool, rng: np.random.Generator
) -> np.ndarray:
    """One bone with cortex, thickness (H, W) relative to a typical one; a fracture leaves a gap."""
    canvas = np.zeros(frame.shape, np.uint8)
    for share, level in _TUBE:
        paint(frame, canvas, ribbon(path, half * share), int(255 * level))
    if gap:
        middle = len(path) // 2
        wide = float(half[middle])
        slant = rng.uniform(-0.8, 0.8) * wide
        zigzag = np.array([(-1.3, -slant), (-0.3, 0.25 * wide), (0.2, -0.1 * wide), (1.3, slant)])
        zigzag[:, 0] *= wide
        along = path[min(middle + 1, len(path) - 1)] - path[middle - 1]
        along /= max(float(np.linalg.norm(along)), 1e-6)
        across = np.array([-along[1], along[0]])
        line = path[middle] + zigzag[:, :1] * across + zigzag[:, 1:] * along
        stroke(frame, canvas, [line], 0.14 * max(wide, 0.5), 60)
    layer = canvas.astype(np.float32) * np.float32(1.0 / 255.0)
    return layer * np.float32(min(1.2, 0.55 + 0.5 * float(half.max())))


def _break(path: np.ndarray, half: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bend and step the distal half of a bone."""
    middle = len(path) // 2
    angle = np.radians(rng.choice([-1.0, 1.0]) * rng.uniform(5.0, 16.0))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    step = rng.normal(0.0, 0.3, 2) * float(half[middle])
    broken = path.copy()
    broken[middle:] = path[middle] + (path[middle:] - path[middle]) @ turn + step
    return broken


def _screw_plate(frame: Frame, metal: np.ndarray, path: np.ndarray, half: np.ndarray) -> None:
    """A plate with screws along the middle of a bone."""
    low, high = len(path) // 4, 3 * len(path) // 4
    plate = shifted(path[low:high], 0.8 * float(half[len(path) // 2]), 0.0)
    wide = float(half[len(path) // 2])
    paint(frame, metal, ribbon(plate, 0.22 * wide), 200)
    for k in range(2, len(plate) - 1, 4):
        screw = bezier([tuple(plate[k]), tuple(plate[k] - (1.9 * wide, 0.0))], 4)
        stroke(frame, metal, [screw], 0.22 * wide, 255)
        paint(frame, metal, ellipse_points(tuple(plate[k]), (0.2 * wide, 0.2 * wide), n=16), 255)


def _flesh(frame: Frame, bones: list[Bone]) -> np.ndarray:
    """Soft tissue (H, W) around the bones, rounded off at the skin."""
    outlines = [ribbon(path, half + 0.9 + 0.6 * half) for path, half in bones]
    outlines += [
        ellipse_points(tuple(path[end]), (1.5 * half.max() + 0.7,) * 2)
        for path, half in bones
        for end in (0, -1)
    ]
    cover = soft_fill(frame, outlines)
    rounded = blur(cover, 0.5 * frame.px_per_cm)
    return cover * (0.35 + 0.65 * np.clip(2.0 * rounded - 1.0, 0.0, 1.0)) * np.float32(1.3)
