"""Runs of the real loop that may die, and a tiny FoundationX for the toy source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from fx_d2.engine.trainer import FxTrainer

# Options of the fixture ``toy_cfg``; the meta-architecture is the test's.
TINY: dict[str, Any] = {
    "MODEL__PIXEL_MEAN": [0.5, 0.5, 0.5],
    "MODEL__PIXEL_STD": [0.25, 0.25, 0.25],
    "MODEL__BACKBONE__NAME": "build_timm_backbone",
    "MODEL__FX__TRUNK__NAME": "swin_t",
    "MODEL__FX__TRUNK__KWARGS": {
        "embed_dim": 24,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
    },
    "MODEL__FX__SEG__CHANNELS": 16,
    "MODEL__SEM_SEG_HEAD__NAME": "MultiSourceSegHead",
    "INPUT__FX__SIZE": 64,
}


class Stop(Exception):
    """Stands for a machine that dies."""


class DieAt(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise Stop


def train(
    cfg: CfgNode,
    *,
    resume: bool = False,
    die_at: int | None = None,
    also: Sequence[HookBase] = (),
) -> FxTrainer:
    """Train to the end, or until the machine dies before iteration ``die_at``."""
    trainer = FxTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.register_hooks(list(also))
    if die_at is None:
        trainer.train()
        return trainer
    trainer.register_hooks([DieAt(die_at)])
    with pytest.raises(Stop):
        trainer.train()
    return trainer
