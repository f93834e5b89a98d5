"""Where the structures of a rendered chest are, and that they are what they claim to be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fx_d2.phantom import Pose, render, sample_patient, sample_pose
from fx_d2.phantom.anatomy import cavity_outline, heart_width, make_body
from fx_d2.phantom.bones import RIB_NAMES, clavicle_half, clavicle_paths
from fx_d2.phantom.canvas import Frame, bezier, fill, noise_field, ribbon

SEEDS = range(6)
SIZE = (160, 160)


def _render(seed: int, view: str = "PA", size=SIZE):
    rng = np.random.default_rng(seed)
    return render(sample_patient(rng), [], view=view, size=size, rng=rng)


def _centre(mask: np.ndarray) -> tuple[float, float]:
    rows, cols = np.nonzero(mask)
    return float(rows.mean()), float(cols.mean())


@pytest.mark.parametrize("view", ["PA", "AP", "LL"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_structure_is_a_non_empty_bool_mask(seed, view):
    radiograph = _render(seed, view)
    names = {"left_lung", "right_lung", "heart", "mediastinum", "trachea", "spine", "diaphragm"}
    names |= set(RIB_NAMES)
    if view != "LL":
        names |= {"left_clavicle", "right_clavicle", "aorta"}
    assert names <= set(radiograph.structures)
    for name, mask in radiograph.structures.items():
        assert mask.dtype == bool and mask.shape == SIZE, name
        assert mask.any(), name


@pytest.mark.parametrize("view", ["PA", "AP"])
@pytest.mark.parametrize("seed", SEEDS)
def test_sides_and_heights(seed, view):
    s = _render(seed, view).structures
    middle = _centre(s["spine"])[1]
    assert _centre(s["right_lung"])[1] < middle < _centre(s["left_lung"])[1]
    assert _centre(s["right_clavicle"])[1] < middle < _centre(s["left_clavicle"])[1]
    lungs = s["left_lung"] | s["right_lung"]
    assert _centre(s["left_clavicle"])[0] < _centre(lungs)[0] < _centre(s["diaphragm"])[0]
    heart = s["heart"]
    cols = np.arange(SIZE[1])
    share_left = heart[:, cols > middle].sum() / heart.sum()
    assert share_left > 0.55, "most of the heart lies in the patient's left, right in the picture"


@pytest.mark.parametrize("seed", SEEDS)
def test_lungs_are_disjoint_from_each_other_and_from_the_heart(seed):
    s = _render(seed).structures
    assert not (s["left_lung"] & s["right_lung"]).any()
    lungs = s["left_lung"] | s["right_lung"]
    assert not (lungs & s["heart"]).any()
    assert not (lungs & s["mediastinum"]).any()
    assert lungs.mean() > 0.12


@pytest.mark.parametrize("seed", SEEDS)
def test_ribs_are_twenty_individuals_in_order(seed):
    s = _render(seed).structures
    for letter, sign in (("R", -1), ("L", 1)):
        heights = [_centre(s[f"{letter}{k}"])[0] for k in range(1, 11)]
        assert all(a < b for a, b in zip(heights[:-1], heights[1:], strict=True))
        middle = _centre(s["spine"])[1]
        assert all(sign * (_centre(s[f"{letter}{k}"])[1] - middle) > 0 for k in range(1, 11))
    stacked = np.stack([s[name] for name in RIB_NAMES])
    assert len({mask.tobytes() for mask in stacked}) == 20
    for k in range(1, 10):  # neighbours may touch or cross, but are not one another
        a, b = s[f"R{k}"], s[f"R{k + 1}"]
        assert (a & b).sum() < 0.6 * min(a.sum(), b.sum())


def test_ribs_reach_from_the_spine_to_the_lateral_wall():
    s = _render(1).structures
    lung = s["right_lung"]
    lateral = np.flatnonzero(lung.any(axis=0))[0]
    for k in range(4, 9):
        cols = np.flatnonzero(s[f"R{k}"].any(axis=0))
        assert cols[0] < lateral + 0.12 * SIZE[1]
        assert cols[-1] > np.flatnonzero(lung.any(axis=0))[-1] - 0.10 * SIZE[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_lungs_are_darker_than_what_is_between_and_below_them(seed):
    radiograph = _render(seed)
    s, image = radiograph.structures, radiograph.image
    lungs = s["left_lung"] | s["right_lung"]
    assert image[lungs].mean() < image[s["heart"]].mean() - 0.08
    assert image[lungs].mean() < image[s["mediastinum"]].mean() - 0.08
    below = s["diaphragm"] & ~lungs
    assert image[lungs].mean() < image[below].mean() - 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_bones_brighten(seed):
    """Removing the minerals must darken the bones and nothing outside them by much."""
    rng = np.random.default_rng(seed)
    patient = sample_patient(rng)
    pose = sample_pose(rng, "PA", patient)
    soft = dataclasses.replace(patient, bone_density=1e-6)
    with_bone = render(patient, size=SIZE, rng=np.random.default_rng(1), pose=pose)
    without = render(soft, size=SIZE, rng=np.random.default_rng(1), pose=pose)
    gain = with_bone.image - without.image
    s = with_bone.structures
    bones = ("R5", "L6", "left_clavicle", "right_clavicle")
    bare = (s["left_lung"] | s["right_lung"]) & ~np.any(
        [s[n] for n in (*RIB_NAMES, *bones)], axis=0
    )
    for name in bones:
        assert gain[s[name]].mean() > 1.5 * gain[bare].mean() > 0.0, name


def test_left_dome_is_lower_and_anatomy_is_shared_between_exposures():
    for seed in SEEDS:
        patient = sample_patient(np.random.default_rng(seed))
        a = make_body(patient, sample_pose(np.random.default_rng(1), "PA", patient))
        assert a.dome_y["left"] > a.dome_y["right"]
        assert 0.34 < heart_width(a) / (2.0 * float(a.wall_x(0.85 * a.span))) < 0.56
        first = render(patient, size=(96, 96), rng=np.random.default_rng(1))
        second = render(patient, size=(96, 96), rng=np.random.default_rng(2))
        assert first.pose != second.pose
        assert not np.array_equal(first.image, second.image)


def test_hearts_differ_in_shape_and_keep_the_patients_width():
    shapes = set()
    for seed in range(12):
        patient = sample_patient(np.random.default_rng(seed))
        pose = sample_pose(np.random.default_rng(1), "PA", patient)
        body = make_body(patient, dataclasses.replace(pose, inspiration=1.0))
        scale = patient.ctr / 0.445 * patient.half_width / 14.0
        plain = dataclasses.replace(body, atrium=1.0, apex_out=1.0, heart_scale=scale)
        assert heart_width(body) == pytest.approx(heart_width(plain), rel=0.01)
        shapes.add((round(body.atrium, 2), round(body.apex_out, 2)))
    assert len(shapes) > 8


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_clavicles_are_bent_bands_that_taper_sideways(view):
    bends = []
    for seed in range(8):
        patient = sample_patient(np.random.default_rng(seed))
        body = make_body(patient, sample_pose(np.random.default_rng(seed), view, patient))
        half = clavicle_half(body)
        assert half[-1] < half[4] and half[0] < half[3], "both ends are rounded, the outer is slim"
        for path in clavicle_paths(body).values():
            assert path[-1, 1] < path[0, 1], "the acromion stands above the sternal end"
            chord = np.interp(np.abs(path[:, 0]), np.abs(path[[0, -1], 0]), path[[0, -1], 1])
            bends.append((path[:, 1] - chord).max() - (path[:, 1] - chord).min())
    assert min(bends) > 0.1 and np.ptp(bends) > 0.3


def test_pose_moves_the_picture_and_not_the_person():
    patient = sample_patient(np.random.default_rng(3))
    pose = sample_pose(np.random.default_rng(3), "PA", patient)
    moved = dataclasses.replace(pose, offset_cm=(pose.offset_cm[0] + 2.0, pose.offset_cm[1]))
    a = render(patient, size=SIZE, rng=np.random.default_rng(0), pose=pose)
    b = render(patient, size=SIZE, rng=np.random.default_rng(0), pose=moved)
    shift = 2.0 * SIZE[1] / pose.field_cm
    delta = _centre(a.structures["heart"])[1] - _centre(b.structures["heart"])[1]
    assert delta == pytest.approx(shift, abs=0.5)


def test_inspiration_lowers_the_diaphragm():
    patient = sample_patient(np.random.default_rng(4))
    pose = sample_pose(np.random.default_rng(4), "PA", patient)
    deep = make_body(patient, dataclasses.replace(pose, inspiration=1.0))
    poor = make_body(patient, dataclasses.replace(pose, inspiration=0.4))
    assert deep.dome_y["right"] > poor.dome_y["right"] + 2.0
    assert isinstance(pose, Pose)


@pytest.mark.parametrize("shape", [(64, 64), (96, 200), (256, 128), (48, 48)])
def test_any_size_and_aspect(shape):
    radiograph = _render(5, size=shape)
    assert radiograph.image.shape == shape
    assert all(m.shape == shape for m in radiograph.structures.values())
    for name in ("left_lung", "right_lung", "heart", "R5", "left_clavicle"):
        assert radiograph.structures[name].any(), name


def test_masks_scale_with_the_picture():
    """The same exposure at twice the size covers the same share of it."""
    patient = sample_patient(np.random.default_rng(6))
    pose = sample_pose(np.random.default_rng(6), "PA", patient)
    small = render(patient, size=(128, 128), rng=np.random.default_rng(0), pose=pose).structures
    large = render(patient, size=(256, 256), rng=np.random.default_rng(0), pose=pose).structures
    for name in ("left_lung", "right_lung", "heart", "diaphragm"):
        assert small[name].mean() == pytest.approx(large[name].mean(), rel=0.04), name


def test_frame_maps_both_ways_and_fills_what_it_says():
    frame = Frame(80, 120, 3.0, (1.0, 2.0), 0.2)
    points = np.array([[0.0, 0.0], [3.0, -2.0], [-5.0, 7.5]])
    px = frame.to_px(points)
    x, y = frame.to_cm(px[:, 0].astype(np.float32), px[:, 1].astype(np.float32))
    np.testing.assert_allclose(np.stack([x, y], 1), points, atol=1e-4)
    square = np.array([[-3.0, -3.0], [3.0, -3.0], [3.0, 3.0], [-3.0, 3.0]])
    # Every pixel that the outline touches counts: half a pixel more around the 72 px perimeter.
    assert fill(frame, [square]).sum() == pytest.approx(36 * 9 + 0.5 * 72, rel=0.05)


def test_drawing_helpers():
    curve = bezier([(0, 0), (1, 2), (2, 0)], 11)
    np.testing.assert_allclose(curve[[0, 5, 10]], [[0, 0], [1, 1], [2, 0]], atol=1e-12)
    band = ribbon(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), 0.5)
    np.testing.assert_allclose(np.abs(band[:, 1]), 0.5)
    field = noise_field(Frame(200, 220, 5.0, (0, 0), 0.0), np.random.default_rng(0), 2.0)
    assert abs(field.mean()) < 0.2 and 0.7 < field.std() < 1.3
    body = make_body(
        sample_patient(np.random.default_rng(0)),
        sample_pose(np.random.default_rng(0), "PA", sample_patient(np.random.default_rng(0))),
    )
    assert (
        cavity_outline(body, "left")[:, 0].max()
        > 5
        > -5
        > cavity_outline(body, "right")[:, 0].min()
    )
