"""A look changes grey levels, never places; sources differ."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fx_d2.data.sources import SOURCES
from fx_d2.phantom import (
    LOOKS,
    REGIONS,
    apply_look,
    render,
    render_bone,
    sample_patient,
)

KEYS = tuple(LOOKS)


@pytest.fixture(scope="module")
def shots() -> list[np.ndarray]:
    images = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        images.append(render(sample_patient(rng), [], size=(128, 128), rng=rng).image)
    return images


def test_every_radiograph_source_has_a_look():
    assert {key for key in SOURCES if key != "mura"} <= set(LOOKS)


@pytest.mark.parametrize("key", KEYS)
def test_output_is_a_picture(key, shots):
    for seed, image in enumerate(shots):
        before = image.copy()
        out = apply_look(image, LOOKS[key], np.random.default_rng(seed))
        assert out.shape == image.shape and out.dtype == np.float32
        assert np.isfinite(out).all() and out.min() >= 0.0 and out.max() <= 1.0
        assert out.std() > 0.08, "no contrast left"
        assert np.array_equal(image, before), "the input was changed"


@pytest.mark.parametrize("key", KEYS)
def test_same_generator_state_same_bytes(key, shots):
    a = apply_look(shots[0], LOOKS[key], np.random.default_rng(7))
    b = apply_look(shots[0], LOOKS[key], np.random.default_rng(7))
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("key", KEYS)
def test_nothing_moves(key, shots):
    """Phase correlation of the middle with the signal finds no shift, and order is kept."""
    inner = (slice(20, -12), slice(20, -20))
    window = cv2.createHanningWindow((88, 96), cv2.CV_32F)
    for seed, image in enumerate(shots[:4]):
        out = apply_look(image, LOOKS[key], np.random.default_rng(seed))
        a, b = image[inner], out[inner]
        edges = [np.hypot(cv2.Sobel(i, -1, 1, 0), cv2.Sobel(i, -1, 0, 1)) for i in (a, b)]
        (dx, dy), _ = cv2.phaseCorrelate(edges[0], edges[1], window)
        assert abs(dx) < 0.5 and abs(dy) < 0.5, (dx, dy)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.85


def test_a_shifted_picture_would_be_noticed(shots):
    inner = (slice(20, -12), slice(20, -20))
    window = cv2.createHanningWindow((88, 96), cv2.CV_32F)
    out = np.roll(apply_look(shots[0], LOOKS["nih14"], np.random.default_rng(0)), 2, axis=1)
    edges = [
        np.hypot(cv2.Sobel(i[inner], -1, 1, 0), cv2.Sobel(i[inner], -1, 0, 1))
        for i in (shots[0], out)
    ]
    (dx, _), _ = cv2.phaseCorrelate(edges[0], edges[1], window)
    assert abs(dx) > 1.0


def test_sources_differ(shots):
    """Mean histograms of contrasting sources are further apart than two draws of one source."""

    def histogram(key: str, offset: int) -> np.ndarray:
        out = [
            apply_look(i, LOOKS[key], np.random.default_rng(offset + k))
            for k, i in enumerate(shots)
        ]
        return np.histogram(np.concatenate([o.ravel() for o in out]), 32, (0, 1), density=True)[0]

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(np.cumsum(a - b)).mean())

    for first, second in (("nih14", "tbx11k"), ("jsrt", "shenzhen"), ("chexpert", "montgomery")):
        between = distance(histogram(first, 0), histogram(second, 0))
        within = distance(histogram(first, 0), histogram(first, 100))
        assert between > 1.5 * within, (first, second, between, within)


def test_looks_are_sane():
    for key, look in LOOKS.items():
        assert sum(share for _, share in look.views) == pytest.approx(1.0), key
        assert look.bits in (8, 12, 14, 16)
        assert 0 < look.size_px[0] <= look.size_px[1]
        assert 0.0 <= look.female <= 1.0


@pytest.mark.parametrize("region", REGIONS)
def test_bones(region):
    normal = render_bone(region, False, (120, 100), np.random.default_rng(1))
    hurt = render_bone(region, True, (120, 100), np.random.default_rng(1))
    again = render_bone(f"XR_{region.upper()}", False, (120, 100), np.random.default_rng(1))
    for image in (normal, hurt):
        assert image.shape == (120, 100) and image.dtype == np.float32
        assert np.isfinite(image).all() and image.min() >= 0.0 and image.max() <= 1.0
        assert image.std() > 0.05
    assert normal.tobytes() == again.tobytes()
    changes = []
    for seed in range(8):
        a = render_bone(region, False, (120, 100), np.random.default_rng(seed))
        b = render_bone(region, True, (120, 100), np.random.default_rng(seed))
        changes.append(np.abs(a - b).max() > 0.1)
    assert np.mean(changes) > 0.6  # the broken bone may lie outside the picture


def test_unknown_region_is_refused():
    with pytest.raises(ValueError, match="XR_KNEE"):
        render_bone("XR_KNEE", False, (64, 64), np.random.default_rng(0))
