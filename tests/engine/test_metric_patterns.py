"""Which metric patterns of a config are refused before the training."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode, get_cfg

from fx_d2 import add_fx_config
from fx_d2.engine.metric_patterns import check_metric_patterns, result_keys
from fx_d2.engine.setup import ConfigError

RSNA = {"rsna_val": ("cls", "loc")}


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.TEST.FX.BOOTSTRAP = 0
    return cfg


def test_keys_of_results():
    both = {**RSNA, "rsna_test": ("loc",), "nih14_val": ("cls",)}
    assert result_keys(both, ("",)) == {
        "rsna/cls": ("rsna_val", "cls"),
        "rsna_val/loc": ("rsna_val", "loc"),
        "rsna_test/loc": ("rsna_test", "loc"),
        "nih14/cls": ("nih14_val", "cls"),
    }
    assert list(result_keys({"nih14_val": ("cls",)}, ("student", "teacher"))) == [
        "nih14/cls",
        "teacher/nih14/cls",
    ]


@pytest.mark.parametrize(
    "patterns",
    [
        ("*/cls/AUC",),
        ("rsna/*/A*",),
        ("*/AUC-Lung Opacity",),
        ("*/loc/AP40", "*/seg/Dice"),  # a preset names every task
        ("teacher/rsna/cls/AUC",),
        ("rsna/cls/ECE",),
    ],
)
def test_what_is_met(cfg: CfgNode, patterns: tuple[str, ...]):
    cfg.SOLVER.FX.BEST_METRIC = patterns
    check_metric_patterns(cfg, result_keys(RSNA, ("student", "teacher")))
    check_metric_patterns(cfg, {})  # nothing is evaluated: it has to be a metric of something


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("*/cls/AUCC", r"has '\*/cls/AUCC', which is no metric; did you mean \*/cls/AUC"),
        ("AUC", "'AUC', which is no metric"),
        ("rsna/cls/AUC_low", "no metric of this run"),  # without a bootstrap
        ("rsna/cls/ECE-Normal", "no metric"),  # of all classes together
        ("nih14/cls/AUC", "no metric of this run"),
        ("teacher/rsna/cls/AUC", "no metric of this run"),
        (3, "has 3; write 'source/task/metric'"),
    ],
)
def test_what_is_refused(cfg: CfgNode, pattern, told: str):
    cfg.SOLVER.FX.BEST_METRIC = (pattern,)
    with pytest.raises(ConfigError, match=told) as caught:
        check_metric_patterns(cfg, result_keys(RSNA, ("",)))
    assert "\n" not in str(caught.value)
    if pattern != 3:
        assert "*/loc/ with AP, AP40," in str(caught.value)


def test_a_misspelt_one_beside_a_good_one(cfg: CfgNode):
    cfg.SOLVER.FX.BEST_METRIC = ("*/cls/AUC", "*/loc/AP4")
    for keys in (result_keys(RSNA, ("",)), {}):
        with pytest.raises(ConfigError, match=r"'\*/loc/AP4'.*did you mean \*/loc/AP"):
            check_metric_patterns(cfg, keys)


@pytest.mark.parametrize("node", ["PLATEAU", "EARLY_STOP"])
def test_other_settings_with_metrics(cfg: CfgNode, node: str):
    cfg.SOLVER.FX[node].METRIC = ("*/cls/AUCC",)
    check_metric_patterns(cfg, result_keys(RSNA, ("",)))  # off
    cfg.SOLVER.FX[node].PATIENCE = 1
    with pytest.raises(ConfigError, match=rf"SOLVER\.FX\.{node}\.METRIC has"):
        check_metric_patterns(cfg, result_keys(RSNA, ("",)))
