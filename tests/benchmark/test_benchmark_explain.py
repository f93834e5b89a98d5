from __future__ import annotations

import pytest
import torch

from fx_d2.benchmark import explain
from fx_d2.engine.setup import ConfigError


def test_the_ways_are_compared_at_equal_maps(quick, monkeypatch):
    ticks = iter([0, 8, 10, 14, 20, 21])  # 8 s, 4 s and 1 s
    plan = explain.ExplainPlan(quick, steps=3, classes=2, batch=4, repeats=1)
    real = explain.alternate
    monkeypatch.setattr(explain, "alternate", lambda *a, **k: real(*a, **{**k, "warmup": 0}))
    table = explain.measure_explain(plan, clock=lambda: next(ticks))
    assert [row["way"] for row in table.rows] == ["one by one", "Captum", "batched"]
    assert [row["speed"] for row in table.rows] == [1, 2, 8]
    assert [row["rate"] for row in table.rows] == [2 / 8, 2 / 4, 2]
    assert all(row["apart"] < 1e-3 for row in table.rows) and table.rows[-1]["apart"] == 0
    assert "2 images of 64 px, 2 classes" in table.text()


def test_times_of_different_maps_are_refused(quick, monkeypatch):
    plan = explain.ExplainPlan(quick, steps=2, classes=1, batch=4, repeats=1)
    monkeypatch.setattr(
        explain, "_captum", lambda _, images, *__: torch.ones(len(images), 1, 64, 64)
    )
    with pytest.raises(ValueError, match="maps of 'Captum' are"):
        explain.measure_explain(plan)


def test_a_config_without_labels_is_said(quick):
    plan = explain.ExplainPlan(quick.having("DATASETS.TASKS", "('loc',)"))
    with pytest.raises(ConfigError, match="no source with a cls head"):
        explain.measure_explain(plan)
