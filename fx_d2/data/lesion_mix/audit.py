"""What a mix did to the labels, and whether that is within limits: figure 2d made testable.

The report is written whether or not the limits hold; a mix that breaks one is not registered.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..catalog import patient_of
from ..record import Record
from ..sources import get_source
from .build import Prepared, Written
from .classes import is_no_finding
from .correlation import (
    Comparison,
    compare,
    deviations,
    label_counts,
    phi_matrix,
    reliability,
    standard_errors,
    weakened,
)
from .held_out import HeldOut
from .settings import MixSettings


@dataclass
class Audit:
    """The findings.

    Args:
        body: everything, as JSON.
        before, after: (C, C) correlations.
        problems: limits that do not hold, each naming its class or patient.
    """

    body: dict[str, Any]
    before: np.ndarray
    after: np.ndarray
    problems: list[str] = field(default_factory=list)


def audit(
    written: Written,
    prepared: Prepared,
    records: Sequence[Record],
    settings: MixSettings,
    held_out: HeldOut,
) -> Audit:
    """Examine a written mix.

    Args:
        written: its rows, as read from disk.
        prepared: bank and base.
        records: base images.
        settings: with the limits.
        held_out: patients that must not occur.
    """
    classes = prepared.base.cls_classes
    original = np.stack([record["labels"] for record in records])
    added = np.array(
        [[np.nan if v is None else v for v in row["labels"]] for row in written.rows],
        dtype=np.float32,
    ).reshape(-1, len(classes))
    whole = np.concatenate([original, added])
    before, after = phi_matrix(original), phi_matrix(whole)
    limits = _Limits.of(before, standard_errors(original), settings)
    change = compare(before, after, limits.by_chance)
    pair = [classes[i] for i in change.pair]
    shares = _source_shares(written, prepared)
    totals = zip(classes, label_counts(original), label_counts(whole), strict=True)
    counts: dict[str, dict[str, Any]] = {
        name: {
            "before": int(old),
            "after": int(new),
            "pasted": int(sum(shares[name].values())),
            "synthetic_share": _share(int(new - old), int(new)),
        }
        for name, old, new in totals
    }
    target = settings.target_of(len(records))
    body: dict[str, Any] = {
        "images": {"before": len(records), "added": len(written.rows)},
        "arms": dict(Counter(row["arm"] for row in written.rows)),
        "target": target,
        "counts": counts,
        "short": _short(counts, written, target),
        "not_made": dict(written.failed),
        "pastes_without_a_place": int(sum(row["dropped"] for row in written.rows)),
        "base_reuse": _reuse(written.stock.base_uses, len(records)),
        "patch_reuse": _reuse(written.stock.patch_uses, len(prepared.bank)),
        "patches": {name: len(numbers) for name, numbers in prepared.bank.by_label.items()},
        "source_share": {
            name: {key: _share(n, sum(found.values())) for key, n in sorted(found.items())}
            for name, found in shares.items()
            if found
        },
        "bank_skipped": prepared.bank.header.get("skipped", {}),
        "correlation": _correlation(change, pair, classes, before, after)
        | limits.words(change.pair),
        "held_out": {
            "patients": {k: len(v) for k, v in held_out.patients.items()},
            "not_compared": dict(held_out.unread),
        },
    }
    result = Audit(body, before, after)
    result.problems += _leaks(written, prepared, records, held_out)
    result.problems += _changed(change, pair, limits)
    result.problems += _one_sided(shares, settings)
    body["problems"] = list(result.problems)
    return result


def _correlation(
    change: Comparison,
    pair: Sequence[str],
    classes: Sequence[str],
    before: np.ndarray,
    after: np.ndarray,
) -> dict[str, Any]:
    """How the classes occur together, (C, C) before and after."""
    return {
        "max_diff": change.max_diff,
        "max_diff_pair": list(pair),
        "pearson_r": change.pearson_r,
        "classes": list(classes),
        "before": before.round(6).tolist(),
        "after": after.round(6).tolist(),
    }


@dataclass(frozen=True)
class _Limits:
    """Of the correlations, wider where few images leave them to chance.

    Args:
        settings: the limits of many images.
        by_chance: (C, C) change that means nothing.
        reliability: share of the spread of the correlations that is no chance.
    """

    settings: MixSettings
    by_chance: np.ndarray
    reliability: float

    @classmethod
    def of(cls, before: np.ndarray, errors: np.ndarray, settings: MixSettings) -> _Limits:
        room = deviations(len(before), settings.chance) * errors
        return cls(settings, room, reliability(before, errors) if settings.chance else 1.0)

    def max_diff(self, pair: tuple[int, int]) -> float:
        return self.settings.max_diff + float(self.by_chance[pair])

    @property
    def min_r(self) -> float:
        limit, chance = self.settings.min_r, self.settings.chance
        # Below 0 there is no agreement that chance could weaken.
        return (
            weakened(limit, self.reliability, len(self.by_chance), chance) if limit > 0 else limit
        )

    def words(self, pair: tuple[int, int]) -> dict[str, float]:
        return {
            "by_chance": round(float(self.by_chance[pair]), 6),
            "limit_max_diff": round(self.max_diff(pair), 6),
            "limit_r": round(self.min_r, 6),
        }


def _changed(change: Comparison, pair: Sequence[str], limits: _Limits) -> list[str]:
    """Limits of the correlations that do not hold."""
    found, settings = [], limits.settings
    between = f"{pair[0]!r} and {pair[1]!r}"
    room = float(limits.by_chance[change.pair])
    if change.max_diff > limits.max_diff(change.pair):
        found.append(
            f"the correlation of {between} changed by {change.max_diff:.3f} "
            f"(INPUT.FX.LESION_MIX.MAX_DIFF {settings.max_diff:g}, and {room:.3f} for chance)"
        )
    if change.pearson_r < limits.min_r:
        found.append(
            f"correlations before and after agree with r = {change.pearson_r:.3f} only, {between} "
            f"least (INPUT.FX.LESION_MIX.MIN_R {settings.min_r:g}, with chance {limits.min_r:.3f})"
        )
    return found


def _share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0


def _source_shares(written: Written, prepared: Prepared) -> dict[str, Counter[str]]:
    """Pasted lesions of each label by the source they come from."""
    shares: dict[str, Counter[str]] = defaultdict(Counter)
    for row in written.rows:
        for number in row["patches"]:
            patch = prepared.bank.patches[number]
            shares[patch.label][patch.source] += 1
    return shares


def _short(counts: dict[str, dict[str, Any]], written: Written, target: int) -> dict[str, Any]:
    """Minority classes that did not reach the target, and why."""
    return {
        name: {"missing": target - entry["after"], "why": written.unserved.get(name, "limit")}
        for name, entry in counts.items()
        if entry["after"] < target and not is_no_finding(name) and name != "Support Devices"
    }


def _reuse(uses: Counter[int], there: int) -> dict[str, Any]:
    values = np.array(sorted(uses.values(), reverse=True) or [0])
    return {
        "there": there,
        "used": len(uses),
        "most": int(values[0]),
        "mean_of_used": round(float(values.mean()), 3),
        "times": {str(n): int(c) for n, c in sorted(Counter(uses.values()).items())},
    }


def _leaks(
    written: Written, prepared: Prepared, records: Sequence[Record], held_out: HeldOut
) -> list[str]:
    """Patients held out among bases and patches; the rows are taken as they stand on disk."""
    theirs = held_out.patients.get(prepared.base.folder, set())
    used = {row["patient_id"] or row["base_image"] for row in written.rows}
    used |= {patient_of(records[row["base"]]) for row in written.rows}
    problems = [
        f"base of patient {patient!r}, who is evaluated on" for patient in sorted(used & theirs)
    ]
    for number in sorted({n for row in written.rows for n in row["patches"]}):
        patch = prepared.bank.patches[number]
        if patch.patient in held_out.patients.get(get_source(patch.source).folder, set()):
            problems.append(
                f"patch of {patch.source} patient {patch.patient!r} ({patch.label!r}), who is "
                "evaluated on"
            )
    return problems


def _one_sided(shares: dict[str, Counter[str]], settings: MixSettings) -> list[str]:
    """Classes of which one source gave too many lesions: its look would stand for the finding."""
    problems = []
    for name, found in shares.items():
        key, n = found.most_common(1)[0] if found else ("", 0)
        share = _share(n, sum(found.values()))
        if share > settings.max_source_share:
            problems.append(
                f"{share:.0%} of the pasted {name!r} come from {key} "
                f"(INPUT.FX.LESION_MIX.MAX_SOURCE_SHARE {settings.max_source_share:g})"
            )
    return problems


def as_text(found: Audit, title: str) -> str:
    """The report as Markdown."""
    body = found.body
    images, link = body["images"], body["correlation"]
    lines = [
        f"# {title}",
        "",
        f"{images['before']:,} images, {images['added']:,} added ({_listed(body['arms'])}). "
        f"Every minority class shall have {body['target']:,}.",
        "",
        f"Correlations before and after: largest difference {link['max_diff']:.3f} "
        f"({' and '.join(link['max_diff_pair'])}), Pearson r {link['pearson_r']:.3f}. "
        f"Limits of so many images: {link['limit_max_diff']:.3f}, of which chance has "
        f"{link['by_chance']:.3f}, and r {link['limit_r']:.3f}.",
        "",
        *[f"- LIMIT BROKEN: {problem}" for problem in found.problems],
        "",
        "| class | before | after | synthetic | patches | lesions pasted, by source |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in body["counts"].items():
        shares = body["source_share"].get(name, {})
        lines.append(
            f"| {name} | {entry['before']:,} | {entry['after']:,} | "
            f"{entry['synthetic_share']:.0%} | {body['patches'].get(name, 0)} | "
            f"{_listed({k: f'{v:.0%}' for k, v in shares.items()})} |"
        )
    lines += [
        "",
        "| re-use | there | used | most often | mean of those used |",
        "|---|---|---|---|---|",
    ]
    for what in ("base", "patch"):
        entry = body[f"{what}_reuse"]
        lines.append(
            f"| {what} | {entry['there']} | {entry['used']} | {entry['most']} | "
            f"{entry['mean_of_used']} |"
        )
    lines += [
        "",
        *[f"- short of {e['missing']}: {n} ({e['why']})" for n, e in body["short"].items()],
    ]
    lines += [f"- {n} planned images not made: {why}" for why, n in body["not_made"].items()]
    lines += [f"- {n} x not cut: {why}" for why, n in body["bank_skipped"].items()]
    lines += [
        f"- patients not compared: {n} ({w})" for n, w in body["held_out"]["not_compared"].items()
    ]
    return "\n".join(lines) + "\n"


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "none"
