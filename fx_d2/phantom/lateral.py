"""The left lateral view, simpler than the frontal one: the patient faces the picture's left.

x grows towards the back, y downwards from the lung apex. Both lungs project onto each other, so
their masks differ by the height of the domes only.
"""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.anatomy import Body
from fx_d2.phantom.bones import Rib, paint_tube, rib_contrast, rib_masks
from fx_d2.phantom.canvas import (
    Frame,
    add_ellipsoid,
    bezier,
    blur,
    ellipse_points,
    fill,
    paint,
    ribbon,
    soft_fill,
    stroke,
)
from fx_d2.phantom.findings.base import Scene
from fx_d2.phantom.patient import PatientSpec, Pose
from fx_d2.phantom.vessels import draw_branches, grow_tree, lung_texture

# A lateral film is taken with a harder beam: a centimetre counts for less than in a frontal one.
_HARDENING = 0.60

_T = (-0.3, 0.0, 0.04, 0.12, 0.25, 0.45, 0.65, 0.85, 1.0, 1.4)
_FRONT = (-0.10, -0.12, -0.20, -0.31, -0.41, -0.50, -0.55, -0.57, -0.57, -0.58)
_BACK = (0.10, 0.20, 0.27, 0.36, 0.43, 0.46, 0.45, 0.43, 0.40, 0.34)


def front_x(body: Body, y: np.ndarray | float) -> np.ndarray:
    """Inner side of the anterior chest wall."""
    return np.interp(np.asarray(y) / body.span, _T, _FRONT) * body.depth


def back_x(body: Body, y: np.ndarray | float) -> np.ndarray:
    """Inner side of the posterior chest wall."""
    return np.interp(np.asarray(y) / body.span, _T, _BACK) * body.depth


def dome(body: Body, side: str, n: int = 40) -> np.ndarray:
    """Diaphragm (n, 2) from the anterior to the deep posterior costophrenic angle."""
    peak = body.dome_y[side]
    front = float(front_x(body, peak + 1.0))
    back = float(back_x(body, peak + body.cp_drop))
    control = [
        (front, peak + 1.6),
        (0.7 * front, peak - 0.8),
        (0.0, peak - 1.2),
        (0.62 * back, peak + 0.8),
        (back, peak + 1.15 * body.cp_drop),
    ]
    return bezier(control, n)


def lung_outline(body: Body, side: str) -> np.ndarray:
    """Closed outline (N, 2) of one lung seen from the side."""
    line = dome(body, side)
    y_back = np.linspace(line[-1, 1], 0.2, 30)
    y_front = np.linspace(0.2, line[0, 1], 30)
    back = np.stack([back_x(body, y_back), y_back], axis=1)
    front = np.stack([front_x(body, y_front), y_front], axis=1)
    top = bezier([back[-1], (0.04 * body.depth, -1.4), front[0]], 12)
    return np.concatenate([line, back[1:], top[1:-1], front[:-1]], axis=0)


def heart_outline(body: Body) -> np.ndarray:
    """Closed outline of the heart on the anterior diaphragm."""
    k = body.heart_scale
    wide = body.heart_wide
    floor = body.dome_y["left"]
    return ellipse_points(
        (-0.18 * body.depth * (2.0 - wide), floor - 2.5 * k), (5.6 * k * wide, 4.3 * k * wide), 38.0
    )


def spine_line(body: Body, n: int = 60) -> np.ndarray:
    """Centre line (n, 2) of the vertebral bodies."""
    y = np.linspace(-9.0, body.span + 9.0, n)
    return np.stack([back_x(body, y) - 0.13 * body.depth, y], axis=1)


def lateral_scene(
    frame: Frame, body: Body, patient: PatientSpec, pose: Pose, texture_seed: int
) -> Scene:
    """Draw the healthy lateral chest."""
    structures = {f"{side}_lung": fill(frame, [lung_outline(body, side)]) for side in body.dome_y}
    structures["heart"] = fill(frame, [heart_outline(body)])
    structures["mediastinum"] = structures["heart"] | fill(frame, [_middle(body)])
    soft = frame.coarse(lambda x, y: _HARDENING * _thickness(body, x, y), 0.12)
    air = _air(frame, body)
    soft -= _airway(frame, body, structures)
    bone = _spine(frame, body, structures)
    ribs = _ribs(body)
    structures.update(rib_masks(frame, ribs))
    bone += _rib_layer(frame, body, ribs)
    bone += _sternum(frame, body)
    structures["diaphragm"] = fill(frame, [_below(body, side) for side in body.dome_y])
    aerated = np.clip((air - 2.0) * np.float32(0.10), 0.0, 1.0)
    rng = np.random.default_rng([texture_seed, patient.seed])
    return Scene(
        frame=frame,
        view=pose.view,
        body=body,
        structures=structures,
        soft=soft,
        air=air,
        vessels=_vessels(frame, body, patient.seed) * aerated,
        texture=lung_texture(frame, rng) * aerated,
        bone=bone,
        metal=frame.zeros(),
        shadow=frame.zeros(),
        chest=None,
        ribs=ribs,
    )


def _middle(body: Body) -> np.ndarray:
    """Great vessels above the heart."""
    top = 0.16 * body.span
    low = body.dome_y["left"] - 4.0
    return np.array([(-0.16, top), (0.16, top), (0.20, 0.5 * low), (0.12, low), (-0.30, low)]) * (
        body.depth,
        1.0,
    )


def _below(body: Body, side: str) -> np.ndarray:
    line = dome(body, side)
    return np.concatenate([line, [(line[0, 0], line[-1, 1])]])


def _thickness(body: Body, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Side-to-side thickness of the body, arms raised over the head."""
    front = (
        front_x(body, y)
        - 2.0
        - 2.5 * body.habitus
        - 3.0 * body.breast * np.exp(-(((y - 0.62 * body.span) / 5.0) ** 2))
    )
    back = back_x(body, y) + 2.6 + 2.5 * body.habitus
    middle, half = 0.5 * (front + back), 0.5 * (back - front)
    u = np.clip(np.abs(x - middle) / half, 0.0, 1.0)
    width = 2.0 * body.wall_x(np.maximum(y, 0.1 * body.span)) + 4.0 + 4.0 * body.habitus
    trunk = width * np.sqrt(1.0 - u**3.0)
    arm = (
        23.0 * np.exp(-(((x + 0.02 * body.depth) / 9.0) ** 4)) * np.clip((6.0 - y) / 9.0, 0.0, 1.0)
    )
    return (trunk**4 + arm**4) ** 0.25


def _air(frame: Frame, body: Body) -> np.ndarray:
    """Lung along the beam, both sides, less heart and great vessels."""
    solid = frame.zeros()
    add_ellipsoid(
        frame, solid, tuple(heart_outline(body).mean(axis=0)),
        (5.6 * body.heart_scale * body.heart_wide, 4.3 * body.heart_scale * body.heart_wide),
        10.5 * body.heart_scale, 38.0, 0.95,
    )  # fmt: skip
    solid += 4.5 * blur(soft_fill(frame, [_middle(body)]), 0.6 * frame.px_per_cm)
    hilum = (0.03 * body.depth, 0.26 * (body.dome_y["left"] + body.dome_y["right"]))
    add_ellipsoid(frame, solid, hilum, (1.5 * body.hilum, 2.0 * body.hilum), 3.0, 20.0, 0.8)
    air = frame.zeros()
    for side in body.dome_y:
        cover = blur(soft_fill(frame, [lung_outline(body, side)]), 0.06 * frame.px_per_cm)
        depth = frame.coarse(lambda x, y: _lung_width(body, x, y))
        air += cover * np.maximum(depth - 0.5 * solid, 0.0) * np.float32(body.lung_air[side])
    # Shoulders and neck leave little lung in the beam near the apices.
    top = frame.coarse(lambda x, y: np.clip((y + 1.5) / 7.0, 0.05, 1.0) ** 0.7 + 0.0 * x)
    return air * top * np.float32(_HARDENING)


def _lung_width(body: Body, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Width of one lung along the beam; narrow at the front and back edge."""
    front, back = front_x(body, y), back_x(body, y)
    u = np.clip((x - front) / np.maximum(back - front, 0.5), 0.0, 1.0)
    return 0.80 * body.wall_x(y) * np.maximum(np.sqrt(np.maximum(4.0 * u * (1.0 - u), 0.0)), 0.18)


def _airway(frame: Frame, body: Body, structures: dict[str, np.ndarray]) -> np.ndarray:
    hilum_y = 0.26 * (body.dome_y["left"] + body.dome_y["right"])
    line = bezier([(-1.6, -9.0), (-0.2, 0.0), (0.9, hilum_y - 0.5)], 24)
    structures["trachea"] = fill(frame, [ribbon(line, 0.85)])
    canvas = np.zeros(frame.shape, np.uint8)
    for share, level in ((1.0, 130), (0.85, 190), (0.5, 255)):
        paint(frame, canvas, ribbon(line, 0.85 * share), level)
    return blur(canvas.astype(np.float32), 0.18 * frame.px_per_cm) * np.float32(1.4 / 255.0)


def _spine(frame: Frame, body: Body, structures: dict[str, np.ndarray]) -> np.ndarray:
    line = spine_line(body)
    structures["spine"] = fill(frame, [ribbon(line, 1.5)])
    canvas, arches = np.zeros(frame.shape, np.uint8), np.zeros(frame.shape, np.uint8)
    rng = np.random.default_rng([body.seed, 71])
    y = -8.0
    while y < body.span + 8.0:
        u = rng.uniform(-1.0, 1.0, 3)
        step = float(np.interp(y, (-6.0, 24.0), (1.8, 2.9))) * (1.0 + 0.04 * u[0])
        x = float(np.interp(y, line[:, 1], line[:, 0]))
        half = float(np.interp(y, (-6.0, 24.0), (0.95, 1.75)))
        tall, lean = 0.42 * step, 0.05 * half * u[1]
        back = bezier([(half + lean, -tall), (0.82 * half, 0.0), (half, tall)], 8)
        front = bezier([(-half, tall), (-0.78 * half, 0.0), (-half + lean, -tall)], 8)
        block = np.concatenate([back, front])
        paint(frame, canvas, block + np.array((x, y)), int(185 + 25 * u[2]))
        paint(frame, canvas, block * (0.90, 0.84) + (x, y), 135)
        process = bezier([(x + half, y), (x + half + 1.0, y + 0.3), (x + half + 2.0, y + 1.4)], 8)
        width = 0.30 * np.sqrt(np.linspace(1.0, 0.05, 8))
        paint(frame, arches, ribbon(process, width), 110)
        y += step

    def clear(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Shoulders hide the upper spine."""
        return 0.35 + 0.65 * np.clip((y + 1.0) / 8.0, 0.0, 1.0) + 0.0 * x

    layer = blur(canvas, 0.13 * frame.px_per_cm).astype(np.float32)
    layer += blur(arches, 0.20 * frame.px_per_cm).astype(np.float32)
    return layer * frame.coarse(clear) * np.float32(0.60 / 255.0 * body.bone)


def _ribs(body: Body) -> list[Rib]:
    """Hoops seen from the side; the far side is magnified and lies a little behind."""
    ribs = []
    phi = np.linspace(0.0, np.pi, 30)
    for letter, shift in (("R", 0.5), ("L", 0.0)):
        for k in range(1, 11):
            head_y = body.rib_top + body.rib_step * ((k - 1) * 0.92 + 0.014 * k * k)
            reach = {1: 0.55, 2: 0.8}.get(k, 1.0 if k < 8 else 1.0 - 0.1 * (k - 7))
            share = 0.5 * (1.0 - np.cos(phi)) * reach
            y = head_y + body.rib_slope * float(body.depth_at(head_y + 3.0)) * share + 0.4 * shift
            x = back_x(body, y) + 0.4 - share * (back_x(body, y) - front_x(body, y) + 0.8) + shift
            path = np.stack([x, y], axis=1)
            half = np.full(len(path), 0.5)
            ribs.append(Rib(f"{letter}{k}", path, path[:0], half, half[:0]))
    return ribs


def _rib_layer(frame: Frame, body: Body, ribs: list[Rib]) -> np.ndarray:
    canvas = np.zeros(frame.shape, np.uint8)
    for rib in ribs:
        paint_tube(frame, canvas, rib.posterior, rib.posterior_half, 255)
    shown = frame.coarse(lambda x, y: rib_contrast(body, y) + 0.0 * x)
    layer = blur(canvas, 0.06 * frame.px_per_cm).astype(np.float32)
    return layer * shown * np.float32(0.16 / 255.0 * body.bone)


def _sternum(frame: Frame, body: Body) -> np.ndarray:
    y = np.linspace(0.10 * body.span, 0.68 * body.span, 20)
    line = np.stack([front_x(body, y) - 0.7, y], axis=1)
    canvas = np.zeros(frame.shape, np.uint8)
    paint_tube(frame, canvas, line, 0.46 * np.sin(np.linspace(0.25, 2.95, 20)) ** 0.4, 170)
    for x, top, low in ((-2.0, -9.0, 3.0), (4.5, -8.0, 6.0)):  # raised humerus, scapular edge
        stroke(
            frame,
            canvas,
            [bezier([(x, top), (x + 1.0, 0.5 * (top + low)), (x + 2.0, low)], 12)],
            0.5,
            90,
        )
    layer = blur(canvas, 0.10 * frame.px_per_cm).astype(np.float32)
    return layer * np.float32(0.5 / 255.0 * body.bone)


def _vessels(frame: Frame, body: Body, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 29])
    hilum_y = 0.26 * (body.dome_y["left"] + body.dome_y["right"])
    angle = np.radians(np.arange(0.0, 360.0, 20.0)) + rng.normal(0.0, 0.15, 18)
    roots = np.stack(
        [
            rng.normal(0.6, 0.5, 18), rng.normal(hilum_y, 0.7, 18), angle,
            2.3 + 0.7 * np.sin(angle), 0.20 + 0.07 * np.sin(angle),
        ],
        axis=1,
    )  # fmt: skip
    path, width = grow_tree(rng, roots, body.vessel)
    return draw_branches(frame, body, path, width)
