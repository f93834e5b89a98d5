"""`render`: from a patient and a list of findings to an ideal radiograph with exact truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fx_d2.phantom.anatomy import Body, make_body
from fx_d2.phantom.bones import (
    clavicle_layer,
    rib_curves,
    rib_layer,
    rib_masks,
    scapula_layer,
    spine_layer,
)
from fx_d2.phantom.canvas import Frame, blur
from fx_d2.phantom.chest import build_chest
from fx_d2.phantom.findings import (
    Finding,
    FindingSpec,
    as_spec,
    draw_finding,
    plan_findings,
    shape_finding,
)
from fx_d2.phantom.findings.base import Scene
from fx_d2.phantom.lateral import lateral_scene
from fx_d2.phantom.organs import add_abdomen, add_tissue_texture, airway_layer, diaphragm_mask
from fx_d2.phantom.patient import PatientSpec, Pose, View, sample_pose
from fx_d2.phantom.vessels import lung_texture, vessel_layer

# Effective linear attenuation per cm at the mean energy of a chest film.
MU_SOFT, MU_BONE, MU_METAL = 0.185, 0.50, 3.0
LUNG_AERATION = 0.77  # share of the lung's depth that is air
_AIR_OVERRANGE = 1.6  # detector reading of open air over its saturation at unit exposure
_LOG_RANGE = 3.9  # optical path of the densest tissue that still changes the signal


@dataclass(frozen=True)
class Radiograph:
    """An ideal detector signal with exact truth.

    Attributes:
        image: float32 (H, W) in [0, 1], bright = dense, before any vendor's look.
        structures: bool (H, W) masks by name: left_lung, right_lung, heart, mediastinum, trachea,
            spine, left_clavicle, right_clavicle, diaphragm, R1..R10, L1..L10. "right" is the
            patient's right, left in the picture. Masks may overlap.
        findings: Truth of every instance drawn, hard negatives included (``distractor``).
        view: ``"PA"``, ``"AP"`` or ``"LL"``.
        patient: Who was imaged.
        pose: How.
    """

    image: np.ndarray
    structures: dict[str, np.ndarray]
    findings: list[Finding]
    view: View
    patient: PatientSpec
    pose: Pose


def render(
    patient: PatientSpec,
    findings: Sequence[FindingSpec | str] = (),
    *,
    view: View = "PA",
    size: tuple[int, int] = (512, 512),
    rng: np.random.Generator,
    pose: Pose | None = None,
) -> Radiograph:
    """Render one exposure.

    The generator gives three numbers only, so two calls from equal generator states with different
    findings share pose and texture and differ by the findings alone.

    Args:
        patient: Anatomy.
        findings: Names or specs; order does not matter for how each one looks.
        view: Projection.
        size: (H, W) in pixels.
        rng: Source of pose, texture and the open choices of the findings.
        pose: Fixed positioning instead of a drawn one.
    """
    height, width = int(size[0]), int(size[1])
    if min(height, width) < 16:
        raise ValueError(f"size {size} is too small; both sides need at least 16 px")
    pose_seed, texture_seed, finding_seed = (int(v) for v in rng.integers(2**62, size=3))
    pose = pose or sample_pose(np.random.default_rng(pose_seed), view, patient)
    plan = plan_findings([as_spec(f) for f in findings], finding_seed)
    body = make_body(patient, pose)
    for spec, _ in plan:
        shape_finding(body, spec)
    frame = make_frame(height, width, body, pose)
    draw_chest = lateral_scene if pose.view == "LL" else frontal_scene
    scene = draw_chest(frame, body, patient, pose, texture_seed)
    truth: list[Finding] = []
    for spec, stream in plan:
        truth.extend(draw_finding(scene, spec, stream, len(truth)))
    image = expose(scene, pose)
    return Radiograph(image, scene.structures, truth, pose.view, patient, pose)


def make_frame(height: int, width: int, body: Body, pose: Pose) -> Frame:
    """Centre the thorax; the shorter side of the detector covers ``pose.field_cm``."""
    middle = 0.44 * body.span + 0.5
    return Frame(
        height=height,
        width=width,
        px_per_cm=min(height, width) / pose.field_cm,
        centre_cm=(pose.offset_cm[0], middle + pose.offset_cm[1]),
        tilt_rad=float(np.radians(pose.tilt_deg)),
    )


def frontal_scene(
    frame: Frame, body: Body, patient: PatientSpec, pose: Pose, texture_seed: int
) -> Scene:
    """Draw the healthy frontal chest of a body that findings may already have reshaped."""
    chest = build_chest(frame, body)
    structures = chest.structures
    ribs = rib_curves(body, patient.seed)
    structures.update(rib_masks(frame, ribs))
    bone = rib_layer(frame, body, ribs)
    clavicles, clavicle_masks = clavicle_layer(frame, body)
    spine, structures["spine"] = spine_layer(frame, body)
    bone += clavicles
    bone += spine
    bone += scapula_layer(frame, body)
    structures.update(clavicle_masks)
    structures["diaphragm"] = diaphragm_mask(frame, body)
    airway, structures["trachea"] = airway_layer(frame, body)
    soft = chest.soft - airway
    add_abdomen(frame, body, soft, patient.seed)
    add_tissue_texture(frame, soft, patient.seed)
    # Little of the vessel tree shows where only a thin sheet of lung is left behind the heart.
    aerated = np.clip((chest.air - 2.5) * np.float32(0.11), 0.0, 1.0)
    texture_rng = np.random.default_rng([texture_seed, patient.seed])
    return Scene(
        frame=frame,
        view=pose.view,
        body=body,
        structures=structures,
        soft=soft,
        air=chest.air,
        vessels=vessel_layer(frame, body, patient.seed) * aerated,
        texture=lung_texture(frame, texture_rng) * aerated,
        bone=bone,
        metal=frame.zeros(),
        shadow=frame.zeros(),
        chest=chest,
        ribs=ribs,
    )


def expose(scene: Scene, pose: Pose) -> np.ndarray:
    """Beer-Lambert, scatter, and the logarithm a digital detector applies; float32 in [0, 1]."""
    path = scene.soft - np.float32(LUNG_AERATION) * scene.air
    path += scene.vessels
    path += np.float32(0.20) * scene.texture
    path += scene.shadow
    path = np.maximum(path, 0.0) * np.float32(MU_SOFT)
    path += np.float32(MU_BONE) * scene.bone
    path += np.float32(MU_METAL) * scene.metal
    primary = np.exp(-path)
    scatter = blur(np.minimum(primary, 0.22), 2.5 * scene.frame.px_per_cm)
    scatter += 0.35 * blur(np.minimum(primary, 0.22), 9.0 * scene.frame.px_per_cm)
    total = primary + np.float32(0.20 * pose.scatter) * scatter
    total += np.float32(0.009 * pose.scatter)
    # Open air saturates the detector at every dose that occurs.
    reading = np.minimum(total * np.float32(_AIR_OVERRANGE * pose.exposure), 1.0)
    signal = -np.log(reading) / np.float32(_LOG_RANGE)
    return np.clip(signal, 0.0, 1.0).astype(np.float32)
