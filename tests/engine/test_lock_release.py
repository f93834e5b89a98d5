"""The cycle as it runs, on the toy source: 12 images in batches of 4.

A cycle is cls release (3 iterations), seg lock on half (2), seg release (3): 8 iterations.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.engine.lock_release import LockReleaseHook
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.trainer import FxTrainer

MakeCfg = Callable[..., CfgNode]
PHASES = {
    "cls": [{"name": "release", "train": ["backbone", "cls_head"]}],
    "seg": [
        {"name": "lock", "share": 0.5, "train": ["seg_head"]},
        {"name": "release", "share": 1.0, "train": ["backbone", "seg_head"]},
    ],
}


@pytest.fixture
def cycle_cfg(toy_cfg: MakeCfg) -> MakeCfg:
    """Two cycles of the toy source; ToyChest has no segmentation decoder."""

    def build(name: str = "run", **options: Any) -> CfgNode:
        cfg = toy_cfg(name, CYCLE__NAME="paper", CYCLE__CYCLES=2)
        cfg.CYCLE.PHASES = CfgNode(PHASES, new_allowed=True)
        cfg.merge_from_list([x for k, v in options.items() for x in (k.replace("__", "."), v)])
        return cfg

    return build


class Notes(HookBase):
    """What every iteration saw, and the model after it."""

    def __init__(self, die_at: int | None = None) -> None:
        self.images: dict[int, list[str]] = {}
        self.states: dict[int, dict[str, torch.Tensor]] = {}
        self.phases: dict[int, Any] = {}
        self.trained: dict[int, set[str]] = {}
        self.rates: dict[int, float] = {}
        self.die_at = die_at

    def before_train(self) -> None:
        loader = self.trainer.data_loader
        checked = loader._checked

        def noted(batch: Any) -> Any:
            self.images[self.trainer.iter] = [item["image_id"] for item in batch]
            return checked(batch)

        loader._checked = noted

    def before_step(self) -> None:
        trainer = self.trainer
        if trainer.iter == self.die_at:
            raise KeyboardInterrupt
        self.phases[trainer.iter] = trainer.phase
        named = trainer.model.named_parameters()
        self.trained[trainer.iter] = {n.rpartition(".")[0] for n, p in named if p.requires_grad}
        self.rates[trainer.iter] = trainer.optimizer.param_groups[0]["lr"]

    def after_step(self) -> None:
        state = self.trainer.model.state_dict()
        self.states[self.trainer.iter] = {k: v.clone() for k, v in state.items()}


def train(
    cfg: CfgNode, *, resume: bool = False, die_at: int | None = None
) -> tuple[FxTrainer, Notes]:
    trainer, notes = FxTrainer(cfg), Notes(die_at)
    trainer.register_hooks([notes])
    trainer.resume_or_load(resume=resume)
    if die_at is None:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return trainer, notes


def sha256(cfg: CfgNode, name: str = "model_final") -> str:
    file = Path(cfg.OUTPUT_DIR) / f"{name}.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def changed(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}


def test_a_run_follows_the_cycle(cycle_cfg: MakeCfg):
    cfg = cycle_cfg(TEST__EVAL_PERIOD=4, SOLVER__WEIGHT_DECAY=0.1)  # evaluates within a lock phase
    trainer, notes = train(cfg)
    assert trainer.max_iter == 16 == trainer.cfg.SOLVER.MAX_ITER and cfg.SOLVER.MAX_ITER == 12
    names = [f"{notes.phases[i].phase.task} {notes.phases[i].phase.name}" for i in range(16)]
    assert names == (["cls release"] * 3 + ["seg lock"] * 2 + ["seg release"] * 3) * 2
    assert [notes.phases[i].cycle_index for i in range(16)] == [0] * 8 + [1] * 8
    trunk = {"trunk.0", "trunk.1"}
    cls, seg = "heads.cls.toy_engine", "heads.seg.toy_engine"
    per_phase = {
        "cls release": {*trunk, cls},
        "seg lock": {seg},
        "seg release": {*trunk, seg},
    }
    for i, name in enumerate(names):
        assert notes.trained[i] == per_phase[name]
    for i in range(1, 16):
        # Parameters and buffers of what is locked are bit-identical, although the trunk has
        # momentum and weight decay and the evaluation after iteration 3 changed all modes.
        moved = changed(notes.states[i - 1], notes.states[i])
        assert moved == ({"heads"} if "lock" in names[i] else {"trunk", "heads"})
        a, b = (
            {k: v for k, v in notes.states[j].items() if k.startswith("heads")} for j in (i - 1, i)
        )
        idle = "heads.cls" if names[i].startswith("seg") else "heads.seg"
        assert not [k for k in a if k.startswith(idle) and not torch.equal(a[k], b[k])]
    assert all(p.requires_grad for p in trainer.model.parameters())
    numbers = [number for number, _ in trainer.storage.history("phase").values()]
    assert numbers == [0] * 3 + [1] * 2 + [2] * 3 + [3] * 3 + [4] * 2 + [5] * 3


def test_halves_are_those_of_the_seed_and_the_cycle(cycle_cfg: MakeCfg):
    _, notes = train(cycle_cfg())
    everything = {f"train_{i:02d}" for i in range(12)}

    def shown(*iterations: int) -> set[str]:
        return {name for i in iterations for name in notes.images[i]}

    assert shown(0, 1, 2) == shown(5, 6, 7) == everything
    # 6 images fill 2 batches of 4 with the first two again; the second cycle has the other half.
    first, second = shown(3, 4), shown(11, 12)
    assert len(first) == len(second) == 6 and first | second == everything
    _, again = train(cycle_cfg("again"))
    assert again.images == notes.images
    _, other = train(cycle_cfg("other", SEED=5))
    assert {n for i in (3, 4) for n in other.images[i]} != first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [4, 7, 12])  # within a lock phase, a release phase, the next cycle
def test_a_resumed_run_is_the_uninterrupted_one(cycle_cfg: MakeCfg, workers: int, stop: int):
    options = {"SOLVER__CHECKPOINT_PERIOD": 2, "TEST__EVAL_PERIOD": 5}
    whole = cycle_cfg("whole", **options)
    _, notes = train(whole)
    cut = cycle_cfg("cut", DATALOADER__NUM_WORKERS=workers, **options)
    train(cut, die_at=stop)
    trainer, later = train(cut, resume=True)
    start = trainer.start_iter
    assert start == stop // 2 * 2 and start not in (0, 16)
    assert later.phases == {i: notes.phases[i] for i in range(start, 16)}
    assert sha256(whole) == sha256(cut)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if "events" not in p.name}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"CYCLE__MAX_STEPS_PER_PHASE": 1}, ["12 images, 3 steps", "4 images, 1 steps"]),
        ({"CYCLE__SLOTS": ("*/seg",)}, ["toy_engine/cls release", "toy_engine/seg lock"]),
        ({"CYCLE__ORDER": "sequential"}, ["'cyclic'", "'sequential, 2 times each'"]),
        ({"DATASETS__TRAIN": ("toy_engine_train", "toy_engine_val")}, ["12 images", "20 images"]),
        ({"CYCLE__NAME": "joint", "CYCLE__ORDER": "joint"}, ["'cyclic'", "joint training"]),
    ],
)
def test_another_schedule_is_refused(cycle_cfg: MakeCfg, options, told):
    cfg = cycle_cfg()
    train(cfg, die_at=7)
    before = snapshot(Path(cfg.OUTPUT_DIR))
    trainer = FxTrainer(cycle_cfg(**options))
    with pytest.raises(CheckpointError) as error:
        trainer.resume_or_load(resume=True)
    for words in (*told, "resume with its own config", "OUTPUT_DIR"):
        assert words in str(error.value), str(error.value)
    assert "\n" not in str(error.value)
    assert snapshot(Path(cfg.OUTPUT_DIR)) == before


def test_joint_is_not_continued_as_a_cycle(cycle_cfg: MakeCfg, toy_cfg: MakeCfg):
    train(toy_cfg(), die_at=7)
    with pytest.raises(
        CheckpointError, match="'cyclic'.*expected 'joint training of toy_engine_train'"
    ):
        FxTrainer(cycle_cfg()).resume_or_load(resume=True)


def test_a_run_can_have_more_cycles(cycle_cfg: MakeCfg):
    constant = {"SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR", "SOLVER__STEPS": (999,)}
    constant["SOLVER__WARMUP_ITERS"] = 0
    long, short = cycle_cfg("long", **constant), cycle_cfg("short", CYCLE__CYCLES=1, **constant)
    train(long)
    train(short)
    short.CYCLE.CYCLES = 2
    trainer, _ = train(short, resume=True)
    assert trainer.start_iter == 8 and sha256(long) == sha256(short)


def test_a_cycle_is_cut_by_max_iter(cycle_cfg: MakeCfg):
    trainer, notes = train(cycle_cfg(CYCLE__CYCLES=0))
    assert trainer.max_iter == 12 and notes.phases[11].phase.name == "lock"


def test_the_learning_rate_per_cycle(cycle_cfg: MakeCfg):
    options = {"SOLVER__WARMUP_ITERS": 0}
    _, by_step = train(cycle_cfg("step", **options))
    cfg = cycle_cfg("cycle", CYCLE__LR_PER="cycle", SOLVER__CHECKPOINT_PERIOD=4, **options)
    train(cfg, die_at=10)
    _, second = train(cfg, resume=True)
    _, by_cycle = train(cycle_cfg("whole", CYCLE__LR_PER="cycle", **options))
    assert len(set(by_step.rates.values())) == 16
    expected = [by_step.rates[0]] * 8 + [by_step.rates[8]] * 8
    assert list(by_cycle.rates.values()) == expected
    assert list(second.rates.values()) == expected[8:]


def test_locked_layers_of_the_released_code(cycle_cfg: MakeCfg):
    _, notes = train(cycle_cfg(CYCLE__LOCKED_LAYERS="train", CYCLE__CYCLES=1))
    before, after = notes.states[2], notes.states[4]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if name.startswith("trunk")} == {
        *("trunk.1.running_mean", "trunk.1.running_var", "trunk.1.num_batches_tracked")
    }


def test_groups_and_parameters_have_to_agree(cycle_cfg: MakeCfg):
    cfg = cycle_cfg()
    cfg.CYCLE.PHASES = CfgNode()
    with pytest.raises(ConfigError, match=r"seg release trains.*'seg_decoder'.*no parameter"):
        FxTrainer(cfg).train()
    cfg = cycle_cfg()
    parts = {"backbone": ["trunk.0.*"], "cls_head": ["heads.cls.*"], "seg_head": ["heads.seg.*"]}
    cfg.CYCLE.GROUPS = CfgNode(parts, new_allowed=True)
    with pytest.raises(ConfigError, match=r"parameter trunk.1.weight is in no group"):
        FxTrainer(cfg).train()
    cfg.CYCLE.GROUPS.backbone = ["trunk.*", "trnk.*"]
    with pytest.raises(ConfigError, match=r"CYCLE.GROUPS.*'trnk.\*'"):
        FxTrainer(cfg).train()


def test_the_log_tells_what_is_trained(cycle_cfg: MakeCfg, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="fx_d2"):
        trainer, _ = train(cycle_cfg(CYCLE__CYCLES=1))
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("lock_release")]
    assert lines[1] == (
        "iteration 3: cycle 1, slot 2 of 2, toy_engine/seg lock, share 0.5 in 2 iterations; trains "
        "seg_head (9 parameters)"
    )
    assert len(lines) == 3
    assert any(isinstance(hook, LockReleaseHook) for hook in trainer._hooks)
