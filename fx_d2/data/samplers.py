"""Which images a pass shows and in which order: pure functions of (seed, source, task, pass).

A pass is described by one array of record numbers. Batches and ranks are cuts of it, so two
processes see together what one process sees alone, and a loader that starts in the middle needs
nothing but the number of the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from tqdm import tqdm

from .draws import rng_for
from .errors import did_you_mean
from .record import Record
from .source import Source

LAST_BATCH = ("fill", "drop", "keep")


def order(
    seed: int,
    source: str,
    task: str,
    pass_index: int,
    n: int,
    *,
    fraction: float = 1.0,
    shuffle: bool = True,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """The records of one pass.

    Successive passes of a fraction share one permutation until it is used up: with
    ``fraction=0.5`` passes 0 and 1 show each record once between them.

    Args:
        seed: of the run.
        source: whose records.
        task: of the pass.
        pass_index: number of the pass; another number, another order.
        n: records in the dataset.
        fraction: share of a whole pass, in (0, 1].
        shuffle: else the records come in their order.
        weights: float (n,), how often each record is expected in a whole pass; None is once each.

    Returns:
        int64 (m,), with m the same for every pass of this fraction (see :func:`pass_length`).
    """
    if n < 1:
        raise ValueError(f"{source}/{task} has no records")
    whole = _whole_length(n, weights)
    length = pass_length(n, fraction, weights)
    parts = max(1, int(1 / fraction + 1e-9))  # fractions that fit into one whole pass
    number, part = divmod(pass_index, parts)
    position = ("order", source, task, number)
    records = np.arange(n) if weights is None else _repeated(weights, seed, position)
    if shuffle:
        records = rng_for(seed, *position).permutation(records)
    start = min(part * length, whole - length)
    return records[start : start + length].astype(np.int64)


def pass_length(n: int, fraction: float = 1.0, weights: np.ndarray | None = None) -> int:
    """How many images a pass shows: ``fraction`` of the whole, at least one."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction} of a pass; allowed: above 0, at most 1")
    return max(1, math.floor(_whole_length(n, weights) * fraction + 0.5))


def _whole_length(n: int, weights: np.ndarray | None) -> int:
    if weights is None:
        return n
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"weights must be {n} finite numbers from 0, got shape {weights.shape}")
    return max(1, round(float(weights.sum())))


def _repeated(weights: np.ndarray, seed: int, position: tuple[int | str, ...]) -> np.ndarray:
    """Record numbers, each ``weights[i]`` times on average.

    A weight of 2.3 gives 2 or 3. Rounding each alone would change the length of a pass from one to
    the next; cutting the running sum at whole numbers keeps the length and gives each record the
    floor or ceiling of its weight.
    """
    total = _whole_length(len(weights), weights)
    if not weights.sum() > 0:
        raise ValueError("all weights are 0: no record would be shown")
    rng = rng_for(seed, "repeat", *position)
    shuffled = rng.permutation(len(weights))
    running = np.cumsum(weights[shuffled] * (total / weights.sum()))
    running[-1] = total  # not 41.999999
    edges = np.floor(running + rng.uniform())
    counts = np.diff(np.concatenate([[0.0], edges])).astype(np.int64)
    return np.repeat(shuffled, counts)


def presence(records: Iterable[Record], source: Source, task: str) -> np.ndarray:
    """Bool (N, C): which classes are known to be present in each image.

    ``loc`` looks at the boxes, the others at the image labels, or at the boxes of a source without
    labels: dense masks would have to be decoded. Uncertain and not annotated count as absent; an
    image without findings has an empty row.
    """
    by_boxes = task == "loc" or not source.cls_classes
    classes = source.thing_classes if by_boxes else source.cls_classes
    rows = []
    progress = tqdm(records, desc=f"classes of {source.key}", unit=" records", delay=2)
    for record in progress:
        row = np.zeros(len(classes), dtype=bool)
        if by_boxes:
            row[[a["category_id"] for a in record.get("annotations", ())]] = True
        elif "labels" in record:
            row = record["labels"] == 1
        rows.append(row)
    return np.array(rows, dtype=bool).reshape(-1, len(classes))


def repeat_factors(present: np.ndarray, threshold: float) -> np.ndarray:
    """float64 (N,): an image of a class with a small share repeats sqrt(threshold / share) times.

    An image takes the largest factor of its classes; one without findings is shown once.

    Args:
        present: bool (N, C).
        threshold: share of images below which a class counts as rare.
    """
    share = present.mean(axis=0)
    by_class = np.ones(present.shape[1])
    rare = (share > 0) & (share < threshold)
    by_class[rare] = np.sqrt(threshold / share[rare])
    return np.where(present, by_class, 1.0).max(axis=1, initial=1.0)


def class_aware_weights(present: np.ndarray) -> np.ndarray:
    """float64 (N,): every class, "no finding" being one more, gets the same share of a pass.

    Args:
        present: bool (N, C).
    """
    with_normal = np.concatenate([present, ~present.any(axis=1, keepdims=True)], axis=1)
    with_normal = with_normal[:, with_normal.any(axis=0)].astype(np.float64)
    weights = (with_normal / with_normal.sum(axis=0)).sum(axis=1)
    return weights * (len(present) / weights.sum())


def steps_in_pass(length: int, batch_size: int, last_batch: str) -> int:
    """Batches of a pass; a dataset smaller than one batch is filled up rather than dropped."""
    if last_batch not in LAST_BATCH:
        raise ValueError(f"last_batch is {last_batch!r}; allowed: {LAST_BATCH}")
    if last_batch == "drop" and length >= batch_size:
        return length // batch_size
    return -(-length // batch_size)


def batch_places(
    step: int, length: int, batch_size: int, last_batch: str, rank: int = 0, world_size: int = 1
) -> list[int]:
    """Places of the pass that ``rank`` takes in ``step``: every ``world_size``-th of the batch.

    A place at or beyond ``length`` stands for ``place % length``: the batch was filled up. A kept
    last batch is filled up to a multiple of the ranks, since a rank without images would leave the
    others waiting.
    """
    first = step * batch_size
    last = first + batch_size
    if last_batch == "keep":
        left = length - first
        last = min(last, first + -(-left // world_size) * world_size)
    return list(range(first + rank, last, world_size))


class JointSchedule:
    """Which (source, task) each step of joint training takes.

    Training goes in rounds. In a round every (source, task) has a fixed number of steps, in an
    order drawn from (seed, round); a step is therefore a pure function of its number.

    Args:
        seed: part of the draw.
        steps: {(source, task): steps of a whole pass}.
        ratio: {(source, task): weight}, how often relative to the others. None: in proportion to
            ``steps``, so that a round shows every image once, or equally often with
            ``repeat_to_longest``.
        repeat_to_longest: a round lasts until the one that takes longest is seen once, else until
            the first one is.
    """

    def __init__(
        self,
        seed: int,
        steps: Mapping[tuple[str, str], int],
        *,
        ratio: Mapping[tuple[str, str], float] | None = None,
        repeat_to_longest: bool = False,
    ) -> None:
        if not steps:
            raise ValueError("joint training needs at least one (source, task)")
        self.seed, self.keys = seed, tuple(steps)
        self.steps = dict(steps)
        weight = self._weights(ratio, repeat_to_longest)
        rounds = [steps[k] / weight[k] for k in self.keys]
        span = max(rounds) if repeat_to_longest else min(rounds)
        self.counts = {k: max(1, round(weight[k] * span)) for k in self.keys}
        self.round_steps = sum(self.counts.values())
        self._cached: tuple[int, np.ndarray] | None = None

    def _weights(
        self, ratio: Mapping[tuple[str, str], float] | None, repeat_to_longest: bool
    ) -> dict[tuple[str, str], float]:
        if not ratio:
            return {k: 1.0 if repeat_to_longest else float(self.steps[k]) for k in self.keys}
        unknown = set(ratio) - set(self.keys)
        for name in sorted("/".join(key) for key in unknown):
            known = ["/".join(key) for key in self.keys]
            raise ValueError(
                f"ratio for {name!r}; the mix holds {', '.join(known)}.{did_you_mean(name, known)}"
            )
        weight = {k: float(ratio.get(k, 1.0)) for k in self.keys}
        if not all(math.isfinite(w) and w > 0 for w in weight.values()):
            raise ValueError(f"ratios must be positive: {weight}")
        return weight

    def at(self, step: int) -> tuple[str, str, int, int]:
        """(source, task, pass, step within the pass) of ``step``, counted from 0."""
        number, place = divmod(step, self.round_steps)
        turns = self._round(number)
        which = turns[place]
        key = self.keys[which]
        mine = number * self.counts[key] + int((turns[:place] == which).sum())
        return (*key, *divmod(mine, self.steps[key]))

    def _round(self, number: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != number:
            turns = np.repeat(np.arange(len(self.keys)), [self.counts[k] for k in self.keys])
            turns = rng_for(self.seed, "mix", number).permutation(turns)
            self._cached = (number, turns)
        return self._cached[1]

    def describe(self) -> str:
        """The effective mix as a table: steps and share of a round, and passes it makes."""
        lines = [f"joint mix, {self.round_steps} steps a round:"]
        for key in self.keys:
            share = self.counts[key] / self.round_steps
            passes = self.counts[key] / self.steps[key]
            name = "/".join(key)
            lines.append(
                f"  {name:<24}{self.counts[key]:>9} steps {share:>7.1%} {passes:>8.2f} passes"
            )
        return "\n".join(lines)
