"""Who is imaged (`PatientSpec`, stable across images) and how (`Pose`, drawn per exposure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

View = Literal["PA", "AP", "LL"]


@dataclass(frozen=True)
class PatientSpec:
    """Anatomy of one person, in centimetres unless the name says otherwise.

    Attributes:
        seed: Fixes everything individual that is not listed here (vessel tree, rib irregularities).
        sex: ``"M"`` or ``"F"``.
        age: Years.
        half_width: Largest inner half width of the rib cage.
        depth: Largest inner front-to-back depth of the rib cage.
        lung_height: Lung apex to right diaphragm dome at full inspiration.
        dome_gap: How much lower the left dome stands than the right one.
        ctr: Cardiothoracic ratio of a normal heart.
        heart_axis_deg: Angle of the heart's long axis below the horizontal.
        aorta_cm: Radius of the aortic knob.
        unfolding: 0 straight to 1 tortuous descending aorta; grows with age.
        habitus: 0 thin to 1 obese.
        breast: 0 none to 1 large.
        scoliosis_cm: Signed amplitude of the lateral curve of the spine.
        rib_slope: Drop of a rib per centimetre of depth.
        clavicle_rise: How far the acromial end stands above the sternal one.
        bone_density: Relative mineral content; falls with age.
        vessel_density: Relative calibre of the lung vessels.
        asymmetry: Small signed difference between the two lungs.
    """

    seed: int
    sex: str
    age: int
    half_width: float
    depth: float
    lung_height: float
    dome_gap: float
    ctr: float
    heart_axis_deg: float
    aorta_cm: float
    unfolding: float
    habitus: float
    breast: float
    scoliosis_cm: float
    rib_slope: float
    clavicle_rise: float
    bone_density: float
    vessel_density: float
    asymmetry: float


@dataclass(frozen=True)
class Pose:
    """What changes between two exposures of one patient.

    Attributes:
        view: Projection, ``"PA"``, ``"AP"`` or ``"LL"``.
        rotation_deg: Turn about the long axis; moves anterior parts against posterior ones.
        tilt_deg: Turn in the image plane.
        inspiration: 1 full to 0 poor; raises the diaphragm and widens the heart shadow.
        offset_cm: Displacement of the patient on the detector, (x, y).
        field_cm: Detector side covered by the shorter image side.
        exposure: Relative dose; shifts the raw signal, as on a detector without auto-ranging.
        scatter: Scattered over primary radiation, relative to a gridded upright film.
    """

    view: View
    rotation_deg: float
    tilt_deg: float
    inspiration: float
    offset_cm: tuple[float, float]
    field_cm: float
    exposure: float
    scatter: float


def _clipped_normal(
    rng: np.random.Generator, mean: float, std: float, low: float, high: float
) -> float:
    """Draw from a normal distribution and clip, always consuming one draw."""
    return float(np.clip(rng.normal(mean, std), low, high))


def sample_patient(rng: np.random.Generator) -> PatientSpec:
    """Draw a patient; adults mostly, long tails towards the young and the very old."""
    seed = int(rng.integers(2**62))
    female = bool(rng.random() < 0.46)
    age = int(round(_clipped_normal(rng, 54.0, 18.0, 6.0, 95.0)))
    old = max(0.0, (age - 45.0) / 45.0)
    size = 0.90 if female else 1.0
    habitus = float(rng.beta(2.0, 3.2))
    return PatientSpec(
        seed=seed,
        sex="F" if female else "M",
        age=age,
        half_width=_clipped_normal(rng, 13.5 * size, 0.8, 10.4, 16.0),
        depth=_clipped_normal(rng, 17.8 * size + 1.2 * old, 1.0, 13.5, 21.5),
        lung_height=_clipped_normal(rng, 21.6 * size, 1.5, 16.0, 25.5),
        dome_gap=_clipped_normal(rng, 1.1, 0.6, 0.1, 2.6),
        ctr=_clipped_normal(rng, 0.445 + 0.02 * old, 0.022, 0.38, 0.495),
        heart_axis_deg=_clipped_normal(rng, 42.0 - 9.0 * habitus, 5.0, 26.0, 56.0),
        aorta_cm=_clipped_normal(rng, 1.35 + 0.30 * old, 0.12, 1.0, 2.0),
        unfolding=float(np.clip(rng.normal(0.10 + 0.35 * old, 0.12), 0.0, 0.7)),
        habitus=habitus,
        breast=float(rng.beta(2.2, 2.6)) if female else 0.0,
        scoliosis_cm=_clipped_normal(rng, 0.0, 0.35 + 0.25 * old, -1.6, 1.6),
        rib_slope=_clipped_normal(rng, 0.66, 0.06, 0.50, 0.82),
        clavicle_rise=_clipped_normal(rng, 3.2, 0.9, 1.0, 5.4),
        bone_density=_clipped_normal(rng, 1.02 - 0.22 * old, 0.09, 0.62, 1.2),
        vessel_density=_clipped_normal(rng, 1.0, 0.10, 0.75, 1.3),
        asymmetry=_clipped_normal(rng, 0.0, 0.02, -0.05, 0.05),
    )


def sample_pose(rng: np.random.Generator, view: View, patient: PatientSpec) -> Pose:
    """Draw the positioning; AP films are bedside ones: rotated, shallow breath, scatter."""
    if view not in ("PA", "AP", "LL"):
        raise ValueError(f"unknown view {view!r}; use 'PA', 'AP' or 'LL'")
    bedside = view == "AP"
    loose = 1.8 if bedside else 1.0
    trunk = 2.0 * patient.half_width + 4.0 + 3.0 * patient.habitus
    return Pose(
        view=view,
        rotation_deg=_clipped_normal(rng, 0.0, 2.2 * loose, -10.0, 10.0),
        tilt_deg=_clipped_normal(rng, 0.0, 1.2 * loose, -7.0, 7.0),
        inspiration=_clipped_normal(rng, 0.62 if bedside else 0.93, 0.08 * loose, 0.3, 1.0),
        offset_cm=(
            _clipped_normal(rng, 0.0, 0.7 * loose, -3.0, 3.0),
            _clipped_normal(rng, 0.0, 0.9 * loose, -3.5, 3.5),
        ),
        field_cm=(0.9 if view == "LL" else 1.0)
        * trunk
        * _clipped_normal(rng, 1.09, 0.08, 0.95, 1.30),
        exposure=float(np.exp(_clipped_normal(rng, 0.0, 0.22 * loose, -0.45, 0.8))),
        scatter=_clipped_normal(rng, 1.5 if bedside else 0.8, 0.2, 0.4, 2.4),
    )
