"""Lesion-wise figures: FROC, PASCAL's average precision and the RSNA challenge's score.

All three need to know which prediction found which lesion. :func:`match` decides it as COCO does:
by falling score, each prediction takes the free lesion it overlaps best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .coco_ap import IOU_THRESHOLDS, Objects

# False positives per image at which sensitivity is read (LUNA16's; their mean is the CPM).
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
RSNA_IOUS = IOU_THRESHOLDS[:8]  # 0.40, 0.45 ... 0.75


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) overlap of (N, 4) and (M, 4) XYXY boxes."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    either = area[0][:, None] + area[1][None, :] - shared
    return np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)


def match(overlap: np.ndarray, scores: np.ndarray, at: float) -> np.ndarray:
    """Which prediction found a lesion.

    Args:
        overlap: (N, M) of predictions and lesions.
        scores: (N,)
        at: smallest overlap that counts.

    Returns:
        Bool (N,). A second prediction on a lesion that is taken is a false positive.
    """
    found = np.zeros(len(scores), dtype=bool)
    free = np.ones(overlap.shape[1], dtype=bool)
    near = np.flatnonzero((overlap >= at).any(axis=1)) if overlap.size else np.empty(0, dtype=int)
    for i in near[np.argsort(-scores[near], kind="stable")]:
        candidates = np.where(free & (overlap[i] >= at), overlap[i], -1.0)
        best = int(candidates.argmax())
        if candidates[best] >= 0:
            found[i], free[best] = True, False
    return found


@dataclass(frozen=True)
class Hits:
    """The predictions of one class over all images, by falling score.

    Args:
        scores: (N,) float64.
        found: (N,) bool, whether it found a lesion.
        n_lesions: lesions there are.
        n_images: images evaluated, those without a finding included.
    """

    scores: np.ndarray
    found: np.ndarray
    n_lesions: int
    n_images: int

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Hits and false positives (S,) at every distinct score, from the highest on."""
        tp, fp = np.cumsum(self.found), np.cumsum(~self.found)
        last = np.flatnonzero(np.append(np.diff(self.scores) != 0, True)) if len(tp) else tp
        return tp[last], fp[last]

    def sensitivities(self, rates: Sequence[float] = FROC_RATES) -> np.ndarray:
        """Share of lesions found at the lowest score that keeps to each rate of false positives.

        No value between two scores is made up.
        """
        tp, fp = self.curve()
        tp, fp = np.append(0, tp), np.append(0, fp)
        kept = [np.flatnonzero(fp <= rate * self.n_images + 1e-9)[-1] for rate in rates]
        return tp[kept] / self.n_lesions

    def pascal_ap(self) -> float:
        """Area under the falling envelope of precision over recall (PASCAL VOC from 2010 on)."""
        tp, fp = self.curve()
        if not len(tp):
            return 0.0
        precision = np.maximum.accumulate((tp / (tp + fp))[::-1])[::-1]
        recall = np.append(0, tp) / self.n_lesions
        return float((np.diff(recall) * precision).sum())


def hits_of_class(
    truth: Sequence[Objects], predicted: Sequence[Objects], cls: int, at: float
) -> Hits:
    """Match the predictions of a class in every image; crowd regions are no lesions."""
    scores: list[np.ndarray] = []
    found: list[np.ndarray] = []
    n_lesions = 0
    for true, said in zip(truth, predicted, strict=True):
        lesions = true.boxes[_countable(true) & (true.classes == cls)]
        n_lesions += len(lesions)
        chosen = said.classes == cls
        if said.scores is None or not chosen.any():
            continue
        own = said.scores[chosen].astype(np.float64)
        scores.append(own)
        found.append(match(box_iou(said.boxes[chosen], lesions), own, at))
    all_scores = np.concatenate(scores) if scores else np.empty(0)
    all_found = np.concatenate(found) if found else np.empty(0, dtype=bool)
    order = np.argsort(-all_scores, kind="stable")
    return Hits(all_scores[order], all_found[order], n_lesions, len(truth))


def shown_and_found(
    true: Objects, said: Objects, threshold: float, at: float
) -> tuple[int, int, int]:
    """Of one image: lesions, boxes with a score from ``threshold`` on, lesions found by those."""
    scores = np.empty(0) if said.scores is None else said.scores
    kept, lesions = scores >= threshold, _countable(true)
    found = 0
    for cls in np.unique(said.classes[kept]) if lesions.any() else ():
        boxes, here = kept & (said.classes == cls), lesions & (true.classes == cls)
        overlap = box_iou(said.boxes[boxes], true.boxes[here])
        found += int(match(overlap, scores[boxes], at).sum())
    return int(lesions.sum()), int(kept.sum()), found


def rsna_score(truth: Sequence[Objects], predicted: Sequence[Objects], threshold: float) -> float:
    """The RSNA challenge's mean over images; NaN where no image counts.

    An image's score is the mean over IoU 0.40, 0.45 ... 0.75 of TP / (TP + FP + FN) of the boxes
    with a score from ``threshold`` on. Any such box in a finding-free image makes it 0; an image
    with neither truth nor such a box does not count.
    """
    total, n = 0.0, 0
    for true, said in zip(truth, predicted, strict=True):
        scores = np.empty(0) if said.scores is None else said.scores
        kept = scores >= threshold
        lesions = _countable(true)
        n_true, n_said = int(lesions.sum()), int(kept.sum())
        if not n_true and not n_said:
            continue
        n += 1
        if not n_true or not n_said:
            continue
        overlap = box_iou(said.boxes[kept], true.boxes[lesions])
        same = said.classes[kept][:, None] == true.classes[lesions][None, :]
        overlap = np.where(same, overlap, 0.0)
        for at in RSNA_IOUS:
            tp = int(match(overlap, scores[kept], at).sum())
            total += tp / (n_true + n_said - tp) / len(RSNA_IOUS)
    return total / n if n else float("nan")


def _countable(true: Objects) -> np.ndarray:
    if true.crowd is None:
        return np.ones(len(true.boxes), dtype=bool)
    return ~true.crowd.astype(bool)
