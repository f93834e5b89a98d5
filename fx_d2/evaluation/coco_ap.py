"""COCO average precision through faster-coco-eval where it is installed, else pycocotools.

The two agree to the last digits; the first is several times faster. Its own switch that replaces
pycocotools for the whole process is not used: it would change what other code imports.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

_logger = logging.getLogger(__name__)

BACKENDS = ("auto", "faster-coco-eval", "pycocotools")
# COCO's own ten, as pycocotools makes them, behind the two that chest radiograph papers start at.
IOU_THRESHOLDS = np.concatenate([[0.40, 0.45], np.linspace(0.5, 0.95, 10)])
MAX_DETECTIONS = 100  # per image and class, as in COCO


@dataclass(frozen=True)
class Objects:
    """The objects of one image, true or predicted.

    Args:
        boxes: (N, 4) XYXY in original pixels.
        classes: (N,) numbers from 0.
        scores: (N,) for predicted ones.
        crowd: (N,) for true ones: regions of many, where predictions count neither way.
        masks: COCO RLE of each, where there are masks.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None
    masks: list[dict[str, Any]] | None = None


def backend_name(backend: str = "auto") -> str:
    """Which of the two ``backend`` stands for here."""
    if backend not in BACKENDS:
        raise ValueError(f"COCO backend {backend!r}; allowed: {BACKENDS}")
    if backend != "auto":
        return backend
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        return "pycocotools"
    return "faster-coco-eval"


def _classes_of(backend: str) -> tuple[Any, Any]:
    """(COCO, COCOeval) of a backend."""
    if backend_name(backend) == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    from faster_coco_eval import COCO, COCOeval_faster

    return COCO, partial(COCOeval_faster, print_function=_logger.debug)


def average_precision(
    sizes: Sequence[tuple[int, int]],
    truth: Sequence[Objects],
    predicted: Sequence[Objects],
    n_classes: int,
    kind: str = "bbox",
    backend: str = "auto",
) -> np.ndarray:
    """AP of every class at every one of :data:`IOU_THRESHOLDS`.

    Args:
        sizes: (height, width) of each image; images without any object count.
        truth: true objects of each image.
        predicted: predicted objects of each image.
        n_classes: classes are 0..n_classes-1.
        kind: ``bbox`` or ``segm``.
        backend: one of :data:`BACKENDS`.

    Returns:
        (T, n_classes) in [0, 1]; NaN for a class without truth.
    """
    if not sizes:
        return np.full((len(IOU_THRESHOLDS), n_classes), np.nan)
    coco_class, eval_class = _classes_of(backend)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        gt = _dataset(coco_class, sizes, truth, n_classes, kind)
        dt = _dataset(coco_class, sizes, predicted, n_classes, kind)
        run = eval_class(gt, dt, iouType=kind)
        run.params.iouThrs = IOU_THRESHOLDS
        run.params.maxDets = [MAX_DETECTIONS]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    # (T, recall points, K, 1, 1), -1 where a class has no truth
    precision = np.asarray(run.eval["precision"])[:, :, :, 0, 0]
    return np.where((precision > -1).all(axis=1), precision.mean(axis=1), np.nan)


def _dataset(
    coco_class: Any,
    sizes: Sequence[tuple[int, int]],
    objects: Sequence[Objects],
    n_classes: int,
    kind: str,
) -> Any:
    """A COCO object built in memory; ids start at 1, because 0 means "unmatched" there."""
    annotations: list[dict[str, Any]] = []
    for image, found in enumerate(objects, start=1):
        extents = found.boxes[:, 2:] - found.boxes[:, :2]
        columns = {
            "category_id": (found.classes + 1).tolist(),
            "bbox": np.concatenate([found.boxes[:, :2], extents], axis=1).tolist(),
            "area": extents.prod(axis=1).tolist(),
            "iscrowd": [0] * len(extents) if found.crowd is None else found.crowd.tolist(),
        }
        if found.scores is not None:
            columns["score"] = found.scores.tolist()
        if kind == "segm" and found.masks is not None:
            columns["segmentation"] = found.masks
        first = len(annotations) + 1
        for number, values in enumerate(zip(*columns.values(), strict=True), start=first):
            annotations.append(
                {"id": number, "image_id": image, **dict(zip(columns, values, strict=True))}
            )
    coco = coco_class()
    coco.dataset = {
        "images": [
            {"id": i, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(sizes, start=1)
        ],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(n_classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
