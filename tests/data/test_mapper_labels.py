"""Image labels of the mapper: what becomes of uncertain and unknown ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mapper_settings import plain, position

from fx_d2.data.mapper import FxMapper


def labels_under(cfg, toy, policy, *, exceptions=(), is_train=True, number=0):
    cfg.INPUT.FX.UNCERTAIN, cfg.INPUT.FX.UNCERTAIN_BY = policy, exceptions
    record = {**toy.records[0], "labels": np.array([-1, 1, -1], np.float32)}
    mapper = FxMapper(plain(cfg), is_train)
    return mapper(record, "cls", position(number))["labels"].numpy()


def test_policies_for_uncertain_labels(toy, fx_cfg):
    nan = np.float32(np.nan)
    np.testing.assert_array_equal(labels_under(fx_cfg, toy, "ignore"), [nan, 1, nan])
    np.testing.assert_array_equal(labels_under(fx_cfg, toy, "zeros"), [0, 1, 0])
    np.testing.assert_array_equal(labels_under(fx_cfg, toy, "ones"), [1, 1, 1])
    by = ("toy_chest=ones", "toy_chest/Edema=zeros", "chexpert=smooth")
    np.testing.assert_array_equal(labels_under(fx_cfg, toy, "ignore", exceptions=by), [1, 1, 0])


def test_smooth_labels_are_a_function_of_the_position(toy, fx_cfg):
    draws = np.array([labels_under(fx_cfg, toy, "smooth", number=i) for i in range(40)])
    np.testing.assert_array_equal(draws[:, 1], 1)
    uncertain = draws[:, [0, 2]]
    assert ((uncertain >= 0.55) & (uncertain <= 0.85)).all()
    assert uncertain.std() > 0.05 and len(np.unique(uncertain)) == 80
    np.testing.assert_array_equal(labels_under(fx_cfg, toy, "smooth", number=7), draws[7])


@pytest.mark.parametrize("policy", ["ignore", "zeros", "ones", "smooth"])
def test_evaluation_leaves_uncertain_labels_out(toy, fx_cfg, policy):
    labels = labels_under(fx_cfg, toy, policy, is_train=False)
    np.testing.assert_array_equal(labels, [np.nan, 1, np.nan])


def test_unknown_labels_stay_unknown_unless_told(toy, fx_cfg):
    record = {**toy.records[0], "labels": np.array([np.nan, 1, 0], np.float32)}
    labels = FxMapper(plain(fx_cfg), True)(record, "cls", position())["labels"]
    assert torch.isnan(labels[0]) and labels[1:].tolist() == [1, 0]
    fx_cfg.INPUT.FX.UNKNOWN_BY = ("toy_chest=zeros",)
    assert FxMapper(fx_cfg, True)(record, "cls", position())["labels"].tolist() == [0, 1, 0]
    evaluated = FxMapper(fx_cfg, False)(record, "cls", position())["labels"]
    assert torch.isnan(evaluated[0])


def test_a_record_without_labels_is_all_unknown(toy, fx_cfg):
    record = {k: v for k, v in toy.records[0].items() if k != "labels"}
    labels = FxMapper(fx_cfg, True)(record, "cls", position())["labels"]
    assert labels.shape == (3,) and torch.isnan(labels).all()
    assert "labels" not in FxMapper(fx_cfg, True)(record, "loc", position())


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("UNCERTAIN", "drop", "'drop'; allowed: ignore"),
        ("UNKNOWN", "ones", "'ones'; allowed: ignore, zeros"),
        ("UNCERTAIN_BY", ("smooth",), "write 'source=policy'"),
    ],
)
def test_wrong_policies_are_refused(fx_cfg, key, value, message):
    fx_cfg.INPUT.FX[key] = value
    with pytest.raises(ValueError, match=message):
        FxMapper(fx_cfg, True)


def test_a_policy_for_a_misspelt_source_is_refused(fx_cfg):
    for key in ("UNCERTAIN_BY", "UNKNOWN_BY"):
        cfg = fx_cfg.clone()
        cfg.INPUT.FX[key] = ("chexprt=zeros",)
        with pytest.raises(KeyError, match="Did you mean 'chexpert'"):
            FxMapper(cfg, True)


def test_check_finds_a_class_that_does_not_exist(toy, fx_cfg):
    fx_cfg.INPUT.FX.UNCERTAIN_BY = ("toy_chest/Oedema=ones",)
    with pytest.raises(ValueError, match="Oedema"):
        FxMapper(fx_cfg, True).check(toy.source, "cls")
