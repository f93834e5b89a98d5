"""The one normalisation: range, robustness, depth independence, settings."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fx_d2.data.formats.contract import ImageFacts, LoadedImage
from fx_d2.data.intensity import DEFAULT_INTENSITY, MODES, IntensityConfig, normalise


def loaded(pixels, max_value, voi="none"):
    pixels = np.asarray(pixels, np.float32)
    return LoadedImage(
        pixels, ImageFacts("png", 16, float(max_value), *pixels.shape, mode="L", voi=voi)
    )


def scene(bits, rng_seed=0):
    rng = np.random.default_rng(rng_seed)
    return np.rint(rng.beta(2, 3, (300, 200)) * (2**bits - 1))


@given(
    pixels=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements=st.floats(0, 65535, width=32),
    ),
    mode=st.sampled_from(MODES),
    gamma=st.sampled_from([0.5, 1.0, 2.2]),
)
@settings(max_examples=150, deadline=None)
def test_the_result_is_always_finite_and_within_0_and_1(pixels, mode, gamma):
    before = pixels.copy()
    result = normalise(loaded(pixels, 65535), IntensityConfig(mode=mode, gamma=gamma))
    assert result.shape == pixels.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0, 100, 65535])
def test_a_constant_image_is_its_value_over_its_depth(mode, value):
    result = normalise(loaded(np.full((50, 60), value), 65535), IntensityConfig(mode=mode))
    np.testing.assert_allclose(result, value / 65535, rtol=1e-6)


def test_a_small_bright_thing_on_black_is_kept():
    pixels = np.zeros((200, 200))
    pixels[90:93, 90:93] = 4000
    result = normalise(loaded(pixels, 4095))
    assert result.max() == 1
    assert result[91, 91] == 1
    assert np.count_nonzero(result) == 9


def test_depth_does_not_matter_to_percentiles():
    results = [normalise(loaded(scene(bits), 2**bits - 1)) for bits in (8, 12, 16)]
    for other in results[1:]:
        np.testing.assert_allclose(results[0], other, atol=0.006)
    # The same 12 bit picture in the low part of a 16 bit file.
    np.testing.assert_allclose(normalise(loaded(scene(12), 65535)), results[1], atol=1e-6)


def test_depth_mode_is_a_division():
    result = normalise(loaded(scene(12), 4095), IntensityConfig(mode="depth"))
    np.testing.assert_allclose(result, scene(12) / 4095, atol=1e-6)


def test_a_marker_does_not_set_the_scale():
    plain, marked = scene(8) * 0.5, scene(8) * 0.5
    marked[:10, :10] = 255
    a, b = normalise(loaded(plain, 255)), normalise(loaded(marked, 255))
    assert np.abs(a[20:] - b[20:]).max() < 0.05
    extremes = IntensityConfig(mode="minmax")
    c = normalise(loaded(marked, 255), extremes)
    assert np.abs(normalise(loaded(plain, 255), extremes)[20:] - c[20:]).max() > 0.2


def test_percentiles_of_the_sample_are_those_of_the_image():
    rng = np.random.default_rng(3)
    pixels = np.rint(rng.normal(2000, 300, (2600, 2100)).clip(0, 4095)).astype(np.float32)
    result = normalise(loaded(pixels, 4095))
    low, high = np.percentile(pixels, [0.5, 99.5])
    np.testing.assert_allclose(result, ((pixels - low) / (high - low)).clip(0, 1), atol=0.02)
    np.testing.assert_array_equal(result, normalise(loaded(pixels, 4095)))


def test_long_thin_images():
    pixels = np.arange(3_000_000, dtype=np.float32).reshape(1, -1)
    result = normalise(loaded(pixels, 3_000_000))
    assert result[0, 0] == 0
    assert result[0, -1] == 1


def test_speed_on_a_full_radiograph():
    pixels = np.random.default_rng(0).random((3000, 2500), np.float32) * 4095
    image = loaded(pixels, 4095)
    normalise(image)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        normalise(image)
        times.append(time.perf_counter() - start)
    # About 5 ms when idle; decoding a PNG of that size takes 70.
    assert min(times) < 0.2


def test_gamma_is_an_exponent():
    plain = normalise(loaded(scene(12), 4095))
    curved = normalise(loaded(scene(12), 4095), IntensityConfig(gamma=2.0))
    np.testing.assert_allclose(curved, plain**2, atol=1e-6)


def test_settings_travel_as_plain_values():
    config = IntensityConfig(mode="minmax", low=1, high=98, gamma=0.7, voi="ignore")
    assert IntensityConfig.from_dict(config.to_dict()) == config
    assert IntensityConfig.from_dict({}) == DEFAULT_INTENSITY
    assert all(isinstance(v, (str, int, float)) for v in config.to_dict().values())
    with pytest.raises(ValueError, match=r"\['hihg'\]; allowed"):
        IntensityConfig.from_dict({"hihg": 99})


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "auto"},
        {"voi": "always"},
        {"low": -1},
        {"low": 60, "high": 40},
        {"high": 101},
        {"gamma": 0},
        {"gamma": float("nan")},
        {"low": float("nan")},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match="allowed"):
        IntensityConfig(**wrong)


def test_an_image_read_with_its_window_does_not_pass_for_one_without():
    image = loaded(scene(12), 4095, voi="window")
    assert normalise(image).max() == 1
    with pytest.raises(ValueError, match="voi='ignore'"):
        normalise(image, IntensityConfig(voi="ignore"))


def test_equalisation_evens_out_contrast_and_stays_in_range():
    rng = np.random.default_rng(0)
    # A dark half and a bright half, each with faint texture.
    pixels = np.where(np.arange(256) < 128, 600.0, 3400.0) + rng.normal(0, 25, (256, 256))
    plain = normalise(loaded(pixels, 4095))
    equal = normalise(loaded(pixels, 4095), IntensityConfig(clahe=2.0))
    assert equal.dtype == np.float32 and equal.min() >= 0 and equal.max() <= 1
    assert equal[:, :100].std() > 1.5 * plain[:, :100].std()
    assert equal[:, -100:].std() > 1.5 * plain[:, -100:].std()
    assert equal[:, :100].mean() < equal[:, -100:].mean()
    assert np.array_equal(normalise(loaded(pixels, 4095), IntensityConfig(clahe=0.0)), plain)


def equalised(pixels, clahe):
    return normalise(loaded(pixels, 255), IntensityConfig(mode="depth", clahe=clahe))


def test_equalisation_looks_at_tiles_of_an_eighth_of_the_side():
    """What changes in a corner is seen as far as the middle of the next tile: 32 + 16 of 256 px."""
    pixels = np.rint(np.random.default_rng(0).normal(128, 20, (256, 256)).clip(0, 255))
    changed = pixels.copy()
    changed[:16, :16] = 250
    seen = equalised(pixels, 2.0) != equalised(changed, 2.0)
    for axis in (0, 1):
        assert 40 <= np.flatnonzero(seen.any(axis)).max() < 48


def test_the_limit_of_the_equalisation_bounds_the_contrast():
    rng = np.random.default_rng(0)
    faint = np.rint(rng.normal(128, 6, (256, 256)))
    spread = [equalised(faint, limit).std() for limit in (0.0, 2.0, 4.0, 40.0)]
    assert all(more > 1.2 * less for less, more in zip(spread, spread[1:], strict=False)), spread


@pytest.mark.parametrize("clahe", [-1.0, float("nan"), float("inf")])
def test_an_impossible_clip_limit(clahe):
    with pytest.raises(ValueError, match="clahe is"):
        IntensityConfig(clahe=clahe)
