"""Detectron2's training loop with what fx_d2 needs in a step and around it."""

from __future__ import annotations

import json
import logging
import math
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import inference_on_dataset, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from fx_d2.data.atomic import write_atomically
from fx_d2.data.build import build_eval_loader, build_task_loader, source_of, tasks_of
from fx_d2.data.draws import draw_key
from fx_d2.data.errors import DataError
from fx_d2.data.source import TASKS
from fx_d2.data.task_loader import Batch, TaskLoader
from fx_d2.evaluation import (
    Results,
    build_evaluator,
    evaluator_options,
    merge_results,
    prefixed,
    write_results,
)
from fx_d2.modeling.meta_arch.student_teacher import StudentTeacher, evaluated_models

from .checkpoint import FxCheckpointer
from .cycle import PhaseAt
from .cycle_config import build_plan, check_same_lines, cycle_choice, with_max_iter
from .forgetting import ForgettingHook
from .hooks import JointMix, KeepBest
from .lock_release import LockReleaseHook, refreshed
from .metric_hooks import EarlyStopping, Plateau, TrainingStopped
from .optimizer import NormClipper, build_optimizer
from .setup import ConfigError
from .teacher import TeacherEMAHook
from .tuning import tune

_logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16")


class NonFiniteLoss(FloatingPointError):
    """A loss is not a number any more; the message is one line and names the saved batch."""


def precision_of(cfg: CfgNode) -> AbstractContextManager[None]:
    """The autocast context of ``SOLVER.FX.PRECISION``, for training and evaluation alike."""
    name = cfg.SOLVER.FX.PRECISION
    if name not in PRECISIONS:
        raise ValueError(f"SOLVER.FX.PRECISION is {name!r}; allowed: {PRECISIONS}")
    if cfg.SOLVER.AMP.ENABLED:
        raise ValueError("SOLVER.AMP is float16 with loss scaling; use SOLVER.FX.PRECISION bf16")
    if name == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=torch.bfloat16)


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """What dropout, drop path and the sampling of regions draw from in a step.

    Seeding every step makes them a function of its number: nothing about random state has to be
    saved to resume a run.
    """
    return draw_key(seed, "step", iteration, rank) % 2**63


class TrainStep:
    """One step: batch, losses, gradients, update.

    Args:
        model: gives named losses for a batch; may be wrapped for distributed training.
        loader: points at what to train; iterated anew by :meth:`begin`.
        optimizer: of all parameters.
        cfg: precision, clipping, seed and output folder.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: TaskLoader,
        optimizer: torch.optim.Optimizer,
        cfg: CfgNode,
    ) -> None:
        self.model, self.data_loader, self.optimizer = model, loader, optimizer
        self.clip = NormClipper.from_config(cfg, TASKS)
        self.iter = 0
        self._cfg = cfg
        self._batches: Iterator[Batch] = iter(())
        precision_of(cfg)

    def begin(self) -> None:
        """Take batches from what the loader now points at."""
        self._batches = iter(self.data_loader)

    def run_step(self) -> None:
        """Train on the next batch, and note its losses."""
        start = time.perf_counter()
        batch = next(self._batches, None)
        if batch is None:
            raise RuntimeError("the loader gives no batch: point it at a task and call begin()")
        waited = time.perf_counter() - start
        torch.manual_seed(step_seed(max(self._cfg.SEED, 0), self.iter, comm.get_rank()))
        try:
            with precision_of(self._cfg):
                losses = self.model(batch)
        except FloatingPointError as exc:  # raised by Detectron2's region proposals
            raise self._stop(batch, {}, " ".join(str(exc).split())) from exc
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        # Read once and after the backward pass was queued: a GPU would wait at each of them.
        values = _mean_over_ranks(losses)
        if not all(map(math.isfinite, values.values())):
            raise self._stop(batch, values, f"the loss is not finite: {values}")
        norm = self.clip(self.model.parameters(), batch[0]["task"])
        if norm is not None and not math.isfinite(float(norm)):
            raise self._stop(batch, values, f"the norm of the gradients is {float(norm)}")
        self.optimizer.step()
        if comm.is_main_process():
            self._note(batch, values, norm, waited)

    def _note(
        self,
        batch: Batch,
        values: Mapping[str, float],
        norm: torch.Tensor | None,
        waited: float,
    ) -> None:
        storage = get_event_storage()
        total = sum(values.values())
        storage.put_scalars(total_loss=total, data_time=waited, **values)
        # Losses of different sources are not on one curve.
        storage.put_scalar(f"total/{batch[0]['source']}/{batch[0]['task']}", total)
        if norm is not None:
            storage.put_scalar("grad_norm", float(norm))

    def _stop(self, batch: Batch, values: Mapping[str, float], why: str) -> NonFiniteLoss:
        """Save which images it was, before the weights are touched."""
        file = Path(self._cfg.OUTPUT_DIR) / f"bad_batch_{self.iter:07d}_{comm.get_rank()}.json"
        about = {
            "iteration": self.iter,
            "source": batch[0]["source"],
            "task": batch[0]["task"],
            "why": why,
            "losses": {name: repr(value) for name, value in values.items()},
            "images": [{"image_id": i["image_id"], "file_name": i["file_name"]} for i in batch],
        }
        write_atomically(file, json.dumps(about, indent=1) + "\n")
        return NonFiniteLoss(
            f"iteration {self.iter}, {batch[0]['source']}/{batch[0]['task']}: {why}; its image ids "
            f"are in {file}. To do: look at these images, lower SOLVER.BASE_LR or set "
            "SOLVER.FX.CLIP_NORM, and resume from the last checkpoint"
        )


def _mean_over_ranks(losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The losses as numbers; all ranks get the same, so that they go on or stop together."""
    stacked = torch.stack([value.detach().float() for value in losses.values()])
    if comm.get_world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= comm.get_world_size()
    return dict(zip(losses, stacked.tolist(), strict=True))


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
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
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
        self._trainer = TrainStep(_distributed(model), loader, optimizer, cfg)
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
        teacher before the checkpoint, which holds those of the next step; the checkpoint before the
        evaluations, which may fail; the best one after it; the writers see everything
        before a run may be stopped early.
        """
        cfg, main = self.cfg, comm.is_main_process()
        result = [hooks.IterationTimer(), self.schedule_hook(), hooks.LRScheduler()]
        if isinstance(_unwrapped(self.model), StudentTeacher):
            result.append(TeacherEMAHook(cfg))
        if main:
            result.append(
                hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            )
        result.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if main and cfg.SOLVER.FX.BEST_METRIC:
            best = tuple(cfg.SOLVER.FX.BEST_METRIC)
            fx = cfg.SOLVER.FX
            result.append(KeepBest(self.checkpointer, best, fx.BEST_MODE, fx.KEEP_BEST))
        if cfg.SOLVER.FX.PLATEAU.PATIENCE:
            result.append(Plateau(cfg.SOLVER.FX.PLATEAU, cfg.TEST.EVAL_PERIOD, self._evaluate))
        if cfg.FORGETTING.AFTER:
            result.append(ForgettingHook(cfg))
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
            write_results(results, cfg.OUTPUT_DIR)
        return results

    @classmethod
    def scores(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Results:
        """Evaluate the datasets of ``DATASETS.TEST`` with the heads of their sources.

        Args:
            cfg: of the run.
            model: with the weights to evaluate; may be wrapped.
            evaluators: one per dataset, in place of those of the package.

        Returns:
            ``{"<source>/<task>": {metric: figure}}`` in the main process, empty elsewhere; where
            ``TEACHER.EVALUATE`` asks for the teacher, its keys begin with ``teacher/``.
        """
        results, plain = Results(), _unwrapped(model)
        for who in evaluated_models(plain, cfg.TEACHER.EVALUATE):
            with plain.answering(who) if isinstance(plain, StudentTeacher) else nullcontext():
                found = cls._scores_of_one(cfg, model, evaluators)
            results.add(prefixed(found, f"{who}/") if who == "teacher" else found)
        return results

    @classmethod
    def _scores_of_one(cls, cfg: CfgNode, model: nn.Module, evaluators: Any) -> Results:
        by_dataset: dict[str, Results] = {}
        for number, name in enumerate(cfg.DATASETS.TEST):
            source = source_of(name)
            tasks = _evaluated(cfg, name, model)
            loader = build_eval_loader(cfg, name, tasks)
            evaluator = (
                evaluators[number]
                if evaluators
                else build_evaluator(
                    name, tasks, records=loader.records, options=evaluator_options(cfg, name)
                )
            )
            heads = [(source.key, task) for task in tasks]
            with _asking(model, heads), precision_of(cfg):
                by_dataset[name] = inference_on_dataset(_unwrapped(model), loader, evaluator)
            if loader.skipped:
                _logger.warning("%s: %d images left out", name, len(loader.skipped))
        return merge_results(by_dataset) if comm.is_main_process() else Results()


def check_heads(cfg: CfgNode, model: nn.Module) -> None:
    """Raise when a dataset to evaluate has no head; at the end of training it would be too late."""
    for name in cfg.DATASETS.TEST:
        _evaluated(cfg, name, model)


def _evaluated(cfg: CfgNode, name: str, model: nn.Module) -> tuple[str, ...]:
    """The tasks of a dataset that the model has heads for."""
    source = source_of(name)
    specs = getattr(_unwrapped(model), "specs", None)
    tasks = tasks_of(cfg, source)
    if specs is not None:
        there = {(spec.source, spec.task) for spec in specs}
        tasks = tuple(task for task in tasks if (source.key, task) in there)
    if not tasks:
        raise ConfigError(
            f"DATASETS.TEST names {name!r}, but the model has no head for {source.key}; it has "
            + ", ".join(spec.name for spec in specs or ())
        )
    return tasks


def _unwrapped(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return cast(nn.Module, model.module)
    return model


def _asking(model: nn.Module, heads: list[tuple[str, str]]) -> AbstractContextManager[Any]:
    """Only the heads with a truth are run, where the model can be asked."""
    asking = getattr(_unwrapped(model), "asking", None)
    return nullcontext() if asking is None else asking(heads)


def _distributed(model: nn.Module) -> nn.Module:
    """Wrapped for several processes; a step uses one head, so most parameters have no gradient."""
    on_gpu = next(model.parameters()).is_cuda
    return create_ddp_model(
        model,
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=[comm.get_local_rank()] if on_gpu else None,
    )


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
