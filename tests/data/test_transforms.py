from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_d2.data.draws import seeded_globals
from fx_d2.data.sources import SOURCES
from fx_d2.data.transforms import (
    FxAffineTransform,
    FxResizeTransform,
    PadToSquare,
    RandomAreaCrop,
    RandomBlur,
    RandomGamma,
    RandomNoise,
    RandomShiftScale,
    Resize,
    build_augmentations,
    is_mirrored,
    keeps_boxes_tight,
    mirror_order,
    mirrored,
)


def tight(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)


def test_shrinking_averages_every_pixel():
    image = np.random.default_rng(0).random((60, 90), dtype=np.float32)
    small = FxResizeTransform(60, 90, 10, 15).apply_image(image)
    np.testing.assert_allclose(small, image.reshape(10, 6, 15, 6).mean((1, 3)), atol=1e-6)


def test_detectron2_resize_would_alias_a_large_radiograph():
    """The reason for a resize of our own: fine stripes must become grey, not a pattern."""
    stripes = np.tile(np.array([0, 1], dtype=np.float32), (2500, 1250))
    ours = FxResizeTransform(2500, 2500, 224, 224).apply_image(stripes)
    theirs = T.ResizeTransform(2500, 2500, 224, 224).apply_image(stripes)
    assert np.abs(ours - 0.5).max() < 0.06
    assert np.abs(theirs - 0.5).max() > 0.3


def test_one_axis_may_grow_while_the_other_shrinks():
    image = np.random.default_rng(0).random((80, 20), dtype=np.float32)
    result = FxResizeTransform(80, 20, 20, 40).apply_image(image)
    rows = image.reshape(20, 4, 20).mean(1)
    np.testing.assert_allclose(result[:, 1:-1].mean(), rows[:, :].mean(), atol=0.02)
    # each row is a mean of four, hence much smoother than the pixels
    assert result.std() < 0.7 * image.std()


def test_resize_refuses_another_size():
    with pytest.raises(ValueError, match="made for"):
        FxResizeTransform(10, 10, 5, 5).apply_image(np.zeros((9, 10), np.float32))


def test_resize_and_its_inverse_agree_on_points():
    points = np.array([[0.0, 0.0], [30.0, 12.5], [40.0, 20.0]])
    there = FxResizeTransform(20, 40, 64, 64)
    np.testing.assert_allclose(there.inverse().apply_coords(there.apply_coords(points)), points)


def test_modes_of_resize():
    image = np.zeros((50, 100), np.float32)
    assert Resize(64, "square").get_transform(image).apply_image(image).shape == (64, 64)
    kept = Resize(64, "keep").get_transform(image).apply_image(image)
    assert kept.shape == (32, 64)
    pad = PadToSquare(64).get_transform(kept)
    assert pad.apply_image(kept + 1).shape == (64, 64)
    assert (pad.apply_image(kept + 1)[32:] == 0).all()
    np.testing.assert_array_equal(pad.apply_box(np.array([[1.0, 2, 3, 4]])), [[1, 2, 3, 4]])
    with pytest.raises(ValueError, match="square"):
        Resize(64, "stretch")


def test_a_sliver_keeps_at_least_one_pixel():
    image = np.zeros((2000, 3), np.float32)
    assert Resize(64, "keep").get_transform(image).apply_image(image).shape == (64, 1)


SHAPES = st.tuples(st.integers(50, 140), st.integers(50, 140))


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10**6))
def test_crop_keeps_the_boxes_of_its_input(shape, seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (2, 2, 2)), axis=1) * [shape[1], shape[0]]
    boxes = corners.reshape(2, 4)
    with seeded_globals(seed):
        given_image = T.AugInput(np.zeros(shape, np.float32), boxes=boxes.copy())
        T.AugmentationList([RandomAreaCrop((0.05, 0.1), (0.75, 1.33))])(given_image)
    h, w = given_image.image.shape
    kept = given_image.boxes
    assert (kept >= 0).all() and (kept <= [w, h, w, h]).all()
    assert np.allclose(kept[:, 2:] - kept[:, :2], boxes[:, 2:] - boxes[:, :2])


def test_a_crop_around_a_small_box_is_as_small_as_any_other():
    image, box = np.zeros((200, 200), np.float32), np.array([[120.0, 30.0, 130.0, 38.0]])
    starts = set()
    for seed in range(20):
        with seeded_globals(seed):
            crop = RandomAreaCrop((0.1, 0.1), (1.0, 1.0)).get_transform(image, box)
        assert crop.w == crop.h == 63 and 0 <= crop.y0 <= 30
        starts.add(crop.x0)
    assert len(starts) > 10


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10**6), kind=st.sampled_from(["crop", "move", "flip"]))
def test_box_of_the_moved_mask_is_the_moved_box(shape, seed, kind):
    h, w = shape
    rng = np.random.default_rng(seed)
    x0, y0 = rng.integers(0, w - 30), rng.integers(0, h - 30)
    x1, y1 = x0 + rng.integers(12, 30), y0 + rng.integers(12, 30)
    mask = np.zeros(shape, np.uint8)
    mask[y0:y1, x0:x1] = 1
    chosen = {
        "crop": RandomAreaCrop((0.5, 1.0), (0.75, 1.33)),
        "move": RandomShiftScale(0.1, 0.15),
        "flip": T.RandomFlip(1.0),
    }[kind]
    with seeded_globals(seed):
        given_image = T.AugInput(mask.astype(np.float32))
        transforms = T.AugmentationList([chosen, Resize(96, "square")])(given_image)
    moved = transforms.apply_segmentation(mask)
    assert set(np.unique(moved)) <= {0, 1}
    assert moved.shape == given_image.image.shape
    box = transforms.apply_box(np.array([[x0, y0, x1, y1]], dtype=float))[0].clip(0, 96)
    if (box[2:] - box[:2] < 3).any():
        return  # cut away by the crop
    # Half a pixel of rounding in each of two interpolations, in pixels of the larger grid.
    assert np.abs(tight(moved) - box).max() <= 0.6 + max(96 / h, 96 / w)
    # and the image moved with them
    assert np.abs(given_image.image - moved).mean() < 0.06


def test_rotated_box_holds_the_rotated_mask():
    mask = np.zeros((100, 120), np.uint8)
    mask[30:60, 40:90] = 1
    with seeded_globals(3):
        transform = T.RandomRotation([7, 7], expand=False).get_transform(mask)
    moved, box = (
        transform.apply_segmentation(mask),
        transform.apply_box(np.array([[40, 30, 90, 60.0]])),
    )
    outer, inner = box[0], tight(moved)
    assert (outer[:2] <= inner[:2] + 1).all() and (outer[2:] >= inner[2:] - 1).all()
    assert not keeps_boxes_tight(T.TransformList([transform]))
    assert keeps_boxes_tight(
        T.TransformList([T.HFlipTransform(120), FxResizeTransform(1, 1, 2, 2)])
    )


def test_affine_counts_pixels_from_corners():
    image = np.zeros((40, 60), np.float32)
    image[10:20, 30:40] = 1
    shift = FxAffineTransform(np.array([[1, 0, 5.0], [0, 1, -3.0]]))
    np.testing.assert_array_equal(tight(shift.apply_image(image) > 0.5), [35, 7, 45, 17])
    double = FxAffineTransform(np.array([[2, 0, -30.0], [0, 2, -10.0]]))
    np.testing.assert_array_equal(tight(double.apply_segmentation(image > 0.5)), [30, 10, 50, 30])


@pytest.mark.parametrize(
    "name, other",
    [
        ("Left Lung", "Right Lung"),
        ("Right Clavicle", "Left Clavicle"),
        ("R3", "L3"),
        ("L10", "R10"),
        ("left_hilum", "right_hilum"),
        ("LEFT lung", "RIGHT lung"),
        ("Heart", None),
        ("Enlarged PA", None),
        ("RUL", None),
        ("Bright Spot", None),
        ("R", None),
        ("Lung Lesion", None),
    ],
)
def test_mirrored_names(name, other):
    assert mirrored(name) == other
    if other:
        assert mirrored(other) == name


@pytest.mark.parametrize("key", list(SOURCES))
def test_every_class_with_a_side_has_its_counterpart(key):
    source = SOURCES[key]
    for task in source.all_tasks():
        names = source.classes(task)
        order = mirror_order(names)
        np.testing.assert_array_equal(order[order], np.arange(len(names)))
        for i, name in enumerate(names):
            sided = "left" in name.lower() or "right" in name.lower() or name[1:].isdigit()
            assert (order[i] != i) == sided, name


def test_a_side_without_counterpart_is_refused():
    with pytest.raises(ValueError, match="'Right Lung' is not among"):
        mirror_order(("Left Lung", "Heart"))


def test_two_flips_are_none():
    flip = T.HFlipTransform(10)
    assert is_mirrored(T.TransformList([flip]))
    assert not is_mirrored(T.TransformList([flip, FxResizeTransform(1, 1, 2, 2), flip]))


@pytest.mark.parametrize("make", [RandomGamma, RandomNoise, RandomBlur])
def test_grey_augmentations_change_grey_only(make):
    rng = np.random.default_rng(0)
    image = rng.random((40, 50), dtype=np.float32)
    with seeded_globals(11):
        transform = make(0.8).get_transform(image)
    result = transform.apply_image(image)
    assert result.dtype == np.float32 and result.shape == image.shape
    assert not np.array_equal(result, image)
    mask = (image > 0.5).astype(np.uint8)
    np.testing.assert_array_equal(transform.apply_segmentation(mask), mask)
    np.testing.assert_array_equal(transform.apply_box(np.array([[1.0, 2, 3, 4]])), [[1, 2, 3, 4]])
    np.testing.assert_array_equal(transform.apply_image(image), result)  # no draw left in it


def test_float_images_keep_their_depth(augmented_cfg):
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    levels = []
    for seed in range(5):
        with seeded_globals(seed):
            given_image = T.AugInput(ramp.copy())
            T.AugmentationList(build_augmentations(augmented_cfg, "seg", True))(given_image)
        assert given_image.image.dtype == np.float32
        levels.append(len(np.unique(given_image.image)))
    assert min(levels) > 1000


def test_evaluation_draws_nothing(augmented_cfg):
    for mode, kinds in (("square", [Resize]), ("keep", [Resize, PadToSquare])):
        augmented_cfg.INPUT.FX.RESIZE = mode
        for task in ("cls", "loc", "seg"):
            assert [type(a) for a in build_augmentations(augmented_cfg, task, False)] == kinds


def test_defaults_are_the_papers(fx_cfg):
    kinds = {t: build_augmentations(fx_cfg, t, True) for t in ("cls", "loc", "seg")}
    names = {t: [type(getattr(a, "aug", a)).__name__ for a in augs] for t, augs in kinds.items()}
    assert names["cls"] == ["RandomAreaCrop", "Resize", "RandomFlip", "RandomRotation"]
    assert names["loc"] == ["Resize", "RandomFlip"]
    assert names["seg"] == [
        "Resize",
        "RandomRotation",
        "RandomShiftScale",
        "RandomContrast",
        "RandomBrightness",
    ]


def test_crop_keeps_the_share_it_was_asked_for():
    image = np.zeros((200, 100), np.float32)
    for seed in range(20):
        with seeded_globals(seed):
            cropped = RandomAreaCrop((0.3, 0.5), (0.9, 1.1)).get_transform(image).apply_image(image)
        assert 0.28 < cropped.size / image.size < 0.52
