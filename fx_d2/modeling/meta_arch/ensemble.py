"""Several models that answer as one: the mean of their probabilities of image labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..heads.spec import HeadSpec, select_heads
from .foundation_x import Asked, Batch


class Ensemble(nn.Module):
    """The mean label probabilities of trained models; boxes and masks have no mean here.

    It has the heads of image labels that every member has, with the same classes. Each member
    normalises the images in its own way.

    Args:
        members: models with ``specs`` and ``asking``, as :class:`FoundationX` has them.
        names: of the members, for messages.

    Attributes:
        origin: what results say about each member.
    """

    def __init__(self, members: Sequence[Any], names: Sequence[str]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble has at least one member")
        self.specs = _common(members, names)
        self.members = nn.ModuleList(members)
        self.origin: list[dict[str, Any]] = [{"weights": name} for name in names]
        self.eval()

    @contextmanager
    def asking(self, heads: Asked | None) -> Iterator[Ensemble]:
        """Within this context only these heads are run."""
        asked = [spec.name for spec in select_heads(self.specs, heads)]
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.asking(asked))
            yield self

    def forward(self, batch: Batch, heads: Asked | None = None) -> list[dict[str, Any]]:
        """Predictions as :meth:`FoundationX.inference` gives them, of image labels only.

        Args:
            batch: as there.
            heads: which to run; None is what :meth:`asking` says, by default all.
        """
        if self.training:
            raise RuntimeError("an ensemble predicts; its members are trained one by one")
        asked = None if heads is None else [s.name for s in select_heads(self.specs, heads)]
        said = [member(batch, asked) for member in self.members]
        return [
            {"labels": self._mean([one["labels"] for one in each]), "instances": {}, "masks": {}}
            for each in zip(*said, strict=True)
        ]

    def _mean(self, said: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
        return {
            spec.source: {
                name: sum(labels[spec.source][name] for labels in said) / len(said)
                for name in spec.classes
            }
            for spec in self.specs
            if spec.source in said[0]
        }


def _common(members: Sequence[Any], names: Sequence[str]) -> tuple[HeadSpec, ...]:
    """The label heads of the first model that all others have too."""
    heads = [
        {(s.source, s.classes, s.kind) for s in member.specs if s.task == "cls"}
        for member in members
    ]
    shared = set.intersection(*heads)
    specs = tuple(
        s for s in members[0].specs if s.task == "cls" and (s.source, s.classes, s.kind) in shared
    )
    if not specs:
        listed = "; ".join(
            f"{name} has {', '.join(sorted(source for source, *_ in found)) or 'none'}"
            for name, found in zip(names, heads, strict=True)
        )
        raise ValueError(f"an ensemble needs a label head that all members have: {listed}")
    return specs
