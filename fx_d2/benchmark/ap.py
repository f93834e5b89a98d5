"""COCO average precision by faster-coco-eval beside pycocotools: the same figures, which time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from fx_d2.data.draws import rng_for
from fx_d2.evaluation.coco_ap import Objects, _classes_of, _dataset, average_precision

from .report import Table
from .timing import alternate

TOLERANCE = 1e-6
_FASTER, _BASE = "faster-coco-eval", "pycocotools"
_SIDE_PX = 256
_CLASSES = 5


def make_objects(
    n_images: int, n_detections: int, seed: int, *, quiet: bool = True
) -> tuple[list[Objects], list[Objects]]:
    """(true, predicted) objects with boxes and masks; about half of the detections are near truth.

    Args:
        n_images: of 256 x 256 px, every third without a finding.
        n_detections: over all images.
        seed: of everything.
        quiet: no progress bar.
    """
    rng = rng_for(seed, "benchmark", "average precision")
    per_image = rng.multinomial(n_detections, np.full(n_images, 1 / n_images))
    truth, predicted = [], []
    for number, count in enumerate(tqdm(per_image, desc="objects", disable=quiet, leave=False)):
        true = _objects(rng, 0 if number % 3 == 2 else int(rng.integers(1, 6)))
        truth.append(true)
        predicted.append(_guesses(rng, true, int(count)))
    return truth, predicted


def _objects(rng: np.random.Generator, count: int) -> Objects:
    extent = rng.uniform(12, 100, (count, 2))
    corner = rng.uniform(0, _SIDE_PX - extent)
    boxes = np.concatenate([corner, corner + extent], axis=1)
    return Objects(boxes, rng.integers(_CLASSES, size=count), masks=_masks(boxes))


def _guesses(rng: np.random.Generator, true: Objects, count: int) -> Objects:
    """Half are true boxes moved a little, half lie anywhere."""
    boxes = _objects(rng, count).boxes
    classes = rng.integers(_CLASSES, size=count)
    near = rng.random(count) < 0.5 if len(true.boxes) else np.zeros(count, dtype=bool)
    if near.any():
        chosen = rng.integers(len(true.boxes), size=int(near.sum()))
        boxes[near] = true.boxes[chosen] + rng.normal(0, 4, (len(chosen), 4))
        classes[near] = true.classes[chosen]
    boxes = boxes.clip(0, _SIDE_PX)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = (rng.random(count) + near) / 2
    return Objects(boxes, classes, scores=scores, masks=_masks(boxes))


def _masks(boxes: np.ndarray) -> list[dict[str, Any]]:
    """COCO RLE of an ellipse with a wavy border in each box."""
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radius = 0.9 + 0.1 * np.sin(5 * turn)
    unit = np.stack([np.cos(turn) * radius, np.sin(turn) * radius], axis=1)
    masks: list[dict[str, Any]] = []
    for box in boxes:
        middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
        polygon = (middle + unit * half).clip(0, _SIDE_PX).ravel().tolist()
        masks += coco_mask.frPyObjects([polygon], _SIDE_PX, _SIDE_PX)
    return masks


def _whole_coco(
    sizes: Sequence[tuple[int, int]],
    truth: Sequence[Objects],
    predicted: Sequence[Objects],
    n_classes: int,
    kind: str,
    backend: str,
) -> np.ndarray:
    """Precision by COCO's own protocol: four ranges of size, three limits, ten thresholds."""
    coco_class, eval_class = _classes_of(backend)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = _dataset(coco_class, sizes, truth, n_classes, kind)
        dt = _dataset(coco_class, sizes, predicted, n_classes, kind)
        run = eval_class(gt, dt, iouType=kind)
        run.evaluate()
        run.accumulate()
    return np.asarray(run.eval["precision"])


def _compare(
    run: Callable[[str], np.ndarray],
    title: str,
    repeats: int,
    clock: Callable[[], float],
    quiet: bool,
) -> dict[str, Any]:
    """The row of ``run``, which takes the name of a backend."""
    figures: dict[str, np.ndarray] = {}

    def keep(name: str) -> None:
        figures[name] = run(name)

    variants = {name: partial(keep, name) for name in (_FASTER, _BASE)}
    times = alternate(variants, repeats, warmup=0, title=title, quiet=quiet, clock=clock)
    off = float(np.nan_to_num(np.abs(figures[_FASTER] - figures[_BASE])).max())
    same_classes = (np.isnan(figures[_FASTER]) == np.isnan(figures[_BASE])).all()
    return {
        "what": title,
        "faster_s": times[_FASTER].median,
        "base_s": times[_BASE].median,
        "speedup": times[_BASE].ratio(times[_FASTER]),
        "off": off,
        "holds": "yes" if off <= TOLERANCE and same_classes else "no",
    }


def measure_evaluation(
    n_images: int,
    n_detections: int,
    repeats: int,
    *,
    seed: int,
    clock: Callable[[], float],
    quiet: bool,
) -> Table:
    """Time and figures of the two on boxes and on masks, by our protocol and by COCO's."""
    truth, predicted = make_objects(n_images, n_detections, seed, quiet=quiet)
    sizes = [(_SIDE_PX, _SIDE_PX)] * n_images
    protocols = {"": average_precision, ", COCO's whole protocol": _whole_coco}
    rows = []
    for suffix, figure in protocols.items():
        for kind, title in (("bbox", "boxes"), ("segm", "masks")):
            run = partial(figure, sizes, truth, predicted, _CLASSES, kind)
            rows.append(_compare(run, title + suffix, repeats, clock, quiet))
    return Table(
        "Average precision",
        {
            "what": ("of", ""),
            "faster_s": (f"{_FASTER} s", ".2f"),
            "base_s": (f"{_BASE} s", ".2f"),
            "speedup": ("times as fast", ".1f"),
            "off": ("largest difference", ".1e"),
            "holds": (f"at most {TOLERANCE:g}", ""),
        },
        rows,
        (
            f"{n_images:,} images of {_SIDE_PX} px, {n_detections:,} detections, {_CLASSES} "
            f"classes; medians of {repeats} alternating runs, the construction of the data sets in "
            "memory included. The evaluator of fx_d2 asks for one range of size, one limit of "
            "detections and 12 thresholds.",
        ),
    )
