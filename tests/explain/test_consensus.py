"""Maps of a committee to one, on maps made by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from fx_d2.explain.consensus import (
    ConsensusSettings,
    consensus,
    member_threshold,
    otsu,
    scaled,
    top_quantile,
)


def ramp() -> np.ndarray:
    return np.arange(100, dtype=np.float32).reshape(10, 10)


def test_a_map_is_cut_at_its_percentile_and_scaled() -> None:
    values = ramp()
    values[9, 9] = 1e6  # a single grain
    found = scaled(values)
    high = np.percentile(values, 99)
    np.testing.assert_allclose(found, np.minimum(values, high) / high, rtol=1e-6)
    assert found.min() == 0 and found.max() == 1
    # Without the clip the grain is all there is.
    assert np.median(scaled(values, 100)) < 1e-3 < 0.3 < np.median(found) < 0.6 or high > 1e3
    # A factor and an offset change nothing: members are comparable.
    np.testing.assert_allclose(scaled(5 * values + 3), found, atol=1e-5)
    np.testing.assert_array_equal(scaled(torch.from_numpy(values)), found)


def test_flat_maps_become_zero_and_rare_ones_keep_their_peak() -> None:
    assert not scaled(np.full((8, 8), 3.0)).any()
    rare = np.zeros((20, 20), dtype=np.float32)
    rare[0, 0] = 2  # less than one percent: the 99th percentile is 0
    assert scaled(rare)[0, 0] == 1 and scaled(rare).sum() == 1


@pytest.mark.parametrize("bad", [np.full((4, 4), np.nan), np.zeros((0, 4)), np.zeros(4)])
def test_what_is_no_map_is_refused(bad) -> None:
    with pytest.raises(ValueError, match="map"):
        scaled(bad)


def test_otsu_parts_two_modes_and_agrees_with_opencv() -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random((64, 64)) < 0.2, 0.8, 0.2) + rng.normal(0, 0.05, (64, 64))
    values = values.clip(0, 1).astype(np.float32)
    whole = np.floor(values * 256).clip(0, 255).astype(np.uint8)
    theirs, _ = cv2.threshold(whole, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    ours = otsu(values)
    np.testing.assert_array_equal(values >= ours, whole > theirs)
    assert 0.35 < ours < 0.65
    assert otsu(np.array([[0.0, 0.0, 1.0, 1.0]], dtype=np.float32)) == pytest.approx(0.5, abs=0.02)
    assert otsu(np.zeros((4, 4), dtype=np.float32)) > 1


def test_the_top_quantile_is_reached_by_that_share() -> None:
    values = ramp()
    for share in (0.01, 0.1, 0.35, 1.0):
        assert (values >= top_quantile(values, share)).sum() == round(share * 100)
    assert top_quantile(values, 0.001) == 99  # at least one pixel


def test_the_mean_is_weighted_and_a_member_without_weight_does_not_vote() -> None:
    left, right = np.zeros((10, 10), np.float32), np.zeros((10, 10), np.float32)
    left[:, :3], right[:, 7:] = 1, 1
    both = consensus(np.stack([left, right]))
    assert both.mean[0, 0] == both.mean[0, 9] == pytest.approx(0.5)
    assert both.agree[0, 0] == pytest.approx(0.5) and both.agree[0, 5] == 0
    tilted = consensus(np.stack([left, right]), [3, 1])
    assert tilted.mean[0, 0] == pytest.approx(0.75) and tilted.mean[0, 9] == pytest.approx(0.25)
    assert tilted.agree[0, 9] == pytest.approx(0.5)  # a vote is a vote
    alone = consensus(np.stack([left, right]), [1, 0])
    assert alone.n_members == 1 and alone.agree[0, 9] == 0 and alone.agree[0, 0] == 1
    grain = np.stack([ramp(), ramp()])
    grain[0, 9, 9] = 1e4
    for clip in (90.0, 100.0):  # that of the settings
        settings = ConsensusSettings(clip_percentile=clip)
        found = consensus(grain, settings=settings).scaled
        np.testing.assert_array_equal(found[0], scaled(grain[0], clip))
    # A member that sees nothing votes nowhere, and still counts.
    blind = consensus(np.stack([left, np.zeros_like(left)]))
    assert blind.agree.max() == pytest.approx(0.5)


def test_a_members_own_threshold() -> None:
    values = scaled(ramp(), 100)
    quantile = member_threshold(values, ConsensusSettings(100, "quantile", 0.1))
    assert (values >= quantile).sum() == 10
    by_otsu = member_threshold(values, ConsensusSettings(100, "otsu"))
    assert 45 <= (values >= by_otsu).sum() <= 55
    assert member_threshold(values, ConsensusSettings(100, "both", 0.1)) == quantile
    assert member_threshold(values, ConsensusSettings(100, "both", 0.9)) == by_otsu


@pytest.mark.parametrize(
    ("maps", "weights", "what"),
    [
        (np.zeros((2, 4)), None, "shape"),
        (np.ones((2, 4, 4)), [1], "expected 2"),
        (np.ones((2, 4, 4)), [1, -1], "from 0 up"),
        (np.ones((2, 4, 4)), [0, 0], "no member"),
    ],
)
def test_what_is_no_committee_is_refused(maps, weights, what) -> None:
    with pytest.raises(ValueError, match=what):
        consensus(maps, weights)


@pytest.mark.parametrize(
    "wrong",
    [{"clip_percentile": 20}, {"member_threshold": "ostu"}, {"member_share": 0}],
)
def test_settings_out_of_range_are_named(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ConsensusSettings(**wrong)
