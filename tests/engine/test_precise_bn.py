"""TEST.PRECISE_BN: statistics of all sources, of both models, and nothing else disturbed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from runs import TINY, train
from torch import nn

from fx_d2.data.build import build_task_loader
from fx_d2.engine.precise_bn import _measured
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.weights import read_weights

MakeCfg = Callable[..., CfgNode]
PRECISE = {"TEST__PRECISE_BN__ENABLED": True, "TEST__PRECISE_BN__NUM_ITER": 4}
# Of the 8 iterations of a cycle 3 and 4 lock the trunk.
PHASES = {
    "cls": [{"name": "release", "train": ["backbone", "cls_head"]}],
    "seg": [
        {"name": "lock", "share": 0.5, "train": ["seg_head"]},
        {"name": "release", "share": 1.0, "train": ["backbone", "seg_head"]},
    ],
}


@pytest.fixture
def precise_cfg(toy_cfg: MakeCfg) -> MakeCfg:
    def build(name: str = "run", **options: Any) -> CfgNode:
        cfg = toy_cfg(name, CYCLE__NAME="paper", CYCLE__CYCLES=1, **PRECISE)
        cfg.CYCLE.PHASES = CfgNode(PHASES, new_allowed=True)
        cfg.merge_from_list([x for k, v in options.items() for x in (k.replace("__", "."), v)])
        return cfg

    return build


def batches_of(cfg: CfgNode, each: int) -> list[list[dict[str, Any]]]:
    """The first batches of both tasks."""
    loader, found = build_task_loader(cfg), []
    for task in ("cls", "seg"):
        loader.activate("toy_engine", task)
        found += list(loader)[:each]
    return found


def weights(cfg: CfgNode) -> dict[str, torch.Tensor]:
    return read_weights(Path(cfg.OUTPUT_DIR) / "model_final.safetensors")


class Notes(HookBase):
    """The state after every step, the hook under test included."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def after_step(self) -> None:
        state = self.trainer.model.state_dict()
        self.states.append({name: value.clone() for name, value in state.items()})


def test_the_statistics_are_those_of_all_tasks_by_hand(precise_cfg: MakeCfg):
    """Also those of the final checkpoint, although the last phase saw segmentation only."""
    cfg = precise_cfg()
    trunk = train(cfg).model.trunk
    with torch.no_grad():
        given = [
            trunk[0](torch.stack([i["image"] for i in b])).transpose(0, 1).flatten(1)
            for b in batches_of(cfg, 2)
        ]
    assert len(given) == 4
    whole = torch.cat(given, dim=1)
    saved = weights(cfg)
    assert torch.allclose(saved["trunk.1.running_mean"], whole.mean(1), atol=1e-5)
    assert torch.allclose(saved["trunk.1.running_var"], whole.var(1, unbiased=False), rtol=1e-4)
    seg = torch.cat(given[2:], dim=1)
    assert not torch.allclose(saved["trunk.1.running_mean"], seg.mean(1), atol=1e-4)


def test_only_statistics_change_and_not_where_they_are_locked(precise_cfg: MakeCfg):
    """Of one cycle evaluated after iterations 3 (locked) and 7: the loss sees no difference."""
    plain, precise = Notes(), Notes()
    train(precise_cfg("a", TEST__EVAL_PERIOD=4, TEST__PRECISE_BN__ENABLED=False), also=[plain])
    train(precise_cfg("b", TEST__EVAL_PERIOD=4), also=[precise])
    statistics = {"trunk.1.running_mean", "trunk.1.running_var"}
    for number, (a, b) in enumerate(zip(plain.states, precise.states, strict=True)):
        other = {name for name in a if not torch.equal(a[name], b[name])}
        assert other == (statistics if number == 7 else set()), number


def test_it_comes_before_what_is_evaluated_after_a_slot(precise_cfg: MakeCfg):
    plain, precise = Notes(), Notes()
    options = {"FORGETTING__AFTER": "slot", "FORGETTING__AT_START": False}
    train(precise_cfg("a", TEST__PRECISE_BN__ENABLED=False), also=[plain])
    train(precise_cfg("b", **options), also=[precise])
    name = "trunk.1.running_mean"
    same = [
        torch.equal(a[name], b[name]) for a, b in zip(plain.states, precise.states, strict=True)
    ]
    assert same.index(False) == 2  # the slot of cls ends there


@pytest.mark.parametrize(("stop", "workers"), [(4, 0), (6, 2)])
def test_a_resumed_run_is_the_uninterrupted_one(precise_cfg: MakeCfg, stop: int, workers: int):
    options = {"SOLVER__CHECKPOINT_PERIOD": 3, "TEST__EVAL_PERIOD": 3}
    whole, cut = (precise_cfg(name, **options) for name in ("whole", "cut"))
    cut.DATALOADER.NUM_WORKERS = workers
    train(whole)
    train(cut, die_at=stop)
    assert train(cut, resume=True).start_iter == stop // 3 * 3
    a, b = weights(whole), weights(cut)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_teachers_norms_are_measured_with_its_own_weights(toy_cfg: MakeCfg):
    cfg = toy_cfg(
        **TINY, **PRECISE, MODEL__META_ARCHITECTURE="StudentTeacher", SOLVER__MAX_ITER=4,
        MODEL__FX__TRUNK__STEM="conv", SOLVER__BASE_LR=0.05, TEACHER__MOMENTUM=0.99,
        TEACHER__MOMENTUM_WARMUP=False,
    )  # fmt: skip
    model = train(cfg).model
    assert not any(module.training for module in model.teacher.modules())
    for part in (model, model.teacher):
        probe = copy.deepcopy(part).eval()
        norm = next(m for m in probe.modules() if isinstance(m, nn.BatchNorm2d))
        assert norm.momentum == 0.02
        given: list[torch.Tensor] = []
        norm.register_forward_pre_hook(lambda _, x, to=given: to.append(x[0]))
        with torch.no_grad():
            for batch in batches_of(cfg, 2):
                probe.trunk(probe._images(batch).tensor)
        whole = torch.cat([x.transpose(0, 1).flatten(1) for x in given], dim=1)
        assert torch.allclose(norm.running_mean, whole.mean(1), atol=1e-5)
        assert torch.allclose(norm.running_var, whole.var(1, unbiased=False), rtol=1e-4)


def test_norms_without_a_batch_and_norms_used_twice():
    net = nn.ModuleDict({"once": nn.BatchNorm1d(3), "twice": nn.BatchNorm1d(3)})
    idle = nn.BatchNorm1d(3)
    net["idle"] = idle
    torch.manual_seed(1)
    a, b = torch.randn(50, 3) * 3 + 1, torch.randn(10, 3, 7)
    idle.running_mean.fill_(5.0)
    with _measured(net, list(net.children())):
        net["once"](a), net["twice"](a), net["twice"](b)
    both = torch.cat([a, b.transpose(1, 2).reshape(-1, 3)])
    assert torch.allclose(net["once"].running_mean, a.mean(0), atol=1e-6)
    assert torch.allclose(net["twice"].running_mean, both.mean(0), atol=1e-6)
    assert torch.allclose(net["twice"].running_var, both.var(0, unbiased=False), rtol=1e-5)
    assert (idle.running_mean == 5).all() and (idle.running_var == 1).all()
    assert net["once"].num_batches_tracked == 0


def test_fewer_batches_than_tasks_is_one_line(precise_cfg: MakeCfg):
    with pytest.raises(ConfigError, match=r"NUM_ITER is 1; it is at least 2, one batch"):
        train(precise_cfg(TEST__PRECISE_BN__NUM_ITER=1))
