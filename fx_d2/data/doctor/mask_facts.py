"""What can be told from a mask without keeping it: size, area, position, how it hangs together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..masks import absolute_runs, load_mask, parse_runs


@dataclass(frozen=True)
class MaskJob:
    """A mask reference to look at.

    Args:
        entry: number of the record it belongs to, within the examination.
        name: class of the mask.
        ref: the reference (``fx_d2/data/masks.py``).
        resize: the source's masks may have another size than its images.
        instance: it is the segmentation of a box, not a dense mask.
        box: (x0, y0, x1, y1) of the annotation it belongs to.
    """

    entry: int
    name: str
    ref: Any
    resize: bool
    instance: bool = False
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class MaskFact:
    """What a mask turned out to be.

    Args:
        job: which one.
        error: why it cannot be decoded; ``error_kind`` is ``"frame"`` (runs leave the image),
            ``"size"`` (mask and image differ) or ``"unreadable"``.
        share: part of the image it covers.
        x, y: centroid as a share of the width and height; NaN when empty.
        pieces: connected pieces (8 neighbours).
        runs: straight runs it consists of, along the axis that needs fewer. A real structure has
            many runs per piece; run lengths with wrong starts lie apart, each its own piece.
        fill: share of its bounding box that it covers.
        box_iou: overlap of its own bounding box with the annotated one; NaN where there is none.
    """

    entry: int
    name: str
    instance: bool
    error: str | None = None
    error_kind: str = ""
    area_px: int = 0
    share: float = 0.0
    x: float = float("nan")
    y: float = float("nan")
    pieces: int = 0
    runs: int = 0
    fill: float = 0.0
    box_iou: float = float("nan")


def n_runs(mask: npt.NDArray[np.bool_]) -> int:
    """Straight runs of foreground pixels, along the rows or the columns, whichever are fewer."""
    rows = int(mask[:, 0].sum()) + int((mask[:, 1:] & ~mask[:, :-1]).sum())
    columns = int(mask[0].sum()) + int((mask[1:] & ~mask[:-1]).sum())
    return min(rows, columns)


def measure_mask(job: MaskJob, image_size: tuple[int, int]) -> MaskFact:
    """Decode one mask and describe it; what cannot be decoded is described by its error."""
    size = image_size if min(image_size) > 0 else _stated_size(job.ref)
    if size is None:
        return MaskFact(job.entry, job.name, job.instance, error_kind="skipped")
    try:
        # Stated sizes must be the image's own, unless the source is known to differ.
        stated = _stated_size(job.ref)
        if stated is not None and stated != size and not job.resize:
            raise DataError(
                f"mask is for {stated[0]} x {stated[1]}", expected=f"{size[0]} x {size[1]}"
            )
        mask = load_mask(job.ref, size[0], size[1], resize=job.resize)
    except DataError as exc:
        kind = _error_kind(job.ref, exc, size)
        return MaskFact(job.entry, job.name, job.instance, error=str(exc), error_kind=kind)
    except (ValueError, TypeError, KeyError, IndexError) as exc:  # hostile references: COCO strings
        problem = f"{type(exc).__name__}: {exc}"
        return MaskFact(job.entry, job.name, job.instance, error=problem, error_kind="unreadable")
    area = int(mask.sum())
    if area == 0:
        return MaskFact(job.entry, job.name, job.instance)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    own = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    x = float((crop.sum(0) * (np.arange(crop.shape[1]) + own[0])).sum() / area / size[1])
    y = float((crop.sum(1) * (np.arange(crop.shape[0]) + own[1])).sum() / area / size[0])
    return MaskFact(
        job.entry,
        job.name,
        job.instance,
        area_px=area,
        share=area / mask.size,
        x=x,
        y=y,
        pieces=cv2.connectedComponents(crop.astype(np.uint8), connectivity=8)[0] - 1,
        runs=n_runs(crop),
        fill=area / crop.size,
        box_iou=float("nan") if job.box is None else box_iou(own, job.box),
    )


def box_iou(a: Any, b: Any) -> float:
    """Intersection over union of two (x0, y0, x1, y1)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(0.0, float(width)) * max(0.0, float(height))
    total = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return float(inner / total) if total > 0 else 0.0


def _stated_size(ref: Any) -> tuple[int, int] | None:
    if not isinstance(ref, dict) or "size" not in ref:
        return None
    height, width = ref["size"]
    return int(height), int(width)


def _error_kind(ref: Any, exc: DataError, size: tuple[int, int]) -> str:
    parts = ref["union"] if isinstance(ref, dict) and "union" in ref else [ref]
    for part in parts:
        if isinstance(part, dict) and "runs" in part:
            try:
                absolute_runs(
                    parse_runs(part["runs"]), part["convention"], _stated_size(part) or size
                )
            except DataError:
                return "frame"
        if isinstance(part, dict) and "file" in part and "leaves the image" in exc.problem:
            return "frame"
    return "size" if exc.problem.startswith("mask is ") else "unreadable"
