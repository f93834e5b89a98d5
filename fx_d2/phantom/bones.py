"""Ribs as tilted hoops on the rib cage, clavicles, scapulae, humeri and spine (frontal view)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fx_d2.phantom.anatomy import Body, side_sign
from fx_d2.phantom.canvas import (
    Frame,
    bezier,
    blur,
    ellipse_points,
    fill,
    paint,
    path_normals,
    ribbon,
)

RIB_NAMES = tuple(f"{s}{k}" for s in "RL" for k in range(1, 11))
# Nested outlines of a tube with cortex: relative half width and grey level, outside to inside.
_TUBE = ((1.0, 0.58), (0.90, 0.90), (0.74, 0.66), (0.45, 0.60))
_THIN_TUBE = ((1.0, 0.50), (0.94, 0.80), (0.84, 0.66), (0.55, 0.60))


@dataclass(frozen=True)
class Rib:
    """One rib: centre lines (N, 2) of its posterior and anterior part, and half widths (N,)."""

    name: str
    posterior: np.ndarray
    anterior: np.ndarray
    posterior_half: np.ndarray
    anterior_half: np.ndarray


def rib_curves(body: Body, seed: int) -> list[Rib]:
    """Project 12 hoops per side; ribs 11 and 12 are drawn but have no truth mask."""
    rng = np.random.default_rng([seed, 11])
    ribs = []
    for side, letter in (("right", "R"), ("left", "L")):
        for k in range(1, 13):
            ribs.append(_rib(body, side, f"{letter}{k}", k, rng.standard_normal(4)))
    return ribs


def _rib(body: Body, side: str, name: str, k: int, jitter: np.ndarray) -> Rib:
    """Hoop k: a circle-like curve in a plane that drops from back to front."""
    head_y = body.rib_top + body.rib_step * ((k - 1) * 0.92 + 0.014 * k * k) + 0.10 * jitter[0]
    steeper = {1: 1.05, 2: 1.15, 3: 1.06}.get(k, 1.0)  # the upper hoops lie flatter to the beam
    slope = body.rib_slope * steeper * (1.0 + 0.03 * jitter[1])
    full = body.depth_at(head_y + 3.0)
    if k == 1:
        full = 0.50 * body.depth
    elif k == 2:
        full = 0.62 * body.depth
    low_y = head_y + slope * 0.5 * float(full)
    wall = float(body.wall_x(low_y)) + 0.22
    if k == 1:
        wall = 0.74 * wall + 0.25 * jitter[1]
    # Floating ribs and lower costal cartilage: cartilage does not show.
    end = np.radians({1: 162, 2: 154, 11: 92, 12: 62}.get(k, 146.0 - 1.9 * k) + 3.0 * jitter[2])
    phi = np.linspace(0.0, end, 44)
    x0 = 1.6
    x = x0 + (wall - x0) * np.sin(phi)
    depth = 0.5 * float(full) * (1.0 - np.cos(phi))
    y = head_y + slope * depth - 0.55 * np.sin(phi) ** 2 * np.cos(phi) * (phi < np.pi / 2)
    turn = body.anterior_shift * (depth / max(float(full), 1.0))
    x = side_sign(side) * x + turn + body.spine_x(y) * np.cos(phi).clip(0.0)
    path = np.stack([x, y], axis=1)
    level = np.abs(path_normals(path)[:, 1])  # 1 where the rib runs horizontally
    size = (0.54 + 0.04 * min(k, 4)) * body.half_width / 14.0 * (1.0 + 0.05 * jitter[3])
    if k == 1:  # broad and flat: it turns its face to the beam
        size, level = 1.22 * size, 0.45 + 0.55 * level
    half = size * (0.38 + 0.62 * level) * (1.0 + 0.18 * (phi > np.pi / 2) * np.sin(phi - np.pi / 2))
    half = half * np.minimum(1.0, 0.45 + phi / 0.4)  # the neck is slimmer than the shaft
    fold = int(np.searchsorted(phi, np.pi / 2)) + 1
    fold = min(max(fold, 3), len(phi))
    start = min(fold - 2, len(phi) - 3)
    return Rib(name, path[:fold], path[start:], half[:fold], half[start:])


def rib_masks(frame: Frame, ribs: list[Rib]) -> dict[str, np.ndarray]:
    """Truth masks (H, W) of ribs 1 to 10 of both sides, posterior and anterior part together."""
    masks = {}
    for rib in ribs:
        if rib.name in RIB_NAMES:
            parts = [ribbon(rib.posterior, rib.posterior_half)]
            if len(rib.anterior) > 3:
                parts.append(ribbon(rib.anterior, rib.anterior_half))
            masks[rib.name] = fill(frame, parts)
    return masks


def paint_tube(
    frame: Frame,
    canvas: np.ndarray,
    path: np.ndarray,
    half: np.ndarray | float,
    peak: int,
    bands: tuple[tuple[float, float], ...] = _TUBE,
) -> None:
    """Paint a bone with a bright cortex and a fainter marrow space."""
    offset = path_normals(path) * np.reshape(half, (-1, 1))
    for share, level in bands:
        band = np.concatenate([path + share * offset, (path - share * offset)[::-1]], axis=0)
        paint(frame, canvas, band, int(round(peak * level)))


def rib_layer(frame: Frame, body: Body, ribs: list[Rib]) -> np.ndarray:
    """Bone thickness (H, W) of all ribs in cm of compact bone."""
    back = np.zeros(frame.shape, np.uint8)
    front = np.zeros(frame.shape, np.uint8)
    for rib in ribs:
        if len(rib.anterior) > 3 and not rib.name.endswith("12"):
            peak = 210 if rib.name in ("L1", "R1") else 255
            paint_tube(frame, front, rib.anterior, rib.anterior_half, peak)
        peak = 185 if rib.name in ("L1", "R1") else 255
        paint_tube(frame, back, rib.posterior, rib.posterior_half, peak)
    grazing = frame.coarse(lambda x, y: _grazing(body, x, y) * rib_contrast(body, y))
    layer = back.astype(np.float32) * np.float32(0.30 / 255.0)
    layer += front.astype(np.float32) * np.float32(0.15 / 255.0)
    return blur(layer, 0.045 * frame.px_per_cm) * grazing * np.float32(body.bone)


def rib_contrast(body: Body, y: np.ndarray) -> np.ndarray:
    """Contrast left to the lower ribs, which soft-tissue scatter of the abdomen washes out."""
    low = y - max(body.dome_y.values())
    return 1.0 - 0.5 * np.clip(low / 3.0, 0.0, 1.0)


def _grazing(body: Body, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much longer the beam runs in a rib where the hoop turns along it."""
    wall = body.wall_x(np.maximum(y, 0.16 * body.span))
    u = np.clip(np.abs(x) / (wall + 0.4), 0.0, 1.0)
    # Next to the spine the thin neck meets the beam, behind scattering heart and vessels.
    medial = 1.0 - 0.40 * np.exp(-((x / 4.0) ** 2))
    return medial * np.minimum(1.0 / np.sqrt(np.maximum(1.0 - u**2.2, 0.02)), 1.9)


def clavicle_paths(body: Body) -> dict[str, np.ndarray]:
    """Centre line (N, 2) of each clavicle from sternum to acromion.

    Seen from the front the medial part bows downwards and the lateral part upwards; how much, and
    how unlike the two sides are, differs between people.
    """
    k = body.half_width / 14.0
    own = np.random.default_rng([body.seed, 47]).standard_normal((2, 2)).clip(-2.0, 2.0)
    paths = {}
    for (first, second), side in zip(own, ("right", "left"), strict=True):
        bow = body.clavicle_s * (1.0 + 0.15 * first)
        start = body.clavicle_drop + 1.5
        end = 0.55 * k - 0.45 * (body.clavicle_rise - 3.2) + 0.15 * second
        rise = start - end
        control = [
            (1.75 * k + 0.3, start),
            (4.6 * k, start + (0.9 * bow - 0.15) * k),
            (8.2 * k, start - 0.30 * rise + 0.5 * bow * k),
            (12.6 * k, end - (1.6 * bow - 0.1 * rise) * k),
            (17.2 * k, end),
        ]
        path = bezier(control, 36)
        path[:, 0] = path[:, 0] * side_sign(side) + body.anterior_shift * 0.9
        paths[side] = path
    return paths


def clavicle_half(body: Body, n: int = 36) -> np.ndarray:
    """Half width (n,) of a clavicle: flared at the sternum, flat at the acromion."""
    t = np.linspace(0.0, 1.0, n)
    rounded = np.minimum(1.0, np.minimum(t / 0.035 + 0.55, (1.0 - t) / 0.10 + 0.35))
    return (0.50 + 0.34 * (1.0 - t) ** 5 + 0.10 * t**4) * rounded * body.half_width / 14.0


def clavicle_layer(frame: Frame, body: Body) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Bone thickness (H, W) and the truth mask of each clavicle."""
    canvas = np.zeros(frame.shape, np.uint8)
    masks = {}
    half = clavicle_half(body)
    for side, path in clavicle_paths(body).items():
        paint_tube(frame, canvas, path, half, 255, _THIN_TUBE)
        masks[f"{side}_clavicle"] = fill(frame, [ribbon(path, half)])
    k = body.half_width / 14.0

    def solid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Both ends are spongy and thin, the shaft is compact."""
        t = (np.abs(x - 0.9 * body.anterior_shift) / k - 2.0) / 15.0
        return 0.6 + 0.4 * np.clip(np.minimum(t / 0.22, (1.0 - t) / 0.25), 0.0, 1.0) + 0.0 * y

    layer = blur(canvas.astype(np.float32), 0.05 * frame.px_per_cm) * frame.coarse(solid)
    return layer * np.float32(0.72 / 255.0 * body.bone), masks


def _tapered(path: np.ndarray, half: float) -> np.ndarray:
    """Outline of a band that runs out to points at both ends."""
    return ribbon(path, half * np.sqrt(np.sin(np.linspace(0.02, np.pi - 0.02, len(path)))))


def scapula_layer(frame: Frame, body: Body) -> np.ndarray:
    """Scapulae, acromia and humeri, (H, W) cm of bone; the blades overlap the lung in AP films."""
    k = body.half_width / 14.0
    blade = np.zeros(frame.shape, np.uint8)
    joint = np.zeros(frame.shape, np.uint8)
    own = np.random.default_rng([body.seed, 53]).standard_normal(2).clip(-1.8, 1.8)
    medial = (10.3 + 0.7 * own[0]) if body.arms_down else (12.9 + 0.5 * own[0])
    arm_x = 21.4 if body.arms_down else 30.5
    lateral = bezier([(16.2, 4.2), (14.9, 8.0), (medial + 2.2, 12.4), (medial + 1.4, 13.2)], 20)
    inner = bezier([(medial + 1.4, 13.2), (medial - 0.6, 8.0), (medial + 1.2, 1.4)], 20)
    top = bezier([(medial + 1.2, 1.4), (14.5, 0.6), (16.2, 2.0), (16.2, 4.2)], 12)
    outline = np.concatenate([lateral, inner, top])
    ridge = bezier([(medial + 0.8, 3.4), (14.0, 2.4), (18.4, -0.4)], 20)
    coracoid = bezier([(15.4, 1.6), (15.4, 0.3), (16.6, 0.6)], 12)
    glenoid = bezier([(16.4, 1.4), (16.1, 2.8), (16.5, 4.2)], 12)
    shaft = bezier([(18.7, 3.0), (19.2, 12.0), (arm_x, 48.0)], 30)
    head = ellipse_points((18.6, 2.8), (2.3, 2.4))
    middle = np.array((18.6, 2.8))
    for side in ("right", "left"):
        flip = np.array([side_sign(side) * k, k])
        paint(frame, blade, outline * flip, 40)
        paint(frame, blade, _tapered(inner * flip, 0.16), 85)
        paint(frame, blade, _tapered(lateral * flip, 0.30), 165)
        paint(frame, blade, _tapered(ridge * flip, 0.42), 120)
        paint(frame, blade, _tapered(coracoid * flip, 0.50), 170)
        paint(frame, joint, ellipse_points((18.2, -0.4), (1.8, 0.55), 14.0) * flip, 120)
        paint_tube(frame, joint, shaft * flip, 1.05 * k, 190)
        paint(frame, joint, head * flip, 165)
        paint(frame, joint, (middle + 0.90 * (head - middle)) * flip, 130)
        paint(frame, joint, _tapered(glenoid * flip, 0.20), 205)
    layer = blade.astype(np.float32) * np.float32(0.75 / 255.0)
    layer += joint.astype(np.float32) * np.float32(0.95 / 255.0)
    return blur(layer, 0.08 * frame.px_per_cm) * np.float32(body.bone)


def spine_layer(frame: Frame, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Vertebral column: bone thickness (H, W) and the truth mask of the vertebral bodies.

    The column itself is even; end plates and arches are faint, uneven detail on it that heart and
    diaphragm wash out.
    """
    column_canvas, bodies, detail = (np.zeros(frame.shape, np.uint8) for _ in range(3))
    rng = np.random.default_rng([body.seed, 59])
    k = body.half_width / 14.0
    y, margin = body.rib_top - 12.0, 4.0 * frame.px_per_cm
    while y < body.span + 10.0:
        half = k * float(np.interp(y, (-6.0, 0.0, 10.0, 24.0), (1.25, 1.6, 1.75, 2.2)))
        u = rng.uniform(-1.0, 1.0, 4)
        step = k * float(np.interp(y, (-6.0, 0.0, 10.0, 24.0), (1.7, 2.0, 2.35, 2.9)))
        step *= 1.0 + 0.05 * u[0]
        x = float(body.spine_x(y))
        top, bottom = y - 0.43 * step, y + 0.43 * step
        lean = 0.05 * step * u[1]
        row = float(frame.to_px(np.array([(x, y)]))[0, 1])
        if not -margin < row < frame.height + margin:  # not in the picture
            y += step
            continue
        right = bezier([(x + half, top + lean), (x + 0.86 * half, y), (x + half, bottom)], 8)
        left = right[::-1] * (-1.0, 1.0) + (2.0 * x, -lean)
        outline = np.concatenate([right, left], axis=0)
        paint(frame, bodies, outline, int(150 + 45 * u[2]))
        shrunk = (outline - (x, y)) * (0.90, 0.84) + (x, y)
        paint(frame, bodies, shrunk, int(95 + 30 * u[3]))
        _posterior_arch(frame, detail, x, y, half, step)
        y += step
    rows = np.linspace(body.rib_top - 13.0, y, 60)
    half = k * np.interp(rows, (-6.0, 0.0, 10.0, 24.0), (1.25, 1.6, 1.75, 2.2))
    path = np.stack([body.spine_x(rows), rows], axis=1)
    for share, level in ((1.0, 120), (0.9, 175), (0.7, 200)):
        paint(frame, column_canvas, ribbon(path, share * half), level)
    hidden = 0.5 * max(body.dome_y.values())

    def clear(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.interp(y, (hidden - 3.0, hidden + 4.0), (1.0, 0.42)) + 0.0 * x

    fine = bodies.astype(np.float32) * np.float32(0.22 / 255.0)
    fine += detail.astype(np.float32) * np.float32(0.20 / 255.0)
    layer = blur(fine, 0.13 * frame.px_per_cm) * frame.coarse(clear)
    layer += blur(column_canvas, 0.12 * frame.px_per_cm).astype(np.float32) * np.float32(
        0.30 / 255.0
    )
    return layer * np.float32(body.bone), fill(frame, [ribbon(path, half)])


def _posterior_arch(
    frame: Frame, canvas: np.ndarray, x: float, y: float, half: float, step: float
) -> None:
    """Pedicles, spinous and transverse processes of one vertebra."""
    for sign in (-1.0, 1.0):
        process = np.array([(x + sign * 0.8 * half, y), (x + sign * 1.9 * half, y - 0.22 * step)])
        paint(frame, canvas, ribbon(process, 0.26 * half), 110)
        pedicle = (x + sign * 0.62 * half, y - 0.12 * step)
        paint(frame, canvas, ellipse_points(pedicle, (0.24 * half, 0.20 * step), n=16), 230)
        paint(frame, canvas, ellipse_points(pedicle, (0.14 * half, 0.11 * step), n=16), 120)
    spinous = ellipse_points((x, y + 0.36 * step), (0.15 * half, 0.26 * step), n=16)
    paint(frame, canvas, spinous, 220)
