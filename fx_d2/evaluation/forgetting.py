"""How much a model forgets while it learns one head after the other; numbers only, no files.

``rows[i]`` says how every head scores after slot i, higher being better. With one visit to each
head these are the usual figures: average forgetting (Chaudhry et al. 2018), backward and forward
transfer (Lopez-Paz and Ranzato 2017). With repeated visits, "learned" is a head's latest visit for
backward transfer and its first one for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class ScoreRow:
    """Scores at one moment.

    Args:
        trained: heads trained since the row before; empty where all are trained side by side.
        scores: of every head; a score that is missing, None or NaN is not known.
    """

    trained: tuple[str, ...]
    scores: Scores


@dataclass(frozen=True)
class Forgetting:
    """What the last row says against earlier ones; per head, where it is known.

    Args:
        forgetting: best earlier score since the first visit, minus the last score; not of heads
            trained just before the last row.
        backward: last score minus the one right after the head's latest visit; likewise.
        forward: score right before the head's first visit, minus the score before training: what
            other heads taught it.
    """

    forgetting: Mapping[str, float]
    backward: Mapping[str, float]
    forward: Mapping[str, float]

    def means(self) -> dict[str, float | None]:
        """``average_forgetting``, ``backward_transfer``, ``forward_transfer``; None if unknown."""
        return {
            "average_forgetting": _mean(self.forgetting),
            "backward_transfer": _mean(self.backward),
            "forward_transfer": _mean(self.forward),
        }


def measure(
    heads: Sequence[str], rows: Sequence[ScoreRow], start: Scores | None = None
) -> Forgetting:
    """Compare the last row with those before it.

    Args:
        heads: to look at.
        rows: in the order of training.
        start: scores before any training; None where they were not taken.
    """
    forgetting: dict[str, float] = {}
    backward: dict[str, float] = {}
    forward: dict[str, float] = {}
    for head in heads if rows else ():
        visits = [i for i, row in enumerate(rows) if head in row.trained or not row.trained]
        if not visits:
            continue
        first, latest = visits[0], visits[-1]
        last = known(rows[-1].scores, head)
        if head not in rows[-1].trained:
            earlier = [known(row.scores, head) for row in rows[first:-1]]
            best = max((score for score in earlier if score is not None), default=None)
            _note(forgetting, head, best, last)
            if rows[latest].trained:
                _note(backward, head, last, known(rows[latest].scores, head))
        if first > 0 and start is not None:
            _note(forward, head, known(rows[first - 1].scores, head), known(start, head))
    return Forgetting(forgetting, backward, forward)


def known(scores: Scores, head: str) -> float | None:
    """The score of a head; None where there is none, or it is no number."""
    value = scores.get(head)
    return None if value is None or math.isnan(value) else float(value)


def _note(
    into: dict[str, float], head: str, minuend: float | None, subtrahend: float | None
) -> None:
    if minuend is not None and subtrahend is not None:
        into[head] = minuend - subtrahend


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
