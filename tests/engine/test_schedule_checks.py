"""What is wrong in CYCLE, FORGETTING and TEACHER is told before anything is built or read."""

from __future__ import annotations

from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

import fx_d2.modeling  # noqa: F401 - registers the models
from fx_d2.config import add_fx_config
from fx_d2.engine.checks import check_config
from fx_d2.engine.setup import ConfigError


def make_cfg(options: dict[str, Any]) -> CfgNode:
    """Of sources that lie nowhere."""
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "StudentTeacher"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("rsna_train", "nih14_train"), ()
    cfg.CYCLE.NAME, cfg.CYCLE.CYCLES = "paper", 2
    for key, value in options.items():
        *groups, name = key.split(".")
        node = cfg
        for group in groups:
            node = node[group]
        node[name] = CfgNode(value, new_allowed=True) if isinstance(value, dict) else value
    return cfg


def phases(**phase: Any) -> dict[str, Any]:
    whole = {"name": "release", "share": 1.0, "train": ["backbone", "cls_head"]} | phase
    loc = [{"share": 1.0, "train": "all"}]
    return {"CYCLE.PHASES": {"cls": [whole], "loc": loc}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"CYCLE.NAME": "", "CYCLE.CYCLES": 0},
        {"CYCLE.NAME": "joint"},
        {"CYCLE.NAME": "sequential"},
        {"CYCLE.SLOTS": ("rsna/loc", "nih14"), "CYCLE.MAX_STEPS_PER_PHASE_BY": ("loc=3",)},
        {"FORGETTING.AFTER": "slot", "TEACHER.UPDATE": "phase"},
        {"CYCLE.NAME": "", "FORGETTING.AFTER": "iterations", "FORGETTING.PERIOD": 5},
        # Nobody reads what is said about a teacher that there is none of.
        {"MODEL.META_ARCHITECTURE": "FoundationX", "TEACHER.UPDATE": "epoch"},
    ],
    ids=str,
)
def test_what_is_right(options):
    check_config(make_cfg(options), train=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"CYCLE.NAME": "papr"}, ("CYCLE.NAME 'papr'", "did you mean 'paper'")),
        ({"CYCLE.NAME": "custom"}, ("CYCLE.SLOTS is empty",)),
        ({"CYCLE.NAME": "", "CYCLE.ORDER": "cyclic"}, ("CYCLE.ORDER is set but", "paper")),
        ({"CYCLE.CYCLES": -1}, ("CYCLE.CYCLES is -1", "0 or a whole number")),
        ({"CYCLE.CYCLES": 1.5}, ("CYCLE.CYCLES is 1.5",)),
        ({"CYCLE.NAME": "sequential", "CYCLE.CYCLES": 0}, ("sequential", "set CYCLE.CYCLES")),
        ({"CYCLE.MAX_STEPS_PER_PHASE": -2}, ("CYCLE.MAX_STEPS_PER_PHASE is -2",)),
        ({"CYCLE.MAX_STEPS_PER_PHASE_BY": ("lok=3",)}, ("PHASE_BY", "did you mean 'loc'")),
        ({"CYCLE.MAX_STEPS_PER_PHASE_BY": ("loc=-3",)}, ("'loc=-3'", "0 or more")),
        ({"CYCLE.MAX_STEPS_PER_PHASE_BY": ("loc=2.5",)}, ("loc=2.5", "whole number")),
        ({"CYCLE.MAX_STEPS_PER_PHASE_BY": ("loc",)}, ("'loc'", "name=number")),
        ({"CYCLE.ORDER": "cyclc"}, ("CYCLE.ORDER 'cyclc'", "did you mean 'cyclic'")),
        ({"CYCLE.SLOT_IS": "vist"}, ("CYCLE.SLOT_IS 'vist'", "did you mean 'visit'")),
        ({"CYCLE.LOCKED_LAYERS": "evl"}, ("CYCLE.LOCKED_LAYERS 'evl'", "did you mean 'eval'")),
        ({"CYCLE.LR_PER": "cycl"}, ("CYCLE.LR_PER 'cycl'", "did you mean 'cycle'")),
        ({"CYCLE.NAME": "joint", "CYCLE.LR_PER": "cycle"}, ("joint training has no cycle",)),
        ({"CYCLE.SLOTS": ("rnsa/loc",)}, ("no source 'rnsa'", "did you mean 'rsna'")),
        ({"CYCLE.SLOTS": ("vindr_cxr/cls",)}, ("DATASETS.TRAIN only has rsna, nih14",)),
        ({"CYCLE.SLOTS": ("rsna/lok",)}, ("task 'lok'", "did you mean 'loc'")),
        ({"CYCLE.SLOTS": ("nih14/seg",)}, ("not trained here", "nih14/cls")),
        ({"CYCLE.SLOTS": (7,)}, ("CYCLE.SLOTS has 7", "write 'source/task'")),
        ({"CYCLE.PHASES": {"clss": []}}, ("task 'clss'", "did you mean 'cls'")),
        ({"CYCLE.PHASES": {"cls": "all"}}, ("rsna/cls: 'all' is not a list",)),
        ({"CYCLE.PHASES": {"cls": []}}, ("slot rsna/cls has no phases",)),
        (phases(share=0), ("rsna/cls release: share is 0", "above 0, at most 1")),
        (phases(share=1.2), ("share is 1.2",)),
        (phases(share="half"), ("share is 'half'",)),
        (phases(train=["backbon"]), ("group 'backbon'", "did you mean 'backbone'")),
        (phases(train=["seg_head"]), ("its loss does not depend", "cls_head")),
        (phases(train="backbone"), ("rsna/cls: train is 'backbone'", "list of names")),
        (phases(shares=1), ("key 'shares'", "did you mean 'share'")),
        ({"CYCLE.GROUPS": {"all": {"pattern": ["*"]}}}, ("key 'pattern'", "'patterns'")),
        (
            {"CYCLE.GROUPS": {"all": {"patterns": ["*"], "tasks": ["clss"]}}},
            ("did you mean 'cls'",),
        ),
        ({"FORGETTING.AFTER": "slots"}, ("FORGETTING.AFTER 'slots'", "did you mean 'slot'")),
        ({"FORGETTING.AFTER": "iterations"}, ("FORGETTING.PERIOD is 0",)),
        ({"FORGETTING.AFTER": "slot", "CYCLE.NAME": ""}, ("there is no CYCLE",)),
        ({"FORGETTING.METRICS": ("cls=AUC",)}, ("FORGETTING.METRICS", "loc, seg")),
        ({"TEACHER.UPDATE": "phas"}, ("TEACHER.UPDATE 'phas'", "did you mean 'phase'")),
        ({"TEACHER.UPDATE": "phase", "CYCLE.NAME": ""}, ("TEACHER.UPDATE is 'phase'", "CYCLE")),
        ({"TEACHER.BUFFERS": "averag"}, ("TEACHER.BUFFERS", "did you mean 'average'")),
        ({"TEACHER.MOMENTUM": 1.5}, ("TEACHER.MOMENTUM is 1.5", "[0, 1]")),
        ({"TEACHER.MOMENTUM_SCHEDULE": "cosin"}, ("did you mean 'cosine'",)),
        ({"TEACHER.RAMP_ITERS": -1}, ("TEACHER.RAMP_ITERS is -1",)),
        ({"TEST.PRECISE_BN.NUM_ITER": 0}, ("TEST.PRECISE_BN.NUM_ITER is 0", "1 or more")),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(options, told):
    with pytest.raises(ConfigError) as error:
        check_config(make_cfg(options), train=True)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in told), message


def test_an_evaluation_does_not_look_at_the_schedule():
    cfg = make_cfg({"CYCLE.NAME": "papr", "DATASETS.TEST": ("rsna_test",)})
    check_config(cfg, train=False)
