"""The teacher's pace: how much of it stays at an update, and how strongly it holds the student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from detectron2.engine import HookBase
from torch import nn

from fx_d2.modeling.meta_arch.student_teacher import BUFFERS, StudentTeacher

from .cycle import choose
from .cycle_config import JOINT, cycle_choice
from .setup import ConfigError

UPDATES = ("iteration", "phase")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class MomentumSchedule:
    """The share of the teacher that stays at an update.

    Args:
        start: at the beginning of the run.
        end: at its end.
        kind: ``constant`` (always ``start``), ``linear`` or ``cosine``.
        warmup: whether update t is bounded by (1 + t) / (10 + t).
    """

    start: float
    end: float = 1.0
    kind: str = "constant"
    warmup: bool = False

    def __post_init__(self) -> None:
        for key, value in (("MOMENTUM", self.start), ("MOMENTUM_END", self.end)):
            if not 0 <= value <= 1:
                raise ValueError(f"TEACHER.{key} is {value}; it is in [0, 1]")
        choose(self.kind, SCHEDULES, "TEACHER.MOMENTUM_SCHEDULE")

    def at(self, progress: float, updates: int) -> float:
        """The momentum of an update.

        Args:
            progress: of the run, from 0 to 1.
            updates: how many there were before.
        """
        done = min(max(progress, 0.0), 1.0)
        if self.kind == "constant":
            share = 0.0
        else:
            share = done if self.kind == "linear" else (1 - math.cos(math.pi * done)) / 2
        value = self.start + (self.end - self.start) * share
        return min(value, (1 + updates) / (10 + updates)) if self.warmup else value


def ramp(iteration: int, length: int) -> float:
    """From exp(-5) at iteration 0 to 1 at ``length``; 1 from the start when that is 0."""
    if iteration >= length:
        return 1.0
    return math.exp(-5 * (1 - iteration / length) ** 2)


class TeacherEMAHook(HookBase):
    """Lets the teacher follow the student, after every iteration or every phase of a cycle.

    Stands before the checkpoint, which holds the teacher of the step it is of. The number of
    updates is all its state.

    Args:
        cfg: with ``TEACHER``.
    """

    def __init__(self, cfg: Any) -> None:
        node = cfg.TEACHER
        choose(node.UPDATE, UPDATES, "TEACHER.UPDATE")
        choose(node.BUFFERS, BUFFERS, "TEACHER.BUFFERS")
        if node.UPDATE == "phase" and cycle_choice(cfg, "ORDER") == JOINT:
            raise ConfigError(
                "TEACHER.UPDATE is 'phase', but without a CYCLE there are no phases; name a cycle "
                "or set TEACHER.UPDATE iteration"
            )
        if node.RAMP_ITERS < 0:
            raise ValueError(f"TEACHER.RAMP_ITERS is {node.RAMP_ITERS}; it is at least 0")
        self._schedule = MomentumSchedule(
            start=float(node.MOMENTUM),
            end=float(node.MOMENTUM_END),
            kind=node.MOMENTUM_SCHEDULE,
            warmup=node.MOMENTUM_WARMUP,
        )
        self._update, self._buffers = node.UPDATE, node.BUFFERS
        self._ramp_iters = int(node.RAMP_ITERS)
        self._updates = 0

    def state_dict(self) -> dict[str, int]:
        """The number of updates so far."""
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._updates = int(state_dict["updates"])

    def before_step(self) -> None:
        """Set the weight of the consistency loss."""
        model = self._model()
        model.consistency_weight = model.weight * ramp(self._trainer.iter, self._ramp_iters)

    def after_step(self) -> None:
        """Move the teacher when it is time."""
        trainer = self._trainer
        if self._update == "phase" and not self._phase_is_over():
            return
        progress = (trainer.iter + 1) / max(trainer.max_iter, 1)
        momentum = self._schedule.at(progress, self._updates)
        self._model().update_teacher(momentum, self._buffers)
        self._updates += 1
        trainer.storage.put_scalar("teacher_momentum", momentum, smoothing_hint=False)

    @property
    def _trainer(self) -> Any:
        return self.trainer

    def _model(self) -> StudentTeacher:
        model = self._trainer.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        return cast(StudentTeacher, model)

    def _phase_is_over(self) -> bool:
        phase = getattr(self._trainer, "phase", None)
        assert phase is not None  # without a cycle the config was refused
        return bool(phase.last == self._trainer.iter)
