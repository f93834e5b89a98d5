"""Weighted boxes fusion: several readers' boxes of one class become one set.

The method of Solovyev, Wang and Gabruseva (Image and Vision Computing 2021), for a single class.
Boxes are taken in the order of their scores; each joins the fused box it overlaps most, if by more
than a threshold, and moves it to the score-weighted mean of all its members. Unlike non-maximum
suppression no reader's outline is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FusedBoxes:
    """Fused boxes, best first.

    Args:
        boxes: (K, 4) float64, x0, y0, x1, y1.
        scores: (K,) mean score of the members, lowered where fewer boxes than readers agree.
        n_readers: (K,) how many different readers contributed.
    """

    boxes: np.ndarray
    scores: np.ndarray
    n_readers: np.ndarray


def iou_with(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box (4,) with others (K, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.clip(sides, 0, None), axis=1)
    area = np.prod(box[2:] - box[:2])
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / (area + areas - shared)


def _checked(
    boxes_per_reader: Sequence[np.ndarray], scores_per_reader: Sequence[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All boxes (N, 4), their scores (N,) and reader numbers (N,), in the order given."""
    boxes = [np.asarray(b, dtype=np.float64).reshape(-1, 4) for b in boxes_per_reader]
    if scores_per_reader is None:
        scores_per_reader = [np.ones(len(b)) for b in boxes]
    scores = [np.asarray(s, dtype=np.float64).reshape(-1) for s in scores_per_reader]
    if [len(s) for s in scores] != [len(b) for b in boxes]:
        raise ValueError(
            f"{[len(s) for s in scores]} scores for {[len(b) for b in boxes]} boxes per reader"
        )
    readers = [np.full(len(b), number) for number, b in enumerate(boxes)]
    if not boxes:
        return np.empty((0, 4)), np.empty(0), np.empty(0, dtype=int)
    every, weight = np.concatenate(boxes), np.concatenate(scores)
    if not (every[:, 2:] > every[:, :2]).all() or not (weight > 0).all():
        raise ValueError("boxes need x1 > x0 and y1 > y0, scores must be above 0")
    return every, weight, np.concatenate(readers)


def weighted_boxes_fusion(
    boxes_per_reader: Sequence[np.ndarray],
    scores_per_reader: Sequence[np.ndarray] | None = None,
    *,
    iou_threshold: float = 0.55,
) -> FusedBoxes:
    """Fuse the boxes that several readers drew for one class in one image.

    Args:
        boxes_per_reader: one (N_i, 4) array of x0, y0, x1, y1 per reader, in any unit; empty arrays
            count as readers who saw nothing.
        scores_per_reader: one (N_i,) array each; None gives every box the same.
        iou_threshold: a box joins a fused box when their overlap is above it.

    Returns:
        The fused boxes. Boxes of equal score are taken in the order given, so callers that want
        independence of row order sort first.
    """
    boxes, scores, readers = _checked(boxes_per_reader, scores_per_reader)
    fused = np.empty((len(boxes), 4))
    members: list[list[int]] = []
    for index in np.argsort(-scores, kind="stable"):
        target = len(members)
        if members:
            overlap = iou_with(boxes[index], fused[:target])
            best = int(overlap.argmax())
            target = best if overlap[best] > iou_threshold else target
        if target == len(members):
            members.append([])
        members[target].append(int(index))
        chosen = members[target]
        fused[target] = np.average(boxes[chosen], axis=0, weights=scores[chosen])
    n_lists = len(boxes_per_reader)
    means = np.array([scores[m].mean() * min(len(m), n_lists) / n_lists for m in members])
    order = np.argsort(-means, kind="stable")
    counts = np.array([len(set(readers[m].tolist())) for m in members], dtype=int)
    return FusedBoxes(fused[: len(members)][order], means[order], counts[order])
