from __future__ import annotations

import time

import numpy as np
import pytest

from fx_d2.benchmark import ap


def test_objects_are_as_many_as_asked_and_lie_in_the_image():
    truth, predicted = ap.make_objects(9, 100, seed=1)
    assert sum(len(p.boxes) for p in predicted) == 100
    assert [len(t.boxes) for t in truth[2::3]] == [0, 0, 0]  # images without a finding
    for one in (*truth, *predicted):
        assert len(one.masks) == len(one.classes) == len(one.boxes)
        assert (one.boxes >= 0).all() and (one.boxes <= 256).all()
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
    again, _ = ap.make_objects(9, 100, seed=1)
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(truth, again, strict=True))


def test_both_libraries_agree_on_figures_that_are_not_trivial():
    table = ap.measure_evaluation(12, 150, 1, seed=0, clock=time.perf_counter, quiet=True)
    assert len(table.rows) == 4
    assert all(row["off"] <= 1e-6 and row["holds"] == "yes" for row in table.rows)
    truth, predicted = ap.make_objects(12, 150, seed=0)
    found = ap.average_precision([(256, 256)] * 12, truth, predicted, 5, "segm")
    assert 0.05 < np.nanmean(found) < 0.95


@pytest.mark.parametrize("wrong", [np.array([0.5, 0.1 + 1e-5]), np.array([0.5, np.nan])])
def test_a_difference_is_said(wrong):
    right = np.array([0.5, 0.1])

    def run(backend):
        return right if backend == "pycocotools" else wrong

    ticks = iter(range(100))
    row = ap._compare(run, "boxes", 1, lambda: next(ticks), True)
    assert row["holds"] == "no"
