from __future__ import annotations

import math

import pytest

from fx_d2.evaluation.forgetting import ScoreRow, measure

HEADS = ("a", "b", "c")


def rows(*given: tuple[str, tuple[float | None, ...]]) -> list[ScoreRow]:
    """Each: the trained heads as one word, and a score per head."""
    return [ScoreRow(tuple(word), dict(zip(HEADS, scores, strict=True))) for word, scores in given]


def test_three_heads_one_after_the_other_by_hand():
    table = rows(
        ("a", (0.90, 0.55, 0.50)),
        ("b", (0.70, 0.80, 0.58)),
        ("c", (0.75, 0.60, 0.95)),
    )
    start = {"a": 0.50, "b": 0.45, "c": 0.52}
    found = measure(HEADS, table, start)
    # a: best 0.90, now 0.75; b: best 0.80, now 0.60; c was trained last.
    assert found.forgetting == pytest.approx({"a": 0.15, "b": 0.20})
    assert found.backward == pytest.approx({"a": -0.15, "b": -0.20})
    # b before its slot 0.55 against 0.45; c 0.58 against 0.52; a has no slot before it.
    assert found.forward == pytest.approx({"b": 0.10, "c": 0.06})
    assert found.means() == pytest.approx(
        {"average_forgetting": 0.175, "backward_transfer": -0.175, "forward_transfer": 0.08}
    )
    # After two slots only a can have been forgotten.
    assert measure(HEADS, table[:2], start).forgetting == pytest.approx({"a": 0.20})


def test_later_slots_can_help():
    found = measure(HEADS, rows(("a", (0.6, 0, 0)), ("b", (0.7, 0.9, 0)), ("c", (0.65, 0.95, 0.8))))
    # a: best 0.7 after b's slot; b: never better than now.
    assert found.forgetting == pytest.approx({"a": 0.05, "b": -0.05})
    assert found.backward == pytest.approx({"a": 0.05, "b": 0.05})
    assert found.forward == {} and found.means()["forward_transfer"] is None


def test_two_cycles_look_back_to_the_latest_visit():
    table = rows(
        ("a", (0.80, 0.5, 0.5)),
        ("b", (0.60, 0.7, 0.5)),
        ("a", (0.95, 0.4, 0.5)),
        ("b", (0.75, 0.9, 0.5)),
        ("c", (0.70, 0.8, 0.6)),
    )
    found = measure(HEADS, table, dict.fromkeys(HEADS, 0.5))
    assert found.forgetting == pytest.approx({"a": 0.25, "b": 0.10})
    assert found.backward == pytest.approx({"a": -0.25, "b": -0.10})  # since rows 2 and 3
    assert found.forward == pytest.approx({"b": 0.0, "c": 0.0})  # before rows 1 and 4


def test_scores_before_the_first_visit_are_not_forgotten():
    """b did well by chance before it was trained."""
    found = measure(HEADS, rows(("a", (1, 0.9, 0)), ("b", (1, 0.7, 0)), ("a", (1, 0.6, 0))))
    assert found.forgetting == pytest.approx({"b": 0.1})


def test_missing_scores():
    table = rows(
        ("a", (None, 0.5, 0.1)),  # a was not scored after its slot
        ("b", (0.8, math.nan, 0.2)),
        ("c", (0.6, 0.5, 0.9)),
        ("c", (0.5, 0.4, None)),
    )
    found = measure(HEADS, table, {"a": 0.1, "c": 0.05})
    assert found.forgetting == pytest.approx({"a": 0.3, "b": 0.1})
    assert found.backward == {}  # neither has a score right after its slot
    assert found.forward == pytest.approx({"c": 0.15})  # of b the start is not known
    gone = measure(HEADS, [*table, ScoreRow(("c",), {})], {})
    assert gone.forgetting == gone.backward == gone.forward == {}
    assert set(gone.means().values()) == {None}
    assert measure(HEADS, []).means() == gone.means()
    assert measure((*HEADS, "never"), table).forgetting.keys() == {"a", "b"}


def test_training_side_by_side():
    """No row belongs to one head: the best against the last, of all heads."""
    table = rows(("", (0.5, 0.6, 0.7)), ("", (0.9, 0.7, 0.6)), ("", (0.8, 0.8, 0.4)))
    found = measure(HEADS, table, dict.fromkeys(HEADS, 0.5))
    assert found.forgetting == pytest.approx({"a": 0.1, "b": -0.1, "c": 0.3})
    assert found.backward == found.forward == {}
