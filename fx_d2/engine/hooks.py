"""What happens around the steps of training; :meth:`FxTrainer.build_hooks` says in which order."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from detectron2.engine import HookBase

from fx_d2.data.build import build_joint_schedule

from .checkpoint import FxCheckpointer, read_description
from .setup import config_errors
from .weights import CheckpointError, CheckpointFiles

_logger = logging.getLogger(__name__)

BEST = "model_best"


class JointMix(HookBase):
    """Joint training: points the loader at the mix of all datasets of the config.

    Which batch a step takes is a function of its number, so a resumed run goes on where it was.

    Args:
        cfg: with ``DATALOADER.FX.DATASET_RATIO`` and ``REPEAT_TO_LONGEST``.
    """

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def before_train(self) -> None:
        """Read the records and start at the trainer's first iteration."""
        trainer: Any = self.trainer
        loader = trainer.data_loader
        with config_errors():
            schedule = build_joint_schedule(self._cfg, loader)
        loader.activate_mix(schedule, start_step=trainer.start_iter)
        trainer.begin_batches()

    def after_train(self) -> None:
        """Stop the loader's workers."""
        trainer: Any = self.trainer
        trainer.data_loader.close()


class KeepBest(HookBase):
    """Saves the weights with the best mean of some metrics as ``model_best``.

    After a resume the best so far is read from ``model_best`` itself, so that a run that died
    between an evaluation and the next checkpoint forgets nothing.

    Args:
        checkpointer: of the run.
        patterns: over ``source/task/metric``.
        mode: ``max`` or ``min``.
    """

    def __init__(
        self, checkpointer: FxCheckpointer, patterns: tuple[str, ...], mode: str = "max"
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"SOLVER.FX.BEST_MODE is {mode!r}; allowed: 'max', 'min'")
        self._checkpointer, self._patterns = checkpointer, patterns
        self._sign = 1 if mode == "max" else -1
        self._best = -math.inf
        self._seen = -1

    def mean(self, metrics: Mapping[str, float]) -> float | None:
        """The mean of the metrics that the patterns name, larger being better; None without one.

        A figure may be missing from one evaluation (a class without positives has no AUC), so that
        is no reason to end a run.
        """
        chosen = [v for n, v in metrics.items() if any(fnmatchcase(n, p) for p in self._patterns)]
        if chosen:
            return self._sign * sum(chosen) / len(chosen)
        _logger.warning(
            "no best checkpoint: SOLVER.FX.BEST_METRIC %s is no metric of this evaluation; it has "
            "%s",
            *(self._patterns, ", ".join(n for n in metrics if "-" not in n) or "none"),
        )
        return None

    def before_train(self) -> None:
        """Look up the best of the run that is resumed."""
        trainer: Any = self.trainer
        file = CheckpointFiles.named(self._checkpointer.save_dir, BEST).weights
        if trainer.start_iter == 0 or not file.is_file():
            return
        try:
            value = self.mean(read_description(file).get("metrics") or {})
        except CheckpointError as exc:
            _logger.warning("the best checkpoint so far is not compared with: %s", exc)
        else:
            self._best = self._best if value is None else value

    def after_step(self) -> None:
        """Compare after an evaluation."""
        self._compare()

    def after_train(self) -> None:
        """Compare after the last evaluation."""
        self._compare()

    def _compare(self) -> None:
        trainer: Any = self.trainer
        if trainer.evaluated_at == self._seen:
            return
        self._seen = trainer.evaluated_at
        value = self.mean(self._checkpointer.metrics)
        if value is None or value <= self._best:
            return
        _logger.info("best so far: %.4f at iteration %d", self._sign * value, self._seen)
        self._best = value
        self._checkpointer.save_weights(BEST, iteration=self._seen)
