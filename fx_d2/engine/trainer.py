"""Detectron2's training loop with what fx_d2 needs in a step and around it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from fx_d2.data.build import build_task_loader
from fx_d2.data.errors import DataError
from fx_d2.data.task_loader import TaskLoader
from fx_d2.evaluation import (
    Results,
    write_results,
)
from fx_d2.modeling.meta_arch.student_teacher import StudentTeacher

from .checkpoint import FxCheckpointer
from .checks import check_heads
from .cycle import PhaseAt
from .cycle_config import build_plan, check_same_lines, cycle_choice, with_max_iter
from .forgetting import ForgettingHook
from .hooks import Checkpoints, JointMix, KeepBest, KeepEpochs
from .lock_release import LockReleaseHook, refreshed
from .metric_hooks import EarlyStopping, Plateau, TrainingStopped
from .optimizer import build_optimizer
from .precise_bn import PreciseBN
from .prevalence import reweighting, with_prevalence
from .ranks import start_equal
from .scoring import score, unwrapped
from .setup import ConfigError
from .step import NonFiniteLoss, TrainStep
from .teacher import TeacherEMAHook
from .tuning import tune

_logger = logging.getLogger(__name__)


class FxTrainer(DefaultTrainer):
    """Trains the model of a config on its sources and tasks, by a cycle or in a mix.

    ::

        trainer = FxTrainer(cfg)
        trainer.resume_or_load(resume=True)
        results = trainer.train()

    Args:
        cfg: with the keys of :func:`fx_d2.config.add_fx_config`.

    Attributes:
        plan: what is trained, and for how long.
        phase: of the cycle that the current step belongs to; None in joint training.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own would iterate the loader at once
        cfg = with_prevalence(self.auto_scale_workers(cfg, comm.get_world_size()))
        self.cfg = cfg
        torch.manual_seed(max(cfg.SEED, 0))
        # Everything is built released and locked later: the optimizer has to know all parameters.
        model = self.build_model(cfg)
        check_heads(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        tune(cfg, model)
        loader = self.build_train_loader(cfg)
        self.plan = build_plan(cfg, loader)
        self.phase: PhaseAt | None = None
        self.cfg = cfg = with_max_iter(cfg, self.plan.max_iter)
        self._trainer = TrainStep(model, loader, optimizer, cfg)
        self.scheduler = refreshed(
            cfg, self.build_lr_scheduler(cfg, optimizer), optimizer, self.plan.schedule
        )
        self.checkpointer = FxCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            cfg=cfg,
            keep_last=cfg.SOLVER.FX.KEEP_LAST,
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.evaluated_at = -1
        self._last_eval_results = Results()
        self.register_hooks(self.build_hooks())

    def begin_batches(self) -> None:
        """For hooks: take batches from what the loader was pointed at."""
        self._trainer.begin()

    def schedule_hook(self) -> hooks.HookBase:
        """What points the loader at (source, task); a subclass may train by another schedule."""
        if self.plan.schedule is None:
            return JointMix(self.cfg)
        return LockReleaseHook(self.plan.schedule, cycle_choice(self.cfg, "LOCKED_LAYERS"))

    def build_hooks(self) -> list[hooks.HookBase]:
        """The hooks, in their order.

        The schedule comes before anything that could take a batch; the learning rate and the
        teacher before the checkpoint, which holds those of the next step; so do the norms that an
        evaluation measures anew, after the teacher has moved; the checkpoint before the
        evaluations, which may fail; the best one after it; the writers see everything
        before a run may be stopped early.
        """
        cfg, main = self.cfg, comm.is_main_process()
        result = [hooks.IterationTimer(), self.schedule_hook(), hooks.LRScheduler()]
        if isinstance(unwrapped(self.model), StudentTeacher):
            result.append(TeacherEMAHook(cfg))
        if late_weights := reweighting(cfg, unwrapped(self.model)):
            result.append(late_weights)
        forgetting = ForgettingHook(cfg) if cfg.FORGETTING.AFTER else None
        if cfg.TEST.PRECISE_BN.ENABLED:
            result.append(PreciseBN(cfg, forgetting.is_due if forgetting else lambda: False))
        if main:
            result.append(Checkpoints(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
            if cfg.SOLVER.FX.KEEP_EPOCHS:
                result.append(KeepEpochs(self.checkpointer, cfg.CYCLE.CYCLES, self.max_iter))
        result.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if main and cfg.SOLVER.FX.BEST_METRIC:
            best = tuple(cfg.SOLVER.FX.BEST_METRIC)
            fx = cfg.SOLVER.FX
            result.append(KeepBest(self.checkpointer, best, fx.BEST_MODE, fx.KEEP_BEST))
        if cfg.SOLVER.FX.PLATEAU.PATIENCE:
            result.append(Plateau(cfg.SOLVER.FX.PLATEAU, cfg.TEST.EVAL_PERIOD, self._evaluate))
        if forgetting:
            result.append(forgetting)
        if main:
            writers = self.build_writers()
            result.append(hooks.PeriodicWriter(writers, period=cfg.SOLVER.FX.LOG_PERIOD))
        if cfg.SOLVER.FX.EARLY_STOP.PATIENCE:
            stop = cfg.SOLVER.FX.EARLY_STOP
            result.append(EarlyStopping(stop, cfg.TEST.EVAL_PERIOD, self._evaluate))
        return result

    def _evaluate(self) -> Results:
        self._last_eval_results = self.test(self.cfg, self.model)
        self.evaluated_at = min(self.iter, self.max_iter - 1)
        self.checkpointer.add_metrics(
            flatten_results_dict(self._last_eval_results), self.evaluated_at
        )
        return self._last_eval_results

    def train(self) -> Results:
        """Train to ``SOLVER.MAX_ITER``; the results of the last evaluation.

        ``TEST.EXPECTED_RESULTS`` are verified in the main process.
        """
        self.model.train()
        start_equal(self.model, self.start_iter)
        with _one_line_errors():
            try:
                TrainerBase.train(self, self.start_iter, self.max_iter)
            except TrainingStopped as stopped:
                _logger.info("%s", stopped)
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside weights.

        Detectron2 0.6 leaves the optimizer out, and under recent torch the schedule too.
        """
        state = TrainerBase.state_dict(self)
        state["optimizer"] = self.optimizer.state_dict()
        state["scheduler"] = self.scheduler.state_dict()
        state["schedule"] = self.plan.lines
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; a run by another schedule is refused."""
        check_same_lines(state_dict.get("schedule", self.plan.lines), self.plan.lines)
        TrainerBase.load_state_dict(self, state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.scheduler.load_state_dict(state_dict["scheduler"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``."""
        model = build_model(cfg)
        count = sum(p.numel() for p in model.parameters())
        heads = ", ".join(spec.name for spec in getattr(model, "specs", ()))
        _logger.info("%s, %.1f M parameters; heads: %s", type(model).__name__, count / 1e6, heads)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`fx_d2.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TaskLoader:
        """See :func:`fx_d2.data.build.build_task_loader`; no task is active yet."""
        return build_task_loader(cfg)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Results:
        """:meth:`scores`, also written to the output folder."""
        results = cls.scores(cfg, model, evaluators)
        if results and cfg.OUTPUT_DIR:
            write_results(results, cfg.OUTPUT_DIR, per_image=cfg.TEST.FX.PER_IMAGE)
        return results

    @classmethod
    def scores(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Results:
        """See :func:`fx_d2.engine.scoring.score`."""
        return score(cfg, model, evaluators)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Detectron2's loop logs a traceback of everything; errors for users say it in one line."""
    log = logging.getLogger("detectron2.engine.train_loop")

    def not_for_users(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (DataError, ConfigError, NonFiniteLoss, TrainingStopped))

    log.addFilter(not_for_users)
    try:
        yield
    finally:
        log.removeFilter(not_for_users)
