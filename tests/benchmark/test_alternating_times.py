from __future__ import annotations

import pytest
import torch

from fx_d2.benchmark.parts import PartClock, replaced
from fx_d2.benchmark.timing import Timing, alternate


class FakeClock:
    """Seconds that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_variants_take_turns_and_a_slow_phase_hits_all_of_them():
    clock, calls = FakeClock(), []
    # The machine is ten times slower from the third round on.
    slow = [1, 1, 10, 10, 10]

    def variant(name, cost):
        def run():
            round_ = sum(call == name for call in calls)
            calls.append(name)
            clock.now += cost * slow[round_]

        return run

    runs = {"a": variant("a", 3.0), "b": variant("b", 2.0)}
    times = alternate(runs, 4, warmup=1, clock=clock)
    assert calls == ["a", "b"] * 5
    assert times["a"].seconds == (3, 30, 30, 30)  # the warm-up round is not among them
    assert times["a"].median == 30
    assert times["a"].ratio(times["b"]) == 1.5
    assert times["a"].spread(times["b"]) == (1.5, 1.5)


def test_one_disturbed_round_moves_neither_median_nor_quartiles_much():
    calm, disturbed = Timing((2.0,) * 5), Timing((2.0, 2.0, 80.0, 2.0, 2.0))
    assert disturbed.ratio(calm) == 1.0
    assert disturbed.spread(calm) == (1.0, 1.0)
    assert Timing((3.0,)).spread(Timing((2.0,))) == (1.5, 1.5)


def test_time_of_a_call_within_a_call_counts_once():
    clock = FakeClock()
    parts = PartClock(torch.device("cpu"), clock)

    def spend(seconds):
        clock.now += seconds

    inner = parts.timed("inner", spend)

    def outer_work():
        spend(1.0)
        inner(5.0)
        inner(2.0)

    parts.timed("outer", outer_work)()
    assert parts.seconds == {"inner": 7.0, "outer": 1.0}
    assert sum(parts.seconds.values()) == clock.now


def test_time_of_a_call_that_raises_is_counted():
    clock = FakeClock()
    parts = PartClock(torch.device("cpu"), clock)

    def work():
        clock.now += 2.0
        raise ValueError("no")

    outer = parts.timed("outer", parts.timed("inner", work))
    with pytest.raises(ValueError, match="no"):
        outer()
    assert parts.seconds == {"inner": 2.0, "outer": 0.0}


def test_what_is_replaced_comes_back_where_it_was():
    class Thing:
        def call(self):
            return "its own"

    thing = Thing()
    with pytest.raises(KeyError), replaced(thing, "call", lambda: "other"):
        assert thing.call() == "other"
        raise KeyError
    assert thing.call() == "its own" and "call" not in vars(thing)
    thing.value = 1
    with replaced(thing, "value", 2):
        assert thing.value == 2
    assert thing.value == 1
