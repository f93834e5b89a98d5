"""The frontal chest as a handful of numbers (`Body`) and the outlines that follow from them.

Every length is in centimetres. y = 0 is the lung apex, x = 0 the midline, x > 0 the patient's left.
Findings that change shape (cardiomegaly, emphysema, volume loss ...) edit the `Body` before
anything is drawn, so that bones, vessels and truth masks follow by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from fx_d2.phantom.canvas import (
    bezier,
    ellipse_points,
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
    """Shape of one exposure, derived from patient and pose and open to change by findings.

    Drawn from ``seed``, the patient's own: ``clavicle_s`` (0 straight to 1 strongly bent),
    ``atrium`` (bulge of the right heart border), ``apex_out`` (how far the ventricle points
    outwards), ``superior`` (width of the upper mediastinum) and ``knob_y`` (height of the arch),
    all near 1 but for the last, which is an offset in cm.
    """

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
    seed: int
    clavicle_s: float
    atrium: float
    apex_out: float
    superior: float
    knob_y: float
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
    own = np.random.default_rng([patient.seed, 43]).standard_normal(8).clip(-2.0, 2.0)
    body = Body(
        half_width=patient.half_width * (1.0 - 0.03 * (1.0 - pose.inspiration)),
        depth=patient.depth,
        dome_y={"right": right, "left": right + patient.dome_gap},
        cp_drop=5.0 * patient.half_width / 14.0 * (1.0 + 0.09 * own[6]),
        medial_drop=2.4 * (1.0 + 0.2 * own[7]),
        rib_slope=patient.rib_slope * (0.75 + 0.25 * pose.inspiration),
        rib_top=-0.9,
        rib_step=patient.lung_height / 9.6,
        heart_scale=heart * patient.half_width / 14.0,
        heart_wide=1.0,
        heart_shift=0.0,
        heart_axis_deg=patient.heart_axis_deg - 12.0 * (1.0 - pose.inspiration),
        mediastinum_half=2.5 * patient.half_width / 14.0 + (0.5 if bedside else 0.0),
        mediastinum_shift=0.0,
        trachea_shift=0.20 * own[5] - 0.5 * patient.unfolding,
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
        seed=patient.seed,
        clavicle_s=float(np.clip(0.6 + 0.25 * own[0], 0.1, 1.1)),
        atrium=float(1.0 + 0.10 * own[1]),
        apex_out=float(1.0 + 0.07 * own[2]),
        superior=float(1.0 + 0.13 * own[3]),
        knob_y=float(0.55 * own[4]),
    )
    # The shape of the heart varies, its share of the chest is the patient's number.
    shaped = heart_width(body)
    plain = heart_width(replace(body, atrium=1.0, apex_out=1.0))
    body.heart_scale *= plain / shaped
    return body


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
    y_lateral = peak + body.cp_drop * (1.0 - np.maximum(1.0 - t_lateral**2, 0.0) ** 0.64)
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
            (sign * apex_outer * 0.93, -0.16),
            (sign * apex_outer * 0.82, -0.16),
            (sign * apex_outer * 0.70, 0.25),
            (sign * apex_outer * 0.60, 1.2),
            (sign * apex_outer * 0.50, 2.8),
            (sign * apex_outer * 0.42, 5.0),
            (sign * -0.4, 8.5),
        ]
    )
    return np.concatenate([dome, wall[1:], apex], axis=0)


def mediastinum_outline(body: Body) -> np.ndarray:
    """Closed outline (N, 2) of vessels, spine and fat in the middle, without the heart."""
    half, shift, turn = body.mediastinum_half, body.mediastinum_shift, body.anterior_shift
    knob_y = 6.6 + 0.2 * (1.0 - body.unfolding) + body.knob_y
    knob = max(0.0, body.knob_cm - 1.35)
    low = max(body.dome_y.values()) + 12.0
    top, rise = body.superior, 0.35 * body.unfolding  # the ascending aorta widens with age
    right = [(-6.0, 1.10), (-1.0, 1.02 * top), (2.5, 1.04 * top), (5.5, 1.08 * top)]
    right += [(8.5, 1.14 + rise), (11.0, 1.10 + 0.7 * rise), (14.0, 1.12), (low, 1.05)]
    left = [(-6.0, 1.12), (-1.0, 1.0 * top), (2.5, 0.98 * top), (knob_y - 2.0, 1.06 * top)]
    left += [(knob_y, 1.10 + 0.2 * knob), (knob_y + 2.0, 1.04)]
    left += [(knob_y + 3.8, 1.22 * (0.6 + 0.4 * body.pulmonary_artery)), (knob_y + 6.4, 1.2)]
    left += [(low, 1.02)]
    wavy = np.random.default_rng([body.seed, 67]).normal(0.0, 0.03, (2, 6))
    for table, wave in zip((right, left), wavy, strict=True):
        table[1:7] = [(y, x + w) for (y, x), w in zip(table[1:7], wave, strict=True)]
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
    out = body.apex_out
    angle = body.heart_axis_deg * (0.4 + 0.6 / body.heart_wide)
    # The apex rests on the left dome: place the ventricle from below.
    y = floor - 3.5 * tall * (0.6 + 0.4 * np.sin(np.radians(angle)) / 0.67)
    return [
        Ellipse(
            (2.75 * wide + shift, y), (7.4 * wide * out, 3.5 * tall / out**1.5), 8.0 * k, angle
        ),
        Ellipse(
            (-0.25 * wide + shift, y - 1.3 * tall),
            (3.5 * wide * body.atrium, 5.3 * tall / body.atrium),
            8.0 * k,
            6.0,
        ),
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
    knob_y = hilum_y - 3.6 + body.knob_y
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
