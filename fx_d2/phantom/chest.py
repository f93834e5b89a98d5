"""The healthy frontal chest of a `Body`: organ masks and thickness maps along the beam."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from fx_d2.phantom.anatomy import (
    SIDES,
    Body,
    Ellipse,
    aorta_path,
    cavity_outline,
    dome_line,
    heart_base,
    heart_parts,
    mediastinum_outline,
    side_sign,
    vessel_parts,
)
from fx_d2.phantom.canvas import Frame, add_ellipsoid, blur, fill, paint, ribbon, soft_fill


@dataclass
class Chest:
    """Masks and thickness maps of one frontal exposure, all (H, W)."""

    frame: Frame
    body: Body
    structures: dict[str, np.ndarray]
    cavity: dict[str, np.ndarray]
    soft: np.ndarray
    air: np.ndarray
    tissue: np.ndarray

    @property
    def lungs(self) -> np.ndarray:
        """Both lung fields, bool (H, W)."""
        return self.structures["left_lung"] | self.structures["right_lung"]


def build_chest(frame: Frame, body: Body) -> Chest:
    """Draw the silhouettes and integrate tissue and air along the beam."""
    heart = heart_parts(body)
    vessels = vessel_parts(body)
    middle = mediastinum_outline(body)
    base = heart_base(body)
    heart_mask = _rounded(frame, fill(frame, [*[part.outline() for part in heart], base]))
    middle_mask = fill(frame, [middle, *[v.outline() for v in vessels[:2]]])
    silhouette = _rounded(frame, heart_mask | middle_mask)
    thorax = frame.coarse(lambda x, y: _thorax_rows(body, y) + 0.0 * x) > 0.5
    aorta = ribbon(aorta_path(body), 0.95 * body.knob_cm)
    structures = {
        "heart": heart_mask,
        "aorta": fill(frame, [aorta, vessels[0].outline()]),
        "mediastinum": heart_mask | (silhouette & thorax),
    }
    depth = frame.coarse(lambda x, y: _cavity_depth(body, x, y))
    tissue = _mediastinal_tissue(frame, body, silhouette, heart, vessels)
    air = frame.zeros()
    cavity: dict[str, np.ndarray] = {}
    for side in SIDES:
        outline = cavity_outline(body, side)
        cavity[side] = fill(frame, [outline])
        structures[f"{side}_lung"] = cavity[side] & ~silhouette & ~heart_mask
        below = frame.coarse(partial(_recess_share, body, side))
        share = np.maximum(soft_fill(frame, [outline]), below) * np.float32(body.lung_air[side])
        air = np.maximum(air, blur(share, 0.045 * frame.px_per_cm))
    # A smooth floor: the rim of what fills the whole depth must not show as a line.
    gap = depth - tissue
    air *= 0.5 * (gap + np.sqrt(gap * gap + np.float32(2.0)))
    soft = frame.coarse(lambda x, y: body_thickness(body, x, y))
    _add_muscles(frame, body, soft)
    _add_breasts(frame, body, soft)
    return Chest(frame, body, structures, cavity, soft, air, tissue)


def _rounded(frame: Frame, mask: np.ndarray) -> np.ndarray:
    """Round the notches between overlapping outlines as fat and pericardium do."""
    return blur(mask.astype(np.float32), 0.55 * frame.px_per_cm) > 0.5


def _thorax_rows(body: Body, y: np.ndarray) -> np.ndarray:
    """1 between the lung apex and the lower dome, the extent of the truth mask in the middle."""
    return ((y > 0.4) & (y < max(body.dome_y.values()) + 0.6)).astype(np.float32)


def _cavity_depth(body: Body, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Front-to-back depth of the inside of the rib cage; never zero just inside the wall."""
    u = np.clip(np.abs(x) / np.maximum(body.wall_x(y), 0.1), 0.0, 1.0)
    return body.depth_at(y) * np.maximum(np.sqrt(1.0 - u**3.4), 0.22)


def _recess_share(body: Body, side: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Part of the depth that is still lung below a dome: the posterior recess."""
    sign = side_sign(side)
    line = dome_line(body, side)
    order = np.argsort(line[:, 0])
    top = np.interp(x, line[order, 0], line[order, 1])
    below = y - top
    wall = body.wall_x(y)
    inside = np.clip((wall - np.abs(x)) / 1.5, 0.0, 1.0) * np.clip((sign * x - 0.5) / 1.5, 0.0, 1.0)
    return np.where(below > -0.6, 0.20 * np.exp(-np.maximum(below, 0.0) / 2.6), 0.0) * inside


def _mediastinal_tissue(
    frame: Frame, body: Body, mask: np.ndarray, heart: list[Ellipse], vessels: list[Ellipse]
) -> np.ndarray:
    """Soft tissue that displaces lung, (H, W): mediastinum, heart, great vessels, hila, aorta."""
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    inward = np.minimum(distance / np.float32(3.6 * frame.px_per_cm), 1.0)
    rounded = blur(np.sqrt(inward * (2.0 - inward)), max(0.6, 0.03 * frame.px_per_cm))

    floor = 0.5 * (body.dome_y["left"] + body.dome_y["right"])

    def content(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        from_spine = (x - body.spine_x(y) - 0.5 * body.mediastinum_shift) / 3.2
        # On the diaphragm heart and liver touch: no lung is left in front of or behind them.
        resting = np.clip((y - floor + 6.0) / 6.5, 0.0, 1.0) ** 2
        # Above the arch vessels and muscles fill the inlet; no lung meets lung there.
        inlet = np.clip((12.0 - y) / 7.0, 0.0, 1.0)
        filled = 0.50 + 0.42 * np.exp(-(from_spine**2)) + 0.42 * resting + 0.9 * inlet
        return body.depth_at(y) * filled

    tissue = rounded * frame.coarse(content)
    for part in (*heart, *vessels[:2]):
        add_ellipsoid(frame, tissue, part.centre, part.axes, 0.34 * part.depth, part.angle_deg, 1.0)
    for part in vessels[2:]:
        add_ellipsoid(frame, tissue, part.centre, part.axes, part.depth, part.angle_deg, 1.5)
    tube = np.zeros(frame.shape, np.uint8)
    taper = np.sqrt(np.linspace(0.02, 1.0, 30).clip(0.0, 0.16) / 0.16)  # no flat end in the arch
    for share, level in ((1.0, 110), (0.9, 165), (0.7, 215), (0.45, 245)):
        paint(frame, tube, ribbon(aorta_path(body), 0.95 * body.knob_cm * share * taper), level)
    round_tube = blur(tube.astype(np.float32), 0.16 * frame.px_per_cm)
    tissue += round_tube * np.float32(1.7 * body.knob_cm / 255.0)
    return tissue


def _add_muscles(frame: Frame, body: Body, soft: np.ndarray) -> None:
    """Pectoral muscles over the upper lateral lung and the fold they make in the arm pit."""
    own = np.random.default_rng([body.seed, 61]).standard_normal(3).clip(-2.0, 2.0)
    k = body.half_width / 14.0
    bulk = max(0.0, (0.9 if body.breast <= 0.0 else 0.35) * (1.0 + 0.45 * own[0]))
    low = (8.6 + 0.8 * own[1]) * k

    def muscle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        side = np.abs(x) / k
        # The free border runs from the arm pit down and inwards, and fades towards the middle.
        border = low - 0.30 * (side - 9.0) - 0.035 * (side - 9.0) ** 2
        inside = np.clip((border - y) / (0.9 + 0.12 * np.abs(side - 11.0)), 0.0, 1.0)
        along = np.clip((side - 2.5) / 6.0, 0.0, 1.0) * np.clip((17.5 - side) / 3.0, 0.0, 1.0)
        return bulk * inside * along * np.clip((y + 0.5) / 3.5, 0.0, 1.0)

    def fold(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        edge = body.wall_x(np.maximum(y, 2.0)) + 1.3 + 0.2 * own[2] + 0.9 * body.habitus
        edge = edge + 0.05 * np.maximum(9.0 - y, 0.0) ** 2 * k
        skin = np.clip((edge - np.abs(x)) / 0.5, 0.0, 1.0)
        fade = np.clip((y - 2.0) / 3.0, 0.0, 1.0) * np.clip((17.0 - y) / 7.0, 0.0, 1.0)
        return 1.1 * skin * fade * np.clip((np.abs(x) - 0.6 * body.half_width) / 3.0, 0.0, 1.0)

    soft += frame.coarse(lambda x, y: muscle(x, y) + fold(x, y))


def _add_breasts(frame: Frame, body: Body, soft: np.ndarray) -> None:
    """Breast tissue: fades upwards, ends in a sharp fold below."""
    if body.breast <= 0.0:
        return
    size = 4.2 + 2.6 * body.breast
    low = 0.72 * body.span + 3.4 * body.breast
    for side in SIDES:
        x0 = side_sign(side) * 0.64 * body.half_width

        def mound(x: np.ndarray, y: np.ndarray, x0: float = x0) -> np.ndarray:
            u = (x - x0) / (1.1 * size)
            fold = low - 0.75 * size * np.minimum(u * u, 2.0)
            drop = (fold - y) / size
            rise = np.clip(drop / 0.45, 0.0, 1.0) ** 0.6 * np.exp(-np.maximum(drop, 0.0) / 0.75)
            return rise * np.clip(1.3 - u * u, 0.0, 1.0) * (0.9 + 3.4 * body.breast)

        soft += frame.coarse(mound)


def trunk_half_width(body: Body, y: np.ndarray) -> np.ndarray:
    """Skin half width of the trunk below the arm pits."""
    wall = np.maximum(body.wall_x(y), 0.6 * body.half_width)
    flank = 1.9 * np.exp(-(((y - 7.0) / 6.0) ** 2))  # latissimus and the fold of the arm pit
    return wall + 2.7 + 2.6 * body.habitus + flank + 0.05 * np.maximum(y - 8.0, 0.0)


def body_thickness(body: Body, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Front-to-back thickness of the whole body, air included: trunk, neck, shoulders, arms."""
    k = body.half_width / 14.0
    fat = body.habitus
    side = np.abs(x)
    trunk_x = np.clip(side / trunk_half_width(body, y), 0.0, 1.0)
    inner = body.depth_at(np.maximum(y, 0.0)) + 3.4 + 6.0 * fat
    fade = np.clip((y + 3.0) / 6.0, 0.0, 1.0)
    trunk = inner * np.sqrt(1.0 - trunk_x**7.0) * (0.35 + 0.65 * fade) * (y > -3.2)
    neck_half = k * (5.6 + 0.8 * fat) + np.maximum(y + 3.0, 0.0)
    neck = (11.0 + 2.0 * fat) * np.sqrt(np.clip(1.0 - (side / neck_half) ** 2, 0.0, 1.0))
    neck *= np.clip((5.0 - y) / 6.0, 0.0, 1.0)
    line = np.interp(
        side / k,
        (0.0, 5.0, 6.5, 9.0, 13.0, 17.0, 19.5, 21.5, 22.6, 23.0),
        (-9.0, -6.5, -4.4, -3.0, -1.9, -1.0, 0.6, 3.2, 7.0, 30.0),
    )
    line = line - 0.8 * fat
    shoulder = (16.5 + 3.0 * fat) * np.sqrt(np.clip((y - line) / 4.5, 0.0, 1.0))
    shoulder *= np.clip((17.0 - y - 0.30 * (side - 12.0 * k)) / 9.0, 0.0, 1.0)
    shoulder *= np.clip((23.0 * k - side) / 2.0, 0.0, 1.0)
    if body.arms_down:
        axis, radius = 19.8 * k + 1.4 * fat + 0.04 * y, 4.9 * k + 1.3 * fat
    else:
        axis, radius = 19.4 * k + 0.26 * np.maximum(y - 4.0, 0.0), 5.6 * k + 1.4 * fat
    arm = 2.6 * radius * np.sqrt(np.clip(1.0 - ((side - axis) / radius) ** 2, 0.0, 1.0))
    arm *= np.clip((y - 1.0 - 0.9 * np.maximum(side - axis + 1.0, 0.0) ** 1.4) / 5.0, 0.0, 1.0)
    jaw = 1.0 - (side / (7.0 * k)) ** 2 - ((y + 18.5 * k) / (9.0 * k)) ** 2
    head = 14.0 * np.sqrt(np.clip(jaw, 0.0, 1.0))
    return (trunk**5 + neck**5 + shoulder**5 + arm**5 + head**5) ** 0.2
