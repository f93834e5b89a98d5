"""Shear, zoom of width and height apart, and what uncovered pixels become."""

from __future__ import annotations

import numpy as np
import pytest
from mapper_settings import plain

from fx_d2.data.transforms import (
    FxAffineTransform,
    RandomShiftScale,
    RandomTurnShear,
    build_augmentations,
)


def test_the_edge_is_drawn_out():
    image = np.full((20, 30), 0.7, dtype=np.float32)
    move = np.array([[1, 0, 8.0], [0, 1, -5.0]])
    assert (FxAffineTransform(move, "nearest").apply_image(image) == image).all()
    zero = FxAffineTransform(move).apply_image(image)
    assert (zero[:15, 8:] == image[:15, 8:]).all() and not zero[:, :7].any()
    with pytest.raises(ValueError, match="BORDER is 'mirror'"):
        FxAffineTransform(move, "mirror")


def test_a_shear_moves_rows_against_each_other():
    np.random.seed(3)
    image = np.zeros((40, 60), dtype=np.float32)
    for _ in range(20):
        matrix = RandomTurnShear(0.0, 10.0, "nearest").get_transform(image).matrix
        assert np.allclose(matrix[1], [0, 1, 0]) and matrix[0, 0] == 1
        assert 0 < abs(matrix[0, 1]) <= np.tan(np.radians(10))
        assert np.allclose(matrix @ [30, 20, 1], [30, 20])  # about the centre
    turn = RandomTurnShear(10.0, 0.0, "nearest").get_transform(image).matrix
    assert np.allclose(turn[:, :2] @ turn[:, :2].T, np.eye(2)) and turn[0, 1] != 0


def test_width_and_height_zoom_apart():
    np.random.seed(3)
    image = np.zeros((40, 60), dtype=np.float32)
    draw = [RandomShiftScale(0.0, 0.2, apart=True).get_transform(image).matrix for _ in range(20)]
    assert all(m[0, 0] != m[1, 1] and np.allclose(m @ [30, 20, 1], [30, 20]) for m in draw)
    same = RandomShiftScale(0.0, 0.2).get_transform(image).matrix
    assert same[0, 0] == same[1, 1]


def test_the_config_reaches_them(fx_cfg):
    def names(**changes):
        found = build_augmentations(plain(fx_cfg, **changes), "cls", True)
        return [type(getattr(a, "aug", a)).__name__ for a in found]

    assert names(ROTATE_DEG=5.0)[1:] == ["RandomRotation"]  # zeros around: as it always was
    assert names(ROTATE_DEG=5.0, BORDER="nearest")[1:] == ["RandomTurnShear"]
    assert names(ROTATE_DEG=0.0, BORDER="zero", SHEAR_DEG=3.0)[1:] == ["RandomTurnShear"]
