"""Heart, aorta, pulmonary artery, mediastinum, hiatal hernia: shape changes and what marks them."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.anatomy import Body, heart_width, side_sign, vessel_parts
from fx_d2.phantom.canvas import add_ellipsoid, ellipse_points, fill, stroke
from fx_d2.phantom.findings.base import Drawn, FindingKind, FindingSpec, Scene


def _none(scene: Scene) -> np.ndarray:
    return np.zeros(scene.frame.shape, bool)


def shape_cardiomegaly(body: Body, spec: FindingSpec) -> None:
    """Widen the heart until the cardiothoracic ratio is between 0.56 and 0.70."""
    target = 0.565 + 0.13 * float(spec.severity or 0.0)
    thorax = 2.0 * float(body.wall_x(0.85 * body.span))
    for _ in range(4):  # width is not quite proportional to the factor
        body.heart_wide *= target * thorax / heart_width(body)


def draw_heart(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """The truth is the heart itself."""
    return [Drawn(scene.structures["heart"].copy(), "none")]


def shape_aortic_enlargement(body: Body, spec: FindingSpec) -> None:
    """Wide arch."""
    body.knob_cm *= 1.28 + 0.35 * float(spec.severity or 0.0)


def draw_arch(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """The truth is the aortic arch."""
    if scene.view == "LL":
        return [Drawn(_none(scene), "none")]
    return [Drawn(fill(scene.frame, [vessel_parts(scene.body)[0].outline()]), "left")]


def shape_tortuous(body: Body, spec: FindingSpec) -> None:
    """Descending aorta swings to the left."""
    body.unfolding = min(1.4, body.unfolding + 0.55 + 0.4 * float(spec.severity or 0.0))
    body.knob_cm *= 1.08


def draw_aorta(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """The truth is the whole thoracic aorta."""
    return [Drawn(scene.structures.get("aorta", _none(scene)).copy(), "left")]


def draw_aortic_calcification(
    scene: Scene, spec: FindingSpec, rng: np.random.Generator
) -> list[Drawn]:
    """Eggshell arc on the rim of the arch."""
    part = vessel_parts(scene.body)[0]
    axes = (0.9 * part.axes[0], 0.9 * part.axes[1])
    ring = ellipse_points(part.centre, axes, 0.0, 96)
    start = int(rng.integers(62, 72))
    count = int(20 + 24 * float(spec.severity or 0.0))
    arc = np.roll(ring, -start, axis=0)[:count]
    canvas = np.zeros(scene.frame.shape, np.uint8)
    stroke(scene.frame, canvas, [arc], 0.20, 255)
    scene.bone += canvas.astype(np.float32) * np.float32(1.5 / 255.0)
    return [Drawn(canvas > 40, "left")]


def shape_pulmonary_artery(body: Body, spec: FindingSpec) -> None:
    """Wide trunk and hila."""
    severity = float(spec.severity or 0.0)
    body.pulmonary_artery *= 1.35 + 0.35 * severity
    body.hilum *= 1.15 + 0.15 * severity


def draw_pulmonary_artery(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """The truth is the pulmonary trunk."""
    return [Drawn(fill(scene.frame, [vessel_parts(scene.body)[1].outline()]), "left")]


def shape_wide_mediastinum(body: Body, spec: FindingSpec) -> None:
    """Wide upper mediastinum, slightly wide heart."""
    severity = float(spec.severity or 0.0)
    body.mediastinum_half *= 1.30 + 0.40 * severity
    body.heart_wide *= 1.05


def draw_mediastinum(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """The truth is the cardiomediastinal silhouette."""
    return [Drawn(scene.structures["mediastinum"].copy(), "none")]


def shape_shift(body: Body, spec: FindingSpec) -> None:
    """Everything between the lungs moves to one side."""
    sign = side_sign("left" if spec.side == "left" else "right")
    amount = 1.6 + 2.0 * float(spec.severity or 0.0)
    body.mediastinum_shift += sign * amount
    body.trachea_shift += 0.4 * sign * amount


def draw_hernia(scene: Scene, spec: FindingSpec, rng: np.random.Generator) -> list[Drawn]:
    """Stomach behind the heart: a round shadow with a gas bubble and a fluid level."""
    severity = float(spec.severity or 0.0)
    body, frame = scene.body, scene.frame
    radius = 2.0 + 2.0 * severity
    floor = 0.5 * (body.dome_y["left"] + body.dome_y["right"])
    centre = (rng.uniform(-0.5, 2.5) + body.mediastinum_shift, floor - 0.55 * radius)
    axes = (1.1 * radius, radius)
    add_ellipsoid(frame, scene.shadow, centre, axes, 1.7 * radius)
    gas = frame.zeros()
    add_ellipsoid(frame, gas, centre, (0.88 * axes[0], 0.88 * axes[1]), 2.6 * radius)
    level = frame.coarse(lambda x, y: np.clip((centre[1] - 0.2 - y) / 0.4, 0.0, 1.0))
    scene.shadow -= gas * level
    mask = fill(frame, [ellipse_points(centre, axes)])
    return [Drawn(mask, "none")]


KINDS = (
    FindingKind("cardiomegaly", ("heart",), 1, "shape", (14.0, 20.0), draw_heart,
                shape_cardiomegaly),
    FindingKind("aortic_enlargement", ("mediastinum", "lung"), 1, "shape", (3.0, 6.0), draw_arch,
                shape_aortic_enlargement),
    FindingKind("tortuous_aorta", ("mediastinum", "lung", "heart"), 1, "shape", (10.0, 18.0),
                draw_aorta, shape_tortuous, frontal_only=True),
    FindingKind("aortic_calcification", ("mediastinum", "lung"), 1, "dense", (1.0, 4.0),
                draw_aortic_calcification, frontal_only=True),
    FindingKind("enlarged_pa", ("mediastinum", "lung"), 1, "shape", (3.0, 5.0),
                draw_pulmonary_artery, shape_pulmonary_artery, frontal_only=True),
    FindingKind("enlarged_cardiomediastinum", ("mediastinum", "heart"), 1, "shape", (6.0, 20.0),
                draw_mediastinum, shape_wide_mediastinum),
    FindingKind("mediastinal_shift", ("mediastinum", "heart"), 0, "shape", (6.0, 20.0),
                draw_mediastinum, shape_shift, frontal_only=True),
    FindingKind("hernia", ("heart", "mediastinum", "lung", "abdomen"), 1, "gas and fluid",
                (4.0, 9.0), draw_hernia, zones=("lower",), frontal_only=True),
)  # fmt: skip
