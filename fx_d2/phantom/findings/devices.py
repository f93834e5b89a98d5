"""Tubes, lines and boxes put in by people."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.anatomy import side_sign
from fx_d2.phantom.canvas import bezier, blur, ellipse_points, fill, paint, ribbon, shifted, stroke
from fx_d2.phantom.findings.base import Drawn, FindingKind, FindingSpec, Scene, pick_point, sides_of
from fx_d2.phantom.organs import airway_paths

DEVICES = ("tracheal_tube", "central_line", "feeding_tube", "pacemaker", "port")


def _tube(scene: Scene, path: np.ndarray, width: float, metal: float, stripe: bool) -> np.ndarray:
    """A plastic tube with dense walls and, if it has one, a radio-opaque stripe."""
    frame = scene.frame
    canvas = np.zeros(frame.shape, np.uint8)
    stroke(frame, canvas, [path], width, 150)
    if width * frame.px_per_cm >= 4.0:
        stroke(frame, canvas, [path], 0.62 * width, 60)
    if stripe:
        stroke(frame, canvas, [shifted(path, 0.2 * width, 0.0)], max(0.08, 0.15 * width), 255)
    scene.metal += canvas.astype(np.float32) * np.float32(metal / 255.0)
    return fill(frame, [ribbon(path, 0.5 * max(width, 1.2 / frame.px_per_cm))])


def _tracheal_tube(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    trachea, _ = airway_paths(scene.body)[0]
    length = int(len(trachea) * rng.uniform(0.62, 0.85))
    return _tube(scene, trachea[:length], 0.85, 0.10, True)


def _central_line(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    body = scene.body
    side = -1.0 if rng.random() < 0.7 else 1.0
    atrium = (
        -0.75 * body.mediastinum_half + body.mediastinum_shift,
        0.5 * body.dome_y["right"] + rng.uniform(-1.5, 2.0),
    )
    if rng.random() < 0.5:  # jugular
        control = [(side * 3.6, -9.0), (side * 3.4, -2.0), (-1.9, 2.5), atrium]
    else:  # subclavian or arm
        control = [(side * 22.0, 6.0), (side * 13.0, -1.5), (side * 5.0, 0.5), (-1.7, 3.0), atrium]
    return _tube(scene, bezier(control, 40), 0.22, 0.16, False)


def _feeding_tube(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    dome = scene.body.dome_y["left"]
    end = (rng.uniform(4.0, 7.0), dome + rng.uniform(3.0, 6.0))
    control = [(0.3, -10.0), (-0.4, 0.0), (0.9, 0.75 * dome), (1.2, dome + 1.0), end]
    return _tube(scene, bezier(control, 48), 0.38, 0.12, True)


def _pacemaker(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    body, frame = scene.body, scene.frame
    k = body.half_width / 14.0
    side = 1.0 if rng.random() < 0.8 else -1.0
    centre = (side * rng.uniform(9.0, 10.8) * k, rng.uniform(5.0, 7.5))
    angle = rng.uniform(-30, 30)
    box = ellipse_points(centre, (2.4, 2.0), angle, 64)
    canvas = np.zeros(frame.shape, np.uint8)
    paint(frame, canvas, box, 150)
    for offset in ((-0.7, 0.35), (0.7, 0.25), (0.1, -0.8)):
        part = ellipse_points(
            (centre[0] + offset[0], centre[1] + offset[1]), (0.65, 0.45), angle, 24
        )
        paint(frame, canvas, part, 235)
    scene.metal += canvas.astype(np.float32) * np.float32(0.5 / 255.0)
    mask = fill(frame, [box])
    shift = body.mediastinum_shift
    floor = 0.5 * (body.dome_y["left"] + body.dome_y["right"])
    vein = [
        (centre[0], centre[1] - 1.2),
        (side * 7.0, 0.6),
        (-1.2 + shift, 1.5),
        (-2.0 + shift, 7.0),
    ]
    tips = [(-2.4 + shift, floor - 7.0), (3.6 * body.heart_scale + shift, floor - 1.4)]
    for tip in tips[: 1 + int(rng.random() < 0.7)]:
        path = bezier([*vein, tip], 48)
        mask |= _tube(scene, path, 0.18, 0.30, False)
    return mask


def _port(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    body, frame = scene.body, scene.frame
    side = -1.0 if rng.random() < 0.7 else 1.0
    centre = (side * 8.8 * body.half_width / 14.0, rng.uniform(5.5, 8.0))
    canvas = np.zeros(frame.shape, np.uint8)
    disc = ellipse_points(centre, (1.1, 1.0))
    paint(frame, canvas, disc, 170)
    paint(frame, canvas, ellipse_points(centre, (0.6, 0.55)), 90)
    scene.metal += canvas.astype(np.float32) * np.float32(0.35 / 255.0)
    tip = (-2.0 + body.mediastinum_shift, 0.5 * body.dome_y["right"])
    path = bezier([centre, (side * 6.0, 0.0), (side * 3.0, -1.0), (-1.9, 3.0), tip], 40)
    return fill(frame, [disc]) | _tube(scene, path, 0.22, 0.16, False)


def draw_support_device(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """One to three devices; each is an instance."""
    makers = {
        "tracheal_tube": _tracheal_tube,
        "central_line": _central_line,
        "feeding_tube": _feeding_tube,
        "pacemaker": _pacemaker,
        "port": _port,
    }
    count = 1 + int(rng.random() < 0.45) + int(rng.random() < 0.2)
    names = [DEVICES[int(k)] for k in rng.permutation(len(DEVICES))[:count]]
    masks = [(makers[name](scene, rng), name) for name in names]
    return [Drawn(mask, "none", name) for mask, name in masks if mask.any()]


def draw_chest_tube(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """A wide drain entering between lateral ribs and running up or along the dome."""
    drawn = []
    body = scene.body
    for side in sides_of(spec):
        sign = side_sign(side)
        y = rng.uniform(0.55, 0.75) * body.span
        wall = float(body.wall_x(y))
        end = pick_point(
            scene, scene.lung(side), "upper" if rng.random() < 0.7 else "lower", rng, 1.0
        )
        control = [
            (sign * (wall + 5.0), y + 3.5),
            (sign * (wall + 0.5), y + 0.5),
            (sign * 0.55 * wall, 0.6 * y + 0.4 * end[1]),
            end,
        ]
        mask = _tube(scene, bezier(control, 40), 0.75, 0.14, True)
        drawn.append(Drawn(mask, side))
    return drawn


def draw_ecg_leads(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Electrodes with their cables, on the skin; no finding of any label set."""
    frame, k = scene.frame, scene.body.half_width / 14.0
    canvas = np.zeros(frame.shape, np.uint8)
    outlines = []
    for x, y in ((-9.0, 3.5), (9.5, 3.0), (-8.5, 20.0), (9.0, 21.0)):
        spot = (x * k + rng.normal(0.0, 1.0), y + rng.normal(0.0, 1.0))
        disc = ellipse_points(spot, (0.55, 0.55), n=20)
        paint(frame, canvas, disc, 110)
        paint(frame, canvas, ellipse_points(spot, (0.28, 0.28), n=16), 220)
        outlines.append(disc)
        bend = (0.5 * spot[0] + rng.normal(0.0, 2.0), spot[1] + rng.uniform(3.0, 8.0))
        cable = bezier([spot, bend, (rng.normal(4.0, 3.0), 34.0)], 30)
        stroke(frame, canvas, [cable], 0.14, 120)
        outlines.append(ribbon(cable, 0.08))
    scene.metal += canvas.astype(np.float32) * np.float32(0.28 / 255.0)
    return [Drawn(fill(frame, outlines), "none")]


def draw_nipples(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Two symmetric round shadows low on the lungs, easily taken for nodules."""
    frame, body = scene.frame, scene.body
    outlines = []
    x = rng.uniform(0.58, 0.70) * body.half_width
    y = (0.70 + 0.08 * body.breast) * body.span
    for sign in (-1.0, 1.0):
        centre = (sign * x + rng.normal(0.0, 0.5), y + rng.normal(0.0, 0.5))
        disc = ellipse_points(centre, (0.5, 0.45), n=24)
        cover = np.zeros(frame.shape, np.uint8)
        paint(frame, cover, disc, 255)
        scene.shadow += blur(cover.astype(np.float32), 0.07 * frame.px_per_cm) * np.float32(
            0.9 / 255
        )
        outlines.append(disc)
    return [Drawn(fill(frame, outlines), "both")]


def draw_skin_fold(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """An edge across the outer lung that looks like a pleural line but has vessels beyond it."""
    body, frame = scene.body, scene.frame
    side = "left" if spec.side == "left" else "right"
    sign = side_sign(side)
    x0 = rng.uniform(0.55, 0.8) * body.half_width
    inner = bezier(
        [(sign * x0 * 0.9, -2.0), (sign * (x0 + 1.5), 8.0), (sign * (x0 - 0.5), 19.0)], 24
    )
    canvas = np.zeros(frame.shape, np.uint8)
    for width, level in ((3.0, 35), (2.3, 70), (1.6, 115), (1.0, 165), (0.5, 220)):
        region = np.concatenate([inner, shifted(inner, -sign * width, 0.0)[::-1]])
        paint(frame, canvas, region, level)
    ends = frame.coarse(
        lambda x, y: np.clip((y + 2.0) / 4.0, 0.0, 1.0) * np.clip((19.0 - y) / 4.0, 0.0, 1.0)
    )
    band = blur(canvas, 0.06 * frame.px_per_cm).astype(np.float32) * ends
    scene.shadow += np.float32(1.0 / 255.0) * band
    return [Drawn(fill(frame, [ribbon(inner, 0.4)]), side)]


def draw_granuloma(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """A tiny old calcified dot that readers do not report."""
    side = "left" if spec.side == "left" else "right"
    centre = pick_point(scene, scene.lung(side), spec.zone, rng, 0.5)
    disc = ellipse_points(centre, (0.17, 0.17), n=16)
    canvas = np.zeros(scene.frame.shape, np.uint8)
    paint(scene.frame, canvas, disc, 255)
    scene.bone += canvas.astype(np.float32) * np.float32(0.4 / 255.0)
    return [Drawn(fill(scene.frame, [disc]), side)]


KINDS = (
    FindingKind("support_device", ("body",), 1, "metal", (3.0, 30.0), draw_support_device,
                frontal_only=True),
    FindingKind("chest_tube", ("body",), 1, "metal", (8.0, 20.0), draw_chest_tube, bilateral=0.05,
                frontal_only=True),
    FindingKind("ecg_leads", ("body",), 1, "metal", (1.0, 30.0), draw_ecg_leads,
                frontal_only=True, distractor=True),
    FindingKind("nipple_shadows", ("body",), 1, "smooth", (0.8, 1.0), draw_nipples,
                bilateral=1.0, frontal_only=True, distractor=True),
    FindingKind("skin_fold", ("body",), 1, "line", (8.0, 20.0), draw_skin_fold,
                frontal_only=True, distractor=True),
    FindingKind("old_granuloma", ("lung",), 1, "dense", (0.3, 0.4), draw_granuloma,
                distractor=True),
)  # fmt: skip
