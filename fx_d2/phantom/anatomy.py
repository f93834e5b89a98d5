"""The frontal chest as a handful of numbers (`Body`), its outlines and its thickness maps.

Every length is in centimetres. y = 0 is the lung apex, x = 0 the midline, x > 0 the patient's left.
Findings that change shape (cardiomegaly, emphysema, volume loss ...) edit the `Body` before
anything is drawn, so that bones, vessels and truth masks follow by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

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
)
from fx_d2.phantom.patient import PatientSpec, Pose

SIDES = ("right", "left")
_SIGN = {"right": -1.0, "left": 1.0}

# Rib cage profile: relative height below the apex against relative inner half width.
_WALL_T = (-0.02, 0.0, 0.012, 0.03, 0.07, 0.13, 0.20, 0.30, 0.42, 0.56, 0.72, 0.88, 1.02, 1.3)
_WALL_F = (0.20, 0.30, 0.36, 0.43, 0.53, 0.63, 0.725, 0.825, 0.905, 0.96, 0.99, 1.0, 0.99, 0.95)
_DEPTH_F = (0.20, 0.26, 0.31, 0.37, 0.49, 0.62, 0.73, 0.84, 0.92, 0.98, 1.0, 1.0, 0.98, 0.95)


def side_sign(side: str) -> float:
    """-1 for the patient's right (left in the picture), +1 for the left."""
    return _SIGN[side]


@dataclass
class Body:
    """Shape of one exposure, derived from patient and pose and open to change by findings."""

    half_width: float
    depth: float
    dome_y: dict[str, float]
    cp_drop: float
    medial_drop: float
    rib_slope: float
    rib_top: float
    rib_step: float
    heart_scale: float
    heart_wide: float
    heart_shift: float
    heart_axis_deg: float
    mediastinum_half: float
    mediastinum_shift: float
    trachea_shift: float
    knob_cm: float
    unfolding: float
    pulmonary_artery: float
    hilum: float
    vessel: float
    lung_air: dict[str, float]
    habitus: float
    breast: float
    anterior_shift: float
    scoliosis: float
    clavicle_rise: float
    clavicle_drop: float
    bone: float
    arms_down: bool
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def span(self) -> float:
        """Apex to the height of the costophrenic angles in normal anatomy."""
        return 0.5 * (self.dome_y["right"] + self.dome_y["left"]) + 4.3

    def wall_x(self, y: np.ndarray | float) -> np.ndarray:
        """Inner half width of the rib cage at height y."""
        t = np.asarray(y) / self.span
        return np.interp(t, _WALL_T, _WALL_F) * self.half_width

    def depth_at(self, y: np.ndarray | float) -> np.ndarray:
        """Inner front-to-back depth of the rib cage at height y."""
        t = np.asarray(y) / self.span
        return np.interp(t, _WALL_T, _DEPTH_F) * self.depth

    def spine_x(self, y: np.ndarray | float) -> np.ndarray:
        """Midline of the spine."""
        return self.scoliosis * np.sin(2.0 * np.pi * (np.asarray(y) + 2.0) / (1.5 * self.span))


def make_body(patient: PatientSpec, pose: Pose) -> Body:
    """Combine anatomy and pose of a frontal exposure."""
    bedside = pose.view == "AP"
    raise_cm = (1.0 - pose.inspiration) * 7.0
    right = patient.lung_height - raise_cm
    heart = patient.ctr / 0.445
    heart *= 1.0 + 0.12 * (1.0 - pose.inspiration) + (0.10 if bedside else 0.0)
    return Body(
        half_width=patient.half_width * (1.0 - 0.03 * (1.0 - pose.inspiration)),
        depth=patient.depth,
        dome_y={"right": right, "left": right + patient.dome_gap},
        cp_drop=5.0 * patient.half_width / 14.0,
        medial_drop=2.4,
        rib_slope=patient.rib_slope * (0.75 + 0.25 * pose.inspiration),
        rib_top=-0.9,
        rib_step=patient.lung_height / 9.6,
        heart_scale=heart * patient.half_width / 14.0,
        heart_wide=1.0,
        heart_shift=0.0,
        heart_axis_deg=patient.heart_axis_deg - 12.0 * (1.0 - pose.inspiration),
        mediastinum_half=2.5 * patient.half_width / 14.0 + (0.5 if bedside else 0.0),
        mediastinum_shift=0.0,
        trachea_shift=0.0,
        knob_cm=patient.aorta_cm,
        unfolding=patient.unfolding,
        pulmonary_artery=1.0,
        hilum=1.0,
        vessel=patient.vessel_density * (1.15 if bedside else 1.0),
        lung_air={"right": 1.0 + patient.asymmetry, "left": 1.0 - patient.asymmetry},
        habitus=patient.habitus,
        breast=patient.breast,
        anterior_shift=float(np.sin(np.radians(pose.rotation_deg)) * patient.depth * 0.5),
        scoliosis=patient.scoliosis_cm,
        clavicle_rise=patient.clavicle_rise + (0.8 if bedside else 0.0),
        clavicle_drop=1.2 if bedside else 2.9,
        bone=patient.bone_density,
        arms_down=bedside,
    )


def dome_line(body: Body, side: str, n: int = 40) -> np.ndarray:
    """Diaphragm dome (n, 2) from the cardiophrenic to the costophrenic angle."""
    peak = body.dome_y[side]
    low = peak + body.cp_drop
    wall = float(body.wall_x(low))
    summit = 0.47 * wall
    medial = np.linspace(-0.4, summit, n // 3, endpoint=False)
    lateral = summit + (wall - summit) * np.sin(np.linspace(0.0, 0.5 * np.pi, n - n // 3))
    t_medial = (summit - medial) / (summit + 0.4)
    t_lateral = (lateral - summit) / (wall - summit)
    y_medial = peak + body.medial_drop * t_medial**2.2
    y_lateral = peak + body.cp_drop * (1.0 - np.sqrt(np.maximum(1.0 - t_lateral**2, 0.0)))
    x = np.concatenate([medial, lateral]) * _SIGN[side]
    return np.stack([x, np.concatenate([y_medial, y_lateral])], axis=1)


def cavity_outline(body: Body, side: str) -> np.ndarray:
    """Closed outline (N, 2) of one hemithorax above its dome, reaching behind the mediastinum."""
    dome = dome_line(body, side)
    y_low = dome[-1, 1]
    t = np.linspace(1.0, 0.0, 48) ** 1.6
    y_wall = y_low * t
    wall = np.stack([body.wall_x(y_wall) * _SIGN[side], y_wall], axis=1)
    apex_outer = float(body.wall_x(0.0))
    sign = _SIGN[side]
    apex = np.array(
        [
            (sign * apex_outer * 0.86, -0.16),
            (sign * apex_outer * 0.68, -0.16),
            (sign * apex_outer * 0.50, 0.10),
            (sign * apex_outer * 0.40, 0.7),
            (sign * -0.4, 1.6),
        ]
    )
    return np.concatenate([dome, wall[1:], apex], axis=0)


def mediastinum_outline(body: Body) -> np.ndarray:
    """Closed outline (N, 2) of vessels, spine and fat in the middle, without the heart."""
    half, shift, turn = body.mediastinum_half, body.mediastinum_shift, body.anterior_shift
    knob_y = 6.6 + 0.2 * (1.0 - body.unfolding)
    knob = max(0.0, body.knob_cm - 1.35)
    low = max(body.dome_y.values()) + 12.0
    right = [(-6.0, 1.10), (-1.0, 1.04), (2.5, 1.05), (5.5, 1.10), (8.5, 1.2), (11.0, 1.12)]
    right += [(14.0, 1.12), (low, 1.05)]
    left = [(-6.0, 1.12), (-1.0, 1.02), (2.5, 1.02), (4.6, 1.10), (knob_y, 1.12 + 0.2 * knob)]
    left += [(8.6, 0.98), (10.2, 1.25 * (0.6 + 0.4 * body.pulmonary_artery)), (13.0, 1.2)]
    left += [(low, 1.02)]
    y = np.linspace(-6.0, low, 60)
    # Shift and rotation act on the anterior content; the spine stays where it is.
    weight = np.interp(y, (-2.0, 3.0, 10.0, low), (0.1, 0.5, 1.0, 1.0))
    move = (shift + 0.6 * turn) * weight + 0.4 * body.spine_x(y)
    # A monotone blend keeps the borders gently wavy, as great vessels do.
    x_right = -half * _smooth(y, right) + move
    x_left = half * _smooth(y, left) + move
    outline_right = np.stack([x_right, y], axis=1)
    outline_left = np.stack([x_left, y], axis=1)[::-1]
    return np.concatenate([outline_right, outline_left], axis=0)


def _smooth(y: np.ndarray, table: list[tuple[float, float]]) -> np.ndarray:
    """Interpolate a table and round its corners with a short moving average."""
    knots = np.asarray(table)
    values = np.interp(y, knots[:, 0], knots[:, 1])
    padded = np.pad(values, 3, mode="edge")
    return np.convolve(padded, np.ones(7) / 7.0, mode="valid")


@dataclass(frozen=True)
class Ellipse:
    """One ellipsoid of soft tissue: centre, axes, middle thickness and in-plane angle."""

    centre: tuple[float, float]
    axes: tuple[float, float]
    depth: float
    angle_deg: float = 0.0

    def outline(self) -> np.ndarray:
        """Outline (48, 2)."""
        return ellipse_points(self.centre, self.axes, self.angle_deg)


def heart_parts(body: Body) -> list[Ellipse]:
    """Left ventricle, right atrium, and the base under the great vessels."""
    k = body.heart_scale
    wide, tall = k * body.heart_wide, k * body.heart_wide**0.45
    shift = body.heart_shift + body.mediastinum_shift + body.anterior_shift
    floor = 0.5 * (body.dome_y["left"] + body.dome_y["right"])
    angle = body.heart_axis_deg * (0.4 + 0.6 / body.heart_wide)
    # The apex rests on the left dome: place the ventricle from below.
    y = floor - 3.5 * tall * (0.6 + 0.4 * np.sin(np.radians(angle)) / 0.67)
    return [
        Ellipse((2.75 * wide + shift, y), (7.4 * wide, 3.5 * tall), 8.0 * k, angle),
        Ellipse((-0.25 * wide + shift, y - 1.3 * tall), (3.5 * wide, 5.3 * tall), 8.0 * k, 6.0),
        Ellipse((1.0 * k + shift, y - 4.6 * tall), (2.9 * k, 5.0 * tall), 7.0 * k, -8.0),
    ]


def heart_base(body: Body) -> np.ndarray:
    """Outline (7, 2) of the part of the heart that lies on the diaphragm between the domes."""
    left, right = heart_parts(body)[:2]
    reach = np.hypot(
        left.axes[0] * np.cos(np.radians(left.angle_deg)),
        left.axes[1] * np.sin(np.radians(left.angle_deg)),
    )
    x0, x1 = right.centre[0] - 0.88 * right.axes[0], left.centre[0] + 0.72 * reach
    y0 = right.centre[1] + 0.45 * right.axes[1]
    right_y, left_y = body.dome_y["right"], body.dome_y["left"]
    low = max(right_y, left_y) + body.medial_drop + 1.2
    lower = [(x0 + 0.6, right_y + 1.2), (-1.0, low), (1.0, low), (x1 - 0.3, left_y + 0.6)]
    return np.array([(x0, y0), *lower, (x1, left_y - 0.8), (1.0, y0)])


def heart_width(body: Body) -> float:
    """Largest horizontal extent of the heart shadow."""
    points = np.concatenate([part.outline() for part in heart_parts(body)])
    return float(np.ptp(points[:, 0]))


def aorta_path(body: Body) -> np.ndarray:
    """Centre line (N, 2) of the descending aorta from the arch to the diaphragm."""
    arch = vessel_parts(body)[0].centre
    low = max(body.dome_y.values()) + 2.0
    swing = body.mediastinum_half * 0.55 + 2.6 * body.unfolding
    middle = 0.5 * (arch[1] + low)
    return bezier(
        [
            (arch[0] - 0.2, arch[1]),
            (swing + 0.8 * body.mediastinum_shift, middle - 3.0),
            (swing + 0.6 * body.mediastinum_shift, middle + 3.0),
            (0.9 + 0.4 * body.unfolding, low),
        ],
        30,
    )


def vessel_parts(body: Body) -> list[Ellipse]:
    """Aortic knob, pulmonary trunk and both hila."""
    shift = body.mediastinum_shift + 0.4 * body.anterior_shift
    knob, artery, hilum = body.knob_cm, body.pulmonary_artery, body.hilum
    edge = body.mediastinum_half
    floor = 0.5 * (body.dome_y["left"] + body.dome_y["right"])
    hilum_y = 0.51 * floor
    knob_y = hilum_y - 3.6
    return [
        Ellipse(
            (edge * 0.80 + shift + 0.25 * body.unfolding, knob_y), (1.15 * knob, 1.2 * knob), 6.0
        ),
        Ellipse(
            (edge * 0.75 + shift, hilum_y - 0.4), (1.5 * artery, 1.7 * artery), 4.0 * artery, 30.0
        ),
        Ellipse(
            (-edge - 0.9 + shift, hilum_y + 1.0), (1.0 * hilum, 2.7 * hilum), 2.6 * hilum, 14.0
        ),
        Ellipse(
            (edge + 1.1 + shift, hilum_y + 0.1), (1.0 * hilum, 2.2 * hilum), 2.5 * hilum, -18.0
        ),
    ]


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
        below = frame.coarse(lambda x, y, s=side: _recess_share(body, s, x, y))
        share = np.maximum(soft_fill(frame, [outline]), below) * np.float32(body.lung_air[side])
        air = np.maximum(air, share)
    air *= np.maximum(depth - tissue, 0.0)
    soft = frame.coarse(lambda x, y: body_thickness(body, x, y))
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
    return body.depth_at(y) * np.maximum(np.sqrt(1.0 - u**3.6), 0.30)


def _recess_share(body: Body, side: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Part of the depth that is still lung below a dome: the posterior recess."""
    sign = _SIGN[side]
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
        resting = np.clip((y - floor + 3.2) / 3.2, 0.0, 1.0) ** 1.5
        return body.depth_at(y) * (0.42 + 0.52 * np.exp(-(from_spine**2)) + 0.50 * resting)

    tissue = rounded * frame.coarse(content)
    for part in (*heart, *vessels[:2]):
        add_ellipsoid(frame, tissue, part.centre, part.axes, 0.30 * part.depth, part.angle_deg)
    for part in vessels[2:]:
        add_ellipsoid(frame, tissue, part.centre, part.axes, part.depth, part.angle_deg, 1.5)
    tube = np.zeros(frame.shape, np.uint8)
    for share, level in ((1.0, 110), (0.9, 165), (0.7, 215), (0.45, 245)):
        paint(frame, tube, ribbon(aorta_path(body), 0.95 * body.knob_cm * share), level)
    tissue += tube.astype(np.float32) * np.float32(1.9 * body.knob_cm / 255.0)
    return tissue


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
    arm *= np.clip((y - 1.0) / 5.0, 0.0, 1.0)
    return (trunk**5 + neck**5 + shoulder**5 + arm**5) ** 0.2
