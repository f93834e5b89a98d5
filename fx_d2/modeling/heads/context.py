"""What an image is known by beside its pixels, as a vector for a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def _view(item: Mapping[str, Any]) -> str:
    view = item.get("view") or "unknown"
    return view if view in ("unknown", "AP", "PA") else "other"


# What an image may be known by, and under which name a batch states it. The first value is that of
# an image of which nothing is stated, such as a file at prediction.
CONTEXTS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], str]]] = {
    "synthetic": (
        ("original", "synthetic"),
        lambda item: "synthetic" if item.get("synthetic") else "original",
    ),
    "view": (("unknown", "AP", "PA", "other"), _view),
    "source": (("unknown",), lambda item: item.get("source") or "unknown"),
    "body_part": (
        ("unknown", "ELBOW", "FINGER", "FOREARM", "HAND", "HUMERUS", "SHOULDER", "WRIST"),
        lambda item: item.get("body_part") or "unknown",
    ),
}


class ContextEmbedding(nn.Module):
    """A vector per value of each context, added up; zero at the start.

    Args:
        values: {name of a context: its values, the first for what is not stated or not known}.
        dim: of the vectors.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], dim: int) -> None:
        super().__init__()
        self.rows = {k: {v: i for i, v in enumerate(names)} for k, names in values.items()}
        self.tables = nn.ModuleDict({k: nn.Embedding(len(v), dim) for k, v in values.items()})
        for table in self.tables.values():
            nn.init.zeros_(table.weight)

    def forward(self, batch: Sequence[Mapping[str, Any]]) -> Tensor:
        """What the images are known by -> (N, dim)."""
        parts = []
        for name, table in self.tables.items():
            rows, stated = self.rows[name], CONTEXTS[name][1]
            places = torch.tensor([rows.get(stated(item), 0) for item in batch])
            parts.append(table(places.to(table.weight.device, non_blocking=True)))
        return torch.stack(parts).sum(dim=0)
