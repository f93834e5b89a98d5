"""Dense masks: overlap per class, beside what a predictor that never marks anything would score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from fx_d2.data.masks import load_mask
from fx_d2.data.record import Record

from .truth import TaskEvaluator, Truth, as_bool

# Half the step of float16 below 1: a probability written as 1 may have been this far from it.
_LEAST = 2.0**-12
_EMPTY = "an image without truth and without prediction scores 1, one with either of them alone 0"


class SegmentationEvaluator(TaskEvaluator):
    """Overlap of the dense masks of one source, per class (``Dice-Heart``) and as class mean.

    ``Dice`` and ``IoU``: mean over all annotated images; an image without truth scores 1 when
    nothing is predicted, else 0. ``Dice_positive``, ``IoU_positive``: over images with truth.
    ``Dice_pooled``, ``IoU_pooled``: of all pixels of all images. ``empty_predictor``: what marking
    nothing would score as ``Dice`` (and ``IoU``): the share of images without truth. Only what
    exceeds it was learned. ``HD95``: see :func:`hd95`, in pixels of the original, over images with
    truth and prediction; ``HD95_undefined`` is the share of images with truth but no prediction.
    ``BCE``: mean binary cross-entropy of the pixels of an image, over all annotated images: a
    validation loss.

    A class that is not annotated in an image does not count there. One without any truth has no
    positive figures, and the notes name it.

    Args:
        truth: the records.
        threshold: foreground from here on, for masks of probabilities.
        hd95: whether boundary distances are measured; they cost most of the time.
        bce: whether cross-entropy is measured, which wants masks of probabilities.
    """

    task = "seg"
    columns = ("class", "dice", "iou", "true_px", "predicted_px")

    def __init__(
        self, truth: Truth, *, threshold: float = 0.5, hd95: bool = False, bce: bool = False
    ) -> None:
        super().__init__(truth)
        self.threshold, self.hd95, self.bce = threshold, hd95, bce

    def _figures(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        images = ("Dice", "IoU", "empty_predictor", "Dice_positive", "IoU_positive")
        pooled = ("Dice_pooled", "IoU_pooled")
        boundary = ("HD95", "HD95_undefined") if self.hd95 else ()
        return (*images, *pooled, *boundary, *(("BCE",) if self.bce else ())), ()

    def _row(self, record: Record, given: Mapping, output: Mapping) -> Any:
        """float64 (C, 5): pixels in both, predicted, true, HD95, BCE; NaN where not annotated."""
        references = record.get("masks", {})
        if not references:
            return None
        predicted = self._by_class(self._of_source(output, "masks"))
        height, width = int(given["height"]), int(given["width"])
        row = np.full((len(self.classes), 5), np.nan)
        for c, name in enumerate(self.classes):
            if name not in references:
                continue
            mask = as_bool(predicted[c], self.threshold)
            if mask.shape != (height, width):
                raise ValueError(
                    f"mask of {name!r} for image {record['image_id']!r} is {mask.shape}; expected "
                    f"the original pixels {(height, width)}"
                )
            true = load_mask(references[name], height, width, resize=self.source.resize_masks)
            row[c, :3] = np.count_nonzero(mask & true), mask.sum(), true.sum()
            if self.hd95 and row[c, 1] and row[c, 2]:
                row[c, 3] = hd95(mask, true)
            if self.bce:
                row[c, 4] = _cross_entropy(predicted[c], true)
        return row

    def _lines(self, row: Any) -> Iterator[tuple]:
        dice, iou = overlap(row[:, 0], row[:, 1], row[:, 2])
        for c, name in enumerate(self.classes):
            if not np.isnan(row[c, 0]):
                yield name, float(dice[c]), float(iou[c]), int(row[c, 2]), int(row[c, 1])

    def _summarise(
        self, places: list[int], rows: list[Any]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        per_class: dict[str, dict[str, float]] = {}
        left_out: dict[str, list[str]] = {}
        counts: dict[str, list[int]] = {}
        table = np.stack(rows) if rows else np.full((0, len(self.classes), 5), np.nan)
        for c, name in enumerate(self.classes):
            known = table[~np.isnan(table[:, c, 0]), c]
            n_positive = int((known[:, 2] > 0).sum())
            counts[name] = [n_positive, len(known) - n_positive]
            if not len(known):
                left_out.setdefault("never annotated", []).append(name)
                continue
            if not n_positive:
                left_out.setdefault("no truth, positive and pooled figures", []).append(name)
            for metric, value in _class_figures(known, self.hd95, self.bce).items():
                per_class.setdefault(metric, {})[name] = value
        metrics = {m: float(np.mean(list(values.values()))) for m, values in per_class.items()}
        for metric, values in per_class.items():
            metrics |= {f"{metric}-{name}": value for name, value in values.items()}
        notes = {
            "images_with_and_without_truth": counts,
            "left_out": left_out,
            "threshold": self.threshold,
            "empty": _EMPTY,
        }
        return metrics, notes


def _class_figures(known: np.ndarray, with_hd95: bool, with_bce: bool) -> dict[str, float]:
    """The figures of a class from (N, 5) rows of annotated images."""
    both, said, true = known[:, 0], known[:, 1], known[:, 2]
    positive = true > 0
    dice, iou = overlap(both, said, true)
    figures = {
        "Dice": float(dice.mean()),
        "IoU": float(iou.mean()),
        "empty_predictor": float((~positive).mean()),
    }
    if with_bce:
        figures["BCE"] = float(known[:, 4].mean())
    if positive.any():
        figures |= {
            "Dice_positive": float(dice[positive].mean()),
            "IoU_positive": float(iou[positive].mean()),
            "Dice_pooled": float(2 * both.sum() / (said.sum() + true.sum())),
            "IoU_pooled": float(both.sum() / (said + true - both).sum()),
        }
        if with_hd95:
            measured = ~np.isnan(known[:, 3])
            figures["HD95_undefined"] = float((positive & ~measured).sum() / positive.sum())
            if measured.any():
                figures["HD95"] = float(known[measured, 3].mean())
    return figures


def overlap(both: np.ndarray, said: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU of each from counts of pixels; 1 where there are none at all."""
    either = said + true - both
    empty = either == 0
    dice = np.where(empty, 1.0, 2 * both / np.where(empty, 1, said + true))
    return dice, np.where(empty, 1.0, both / np.where(empty, 1, either))


def _cross_entropy(probabilities: Any, true: np.ndarray) -> float:
    """The mean over pixels of a mask of probabilities (H, W)."""
    if hasattr(probabilities, "detach"):
        probabilities = probabilities.detach().cpu().numpy()
    given = np.asarray(probabilities)
    if given.dtype.kind != "f":
        raise ValueError("cross-entropy needs masks of probabilities: MODEL.FX.SEG.SOFT_MASKS True")
    right = np.where(true, given, 1 - given.astype(np.float32))
    return float(-np.log(np.maximum(right, _LEAST, dtype=np.float32)).mean(dtype=np.float64))


def hd95(first: np.ndarray, second: np.ndarray) -> float:
    """The larger of the two directed 95th percentiles of the distance between outlines, in pixels.

    An outline is the pixels of a mask with a neighbour (of four) outside it; beyond the image
    counts as outside.

    Args:
        first: bool (H, W) with foreground.
        second: bool (H, W) with foreground.
    """
    a, b = _outline(first), _outline(second)
    if not len(a) or not len(b):
        raise ValueError("a boundary distance needs foreground in both masks")
    there, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _outline(mask: np.ndarray) -> np.ndarray:
    """(N, 2) coordinates."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))
