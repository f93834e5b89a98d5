from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from fx_d2.engine.checkpoint import config_of, read_description
from fx_d2.engine.checks import check_config
from fx_d2.engine.prevalence import with_prevalence
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.trainer import FxTrainer

MakeCfg = Callable[..., CfgNode]


def shares(cfg: CfgNode) -> dict[str, list[float]]:
    return dict(cfg.MODEL.FX.CLS.PREVALENCE)


def test_shares_are_those_of_the_annotated_training_labels(toy_cfg: MakeCfg):
    """Of the 12 images 8 have a known first label, 4 of them positive; the second has none."""
    cfg = toy_cfg(MODEL__FX__CLS__LOSS="class_weighted")
    first, second = shares(with_prevalence(cfg))["toy_engine"]
    assert first == 0.5 and math.isnan(second)
    assert shares(cfg) == {}  # the caller's config is left alone
    cfg.INPUT.FX.UNKNOWN = "zeros"  # not annotated is trained as negative: it counts
    assert shares(with_prevalence(cfg))["toy_engine"] == [pytest.approx(4 / 12, abs=1e-6), 0.0]


def test_given_shares_stay_and_other_losses_read_nothing(
    toy_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
):
    given = toy_cfg(MODEL__FX__CLS__LOSS="class_weighted")
    given.MODEL.FX.CLS.PREVALENCE.toy_engine = [0.1, 0.2]
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    assert shares(with_prevalence(given)) == {"toy_engine": [0.1, 0.2]}
    assert shares(with_prevalence(toy_cfg())) == {}


def test_a_checkpoint_has_them(toy_cfg: MakeCfg):
    cfg = toy_cfg(MODEL__FX__CLS__LOSS="class_weighted", SOLVER__MAX_ITER=2)
    FxTrainer(cfg).train()
    found = shares(config_of(read_description(Path(cfg.OUTPUT_DIR))))["toy_engine"]
    assert found[0] == 0.5 and math.isnan(found[1])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("toy_engine", 0.1, "2 shares from 0 to 1, of Low, Other"),
        ("toy_engine", [0.1], "2 shares"),
        ("toy_engine", [0.1, 2.0], "2 shares"),
        ("toy_engin", [0.1, 0.2], "Did you mean 'toy_engine'"),
    ],
)
def test_wrong_shares(toy_cfg: MakeCfg, key: str, value, words: str):
    cfg = toy_cfg()
    cfg.MODEL.FX.CLS.PREVALENCE[key] = value
    with pytest.raises(ConfigError, match=words):
        check_config(cfg, train=True)
