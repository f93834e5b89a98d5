"""Which label of the base source a lesion of another source stands for.

Sources name one finding differently. A class that means several of the base's labels, or none of
them for certain, is mapped to none: a wrong label is worse than a patch less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from ..errors import did_you_mean
from ..record import UNCERTAIN
from ..source import Source
from ..sources import get_source

# Classes that say that nothing was found.
_NOTHING = ("no finding", "normal")
# Devices are no finding: an image may carry them and be finding-free.
_NO_DISEASE = ("support devices",)

# One line per finding: names that stand for the same thing in the lists of the sources.
_SAME = (
    ("Pleural Effusion", "Effusion"),
    ("Fibrosis", "Pulmonary fibrosis"),
    ("Fracture", "Rib fracture", "Clavicle fracture"),
    ("Lung Lesion", "Other lesion", "Lung cavity", "Lung cyst"),
    ("Mass", "Lung tumor"),
    ("Infiltration", "Infiltrate"),
)


@lru_cache(maxsize=1024)
def plain(name: str) -> str:
    """``name`` without case and underscores, for comparing."""
    return name.replace("_", " ").strip().lower()


@lru_cache(maxsize=1024)
def is_no_finding(name: str) -> bool:
    """Whether a class says that there is nothing."""
    return plain(name) in _NOTHING


def class_map(
    bank: Source, labels: Sequence[str], overrides: Iterable[str] = ()
) -> dict[str, str | None]:
    """For every box class of ``bank`` the label it becomes, or None.

    Args:
        bank: the row patches come from.
        labels: ``cls_classes`` of the base source.
        overrides: ``"source/class=label"``; ``"source/class="`` maps to none.
    """
    by_name = {plain(label): label for label in labels}
    found: dict[str, str | None] = {}
    for name in bank.thing_classes:
        group: tuple[str, ...] = next((g for g in _SAME if plain(name) in map(plain, g)), (name,))
        options = [name, *group]
        found[name] = next((by_name[plain(o)] for o in options if plain(o) in by_name), None)
    for text in overrides:
        where, equals, label = (part.strip() for part in text.partition("="))
        key, slash, name = where.partition("/")
        if not equals or not slash:
            raise ValueError(
                f"INPUT.FX.LESION_MIX.CLASS_MAP has {text!r}; write 'source/class=label'"
            )
        if get_source(key) is not bank:
            continue
        if name not in found:
            raise ValueError(
                f"INPUT.FX.LESION_MIX.CLASS_MAP: {key} has no box class {name!r}."
                + did_you_mean(name, found)
            )
        if label and label not in labels:
            raise ValueError(
                f"INPUT.FX.LESION_MIX.CLASS_MAP: no label {label!r}.{did_you_mean(label, labels)}"
            )
        found[name] = label or None
    return found


def is_finding_free(labels: np.ndarray, classes: Sequence[str]) -> bool:
    """Whether an image shows no disease for certain.

    Args:
        labels: (C,) of a record.
        classes: their names. With a class such as No Finding that one has to be 1, else every
            label has to be known; nothing may be positive or uncertain, devices apart.
    """
    nothing, disease = _kinds(tuple(classes))
    found = labels[disease]
    if ((found == UNCERTAIN) | (found > 0)).any():
        return False
    return bool((labels[nothing] == 1).all() if len(nothing) else not np.isnan(labels).any())


@lru_cache(maxsize=64)
def _kinds(classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where the classes are that say that nothing was found, and those of diseases."""
    nothing = [i for i, name in enumerate(classes) if is_no_finding(name)]
    disease = [
        i for i, name in enumerate(classes) if i not in nothing and plain(name) not in _NO_DISEASE
    ]
    return np.array(nothing, dtype=np.int64), np.array(disease, dtype=np.int64)


def has_disease(labels: np.ndarray, classes: Sequence[str]) -> bool:
    """Whether a disease is positive."""
    return bool((labels[_kinds(tuple(classes))[1]] == 1).any())


def union(
    labels: np.ndarray, classes: Sequence[str], pasted: Iterable[tuple[str, float]]
) -> np.ndarray:
    """float32 (C,): ``labels`` with every pasted (class, weight) added, and No Finding taken out.

    A weight adds to what is known: the larger of both stays, and what was unknown or uncertain
    becomes the weight.
    """
    result = labels.astype(np.float32, copy=True)
    several = False
    for name, weight in pasted:
        several = True
        i = classes.index(name)
        result[i] = weight if np.isnan(result[i]) else max(float(result[i]), weight)
    if several:
        for i, name in enumerate(classes):
            if is_no_finding(name) and not np.isnan(result[i]):
                result[i] = 0.0
    return result
