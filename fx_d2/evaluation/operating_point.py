"""From which probability a class is called present: fixed, or chosen on validation data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

POLICIES = ("fixed", "f1", "youden")
_SAID = {"f1": "best F1", "youden": "best sensitivity + specificity (Youden)"}
FIXED = "fixed"


def said(policy: str, dataset: str) -> str:
    """What a result says about thresholds chosen on a dataset."""
    return f"by class, {_SAID[policy]} on {dataset}"


def best_threshold(scores: np.ndarray, truth: np.ndarray, policy: str) -> float:
    """The threshold of one class that is best on these cases.

    Args:
        scores: (N,) probabilities.
        truth: (N,) bool, with both values.
        policy: ``f1`` or ``youden``.

    Returns:
        Half way between two scores that occur (or the lowest one), so that a rounding of scores
        changes nothing; of several equally good ones the highest.
    """
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    last = np.append(np.diff(scores) != 0, True)  # equal scores are called alike
    tp, fp = np.cumsum(truth)[last], np.cumsum(~truth)[last]
    positives, negatives = int(truth.sum()), int((~truth).sum())
    by_policy = {
        "f1": 2 * tp / (tp + fp + positives),
        "youden": tp / positives - fp / negatives,
    }
    value = by_policy[policy]
    steps = scores[last]
    best = int(value.argmax())
    below = steps[best + 1] if best + 1 < len(steps) else steps[best]
    return float((steps[best] + below) / 2)


def thresholds_of_results(
    file: str | os.PathLike[str], source: str, classes: Sequence[str]
) -> tuple[dict[str, float], str]:
    """The thresholds that an evaluation used, and what it says about them.

    Args:
        file: ``results.json`` of an evaluation of the same source, of its validation data.
        source: key.
        classes: of the source.
    """
    path = Path(file)
    key = "TEST.FX.THRESHOLD_FROM"
    try:
        notes = json.loads(path.read_text("utf-8"))["notes"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ValueError(f"{key}: {path} is no results.json of an evaluation ({exc})") from exc
    found = [_chosen(note, source) for note in notes.values()] if isinstance(notes, dict) else []
    found = [each for each in found if each is not None]
    if not found:
        raise ValueError(
            f"{key}: {path} has no thresholds of {source} that were chosen on validation data; "
            f"evaluate {source}_val with TEST.FX.THRESHOLD_POLICY f1 or youden first"
        )
    values, how = found[0]
    good = set(values) == set(classes) and all(
        isinstance(v, (int, float)) and 0 <= v <= 1 for v in values.values()
    )
    if not good:
        raise ValueError(f"{key}: {path} has thresholds {values}; expected one for {classes}")
    return {name: float(values[name]) for name in classes}, f"{how} ({path.name})"


def _chosen(note: Any, source: str) -> tuple[Mapping[str, float], str] | None:
    """Thresholds of an evaluation's note that were chosen on the data of ``source``."""
    if not isinstance(note, dict) or not isinstance(note.get("positive"), dict):
        return None
    how = str(note.get("threshold", FIXED))
    of_source = str(note.get("dataset", "")).rpartition("_")[0] == source
    return (note["positive"], how) if of_source and how != FIXED else None


GROUPS = ("head", "medium", "tail")


def tail_groups(
    classes: Sequence[str], shares: Sequence[float], bounds: Sequence[float]
) -> dict[str, tuple[str, ...]]:
    """Classes by how rare they are in training: ``head``, ``medium`` and ``tail``.

    Args:
        classes: names.
        shares: of positives in training; NaN (never annotated) belongs to no group.
        bounds: below the first is tail, from the second on is head.
    """
    low, high = bounds
    rows = list(zip(classes, shares, strict=True))
    members = (
        tuple(name for name, share in rows if share >= high),
        tuple(name for name, share in rows if low <= share < high),
        tuple(name for name, share in rows if share < low),
    )
    return {name: found for name, found in zip(GROUPS, members, strict=True) if found}
