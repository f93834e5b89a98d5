"""What happens around the steps of training; :meth:`FxTrainer.build_hooks` says in which order."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer

from fx_d2.data.build import build_joint_schedule

from .checkpoint import FxCheckpointer, read_description
from .setup import config_errors
from .weights import CheckpointError, CheckpointFiles

_logger = logging.getLogger(__name__)

BEST = "model_best"
_TOP = "model_top_"
EPOCH = "model_epoch_"


def chosen_mean(metrics: Mapping[str, float], patterns: Sequence[str], key: str) -> float | None:
    """The mean of the metrics that the patterns name; None without one.

    A figure may be missing from one evaluation (a class without positives has no AUC), so that is
    no reason to end a run.

    Args:
        metrics: by ``source/task/metric``.
        patterns: over these names.
        key: of the config, for the log.
    """
    chosen = [v for n, v in metrics.items() if any(fnmatchcase(n, p) for p in patterns)]
    if chosen:
        return sum(chosen) / len(chosen)
    _logger.warning(
        "%s %s is no metric of this evaluation; it has %s",
        *(key, tuple(patterns), ", ".join(n for n in metrics if "-" not in n) or "none"),
    )
    return None


def sign_of(mode: str, key: str) -> int:
    """1 where the largest value is the best (``max``), -1 where the smallest is (``min``)."""
    if mode not in ("max", "min"):
        raise ValueError(f"{key} is {mode!r}; allowed: 'max', 'min'")
    return 1 if mode == "max" else -1


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


class Checkpoints(PeriodicCheckpointer):
    """A checkpoint every period, and ``model_final`` also where only that was missing.

    The last numbered checkpoint comes a moment before the final one. A run that is killed between
    them has no step left to do, so that nothing would ever write the second.
    """

    def before_train(self) -> None:
        """Write what a run that is over lacks."""
        super().before_train()
        trainer, checkpointer = cast(Any, self.trainer), cast(FxCheckpointer, self.checkpointer)
        newest = Path(checkpointer.get_checkpoint_file() or self.file_prefix).stem
        if trainer.start_iter < trainer.max_iter or newest == f"{self.file_prefix}_final":
            return
        trainer.iter = trainer.start_iter - 1  # a resumed run is one ahead
        checkpointer.save(f"{self.file_prefix}_final", iteration=trainer.iter)
        trainer.iter += 1


class KeepEpochs(HookBase):
    """Saves the weights at the end of every epoch, as ``model_epoch_<number>`` from 1 on.

    Args:
        checkpointer: of the run.
        cycles: ``CYCLE.CYCLES``, epochs of the run.
        max_iter: iterations of all of them.
    """

    def __init__(self, checkpointer: FxCheckpointer, cycles: int, max_iter: int) -> None:
        if cycles < 1:
            raise ValueError(
                "SOLVER.FX.KEEP_EPOCHS needs a number of epochs: set CYCLE.CYCLES above 0"
            )
        self._checkpointer, self._steps = checkpointer, max_iter // cycles

    def after_step(self) -> None:
        """Save after the last step of an epoch."""
        trainer: Any = self.trainer
        number, over = divmod(trainer.iter + 1, self._steps)
        if not over:
            self._checkpointer.save_weights(f"{EPOCH}{number:03d}", iteration=trainer.iter)


class KeepBest(HookBase):
    """Saves the weights with the best mean of some metrics as ``model_best``.

    After a resume the best so far is read from ``model_best`` itself, so that a run that died
    between an evaluation and the next checkpoint forgets nothing.

    Args:
        checkpointer: of the run.
        patterns: over ``source/task/metric``.
        mode: ``max`` or ``min``.
        count: above 1, the best ``count`` are kept as ``model_top_<iteration>`` too.
    """

    def __init__(
        self,
        checkpointer: FxCheckpointer,
        patterns: tuple[str, ...],
        mode: str = "max",
        count: int = 1,
    ) -> None:
        if count < 1:
            raise ValueError(f"SOLVER.FX.KEEP_BEST is {count}; it is at least 1")
        self._checkpointer, self._patterns = checkpointer, patterns
        self._sign, self._count = sign_of(mode, "SOLVER.FX.BEST_MODE"), count
        self._best = -math.inf
        self._top: dict[int, float] = {}  # iteration -> mean, larger being better
        self._seen = -1

    def mean(self, metrics: Mapping[str, float]) -> float | None:
        """See :func:`chosen_mean`; larger is better."""
        value = chosen_mean(metrics, self._patterns, "SOLVER.FX.BEST_METRIC")
        return None if value is None else self._sign * value

    def before_train(self) -> None:
        """Look up the best of the run that is resumed."""
        trainer: Any = self.trainer
        file = CheckpointFiles.named(self._checkpointer.save_dir, BEST).weights
        if trainer.start_iter == 0:
            return
        self._look_up_top()
        if not file.is_file():
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
        if value is None:
            return
        self._keep_top(value)
        if value <= self._best:
            return
        _logger.info("best so far: %.4f at iteration %d", self._sign * value, self._seen)
        self._best = value
        self._checkpointer.save_weights(BEST, iteration=self._seen)

    def _look_up_top(self) -> None:
        for file in sorted(Path(self._checkpointer.save_dir).glob(f"{_TOP}*.safetensors")):
            try:
                about = read_description(file)
                value = self.mean(about.get("metrics") or {})
            except CheckpointError as exc:
                _logger.warning("%s is not compared with: %s", file.name, exc)
                continue
            if value is not None:
                self._top[int(about["iteration"])] = value

    def _keep_top(self, value: float) -> None:
        """Keep this one if it is among the best; of equal ones the earlier stays."""
        if self._count == 1:
            return
        self._top[self._seen] = value
        ranked = sorted(self._top, key=lambda at: (-self._top[at], at))
        for at in ranked[self._count :]:
            del self._top[at]
            if at != self._seen:
                CheckpointFiles.named(self._checkpointer.save_dir, f"{_TOP}{at:07d}").remove()
        if self._seen in self._top:
            self._checkpointer.save_weights(f"{_TOP}{self._seen:07d}", iteration=self._seen)
