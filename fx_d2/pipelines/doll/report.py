"""What the masks of a run are worth, class by class: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fx_d2.data.atomic import write_atomically
from fx_d2.explain.pseudo_labels import KEPT, STATES

from .measures import auc
from .report_text import as_markdown
from .settings import Quality

CONSENSUS = "consensus"
_FIGURES = ("pointing", "mass")


@dataclass
class Report:
    """The figures of a run.

    Args:
        classes: of the committee.
        members: their names.
        explainers: the one the masks come from, then those beside it.
        per_class: figures of each class.
        places: means over the classes that have true regions.
        images: how many were explained.
        failed: why others were not.
        always_background: classes that mean "nothing found".
        excluded: class -> why it is left out.
    """

    classes: tuple[str, ...]
    members: list[str]
    explainers: list[str]
    per_class: dict[str, dict[str, Any]]
    places: dict[str, Any]
    images: int
    failed: Counter[str]
    always_background: tuple[str, ...]
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[str, ...]:
        """Classes that become channels."""
        return tuple(name for name in self.classes if name not in self.excluded)

    @property
    def kept_with_masks(self) -> tuple[str, ...]:
        """Those of them that have foreground somewhere."""
        return tuple(name for name in self.kept if self.per_class[name]["masks"])

    def exclude(self, names: Sequence[str], quality: Quality) -> None:
        """Leave out what the user named and what is below the stated quality."""
        for name in self.classes:
            why = "asked for" if name in names else self._too_bad(name, quality)
            if why:
                self.excluded[name] = why

    def _too_bad(self, name: str, quality: Quality) -> str:
        if name in self.always_background:
            return ""
        figures = self.per_class[name]
        if figures["masks"] < quality.min_masks:
            why = "; ".join(f"{n} x {state}" for state, n in figures["states"].items() if n)
            return f"{figures['masks']} masks, fewer than {quality.min_masks} ({why})"
        for what, low in (
            ("auc", quality.min_auc),
            ("pointing", quality.min_pointing),
            ("share_kept", quality.min_kept),
        ):
            value = figures[what]
            found = value[CONSENSUS] if isinstance(value, dict) else value
            if found is not None and found < low:
                return f"{what} {found:.3f}, below {low:g}"
        return ""

    def why_nothing(self) -> str:
        """Reasons in one line, the most frequent first."""
        states: Counter[str] = Counter()
        for figures in self.per_class.values():
            states.update(figures["states"])
        parts = [f"{n} channels {state}" for state, n in states.most_common() if n]
        parts += [f"{n} images not read: {why}" for why, n in self.failed.most_common(2)]
        named = [f"{name} excluded: {why}" for name, why in self.excluded.items()][:3]
        return "; ".join(parts + named) or "no image"

    def to_dict(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values."""
        return {
            "images": self.images,
            "failed": dict(self.failed),
            "members": self.members,
            "explainers": self.explainers,
            "kept": list(self.kept),
            "excluded": self.excluded,
            "classes": self.per_class,
            "places": self.places,
            "provenance": dict(provenance),
        }

    def write(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write ``report.json`` and ``report.md``."""
        body = self.to_dict(provenance)
        write_atomically(folder / "report.json", json.dumps(body, indent=1) + "\n")
        write_atomically(folder / "report.md", as_markdown(body))


def gather(
    rows: Iterable[Mapping[str, Any]],
    classes: Sequence[str],
    members: Sequence[str],
    explainers: Sequence[str],
    always_background: Sequence[str] = (),
    unlabelled: Sequence[str] = (),
) -> Report:
    """The figures of measured images.

    Args:
        rows: as shards' measures hold them, one at a time.
        classes: of the committee.
        members: their names.
        explainers: the one the masks come from first.
        always_background: classes that mean "nothing found".
        unlabelled: classes the dataset has no label for.
    """
    table = {name: _OfClass() for name in classes}
    failed: Counter[str] = Counter()
    images = 0
    for row in rows:
        if "failed" in row:
            failed[row["failed"]] += 1
            continue
        images += 1
        for k, name in enumerate(classes):
            table[name].add(row, k, name)
    per_class = {}
    for name in classes:
        per_class[name] = table[name].figures(members, explainers)
        per_class[name]["has_label"] = name not in unlabelled
    return Report(
        tuple(classes), list(members), list(explainers), per_class,
        _over_places(per_class, members, explainers), images, failed, tuple(always_background),
    )  # fmt: skip


class _OfClass:
    """What is added up for one class; some numbers per image, no maps."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.positive = 0
        self.truth: list[int] = []
        self.scores: list[list[float]] = []  # of the mean, then of the members
        self.kept: list[tuple[float, float, float | None]] = []  # a mask may be one of a million
        self.measured: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any], k: int, name: str) -> None:
        state, label = row["states"][k], row["labels"][k]
        self.states[state] += 1
        self.positive += label == 1
        if label is not None:
            self.truth.append(label)
            self.scores.append([row["mean_prob"][k], *(one[k] for one in row["prob"])])
        found = row["classes"].get(name)
        if found is None:
            return
        if state == KEPT:
            errors = found["completeness"]
            self.kept.append((found["area"], found["ignored"], max(errors) if errors else None))
        # Also where no pixel was sure enough: a map was made and points somewhere.
        if "pointing" in found:
            self.measured.append(found)

    def figures(self, members: Sequence[str], explainers: Sequence[str]) -> dict[str, Any]:
        names = [CONSENSUS, *members]
        scores = np.asarray(self.scores, dtype=np.float64).reshape(-1, len(names))
        truth = np.asarray(self.truth, dtype=bool)
        errors = [error for _, _, error in self.kept if error is not None]
        return {
            "states": {state: self.states[state] for state in STATES},
            "positive": self.positive,
            "masks": self.states[KEPT],
            "share_kept": self.states[KEPT] / self.positive if self.positive else None,
            "area": _mean([area for area, _, _ in self.kept]),
            "ignored": _mean([ignored for _, ignored, _ in self.kept]),
            "completeness": {
                "mean": _mean(errors),
                "worst": max(errors, default=None),
            },
            "auc": {name: auc(scores[:, m], truth) for m, name in enumerate(names)},
            "with_truth": len(self.measured),
            "chance": _mean([found["chance"] for found in self.measured]),
            "front_in_truth": _mean([found["front_in_truth"] for found in self.measured]),
            "truth_covered": _mean([found["truth_covered"] for found in self.measured]),
            **_hits(self.measured, members),
            "beside": {
                name: _hits([found["beside"][name] for found in self.measured], members)
                for name in explainers[1:]
            },
        }


def _hits(found: Sequence[Mapping[str, Any]], members: Sequence[str]) -> dict[str, Any]:
    """Pointing game and mass of the consensus and of every member."""
    result: dict[str, Any] = {}
    for what in (*_FIGURES, "pointing_unclipped"):
        one = {} if what == "pointing_unclipped" else {CONSENSUS: _mean([f[what] for f in found])}
        own = {
            name: _mean([f["members"][what][m] for f in found]) for m, name in enumerate(members)
        }
        result[what] = one | own
    return result


def _over_places(
    per_class: Mapping[str, Mapping[str, Any]], members: Sequence[str], explainers: Sequence[str]
) -> dict[str, Any]:
    """Means over the classes that have true regions, each class counting alike."""
    names = [name for name, figures in per_class.items() if figures["with_truth"]]
    result: dict[str, Any] = {
        "classes": names,
        "chance": _mean([per_class[name]["chance"] for name in names]),
    }
    for explainer in explainers:
        own: dict[str, Any] = {}
        for what in (*_FIGURES, "pointing_unclipped"):
            columns = members if what == "pointing_unclipped" else [CONSENSUS, *members]
            own[what] = {c: _mean([
                (per_class[n] if explainer == explainers[0] else per_class[n]["beside"][explainer])
                [what][c] for n in names]) for c in columns}  # fmt: skip
        single = {m: v for m, v in own["pointing"].items() if m != CONSENSUS and v is not None}
        own["best_member"] = max(single, key=lambda m: single[m]) if single else None
        result[explainer] = own
    return result


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
