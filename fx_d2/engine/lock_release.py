"""Lock-release: the hook that makes a cycle happen, and the learning rate that goes with it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from fx_d2.modeling.freeze import NamePatterns, group_parameters, set_trainable

from .cycle import Cycle, PhaseAt, Schedule
from .cycle_config import cycle_choice
from .setup import config_errors

_logger = logging.getLogger(__name__)


def patterns_by_group(cycle: Cycle, model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The parameters of each group of a cycle, by name.

    Raises:
        ValueError: a parameter is in no group or in several, a pattern of the config names none,
            or a phase trains a group of which the model has nothing.
    """
    groups = {name: row.patterns for name, row in cycle.groups.items()}
    members = group_parameters(model, groups)
    for name, row in cycle.groups.items():
        idle = NamePatterns(row.patterns).idle(n for names in members.values() for n in names)
        if idle and not row.optional:
            raise ValueError(f"CYCLE.GROUPS.{name}: {idle[0]!r} names no parameter of the model")
    for slot in cycle.slots:
        for phase in slot.phases:
            for group in phase.trainable:
                if not members[group]:
                    raise ValueError(
                        f"phase {phase.title} trains the group {group!r}, but no parameter of the "
                        f"model matches {' '.join(groups[group])}"
                    )
    return members


class LockReleaseHook(HookBase):
    """Follows a schedule: at a change of phase locks, releases, and points the loader.

    ``trainer.phase`` is the :class:`PhaseAt` of the step from ``before_step`` on. The hook has no
    state: where a resumed run stands is a function of its iteration.

    Args:
        schedule: of the run.
        layers: see :func:`fx_d2.modeling.freeze.set_trainable`.
    """

    def __init__(self, schedule: Schedule, layers: str = "eval") -> None:
        self._schedule, self._layers = schedule, layers
        self._members: dict[str, tuple[str, ...]] = {}
        self._now: PhaseAt | None = None

    @property
    def _model(self) -> nn.Module:
        trainer: Any = self.trainer
        model = trainer.model
        wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
        return model.module if wrapped else model

    def before_train(self) -> None:
        """Compare groups and parameters before the first step."""
        with config_errors():
            self._members = patterns_by_group(self._schedule.cycle, self._model)
        self._now = None

    def before_step(self) -> None:
        """Enter the phase of this step where it is another than before."""
        trainer: Any = self.trainer
        if self._now is None or not self._now.first <= trainer.iter <= self._now.last:
            self._now = self._schedule.phase_at(trainer.iter)
            self._enter(self._now)
        trainer.phase = self._now
        trainer.storage.put_scalar("phase", self._now.number, smoothing_hint=False)

    def _enter(self, at: PhaseAt) -> None:
        trainer: Any = self.trainer
        phase = at.phase
        names = [name for group in phase.trainable for name in self._members[group]]
        values = set_trainable(self._model, names, layers=self._layers)
        trainer.data_loader.activate(
            phase.source,
            phase.task,
            fraction=phase.share,
            pass_index=at.pass_index,
            start_step=trainer.iter - at.first,
        )
        trainer.begin_batches()
        _logger.info(
            "iteration %d: cycle %d, slot %d of %d, %s, share %.4g in %d iterations; trains %s (%s "
            "parameters)",
            *(trainer.iter, at.cycle_index + 1, at.slot_index + 1),
            *(len(self._schedule.cycle.slots), phase.title, phase.share, at.steps),
            *(", ".join(phase.trainable), f"{values:,}"),
        )

    def after_train(self) -> None:
        """Release everything and stop the loader's workers."""
        trainer: Any = self.trainer
        set_trainable(self._model, ["*"])
        trainer.data_loader.close()


class _PerCycle(ParamScheduler):
    """The value that another scheduler has where the cycle begins."""

    def __init__(self, inner: ParamScheduler, schedule: Schedule, max_iter: int) -> None:
        self._inner, self._schedule, self._max_iter = inner, schedule, max_iter

    def __call__(self, where: float) -> float:
        # ``where`` is iteration / max_iter; LRMultiplier also asks for the one after the last.
        iteration = min(round(where * self._max_iter), self._max_iter - 1)
        return self._inner(self._schedule.cycle_start(iteration) / self._max_iter)


def refreshed(
    cfg: Any, scheduler: Any, optimizer: torch.optim.Optimizer, schedule: Schedule | None
) -> Any:
    """A Detectron2 scheduler whose rates change every step, or only where a cycle begins.

    Args:
        cfg: with ``CYCLE.LR_PER``.
        scheduler: as Detectron2 builds it.
        optimizer: whose rates.
        schedule: tells where cycles begin; None in joint training.
    """
    if schedule is None or cycle_choice(cfg, "LR_PER") == "step":
        return scheduler
    inner = getattr(scheduler, "_multiplier", None)
    if not isinstance(inner, ParamScheduler):
        raise ValueError(
            f"CYCLE.LR_PER is 'cycle', which {type(scheduler).__name__} cannot do; use 'step'"
        )
    max_iter = cfg.SOLVER.MAX_ITER
    return LRMultiplier(optimizer, _PerCycle(inner, schedule, max_iter), max_iter)
