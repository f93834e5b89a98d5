"""How well each member and the committee tell the classes of a dataset apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tabulate import tabulate
from tqdm import tqdm

from fx_d2.data.build import load_datasets
from fx_d2.data.draws import rng_for
from fx_d2.data.errors import DataError
from fx_d2.data.label_policy import LabelPolicy
from fx_d2.data.record import UNCERTAIN, Record
from fx_d2.data.sources import get_source
from fx_d2.evaluation.curves import areas

from .committee import Answers, Committee
from .committee_members import Prepared

# A soft target of an uncertain label is drawn from (0.55, 0.85): it counts as positive.
_POSITIVE = 0.5


@dataclass(frozen=True)
class CommitteeScores:
    """Areas under the ROC curve of one dataset.

    Args:
        dataset: ``<source>_<split>``.
        classes: K.
        members: names, M.
        auc: float64 (M, K); NaN where known labels have one value only.
        committee: float64 (K,), of the weighted mean probability; likewise.
        positives: int64 (K,) images.
        negatives: likewise.
        uncertain: likewise, labels that are uncertain, whatever the policy made of them.
        skipped: images that could not be read.
    """

    dataset: str
    classes: tuple[str, ...]
    members: tuple[str, ...]
    auc: npt.NDArray[np.float64]
    committee: npt.NDArray[np.float64]
    positives: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64]
    uncertain: npt.NDArray[np.int64]
    skipped: tuple[DataError, ...] = ()

    def weights(self) -> npt.NDArray[np.float64]:
        """(M, K) for :meth:`Committee.weighing`: AUC - 0.5, and 0 for members that only guess.

        A class without an AUC has equal weights; so has one in which every member guesses, since
        no say at all would leave nothing.
        """
        found = np.clip(self.auc - 0.5, 0.0, None)
        found[:, np.isnan(self.auc).any(0)] = 1.0
        found[:, found.sum(0) == 0] = 1.0
        return found

    def rows(self) -> list[dict[str, str | float | int]]:
        """One per class, and the mean over classes that have an AUC."""
        rows: list[dict[str, str | float | int]] = []
        for k, name in enumerate(self.classes):
            row: dict[str, str | float | int] = {"class": name}
            row |= {m: float(v) for m, v in zip(self.members, self.auc[:, k], strict=True)}
            row |= {"committee": float(self.committee[k])}
            row |= {"positives": int(self.positives[k]), "negatives": int(self.negatives[k])}
            row |= {"uncertain": int(self.uncertain[k])}
            rows.append(row)
        known = ~np.isnan(self.committee)
        if known.any():
            mean: dict[str, str | float | int] = {"class": "mean"}
            mean |= {m: float(v[known].mean()) for m, v in zip(self.members, self.auc, strict=True)}
            rows.append(mean | {"committee": float(self.committee[known].mean())})
        return rows

    def text(self, style: str = "github") -> str:
        """The rows as a table; an empty cell where there is no AUC."""
        rows = self.rows()
        body = [[_cell(row.get(key)) for key in rows[0]] for row in rows]
        align = ["left", *["right"] * (len(rows[0]) - 1)]
        return tabulate(
            body, headers=list(rows[0]), tablefmt=style, disable_numparse=True, colalign=align
        )


def committee_targets(
    record: Record,
    classes: Sequence[str],
    policy: LabelPolicy,
    *,
    seed: int = 0,
) -> npt.NDArray[np.float32]:
    """What a record says about the classes of a committee, float32 (K,).

    1 present, 0 absent, NaN not known; between where the policy says ``smooth``. A class that the
    record's source does not have is not known.

    Args:
        record: as in fx_d2/data/record.py.
        classes: names.
        policy: for uncertain and not annotated labels, by source and class.
        seed: of ``smooth``, drawn per image.
    """
    source = get_source(record["source"])
    found = np.full(len(classes), np.nan, dtype=np.float32)
    labels = record.get("labels")
    if labels is None:
        return found
    rng = rng_for(seed, "committee labels", record["image_id"])
    values = policy.targets(np.asarray(labels), source.key, source.cls_classes, rng)
    by_name = dict(zip(source.cls_classes, values, strict=True))
    for k, name in enumerate(classes):
        found[k] = by_name.get(name, np.nan)
    return found


def score_committee(
    committee: Committee,
    dataset: str,
    *,
    policy: LabelPolicy | None = None,
    limit: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    on_error: str = "skip",
    quiet: bool = False,
) -> CommitteeScores:
    """AUC per class of every member and of all together on a registered dataset.

    Args:
        committee: whose weights decide its mean.
        dataset: ``<source>_<split>``; a validation split where weights are made from the result.
        policy: for uncertain and not annotated labels; None leaves both out.
        limit: at most so many images, evenly over the split; 0 is all.
        batch_size: images in a forward pass.
        seed: of a ``smooth`` policy.
        on_error: of an image that cannot be read: ``skip`` and count, or ``raise``.
        quiet: no progress bar.

    Raises:
        DataError: the dataset is not there, or nothing of it has a label of these classes.
    """
    if on_error not in ("skip", "raise"):
        raise ValueError(f"on_error is {on_error!r}; allowed: skip, raise")
    records = load_datasets([dataset])
    policy = policy or LabelPolicy()
    wanted = range(len(records))
    if limit and limit < len(records):
        wanted = sorted({round(i) for i in np.linspace(0, len(records) - 1, limit)})
    skipped: list[DataError] = []
    targets, members, together = [], [], []
    uncertain = np.zeros(len(committee.classes), dtype=np.int64)
    progress = tqdm(wanted, desc=f"scoring {dataset}", disable=quiet, leave=False)
    labelled = _labelled(records, progress, committee.classes, policy, seed, uncertain)
    for rows, found in _answers(committee, labelled, batch_size, skipped, on_error):
        targets.append(np.stack([target for _, target in rows]))
        members.append(found.probabilities.numpy())
        together.append(found.combined.numpy())
    if not targets:
        why = f"; the first unreadable image: {skipped[0]}" if skipped else ""
        raise DataError(
            f"{dataset} has no image with a known label of {', '.join(committee.classes)}{why}",
            fix="name another dataset, or a policy for unknown labels",
        )
    truth = np.concatenate(targets)
    said = np.concatenate(members, axis=1)
    known, positive = ~np.isnan(truth), truth >= _POSITIVE
    return CommitteeScores(
        dataset=dataset,
        classes=committee.classes,
        members=tuple(member.name for member in committee.members),
        auc=np.stack([_aucs(one, known, positive) for one in said]),
        committee=_aucs(np.concatenate(together), known, positive),
        positives=(known & positive).sum(0),
        negatives=(known & ~positive).sum(0),
        uncertain=uncertain,
        skipped=tuple(skipped),
    )


_Row = tuple[Record, npt.NDArray[np.float32]]


def _labelled(
    records: Sequence[Record],
    wanted: Iterable[int],
    classes: Sequence[str],
    policy: LabelPolicy,
    seed: int,
    uncertain: npt.NDArray[np.int64],
) -> Iterator[_Row]:
    """Records with a known label and their targets; all uncertain labels are counted."""
    for number in wanted:
        record = records[number]
        own = get_source(record["source"]).cls_classes
        if record.get("labels") is not None:
            unsure = {c for c, v in zip(own, record["labels"], strict=True) if v == UNCERTAIN}
            uncertain += np.array([c in unsure for c in classes])
        target = committee_targets(record, classes, policy, seed=seed)
        if not np.isnan(target).all():
            yield record, target


def _answers(
    committee: Committee,
    rows: Iterable[_Row],
    batch_size: int,
    skipped: list[DataError],
    on_error: str,
) -> Iterator[tuple[list[_Row], Answers]]:
    """Batches of rows that can be read, with what the committee says."""
    kept: list[_Row] = []
    images: list[tuple[Prepared, ...]] = []
    for row in rows:
        try:
            images.append(committee.prepare(row[0]["file_name"]))
        except DataError as error:
            if on_error == "raise":
                raise
            skipped.append(error)
            continue
        kept.append(row)
        if len(kept) == batch_size:
            yield kept, committee.answer(images)
            kept, images = [], []
    if kept:
        yield kept, committee.answer(images)


def _aucs(
    said: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], positive: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """(K,) from (N, K); NaN where the known labels have one value."""
    found = np.full(said.shape[1], np.nan)
    for k in range(said.shape[1]):
        truth = positive[known[:, k], k]
        if truth.any() and not truth.all():
            each = np.arange(len(truth))
            found[k] = areas(said[known[:, k], k], truth, each, np.ones((len(truth), 1)))[0][0]
    return found


def _cell(value: str | float | int | None) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3f}"
    return "" if value is None else str(value)
