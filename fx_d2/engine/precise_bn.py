"""``TEST.PRECISE_BN``: the running statistics of batch norms, taken anew from all sources.

Where one source follows another, running statistics are those of the last ones, and prediction on
all others normalises by figures that are not theirs. fvcore's function of this name is for models
that use every norm once in every step: it sets norms without a batch to zero and stops at those
that several levels share. Heads of many sources are both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn
from tqdm import tqdm

from fx_d2.data.task_loader import Batch, TaskLoader
from fx_d2.modeling.freeze import quieten, set_trainable
from fx_d2.modeling.meta_arch.student_teacher import StudentTeacher
from fx_d2.modeling.whole_batch import note_exchange

from .scoring import unwrapped
from .setup import ConfigError
from .step import precision_of, step_seed
from .stuck import beat

_logger = logging.getLogger(__name__)


class _Moments:
    """Mean and variance per channel of everything that a norm is given.

    Args:
        norm: with running statistics.
    """

    def __init__(self, norm: Any) -> None:
        self._norm = norm
        channels = norm.running_mean.shape[0]
        # Rows: count, sum, sum of squares. In float64: a difference of large sums is coming.
        self.sums = torch.zeros(3, channels, dtype=torch.float64, device=norm.running_mean.device)
        self._handle = norm.register_forward_pre_hook(self._add)

    def _add(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].detach().transpose(0, 1).flatten(1).double()
        count = torch.full_like(values[:, 0], values.shape[1])
        self.sums += torch.stack([count, values.sum(1), values.square().sum(1)])

    def close(self) -> None:
        self._handle.remove()

    def set(self) -> None:
        """A norm that was given nothing keeps what it has."""
        count, total, squares = self.sums
        if count[0] == 0:
            return
        mean = total / count
        self._norm.running_mean.copy_(mean)
        self._norm.running_var.copy_((squares / count - mean.square()).clamp(min=0))


@contextmanager
def _measured(model: nn.Module, norms: Sequence[nn.Module]) -> Iterator[None]:
    """Measures what the norms are given, and sets them to it at the end.

    All buffers are as before, but for the statistics of these norms; so are they after an error.
    """
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    moments = [_Moments(norm) for norm in norms]
    try:
        yield
    finally:
        for found in moments:
            found.close()
        for buffer, value in before:
            buffer.copy_(value)
    if comm.get_world_size() > 1:
        for found in moments:
            note_exchange()
            dist.all_reduce(found.sums)
    for found in moments:
        found.set()


def norms_in_training(model: nn.Module) -> list[nn.Module]:
    """Batch norms that are in training mode and predict by running statistics."""
    return [n for n in get_bn_modules(model) if getattr(n, "running_mean", None) is not None]


class _InTurn:
    """A mix for :meth:`TaskLoader.activate_mix` in which every (source, task) has its turn.

    In proportion to their size, as a pass has them, the largest would leave nothing of the others.
    """

    def __init__(self, loader: TaskLoader) -> None:
        self.keys = loader.keys
        self._steps = {key: loader.steps_per_pass(*key) for key in self.keys}

    def at(self, step: int) -> tuple[str, str, int, int]:
        """As :meth:`fx_d2.data.samplers.JointSchedule.at`."""
        turn, place = divmod(step, len(self.keys))
        key = self.keys[place]
        return (*key, *divmod(turn, self._steps[key]))


class PreciseBN(HookBase):
    """Takes the statistics of batch norms anew before an evaluation and at the end of a run.

    Stands before the checkpoint and after the teacher, whose own norms are measured too. It takes
    the same batches of the training loader every time, every (source, task) in turn, and draws by
    their number: it has no state, and a resumed run is the uninterrupted one. Norms that are locked
    are left alone; after the last step of a cycle nothing is locked any more.

    Args:
        cfg: with ``TEST.PRECISE_BN`` and ``TEST.EVAL_PERIOD``.
        also: tells of further evaluations after a step.
    """

    def __init__(self, cfg: CfgNode, also: Callable[[], bool] = lambda: False) -> None:
        self._cfg, self._also = cfg, also
        self._period, self._count = cfg.TEST.EVAL_PERIOD, int(cfg.TEST.PRECISE_BN.NUM_ITER)

    def before_train(self) -> None:
        """Every (source, task) has to have a batch."""
        trainer: Any = self.trainer
        keys = trainer.data_loader.keys
        if self._count < len(keys):
            raise ConfigError(
                f"TEST.PRECISE_BN.NUM_ITER is {self._count}; it is at least {len(keys)}, one batch "
                "of every source and task that is trained"
            )
        if not norms_in_training(unwrapped(trainer.model)):
            _logger.warning("TEST.PRECISE_BN: the model has no batch norm that is trained")

    def after_step(self) -> None:
        """Measure when an evaluation is next."""
        trainer: Any = self.trainer
        done = trainer.iter + 1
        is_last = done >= trainer.max_iter
        if is_last and getattr(trainer, "phase", None) is not None:
            set_trainable(unwrapped(trainer.model), ["*"])
        if is_last or (self._period > 0 and done % self._period == 0) or self._also():
            self._update()

    @torch.no_grad()
    def _update(self) -> None:
        trainer: Any = self.trainer
        model = unwrapped(trainer.model)
        quieten(model)
        norms = norms_in_training(model)
        if not norms:
            return
        _logger.info("statistics of %d batch norms from %d batches", len(norms), self._count)
        with self._batches() as batches, _measured(model, norms), _whole(model) as parts:
            for number, batch in enumerate(batches):
                for part in parts:
                    torch.manual_seed(step_seed(self._cfg.SEED, number, comm.get_rank()))
                    # What heads note about their losses is not of this step.
                    with EventStorage(), precision_of(self._cfg):
                        part(batch)
                beat()

    @contextmanager
    def _batches(self) -> Iterator[Iterator[Batch]]:
        trainer: Any = self.trainer
        loader = trainer.data_loader.twin()
        loader.activate_mix(_InTurn(loader))
        turns = zip(range(self._count), loader, strict=False)
        try:
            yield (batch for _, batch in tqdm(turns, "batch norms", self._count, delay=2))
        finally:
            loader.close()


@contextmanager
def _whole(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The model and, in the same modes and measured too, its teacher."""
    if not isinstance(model, StudentTeacher):
        yield [model]
        return
    teacher = model.teacher
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in teacher.named_modules():
        module.training = modes[name]
    try:
        with _measured(teacher, norms_in_training(teacher)):
            yield [model, teacher]
    finally:
        teacher.eval()
