"""Checks of boxes: inside the image, of positive size, and written as the reader takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .examination import Examination, Part
from .findings import Hit, check
from .rows import lost_rows, row_hits

TOLERANCE_PX = 1.0
MIN_BAD = 4  # impossible boxes before a convention is doubted; a few may be slips
SUSPECT_SHARE = 0.15


def _sizes(exam: Examination, part: Part) -> npt.NDArray[np.float32]:
    """(N, 2) width and height of the image of every box; NaN where nothing states it."""
    boxes = part.boxes
    size = np.stack([boxes["width"], boxes["height"]], axis=1).astype(np.float32)
    files = np.array([exam.entries[part.first + int(r)].file for r in boxes["record"]], dtype=int)
    if len(files):
        numbers = exam.facts.numbers[files]
        opened = np.stack([numbers["width"], numbers["height"]], axis=1)
        size = np.where(opened > 0, opened, size)
    size[size == 0] = np.nan
    return size


def _place(exam: Examination, part: Part, box: Any) -> dict[str, Any]:
    entry = exam.entries[part.first + int(box["record"])]
    place = exam.place(entry)
    place["where"] += f", box {int(box['number'])}"
    return place


@check(
    "boxes/outside",
    "error",
    what="a box leaves its image",
    fix="check that boxes and images have the same resolution, and the convention (xywh or xyxy)",
)
def outside(exam: Examination) -> Iterator[Hit]:
    """Boxes beyond the frame."""
    yield from row_hits(exam, "boxes/outside")
    for part in exam.parts:
        size = _sizes(exam, part)
        xyxy = part.boxes["xyxy"]
        over = (xyxy[:, 2:] > size + TOLERANCE_PX).any(axis=1)
        under = (xyxy < -TOLERANCE_PX).any(axis=1)
        for i in np.flatnonzero(over | under):
            width, height = size[i]
            yield Hit(
                found=f"box {_text(xyxy[i])} (x0, y0, x1, y1)",
                expected=f"within {width:g} x {height:g} (width x height)",
                **_place(exam, part, part.boxes[i]),
            )


@check(
    "boxes/degenerate",
    "error",
    what="a box without area, or with its corners exchanged",
    fix="correct or remove the row; if there are many, the convention (xywh or xyxy) is wrong",
)
def degenerate(exam: Examination) -> Iterator[Hit]:
    """Boxes whose x1 <= x0 or y1 <= y0."""
    yield from row_hits(exam, "boxes/degenerate")
    for part in exam.parts:
        xyxy = part.boxes["xyxy"]
        for i in np.flatnonzero(~(xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)):
            yield Hit(
                found=f"box {_text(xyxy[i])} (x0, y0, x1, y1)",
                expected="x1 > x0 and y1 > y0",
                **_place(exam, part, part.boxes[i]),
            )


@check(
    "boxes/convention",
    "error",
    what="many boxes of a part look as if widths were read as corners, or corners as widths",
    fix="say in the reader which convention the file has (the page of the source tells)",
)
def convention(exam: Examination) -> Iterator[Hit]:
    """Statistics over a part: wrong conventions give many impossible boxes, single errors few."""
    for part in exam.parts:
        size = _sizes(exam, part)
        xyxy = part.boxes["xyxy"]
        lost = lost_rows(part, "boxes/outside") + lost_rows(part, "boxes/degenerate")
        total = len(xyxy) + lost
        if total == 0:
            continue
        bad = ~(xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)
        # Clamped to the border by a lenient reader, corners read as widths end exactly there.
        beyond = (xyxy[:, 2:] >= size - 0.5).any(axis=1) & ~bad
        before = (xyxy[:, :2] <= 0.5).any(axis=1) & ~bad
        n_bad = int(bad.sum()) + lost
        surplus = int(beyond.sum()) - int(before.sum())
        if n_bad >= MIN_BAD and n_bad > SUSPECT_SHARE * total:
            yield Hit(
                part.source.key,
                f"{n_bad} of {total} boxes are impossible",
                "hardly any; are x, y, width, height read as corners, or corners as width, height?",
                part=part.name,
                count=total,
            )
        elif surplus >= MIN_BAD and surplus > SUSPECT_SHARE * total:
            yield Hit(
                part.source.key,
                f"{int(beyond.sum())} of {total} boxes reach the right or lower border or pass it, "
                f"{int(before.sum())} the left or upper one",
                "about as many on either side; are corners read as width and height?",
                part=part.name,
                count=total,
            )


def _text(box: npt.NDArray[np.float32]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
