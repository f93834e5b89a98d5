"""One step of training: batch, losses, gradients, update."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from fx_d2.data.atomic import write_atomically
from fx_d2.data.draws import draw_key
from fx_d2.data.source import TASKS
from fx_d2.data.task_loader import Batch, TaskLoader

from .optimizer import NormClipper
from .ranks import Ranks
from .stuck import beat

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
        model: gives named losses for a batch; every process has a copy.
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
        self._ranks = Ranks(model)
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
        values = self._ranks.mean_losses(losses)
        if not all(map(math.isfinite, values.values())):
            raise self._stop(batch, values, f"the loss is not finite: {values}")
        self._ranks.mean_gradients()
        norm = self.clip(self.model.parameters(), batch[0]["task"])
        if norm is not None and not math.isfinite(float(norm)):
            raise self._stop(batch, values, f"the norm of the gradients is {float(norm)}")
        self.optimizer.step()
        beat()
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
