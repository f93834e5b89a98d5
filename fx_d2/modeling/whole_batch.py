"""Sums over the processes of a run: a loss of a part of the batch as a part of the whole batch's.

The mean of the gradients of all processes is the gradient of one process with the whole batch only
where every process divides by the same number. Numbers of annotated labels, of sampled regions or
of regions on a finding differ from process to process, so they are summed over all before they
divide. In one process, in evaluation and wherever no gradient is computed nothing is exchanged.

All processes have to come here in the same order; those of a run train the same head in a step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

_exchanges = 0


def exchanges() -> int:
    """How many sums this process has asked for: one that others wait for has asked for fewer."""
    return _exchanges


def note_exchange() -> None:
    """Count a sum that is made elsewhere."""
    global _exchanges
    _exchanges += 1


def processes() -> int:
    """Over how many processes a batch is spread."""
    return comm.get_world_size() if torch.is_grad_enabled() else 1


class _Sum(torch.autograd.Function):
    """Every process has the same sum, so the mean of the gradients would be 1 / n of the whole."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.detach().clone()
        note_exchange()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()


def whole_sum(part: Tensor) -> Tensor:
    """The sum over all processes; the gradient reaches this process's part of it."""
    return part if processes() == 1 else _Sum.apply(part)


def whole_any(part: Tensor) -> Tensor:
    """Where any process has true."""
    return part if processes() == 1 else whole_sum(part.float()) > 0


def mean_count(count: Tensor, *, at_least: float = 1.0) -> Tensor:
    """The mean over all processes of a number of terms, to divide this process's sum by.

    Args:
        count: of this process.
        at_least: of all processes together, so that nothing is divided by 0.
    """
    return whole_sum(count).clamp(min=at_least) / processes()


def share(count: int, like: Tensor) -> Tensor | float:
    """What turns a mean over ``count`` terms into this process's part of the mean over all.

    Args:
        count: of terms in this process; 0 leaves nothing of a mean that was taken anyway.
        like: on the device of the loss.
    """
    if processes() == 1:
        return 1.0 if count else 0.0
    here = torch.tensor(float(count), device=like.device)
    return here / mean_count(here)
