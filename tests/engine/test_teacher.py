"""The teacher in the real loop: its pace, its files, and runs that are interrupted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from runs import TINY, train

from fx_d2.engine.checkpoint import FxCheckpointer, load_weights
from fx_d2.engine.teacher import MomentumSchedule, TeacherEMAHook, ramp
from fx_d2.engine.trainer import FxTrainer
from fx_d2.engine.weights import read_weights

TEACHER = {
    **TINY,
    "MODEL__META_ARCHITECTURE": "StudentTeacher",
    "SOLVER__MAX_ITER": 6,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "SOLVER__IMS_PER_BATCH": 2,
}


@pytest.fixture
def teacher_cfg(toy_cfg: Callable[..., CfgNode]) -> Callable[..., CfgNode]:
    def build(name: str = "run", **options: Any) -> CfgNode:
        return toy_cfg(name, **{**TEACHER, **options})

    return build


def weights(cfg: CfgNode, name: str = "model_final") -> dict[str, torch.Tensor]:
    return read_weights(Path(cfg.OUTPUT_DIR) / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_momentum_by_hand():
    constant = MomentumSchedule(0.8)
    assert [constant.at(p, 7) for p in (0, 0.5, 1)] == [0.8] * 3
    linear = MomentumSchedule(0.8, 1.0, "linear")
    assert [linear.at(p, 0) for p in (0, 0.25, 1, 2)] == pytest.approx([0.8, 0.85, 1.0, 1.0])
    cosine = MomentumSchedule(0.8, 1.0, "cosine")
    quarter = 0.8 + 0.2 * (1 - math.sqrt(0.5)) / 2
    assert [cosine.at(p, 0) for p in (0, 0.25, 0.5, 1)] == pytest.approx([0.8, quarter, 0.9, 1.0])
    warm = MomentumSchedule(0.8, warmup=True)
    found = [warm.at(0.5, t) for t in (0, 1, 10, 34, 35, 36)]
    assert found == pytest.approx([0.1, 2 / 11, 11 / 20, 35 / 44, 0.8, 0.8])


def test_the_ramp_by_hand():
    assert ramp(0, 10) == pytest.approx(math.exp(-5))
    assert ramp(5, 10) == pytest.approx(math.exp(-1.25))
    assert ramp(10, 10) == ramp(99, 10) == ramp(0, 0) == 1.0


class Watch(HookBase):
    """Follows the average by hand, and looks at every step."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.weights: list[float] = []

    def before_train(self) -> None:
        model = self.trainer.model
        self.by_hand = {n: p.detach().clone() for n, p in model.named_parameters()}

    def after_step(self) -> None:
        model, m = self.trainer.model, self.momentum
        for name, parameter in model.named_parameters():
            self.by_hand[name] = m * self.by_hand[name] + (1 - m) * parameter.detach()
        self.weights.append(model.consistency_weight)
        assert all(p.grad is None for p in model.teacher.parameters())


def test_every_iteration_is_averaged_and_the_teacher_is_nobody_elses(teacher_cfg):
    cfg = teacher_cfg(
        TEACHER__MOMENTUM=0.7, TEACHER__MOMENTUM_WARMUP=False, TEACHER__RAMP_ITERS=4,
        TEACHER__WEIGHT=0.5,
    )  # fmt: skip
    watch = Watch(0.7)
    trainer = train(cfg, also=[watch])
    model = trainer.model
    its = dict(model.teacher.named_parameters())
    assert all(torch.allclose(its[n], v, atol=1e-6) for n, v in watch.by_hand.items())
    assert any(not torch.equal(its[n], p) for n, p in model.named_parameters())
    assert watch.weights == pytest.approx([0.5 * ramp(i, 4) for i in range(6)])
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert not held & {id(p) for p in model.teacher.parameters()}
    assert len(trainer.optimizer.state) <= len(held)
    assert trainer.storage.history("loss_consistency").latest() > 0
    assert trainer.storage.history("teacher_momentum").latest() == 0.7


def test_the_teacher_teaches(teacher_cfg):
    """The same run without the loss gives other weights; the hook alone does not change any."""
    free, held = teacher_cfg("free", TEACHER__WEIGHT=0.0), teacher_cfg("held")
    plain = teacher_cfg("plain", MODEL__META_ARCHITECTURE="FoundationX")
    train(free), train(held), train(plain)
    students = [{n: v for n, v in weights(c).items() if "teacher" not in n} for c in (free, held)]
    assert same(students[0], weights(plain)) and not same(students[1], weights(plain))


@pytest.mark.parametrize("update", ["iteration", "phase"])
def test_a_resumed_run_equals_an_uninterrupted_one(teacher_cfg, update):
    options: dict[str, Any] = {
        "TEACHER__UPDATE": update, "TEACHER__VIEWS": 2, "TEACHER__RAMP_ITERS": 5,
        "TEACHER__MOMENTUM_SCHEDULE": "cosine", "MODEL__FX__SEG__DROPOUT": 0.3,
    }  # fmt: skip
    if update == "phase":
        options |= {"CYCLE__NAME": "cyclic", "CYCLE__MAX_STEPS_PER_PHASE": 3}
    whole, cut = teacher_cfg("whole", **options), teacher_cfg("cut", **options)
    train(whole)
    train(cut, die_at=5)
    assert not (Path(cut.OUTPUT_DIR) / "model_final.safetensors").exists()
    middle = weights(cut, "model_0000003")
    assert train(cut, resume=True).start_iter == 4  # with phases: within the second one
    assert same(weights(whole), weights(cut))
    moved = [n for n, v in weights(cut).items() if not torch.equal(v, middle[n])]
    assert {"teacher", "trunk"} <= {n.split(".")[0] for n in moved}


def test_a_phase_is_averaged_once(teacher_cfg):
    options = {"TEACHER__MOMENTUM": 0.8, "TEACHER__MOMENTUM_WARMUP": False}
    cycle = {"CYCLE__NAME": "cyclic", "CYCLE__MAX_STEPS_PER_PHASE": 3}
    cfg = teacher_cfg(TEACHER__UPDATE="phase", SOLVER__MAX_ITER=7, **options, **cycle)

    class Look(HookBase):
        moved: list[bool] = []
        by_hand: dict[str, torch.Tensor]

        def before_train(self) -> None:
            self.last = self.by_hand = self.copy(self.trainer.model.teacher)

        def copy(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
            return {n: p.detach().clone() for n, p in model.named_parameters()}

        def after_step(self) -> None:
            now = self.copy(self.trainer.model.teacher)
            self.moved.append(not same(now, self.last))
            if self.moved[-1]:
                mine = self.copy(self.trainer.model)
                self.by_hand = {n: 0.8 * v + 0.2 * mine[n] for n, v in self.by_hand.items()}
            self.last = now

    look = Look()
    train(cfg, also=[look])
    assert look.moved == [False, False, True, False, False, True, False]
    assert all(torch.allclose(look.last[n], v, atol=1e-6) for n, v in look.by_hand.items())


def test_a_phase_needs_a_cycle(teacher_cfg):
    with pytest.raises(ValueError, match="TEACHER.UPDATE is 'phase', but .*CYCLE"):
        train(teacher_cfg(TEACHER__UPDATE="phase"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("UPDATE", "epoch"),
        ("BUFFERS", "keep"),
        ("RAMP_ITERS", -1),
        ("MOMENTUM", 1.1),
        ("MOMENTUM_END", -0.1),
        ("MOMENTUM_SCHEDULE", "step"),
    ],
)
def test_wrong_settings(teacher_cfg, key, value):
    with pytest.raises(ValueError, match=rf"TEACHER.{key} (is )?{value!r}"):
        TeacherEMAHook(teacher_cfg(**{f"TEACHER__{key}": value}))


def test_weights_of_a_plain_model_start_both(teacher_cfg, caplog: pytest.LogCaptureFixture):
    plain_cfg, cfg = teacher_cfg("plain", MODEL__META_ARCHITECTURE="FoundationX"), teacher_cfg()
    torch.manual_seed(1)
    plain = build_model(plain_cfg)
    FxCheckpointer(plain, plain_cfg.OUTPUT_DIR, cfg=plain_cfg).save_weights("start")
    file = Path(plain_cfg.OUTPUT_DIR) / "start.safetensors"
    model = build_model(cfg)
    report = load_weights(model, file)
    assert report.complete and len(report.loaded) == 2 * len(plain.state_dict())
    state = plain.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name.removeprefix("teacher.")])
    # And back: a plain model takes the student and says that there was a teacher.
    FxCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg).save_weights("both")
    report = load_weights(plain, Path(cfg.OUTPUT_DIR) / "both.safetensors")
    assert not report.new and len(report.loaded) == len(state)
    assert "left out, not in the model: teacher (" in report.summary()


def test_heads_for_other_classes_are_refused_for_both(teacher_cfg):
    cfg = teacher_cfg()
    model = build_model(cfg)
    FxCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg).save_weights("both")
    model.specs = tuple(
        type(s)(s.source, s.task, ("Low", "Else")[: len(s.classes)], s.kind) for s in model.specs
    )
    report = load_weights(model, Path(cfg.OUTPUT_DIR) / "both.safetensors")
    refused = {name for name, _ in report.other_classes}
    assert {
        "heads.cls.toy_engine.linear.bias",
        "teacher.heads.cls.toy_engine.linear.bias",
    } <= refused
    assert all("heads.cls" in name for name in refused)


def test_a_plain_run_is_not_resumed_with_a_teacher(teacher_cfg):
    train(teacher_cfg(MODEL__META_ARCHITECTURE="FoundationX"), die_at=3)
    with pytest.raises(ValueError, match=r"new, not in the file: teacher \("):
        FxTrainer(teacher_cfg()).resume_or_load(resume=True)


def test_metrics_of_the_teacher_have_a_name_of_their_own(
    teacher_cfg, caplog: pytest.LogCaptureFixture
):
    options = {"TEACHER__EVALUATE": "both", "SOLVER__MAX_ITER": 2, "TEST__FX__BOOTSTRAP": 0}
    cfg = teacher_cfg(**options)
    trainer = FxTrainer(cfg)
    both = FxTrainer.test(cfg, trainer.model)
    heads = {"toy_engine/cls", "toy_engine/seg"}
    assert set(both) == heads | {f"teacher/{head}" for head in heads}
    for head in heads:  # equal weights
        assert both[head] == both[f"teacher/{head}"]
    assert "teacher/toy_engine/cls" in (Path(cfg.OUTPUT_DIR) / "results.json").read_text()
    with torch.no_grad():
        for parameter in trainer.model.teacher.parameters():
            parameter.mul_(-1)
    cfg.TEACHER.EVALUATE = "student"
    assert set(FxTrainer.test(cfg, trainer.model)) == heads
    cfg.TEACHER.EVALUATE = "teacher"
    changed = FxTrainer.test(cfg, trainer.model)
    assert set(changed) == {f"teacher/{head}" for head in heads}
    assert changed["teacher/toy_engine/cls"] != both["teacher/toy_engine/cls"]
    with caplog.at_level(logging.INFO):
        plain = teacher_cfg("plain", MODEL__META_ARCHITECTURE="FoundationX", **options)
        assert set(FxTrainer.test(plain, build_model(plain))) == heads
