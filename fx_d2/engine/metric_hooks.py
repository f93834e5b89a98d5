"""Learning rate and end of a run by a metric of its evaluations."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from .hooks import chosen_mean, sign_of

_logger = logging.getLogger(__name__)


class TrainingStopped(Exception):
    """Ends the loop early; the trainer takes it for the end of the run."""


class _Patience(HookBase):
    """Counts evaluations without progress, and acts when there were too many.

    The checkpoint of an iteration is written before its evaluation. A run that is resumed there is
    evaluated again first, so that it goes on exactly as if it had never stopped.

    Args:
        key: of the config node.
        node: with ``METRIC``, ``MODE``, ``PATIENCE`` and ``MIN_DELTA``.
        period: iterations between two evaluations.
        evaluate: runs one, and leaves the metrics in the trainer's checkpointer.
    """

    def __init__(self, key: str, node: Any, period: int, evaluate: Callable[[], Any]) -> None:
        if node.PATIENCE < 1 or not node.METRIC:
            raise ValueError(f"{key} needs METRIC, and PATIENCE of at least 1")
        if node.MIN_DELTA < 0:
            raise ValueError(f"{key}.MIN_DELTA is {node.MIN_DELTA}; it is at least 0")
        if period < 1:
            raise ValueError(f"{key} needs evaluations: set TEST.EVAL_PERIOD")
        self._key, self._patterns = key, tuple(node.METRIC)
        self._sign = sign_of(node.MODE, f"{key}.MODE")
        self._patience, self._min_delta = int(node.PATIENCE), float(node.MIN_DELTA)
        self._period, self._evaluate = period, evaluate
        self._best, self._waited, self._seen = -math.inf, 0, -1

    def state_dict(self) -> dict[str, Any]:
        """Best value, evaluations since, iteration of the last one."""
        return {"best": self._best, "waited": self._waited, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._best, self._waited = float(state_dict["best"]), int(state_dict["waited"])
        self._seen = int(state_dict["seen"])

    def before_train(self) -> None:
        """Make up for the evaluation that the checkpoint is from before."""
        trainer: Any = self.trainer
        last = trainer.start_iter - 1
        missed = last > self._seen and trainer.start_iter % self._period == 0
        if last < 0 or trainer.start_iter >= trainer.max_iter or not missed:
            return
        if trainer.evaluated_at != last:  # once for all hooks of this kind
            self._evaluate()
            trainer.evaluated_at = last
        self._look()

    def after_step(self) -> None:
        """Look at an evaluation, if there was one."""
        self._look()

    def _look(self) -> None:
        trainer: Any = self.trainer
        if trainer.evaluated_at <= self._seen:
            return
        self._seen = trainer.evaluated_at
        value = chosen_mean(trainer.checkpointer.metrics, self._patterns, f"{self._key}.METRIC")
        value = comm.all_gather(value)[0]  # metrics are in the main process only
        if value is None:
            return
        value *= self._sign
        if value > self._best + self._min_delta:
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self._patience:
            self._waited = 0
            self._act()

    def _act(self) -> None:
        raise NotImplementedError


class Plateau(_Patience):
    """Lowers all learning rates by a factor; the schedule goes on from there.

    Args:
        node: ``SOLVER.FX.PLATEAU``.
        period, evaluate: see :class:`_Patience`.
    """

    def __init__(self, node: Any, period: int, evaluate: Callable[[], Any]) -> None:
        super().__init__("SOLVER.FX.PLATEAU", node, period, evaluate)
        if not 0 < node.FACTOR < 1:
            raise ValueError(f"SOLVER.FX.PLATEAU.FACTOR is {node.FACTOR}; allowed: between 0 and 1")
        if node.MIN_LR < 0:
            raise ValueError(f"SOLVER.FX.PLATEAU.MIN_LR is {node.MIN_LR}; it is at least 0")
        self._factor, self._lowest = float(node.FACTOR), float(node.MIN_LR)

    def _act(self) -> None:
        trainer: Any = self.trainer
        before = trainer.scheduler.base_lrs
        after = [max(rate * self._factor, min(rate, self._lowest)) for rate in before]
        if after == before:
            return
        # The base rates, which are in the scheduler's state, and those of the next step.
        trainer.scheduler.base_lrs = after
        for group, old, new in zip(trainer.optimizer.param_groups, before, after, strict=True):
            group["lr"] *= new / old if old else 1.0
        _logger.info(
            "no progress in %d evaluations: learning rates times %g, the largest base rate is %g",
            *(self._patience, self._factor, max(after)),
        )


class EarlyStopping(_Patience):
    """Ends the run.

    Args:
        node: ``SOLVER.FX.EARLY_STOP``.
        period, evaluate: see :class:`_Patience`.
    """

    def __init__(self, node: Any, period: int, evaluate: Callable[[], Any]) -> None:
        super().__init__("SOLVER.FX.EARLY_STOP", node, period, evaluate)
        self._stopped = False

    def state_dict(self) -> dict[str, Any]:
        """Also whether the run is over."""
        return super().state_dict() | {"stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self._stopped = bool(state_dict["stopped"])

    def before_train(self) -> None:
        """A run that was stopped stays so."""
        if self._stopped:
            raise TrainingStopped("this run was stopped early; it is over")
        super().before_train()

    def _act(self) -> None:
        trainer: Any = self.trainer
        self._stopped = True
        trainer.iter = self._seen  # a resumed run is one ahead
        trainer.checkpointer.save("model_final", iteration=self._seen)
        trainer.iter += 1  # as at the end of every run
        raise TrainingStopped(f"no progress in {self._patience} evaluations: the run is over")
