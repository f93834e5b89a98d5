"""Thresholds are chosen where that is honest, and results say how; rare classes have figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from toy_evaluation import record, run, truth_of

from fx_d2.config import add_fx_config
from fx_d2.data.sources import get_source
from fx_d2.evaluation import ClassificationEvaluator, evaluator_options
from fx_d2.evaluation.operating_point import best_threshold, tail_groups, thresholds_of_results

CLASSES = ("Edema", "Nodule", "Mass")


def evaluate(labels, scores, **options):
    records = [record(i, labels=row.astype(np.float32)) for i, row in enumerate(labels)]
    options = {"n_bootstrap": 0} | options
    evaluator = ClassificationEvaluator(truth_of(records), **options)
    outputs = [dict(zip(CLASSES, map(float, row), strict=True)) for row in scores]
    return run(evaluator, records, "labels", outputs)


def world(n=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < [0.5, 0.2, 0.05]).astype(float)
    labels[:2] = [[1, 1, 1], [0, 0, 0]]
    scores = np.clip(labels * 0.3 + rng.random((n, 3)) * 0.7, 0, 1).astype(np.float32)
    return labels, scores


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 8))
def test_no_threshold_is_better(seed: int, n: int, levels: int) -> None:
    """Against every threshold there is, ties among scores included."""
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, levels + 1, n) / levels, rng.random(n) < 0.4
    truth[:2] = True, False

    def f1(t):
        return sk.f1_score(truth, scores >= t)

    def youden(t):
        said = scores >= t
        return said[truth].mean() - said[~truth].mean()

    for policy, value in (("f1", f1), ("youden", youden)):
        found = best_threshold(scores, truth, policy)
        every = [value(t) for t in np.unique(scores)]
        assert value(found) == pytest.approx(max(every))
        assert 0 <= found <= 1


@pytest.mark.parametrize("policy", ["f1", "youden"])
def test_chosen_thresholds_are_those_of_the_figures_and_the_notes(policy: str) -> None:
    labels, scores = world()
    results = evaluate(labels, scores, policy=policy)
    figures, notes = results["toy_eval/cls"], results.notes["toy_eval/cls"]
    assert notes["threshold"].startswith("by class, best ")
    assert notes["threshold"].endswith("on toy_eval_test")
    for c, name in enumerate(CLASSES):
        said = scores[:, c] >= notes["positive"][name]
        assert figures[f"F1-{name}"] == pytest.approx(sk.f1_score(labels[:, c], said))
        assert figures[f"precision-{name}"] == pytest.approx(sk.precision_score(labels[:, c], said))
    fixed = evaluate(labels, scores)
    assert fixed.notes["toy_eval/cls"]["threshold"] == "fixed"
    assert policy != "f1" or figures["F1"] > fixed["toy_eval/cls"]["F1"]
    assert figures["AUC"] == fixed["toy_eval/cls"]["AUC"]


def test_nothing_called_positive_has_a_precision_of_zero() -> None:
    labels, scores = world(20)
    assert evaluate(labels, scores, threshold=1.0)["toy_eval/cls"]["precision"] == 0


def test_groups_by_how_rare_a_class_is_in_training() -> None:
    shares = [0.5, 0.05, 0.001]
    groups = tail_groups(CLASSES, shares, (0.01, 0.1))
    assert groups == {"head": ("Edema",), "medium": ("Nodule",), "tail": ("Mass",)}
    assert tail_groups(CLASSES, [0.01, 0.1, float("nan")], (0.01, 0.1)) == {
        "head": ("Nodule",),
        "medium": ("Edema",),
    }
    labels, scores = world()
    merged = {"rare": ("Nodule", "Mass"), "head": ("Edema",)}
    results = evaluate(labels, scores, groups=merged, groups_note="by hand", n_bootstrap=60)
    figures, notes = results["toy_eval/cls"], results.notes["toy_eval/cls"]
    for metric in ("AUC", "AP", "F1"):
        pair = [figures[f"{metric}-Nodule"], figures[f"{metric}-Mass"]]
        assert figures[f"{metric}_rare"] == pytest.approx(np.mean(pair))
    for metric in ("AUC", "AP"):
        low, high = figures[f"{metric}_rare_low"], figures[f"{metric}_rare_high"]
        assert low < figures[f"{metric}_rare"] < high
    assert notes["groups"] == {"rare": ["Nodule", "Mass"], "head": ["Edema"]}
    assert notes["groups_by"] == "by hand" and "AUC_pair" in figures  # the row's own subset stays


def cfg_with(**keys):
    cfg = get_cfg()
    add_fx_config(cfg)
    for key, value in keys.items():
        cfg.TEST.FX[key] = value
    return cfg


def test_the_config_chooses_on_validation_data_only(tmp_path: Path) -> None:
    cfg = cfg_with(THRESHOLD_POLICY="f1")
    assert evaluator_options(cfg, "cxr_lt_val")["cls"]["policy"] == "f1"
    with pytest.raises(ValueError, match=r"'f1' would choose on cxr_lt_test; choose on validation"):
        evaluator_options(cfg, "cxr_lt_test")
    with pytest.raises(ValueError, match="THRESHOLD_POLICY is 'best'; allowed: fixed, f1, youden"):
        evaluator_options(cfg_with(THRESHOLD_POLICY="best"), "cxr_lt_val")
    classes = get_source("cxr_lt").cls_classes
    chosen = dict.fromkeys(classes, 0.25)
    note = {"dataset": "cxr_lt_val", "positive": chosen, "threshold": "by class, best F1 on it"}
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"notes": {"cxr_lt/cls": note}}))
    found = evaluator_options(cfg_with(THRESHOLD_FROM=str(file)), "cxr_lt_test")["cls"]
    assert found["threshold"] == chosen and "policy" not in found
    assert found["threshold_note"] == "by class, best F1 on it (results.json)"
    assert "threshold" not in evaluator_options(cfg_with(THRESHOLD_FROM="none"), "rsna_test")["cls"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": "fixed"}, "has no thresholds of cxr_lt that were chosen"),
        ({"dataset": "mura_val"}, "has no thresholds of cxr_lt"),
        ({"positive": {"Edema": 0.5}}, "expected one for"),
        ({"positive": None}, "has no thresholds"),
    ],
)
def test_results_without_usable_thresholds(tmp_path: Path, change: dict, words: str) -> None:
    classes = get_source("cxr_lt").cls_classes
    note = {"dataset": "cxr_lt_val", "threshold": "chosen", "positive": dict.fromkeys(classes, 0.3)}
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"notes": {"cxr_lt/cls": note | change}}))
    with pytest.raises(ValueError, match=words):
        thresholds_of_results(file, "cxr_lt", classes)
    for text in ("{", "[]", '{"notes": [1]}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"THRESHOLD_FROM: .*results.json"):
            thresholds_of_results(file, "cxr_lt", classes)


def test_groups_come_from_the_shares_in_the_config() -> None:
    cfg = cfg_with(TAIL=(0.01, 0.1))
    assert "groups" not in evaluator_options(cfg, "cxr_lt_val")["cls"]  # nothing was counted
    classes = get_source("cxr_lt").cls_classes
    cfg.MODEL.FX.CLS.PREVALENCE.cxr_lt = [0.2] * 20 + [0.05] * 4 + [0.001] * 2
    found = evaluator_options(cfg, "cxr_lt_val")["cls"]
    assert found["groups"]["tail"] == classes[-2:] and len(found["groups"]["head"]) == 20
    assert found["groups_note"].endswith("tail below 0.01, head from 0.1 on")
    for bad in ((0.1,), (0.2, 0.1), (0.0, 0.1), (0.1, 1.0)):
        with pytest.raises(ValueError, match=r"TEST.FX.TAIL is \(.*expected two shares"):
            evaluator_options(cfg_with(TAIL=bad), "cxr_lt_val")
