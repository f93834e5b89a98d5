"""Losses of two processes, as threads that exchange sums, against one with the whole batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fx_d2.modeling import losses, whole_batch


class Exchange:
    """``all_reduce`` between two threads."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(2, timeout=20), {}

    def __call__(self, tensor: Tensor) -> None:
        self.given[threading.current_thread().name] = tensor.clone()
        self.barrier.wait()
        total = self.given["0"] + self.given["1"]
        self.barrier.wait()
        tensor.copy_(total)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Run ``work(rank)`` in two processes, so to say."""

    def run(work: Callable[[int], Any]) -> list[Any]:
        found: list[Any] = [None, None]

        def one(rank: int) -> None:
            found[rank] = work(rank)

        with monkeypatch.context() as patch:
            patch.setattr(whole_batch.comm, "get_world_size", lambda: 2)
            patch.setattr(whole_batch.dist, "get_world_size", lambda: 2)
            patch.setattr(whole_batch.dist, "all_reduce", Exchange())
            threads = [threading.Thread(target=one, args=(r,), name=str(r)) for r in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        return found

    return run


def label_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    targets = (torch.rand(6, 4, generator=generator) > 0.5).double()
    targets[:3, :3] = float("nan")  # rank 0 has a quarter of the labels of its images
    targets[5] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    return torch.randn(6, 4, generator=generator), targets


@pytest.mark.parametrize("name", ["bce", "focal", "asymmetric", "ce", "class_weighted"])
def test_label_losses(both, name):
    logits, targets = label_batch()
    if name == "ce":
        targets = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 3, 0, 1]), 4).double()
        targets[:2] = float("nan")
    extra = {"prevalence": torch.tensor([0.1, 0.2, 0.3, 0.4])} if name == "class_weighted" else {}
    compare(both, lambda x, rows: losses.LABEL_LOSSES[name](x, targets[rows], **extra), logits)


@pytest.mark.parametrize("over", ["image", "channel", "batch"])
def test_mask_losses(both, over):
    generator = torch.Generator().manual_seed(6)
    masks = torch.rand(6, 3, 5, 5, generator=generator) > 0.6
    known = torch.ones(6, 3, dtype=torch.bool)
    known[:3, 1:] = False
    known[:, 2] = False
    known[4, 2] = True  # a channel that only rank 1 knows
    compare(
        both,
        lambda x, rows: losses.bce_dice(x, masks[rows], known[rows], over=over),
        torch.randn(6, 3, 5, 5, generator=generator),
    )


def compare(both: Any, loss: Callable[[Tensor, slice], Tensor], logits: Tensor) -> None:
    """The mean of value and gradient over the ranks is that of the whole batch."""
    whole = logits.clone().requires_grad_()
    expected = loss(whole, slice(0, 6))
    expected.backward()

    def work(rank: int) -> tuple[float, Tensor]:
        rows = slice(3 * rank, 3 * rank + 3)
        part = logits[rows].clone().requires_grad_()
        value = loss(part, rows)
        value.backward()
        return float(value.detach()), part.grad

    (first, its), (second, others) = both(work)
    assert (first + second) / 2 == pytest.approx(float(expected), rel=1e-5)
    # A logit is in one rank only, so the mean of the gradients halves it.
    torch.testing.assert_close(torch.cat([its, others]) / 2, whole.grad, rtol=1e-4, atol=1e-7)


def test_the_share_of_a_mean(both):
    """Of 1 and 3 terms: half the mean of the first, one and a half of the second."""
    shares = both(lambda rank: whole_batch.share([1, 3][rank], torch.zeros(())))
    assert [float(part) for part in shares] == [0.5, 1.5]
    shares = both(lambda rank: whole_batch.share(0, torch.zeros(())))
    assert [float(part) for part in shares] == [0.0, 0.0]
    assert whole_batch.share(3, torch.zeros(())) == 1.0 and whole_batch.share(0, logits()) == 0.0


def test_nothing_is_exchanged_without_gradients(both):
    def work(rank: int) -> int:
        before = whole_batch.exchanges()
        with torch.no_grad():
            whole_batch.share(2, logits())
            losses.masked_bce(logits(), torch.ones(2, 3))
        return whole_batch.exchanges() - before

    assert both(work) == [0, 0]


def logits() -> Tensor:
    return torch.zeros(2, 3)
