from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_d2.data.samplers import (
    JointSchedule,
    batch_places,
    class_aware_weights,
    order,
    pass_length,
    presence,
    repeat_factors,
    steps_in_pass,
)


def take(pass_index, n=20, **more):
    return order(1, "rsna", "cls", pass_index, n, **more)


def test_a_pass_is_a_permutation_and_a_pure_function():
    first = take(0)
    assert sorted(first) == list(range(20)) and first.dtype == np.int64
    np.testing.assert_array_equal(first, take(0))
    assert not np.array_equal(first, np.arange(20))


def test_every_part_of_the_position_matters():
    base = order(1, "rsna", "cls", 0, 50)
    for other in [
        (2, "rsna", "cls", 0),
        (1, "nih14", "cls", 0),
        (1, "rsna", "loc", 0),
        (1, "rsna", "cls", 1),
    ]:
        assert not np.array_equal(base, order(*other, 50)), other


def test_without_shuffle_records_come_in_their_order():
    np.testing.assert_array_equal(take(3, shuffle=False), np.arange(20))
    np.testing.assert_array_equal(take(1, shuffle=False, fraction=0.5), np.arange(10, 20))


def test_two_halves_make_a_whole():
    halves = [take(p, fraction=0.5) for p in range(4)]
    assert [len(h) for h in halves] == [10] * 4
    assert sorted(np.concatenate(halves[:2])) == list(range(20))
    assert sorted(np.concatenate(halves[2:])) == list(range(20))
    assert set(halves[0]) != set(halves[2])


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 60),
    fraction=st.floats(0.01, 1.0),
    pass_index=st.integers(0, 9),
    shuffle=st.booleans(),
)
def test_any_fraction_has_its_length_and_no_record_twice(n, fraction, pass_index, shuffle):
    records = take(pass_index, n, fraction=fraction, shuffle=shuffle)
    assert len(records) == pass_length(n, fraction) == max(1, int(n * fraction + 0.5))
    assert len(set(records)) == len(records)
    assert records.min() >= 0 and records.max() < n


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01])
def test_fractions_outside_are_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        take(0, fraction=fraction)


def test_no_records_is_an_error():
    with pytest.raises(ValueError, match="rsna/cls has no records"):
        take(0, 0)


def test_weights_round_fairly_and_keep_the_length():
    weights = np.array([1.0, 2.3, 0.25, 1.0, 3.0, 0.0])
    counts = np.zeros(6)
    for p in range(400):
        records = take(p, 6, weights=weights)
        assert len(records) == 8  # of 7.55
        seen = np.bincount(records, minlength=6)
        scaled = weights * 8 / 7.55
        assert (seen >= np.floor(scaled)).all() and (seen <= np.ceil(scaled)).all()
        counts += seen
    np.testing.assert_allclose(counts / 400, weights * 8 / 7.55, atol=0.08)
    np.testing.assert_array_equal(take(9, 6, weights=weights), take(9, 6, weights=weights))


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0, 50, allow_subnormal=False), min_size=1, max_size=40),
    p=st.integers(0, 5),
)
def test_weighted_passes_always_have_the_promised_length(weights, p):
    weights = np.array(weights)
    if weights.sum() < 1e-3:
        return
    assert len(take(p, len(weights), weights=weights)) == pass_length(len(weights), 1.0, weights)
    half = pass_length(len(weights), 0.5, weights)
    assert len(take(p, len(weights), weights=weights, fraction=0.5)) == half


@pytest.mark.parametrize("weights", [[1, -1], [1, np.nan], [1], [0, 0]])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        take(0, 2, weights=np.array(weights, dtype=float))


def test_presence_by_labels_and_by_boxes(toy):
    labels = presence(toy.records, toy.source, "cls")
    assert labels.shape == (13, 3)
    assert labels[1].tolist() == [True, False, False]
    assert not labels[0].any()  # an uncertain or unknown label is not known to be present
    boxes = presence(toy.records, toy.source, "loc")
    assert boxes[1].tolist() == [False, True, False]
    assert not boxes[0].any() and not boxes[3].any()  # empty, and not annotated
    np.testing.assert_array_equal(presence(toy.records, toy.source, "seg"), labels)


def test_repeat_factors_of_rare_classes():
    present = np.zeros((100, 3), dtype=bool)
    present[:50, 0] = True
    present[:4, 1] = True  # share 0.04
    factors = repeat_factors(present, 0.16)
    np.testing.assert_allclose(factors[:4], 2.0)
    np.testing.assert_allclose(factors[4:], 1.0)


def test_repeat_factors_work_without_any_finding():
    np.testing.assert_array_equal(repeat_factors(np.zeros((5, 3), bool), 0.5), np.ones(5))
    np.testing.assert_array_equal(repeat_factors(np.zeros((5, 0), bool), 0.5), np.ones(5))
    np.testing.assert_array_equal(class_aware_weights(np.zeros((5, 0), bool)), np.ones(5))


def test_class_aware_gives_every_class_the_same_share():
    present = np.zeros((100, 3), dtype=bool)
    present[:60, 0] = True
    present[60:65, 1] = True
    weights = class_aware_weights(present)
    assert abs(weights.sum() - 100) < 1e-9
    shares = [weights[:60].sum(), weights[60:65].sum(), weights[65:].sum()]
    np.testing.assert_allclose(shares, 100 / 3)
    # An image of two classes is there for both: a half of the first, all of the second.
    several = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], dtype=bool)
    np.testing.assert_allclose(class_aware_weights(several), np.array([1.5, 0.5, 0.5, 0.5]) * 4 / 3)


def test_steps_by_policy():
    assert [steps_in_pass(10, 4, p) for p in ("fill", "drop", "keep")] == [3, 2, 3]
    assert [steps_in_pass(8, 4, p) for p in ("fill", "drop", "keep")] == [2, 2, 2]
    assert [steps_in_pass(3, 4, p) for p in ("fill", "drop", "keep")] == [1, 1, 1]
    with pytest.raises(ValueError, match="last_batch"):
        steps_in_pass(3, 4, "pad")


@pytest.mark.parametrize("policy, last", [("fill", [8, 9, 10, 11]), ("keep", [8, 9])])
def test_places_of_the_last_batch(policy, last):
    assert batch_places(2, 10, 4, policy) == last


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 50),
    per_rank=st.integers(1, 5),
    world=st.integers(1, 4),
    policy=st.sampled_from(["fill", "drop", "keep"]),
)
def test_ranks_together_are_one_process(length, per_rank, world, policy):
    size = per_rank * world
    for step in range(steps_in_pass(length, size, policy)):
        alone = batch_places(step, length, size, policy)
        shares = [batch_places(step, length, size, policy, r, world) for r in range(world)]
        together = sorted(place for share in shares for place in share)
        assert len({len(s) for s in shares}) == 1, "a rank would wait for another"
        assert together[: len(alone)] == alone
        if policy != "keep":
            assert together == alone and len(alone) == size


STEPS = {("a", "cls"): 12, ("b", "cls"): 3, ("b", "loc"): 5}


def round_of(schedule, number=0):
    start = number * schedule.round_steps
    return [schedule.at(start + i) for i in range(schedule.round_steps)]


def test_a_mix_in_proportion_shows_every_image_once():
    schedule = JointSchedule(0, STEPS)
    assert schedule.counts == STEPS and schedule.round_steps == 20
    turns = round_of(schedule)
    assert Counter(t[:2] for t in turns) == STEPS
    for key, steps in STEPS.items():
        assert [t[2:] for t in turns if t[:2] == key] == [(0, s) for s in range(steps)]
    assert [t[:2] for t in turns] != [t[:2] for t in round_of(schedule, 1)]
    assert {t[2] for t in round_of(schedule, 3)} == {3}


def test_repeat_to_longest_repeats_the_short_ones():
    schedule = JointSchedule(0, STEPS, repeat_to_longest=True)
    assert set(schedule.counts.values()) == {12}
    short = [t[2:] for t in round_of(schedule) if t[:2] == ("b", "cls")]
    assert short == [(p, s) for p in range(4) for s in range(3)]


def test_ratios():
    ratio = {("a", "cls"): 2.0}
    until_first = JointSchedule(0, STEPS, ratio=ratio)
    assert until_first.counts == {("a", "cls"): 6, ("b", "cls"): 3, ("b", "loc"): 3}
    longest = JointSchedule(0, STEPS, ratio=ratio, repeat_to_longest=True)
    assert longest.counts == {("a", "cls"): 12, ("b", "cls"): 6, ("b", "loc"): 6}
    for bad in ({("a", "cls"): 0.0}, {("a", "cls"): float("nan")}):
        with pytest.raises(ValueError, match="positive"):
            JointSchedule(0, STEPS, ratio=bad)
    with pytest.raises(ValueError, match="the mix holds"):
        JointSchedule(0, STEPS, ratio={("c", "cls"): 1.0})


def test_any_step_of_a_mix_can_be_asked_first():
    through = JointSchedule(4, STEPS, repeat_to_longest=True)
    steps = [through.at(i) for i in range(100)]
    assert [JointSchedule(4, STEPS, repeat_to_longest=True).at(i) for i in (99, 3, 50)] == [
        steps[99],
        steps[3],
        steps[50],
    ]
    assert steps != [JointSchedule(5, STEPS, repeat_to_longest=True).at(i) for i in range(100)]


def test_the_effective_mix_is_told():
    text = JointSchedule(0, STEPS, repeat_to_longest=True).describe()
    assert "36 steps a round" in text
    assert any("b/cls" in line and "33.3%" in line and "4.00" in line for line in text.splitlines())
