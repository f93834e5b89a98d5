"""Image-level classification: ranking, operating point, agreement, calibration, intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fx_d2.data.label_policy import for_evaluation
from fx_d2.data.record import Record

from .curves import areas, interval, replicates
from .exclusive import calibration_error, confusion, most_probable, multiclass_figures
from .operating_point import FIXED, POLICIES, best_threshold, said
from .truth import TaskEvaluator, Truth

_ONE_VALUE = "one label value only"
_UNKNOWN = "never annotated"


class ClassificationEvaluator(TaskEvaluator):
    """Figures of the image labels of one source.

    Per class (``AUC-Edema``) and as the mean over classes (``AUC``): ``AUC``, ``AP`` (average
    precision), ``F1``, ``sensitivity``, ``specificity``, ``precision``, ``accuracy``, ``kappa``
    (Cohen's) and ``ECE`` (expected calibration error, equal bins of the probability).
    ``AUC_<subset>``, ``AP_<subset>`` and ``F1_<subset>`` are means over the row's named subsets and
    over ``groups``. ``AUC_low`` and ``AUC_high``, ``AP_low`` and ``AP_high`` bound the 95 %
    bootstrap interval by patient, ``AUC_tail_low`` and so on those of subsets and groups.

    Uncertain and not annotated labels enter nothing. A class whose known labels all have one value
    enters no mean and has no figure; the notes name it with its counts. ``multilabel`` and
    ``binary`` sources are positive from ``threshold`` on; in a ``multiclass`` source the most
    probable class is, ``accuracy`` and ``kappa`` are those of all classes together and ``ECE`` that
    of the most probable one.

    Args:
        truth: the records.
        threshold: positive from here on; one for all classes, or by class (others have 0.5).
        policy: ``fixed``; or ``f1`` or ``youden``: chosen by class on this very data, where that
            can be done, which makes the figures that depend on it too good: for validation data.
        threshold_note: what the notes say about a fixed threshold.
        groups: further subsets of the classes by name, such as head, medium and tail.
        groups_note: what the notes say about them.
        group_by: key of the records whose images are one case (MURA's ``study_id``): the mean
            probability is compared with the case's label.
        n_bootstrap: replicates; 0 for no intervals.
        seed: of the bootstrap.
        n_bins: of the calibration error.
    """

    task = "cls"
    columns = ("class", "label", "probability")

    def __init__(
        self,
        truth: Truth,
        *,
        threshold: float | Mapping[str, float] = 0.5,
        policy: str = FIXED,
        threshold_note: str = FIXED,
        groups: Mapping[str, Sequence[str]] | None = None,
        groups_note: str = "",
        group_by: str | None = None,
        n_bootstrap: int = 1000,
        seed: int = 0,
        n_bins: int = 15,
    ) -> None:
        super().__init__(truth)
        by_class = threshold if isinstance(threshold, Mapping) else {}
        unknown = set(by_class) - set(self.classes)
        if unknown:
            raise ValueError(f"threshold for {sorted(unknown)}; {self.key} has {self.classes}")
        default = 0.5 if isinstance(threshold, Mapping) else threshold
        self.thresholds = np.array([by_class.get(c, default) for c in self.classes], dtype=float)
        if policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}; allowed: {', '.join(POLICIES)}")
        self.policy, self.threshold_note = policy, threshold_note
        self.groups, self.groups_note = dict(groups or {}), groups_note
        self.subsets = {**self.source.cls_subsets, **self.groups}
        if n_bootstrap < 0 or n_bins < 1:
            raise ValueError(f"n_bootstrap {n_bootstrap} and n_bins {n_bins} count things")
        self.group_by, self.n_bootstrap = group_by, n_bootstrap
        self.seed, self.n_bins = seed, n_bins

    def _figures(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        ends = ("", "_low", "_high") if self.n_bootstrap else ("",)
        multiclass = self.source.cls_kind == "multiclass"
        per_class = [f"{name}{end}" for name in ("AUC", "AP") for end in ends]
        per_class += ["F1", "sensitivity", "specificity", "precision", "accuracy", "kappa"]
        per_class += [] if multiclass else ["ECE"]
        alone = [f"{n}_{s}{end}" for s in self.subsets for n in ("AUC", "AP") for end in ends]
        alone += [f"F1_{subset}" for subset in self.subsets]
        return tuple(per_class), (*alone, *(["ECE", "log_loss"] if multiclass else []))

    def _row(self, record: Record, given: Mapping, output: Mapping) -> Any:
        raw = record.get("labels")
        labels = None if raw is None else for_evaluation(raw)
        if labels is None or np.isnan(labels).all():
            return None
        by_class = self._by_class(self._of_source(output, "labels"))
        scores = np.array([float(p) for p in by_class], dtype=np.float32)
        if not ((scores >= 0) & (scores <= 1)).all():  # NaN is caught by this too
            raise ValueError(
                f"scores of image {record['image_id']!r} are {scores.tolist()}; expected "
                "probabilities in [0, 1], not logits"
            )
        case = record["image_id"]
        if self.group_by is not None:
            if record.get(self.group_by) is None:
                raise KeyError(
                    f"group_by={self.group_by!r}, which image {record['image_id']!r} does not have"
                )
            case = str(record[self.group_by])
        patient = record["patient_id"]
        if patient is not None and self.group_by is not None:
            case = f"{patient}\x1f{case}"  # study numbers start anew with every patient
        return scores, labels, case, patient

    def _lines(self, row: Any) -> Iterator[tuple]:
        scores, labels, *_ = row
        for name, label, score in zip(self.classes, labels, scores, strict=True):
            if not np.isnan(label):
                yield name, int(label), float(score)

    def _summarise(
        self, places: list[int], rows: list[Any]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        if not rows:
            return {}, {"left_out": {_UNKNOWN: list(self.classes)}}
        scores, labels, patients, n_unnamed = _cases(rows)
        usable, left_out, counts = self._usable(labels)
        multiclass = self.source.cls_kind == "multiclass"
        per_class: dict[str, np.ndarray] = _areas_per_class(scores, labels, usable)
        thresholds, how = self._thresholds(scores, labels, usable)
        predicted = most_probable(scores) if multiclass else scores >= thresholds
        per_class |= _operating_point(predicted, labels, usable)
        if not multiclass:
            per_class["ECE"] = np.array(
                [
                    calibration_error(scores[k, c], labels[k, c], self.n_bins)
                    for c in usable
                    for k in [~np.isnan(labels[:, c])]
                ]
            )
        metrics = {name: float(v.mean()) for name, v in per_class.items() if len(v)}
        if multiclass:
            metrics |= multiclass_figures(scores, labels, self.n_bins)
        for subset, names in self.subsets.items():
            chosen = [i for i, c in enumerate(usable) if self.classes[c] in names]
            for name in ("AUC", "AP", "F1"):
                if chosen:
                    metrics[f"{name}_{subset}"] = float(per_class[name][chosen].mean())
        bounds = self._intervals(scores, labels, patients, usable)
        metrics |= {name: value for name, value in bounds.items() if "-" not in name}
        for name, values in per_class.items():
            metrics |= {f"{name}-{self.classes[c]}": float(values[i]) for i, c in enumerate(usable)}
        metrics |= {name: value for name, value in bounds.items() if "-" in name}
        notes: dict[str, Any] = {
            "cases": len(scores),
            "patients": int(patients.max()) + 1,
            "images_without_patient": n_unnamed,
            "positive_and_negative": counts,
            "left_out": left_out,
            "group_by": self.group_by,
            "positive": "the most probable class"
            if multiclass
            else {c: float(t) for c, t in zip(self.classes, thresholds, strict=True)},
            "threshold": "none" if multiclass else how,
            "interval": f"95 %, percentiles of {self.n_bootstrap} bootstrap replicates by patient, "
            f"seed {self.seed}; an image without a patient is one of its own",
            "ECE": f"{self.n_bins} equal bins",
        }
        if multiclass:
            notes["confusion"] = confusion(scores, labels, self.classes)
        if self.groups:
            notes["groups"] = {name: list(members) for name, members in self.groups.items()}
            notes["groups_by"] = self.groups_note
        return metrics, notes

    def _thresholds(
        self, scores: np.ndarray, labels: np.ndarray, usable: Sequence[int]
    ) -> tuple[np.ndarray, str]:
        """Of all classes, and how they came about."""
        if self.policy == FIXED:
            return self.thresholds, self.threshold_note
        chosen = self.thresholds.copy()
        for c in usable:
            known = ~np.isnan(labels[:, c])
            chosen[c] = best_threshold(scores[known, c], labels[known, c] == 1, self.policy)
        return chosen, said(self.policy, self.truth.dataset_name)

    def _usable(
        self, labels: np.ndarray
    ) -> tuple[list[int], dict[str, dict[str, str]], dict[str, list[int]]]:
        """Classes with both label values; the others with their reason; the counts of all."""
        usable: list[int] = []
        left_out: dict[str, dict[str, str]] = {}
        counts: dict[str, list[int]] = {}
        for c, name in enumerate(self.classes):
            n_pos, n_neg = int((labels[:, c] == 1).sum()), int((labels[:, c] == 0).sum())
            counts[name] = [n_pos, n_neg]
            if n_pos and n_neg:
                usable.append(c)
            else:
                reason = _ONE_VALUE if n_pos or n_neg else _UNKNOWN
                left_out.setdefault(reason, {})[name] = f"{n_pos} positive, {n_neg} negative"
        return usable, left_out, counts

    def _intervals(
        self, scores: np.ndarray, labels: np.ndarray, patients: np.ndarray, usable: Sequence[int]
    ) -> dict[str, float]:
        if not self.n_bootstrap or not usable:
            return {}
        drawn = replicates(
            scores[:, usable],
            labels[:, usable],
            patients,
            n=self.n_bootstrap,
            seed=self.seed,
            name=self.source.key,
        )
        bounds: dict[str, float] = {}
        groups = {"": list(range(len(usable)))}
        for subset, names in self.subsets.items():
            groups[f"_{subset}"] = [i for i, c in enumerate(usable) if self.classes[c] in names]
        for name, values in zip(("AUC", "AP"), drawn, strict=True):
            for suffix, members in groups.items():
                _add_interval(bounds, f"{name}{suffix}", "", _mean_of_known(values[:, members]))
            for i, c in enumerate(usable):
                _add_interval(bounds, name, f"-{self.classes[c]}", values[:, i])
        return bounds


def _add_interval(bounds: dict[str, float], name: str, suffix: str, values: np.ndarray) -> None:
    found = interval(values)
    if found is not None:
        bounds[f"{name}_low{suffix}"], bounds[f"{name}_high{suffix}"] = found


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over axis 1 without NaN; NaN where there is nothing else."""
    known = np.isfinite(values)
    n = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _cases(rows: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Scores (N, C), labels (N, C), patient numbers (N,) of cases; images without a patient."""
    case_of: dict[str, int] = {}
    members = np.array([case_of.setdefault(row[2], len(case_of)) for row in rows])
    all_scores = np.stack([row[0] for row in rows]).astype(np.float64)
    all_labels = np.stack([row[1] for row in rows]).astype(np.float64)
    n_unnamed = sum(row[3] is None for row in rows)
    number: dict[tuple[bool, str], int] = {}
    patients = np.zeros(len(case_of), dtype=np.int64)
    for case, row in zip(members, rows, strict=True):
        who = (True, row[3]) if row[3] is not None else (False, row[2])
        patients[case] = number.setdefault(who, len(number))
    if len(case_of) == len(rows):
        return all_scores, all_labels, patients, n_unnamed
    scores = np.zeros((len(case_of), all_scores.shape[1]))
    np.add.at(scores, members, all_scores)
    scores /= np.bincount(members)[:, None]
    # A case is positive where any of its images is known to be, and unknown where all are.
    labels = np.full(scores.shape, -np.inf)
    np.maximum.at(labels, members, np.where(np.isnan(all_labels), -np.inf, all_labels))
    labels[np.isneginf(labels)] = np.nan
    return scores, labels, patients, n_unnamed


def _areas_per_class(
    scores: np.ndarray, labels: np.ndarray, usable: Sequence[int]
) -> dict[str, np.ndarray]:
    auc, average = np.empty(len(usable)), np.empty(len(usable))
    for i, c in enumerate(usable):
        known = ~np.isnan(labels[:, c])
        n = int(known.sum())
        found = areas(
            scores[known, c], labels[known, c] == 1, np.zeros(n, dtype=np.int64), np.ones((1, 1))
        )
        auc[i], average[i] = found[0][0], found[1][0]
    return {"AUC": auc, "AP": average}


def _operating_point(
    predicted: np.ndarray, labels: np.ndarray, usable: Sequence[int]
) -> dict[str, np.ndarray]:
    """Figures of the 2 x 2 table of each usable class; none of them divides by zero.

    ``usable`` classes have both label values. Kappa is 0 when every prediction is the same, as
    chance does equally well then.
    """
    predicted, labels = predicted[:, usable], labels[:, usable]
    pos, neg = labels == 1, labels == 0
    tp, fn = (pos & predicted).sum(axis=0), (pos & ~predicted).sum(axis=0)
    tn, fp = (neg & ~predicted).sum(axis=0), (neg & predicted).sum(axis=0)
    n = tp + fn + tn + fp
    accuracy = (tp + tn) / n
    chance = ((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp)) / n.astype(float) ** 2
    return {
        "F1": 2 * tp / (2 * tp + fp + fn),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": tp / np.maximum(tp + fp, 1),  # 0 where nothing was called positive
        "accuracy": accuracy,
        "kappa": (accuracy - chance) / (1 - chance),
    }
