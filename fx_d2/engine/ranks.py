"""Several processes train one model: equal weights at the start, equal gradients in every step.

Detectron2 wraps the model in DistributedDataParallel. Here every step trains another part of it:
one head of many, and in a locked phase not even the trunk. The wrapper would have to search the
graph for what is unused in every step, and to be built anew at every change of phase. So the
gradients that there are get averaged after the backward pass, in a few large sums; nothing else is
sent. The model stays as it is, without a wrapper to look behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from fx_d2.modeling.whole_batch import note_exchange

from .setup import ConfigError

# As DistributedDataParallel: large enough to use the network, small enough to begin early.
BUCKET_BYTES = 25 * 2**20


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one kind, together up to ``BUCKET_BYTES``."""
    held: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        alike = not held or (held[0].dtype, held[0].device) == (tensor.dtype, tensor.device)
        if held and (size + bytes_ > BUCKET_BYTES or not alike):
            yield held
            held, size = [], 0
        held.append(tensor)
        size += bytes_
    if held:
        yield held


def _spread(flat: Tensor, into: Sequence[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in into])
    for tensor, part in zip(into, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def start_equal(model: nn.Module, iteration: int) -> None:
    """Give all processes the weights of the first, which may have drawn or read others.

    Args:
        model: of this process.
        iteration: that it would start at.

    Raises:
        ConfigError: they would not start at the same iteration.
    """
    if comm.get_world_size() == 1:
        return
    starts = comm.all_gather(iteration)
    if len(set(starts)) > 1:
        raise ConfigError(
            f"the processes would start at the iterations {starts}, by rank: OUTPUT_DIR has to be "
            "on storage that all machines share"
        )
    for bucket in _buckets(list(model.state_dict().values())):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.broadcast(flat, 0)
        _spread(flat, bucket)


@torch.no_grad()
def _average(tensors: Sequence[Tensor]) -> None:
    """In place, over all processes; the sums of one bucket are sent while the next is packed."""
    running = []
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        note_exchange()
        running.append((dist.all_reduce(flat, async_op=True), flat, bucket))
    for work, flat, bucket in running:
        work.wait()
        _spread(flat.div_(comm.get_world_size()), bucket)


class Ranks:
    """What the processes of a run do together in a step.

    Args:
        model: that every process holds a copy of.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        norm = nn.modules.batchnorm._NormBase
        self._norms = [m for m in model.modules() if isinstance(m, norm) and m.track_running_stats]

    def mean_losses(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """The losses as numbers, and gradients that every process has.

        All processes get the same numbers, so that they go on or stop together. A parameter that
        has a gradient in one process has one in all of them afterwards, of zeros if need be.
        """
        stacked = torch.stack([value.detach().float() for value in losses.values()])
        if comm.get_world_size() == 1:
            return dict(zip(losses, stacked.tolist(), strict=True))
        used = [float(p.grad is not None) for p in self._parameters]
        together = torch.cat([stacked, torch.tensor(used, device=stacked.device)])
        note_exchange()
        dist.all_reduce(together)
        values = together.tolist()
        for parameter, users in zip(self._parameters, values[len(losses) :], strict=True):
            if users and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        count = comm.get_world_size()
        return {name: value / count for name, value in zip(losses, values, strict=False)}

    def mean_gradients(self) -> None:
        """Average the gradients, and the statistics of norms that this step moved."""
        if comm.get_world_size() == 1:
            return
        moved = [m for m in self._norms if m.training]
        statistics = [s for m in moved for s in (m.running_mean, m.running_var) if s is not None]
        _average([p.grad for p in self._parameters if p.grad is not None] + statistics)
