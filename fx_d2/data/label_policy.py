"""What training makes of a label that is uncertain (-1) or not annotated (NaN).

The record keeps what the source says; the config decides here, per source and class. Evaluation
leaves both out of every metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import did_you_mean
from .record import UNCERTAIN
from .sources import get_source

UNCERTAIN_POLICIES = ("ignore", "zeros", "ones", "smooth")
UNKNOWN_POLICIES = ("ignore", "zeros")
_VALUES = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}


@dataclass(frozen=True)
class Rule:
    """A default policy and exceptions ``{(source, class or None): policy}``."""

    default: str
    exceptions: tuple[tuple[str, str | None, str], ...] = ()

    @classmethod
    def parse(cls, default: str, exceptions: Iterable[str], allowed: Sequence[str]) -> Rule:
        """From config strings: ``"chexpert=smooth"`` or ``"chexpert/Edema=ones"``."""
        parsed = []
        for text in exceptions:
            where, separator, policy = text.partition("=")
            source, _, name = where.partition("/")
            if not separator or not source:
                raise ValueError(
                    f"label policy {text!r}; write 'source=policy' or 'source/class=policy'"
                )
            get_source(source.strip())  # raises: a policy for a misspelt source would do nothing
            parsed.append((source.strip(), name.strip() or None, policy.strip()))
        for policy in (default, *(p for _, _, p in parsed)):
            if policy not in allowed:
                raise ValueError(
                    f"label policy {policy!r}; allowed: {', '.join(allowed)}."
                    + did_you_mean(policy, allowed)
                )
        return cls(default, tuple(parsed))

    def policies(self, source: str, classes: Sequence[str]) -> list[str]:
        """The policy of each class: the class's exception, else the source's, else the default."""
        by_source = {s: p for s, name, p in self.exceptions if name is None}
        by_class = {name: p for s, name, p in self.exceptions if s == source and name is not None}
        unknown = set(by_class) - set(classes)
        for name in sorted(unknown):
            raise ValueError(
                f"label policy for {source}/{name}: no such class.{did_you_mean(name, classes)} "
                f"{source} has {', '.join(classes)}"
            )
        return [by_class.get(c, by_source.get(source, self.default)) for c in classes]


@dataclass(frozen=True)
class LabelPolicy:
    """Turns a record's labels into training targets.

    Args:
        uncertain: for -1: ``ignore`` (no gradient), ``zeros``, ``ones`` or ``smooth`` (a draw from
            ``smooth``).
        unknown: for NaN: ``ignore`` or ``zeros`` (CheXpert's papers read a finding that the report
            does not mention as absent).
        smooth: (low, high) of the draw.
    """

    uncertain: Rule = Rule("ignore")
    unknown: Rule = Rule("ignore")
    smooth: tuple[float, float] = (0.55, 0.85)

    def targets(
        self, labels: np.ndarray, source: str, classes: Sequence[str], rng: np.random.Generator
    ) -> np.ndarray:
        """float32 (C,) in [0, 1] with NaN where a class gives no gradient."""
        result = labels.astype(np.float32, copy=True)
        draws = rng.uniform(
            *self.smooth, size=len(classes)
        )  # drawn always: one class moves no other
        uncertain = self.uncertain.policies(source, classes)
        unknown = self.unknown.policies(source, classes)
        for i, value in enumerate(labels):
            if value == UNCERTAIN:
                result[i] = draws[i] if uncertain[i] == "smooth" else _VALUES[uncertain[i]]
            elif np.isnan(value):
                result[i] = _VALUES[unknown[i]]
        return result


def for_evaluation(labels: np.ndarray) -> np.ndarray:
    """float32 (C,): 0, 1 or NaN; an uncertain label enters no metric."""
    return np.where(labels == UNCERTAIN, np.float32(np.nan), labels).astype(np.float32)
