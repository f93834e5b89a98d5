"""What an image is known by beside its pixels, as a vector for a classifier."""

from __future__ import annotations

import difflib
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


# Stated for every image that such a model learns from, so that it never learns what to make of one
# of which it is not stated.
NEEDED = ("body_part",)


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


def stated_items(model: nn.Module, given: Mapping[str, str]) -> dict[str, Any]:
    """What is stated of images at prediction, under the names of a batch.

    Args:
        model: with contexts or without.
        given: {name of a context: value}.

    Raises:
        ValueError: the model is not told this, there is no such value, or one that it needs is
            missing.
    """
    tables = [m.rows for m in model.modules() if isinstance(m, ContextEmbedding)]
    known: dict[str, list[str]] = {}
    for rows in tables:
        for name, values in rows.items():
            known[name] = list(dict.fromkeys([*known.get(name, ()), *values]))
    for name, value in given.items():
        if name not in known:
            what = ", ".join(known) or "nothing but the pixels"
            raise ValueError(f"this model is not told {name!r} of an image; it is told {what}")
        if value not in known[name]:
            near = difflib.get_close_matches(value.upper(), known[name], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} is {value!r}{hint} (known: {', '.join(known[name])})")
    for name in NEEDED:
        if name in known and name not in given:
            raise ValueError(
                f"this model has to be told the {name} of an image; name one of "
                + ", ".join(known[name])
            )
    items: dict[str, Any] = dict(given)
    if "synthetic" in items:
        items["synthetic"] = items["synthetic"] == "synthetic"
    if "source" in known:
        items.setdefault("source", known["source"][0])  # a file is of no source
    return items
