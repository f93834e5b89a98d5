"""Run lengths and rings as providers write them."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

Ring = list[tuple[int, int]]


def _runs(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last index of every run of True in a flat array."""
    edges = np.diff(np.concatenate([[0], flat.astype(np.int8), [0]]))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def relative_column_runs(mask: np.ndarray) -> str:
    """``gap length gap length ...`` down the columns, each gap since the end of the last run."""
    begins, ends = _runs(mask.T.ravel())
    gaps = begins - np.concatenate([[0], ends[:-1]])
    return " ".join(f"{gap} {length}" for gap, length in zip(gaps, ends - begins, strict=True))


def absolute_row_runs(mask: np.ndarray) -> str:
    """``start length start length ...`` along the rows, starts counted from 1."""
    begins, ends = _runs(mask.ravel())
    return " ".join(f"{b + 1} {e - b}" for b, e in zip(begins, ends, strict=True))


def components(mask: np.ndarray, smallest: float = 0.05) -> list[np.ndarray]:
    """Connected pieces of a bool (H, W) mask, largest first, without specks.

    Args:
        mask: to be taken apart.
        smallest: pieces below this share of the largest, or below 9 pixels, are left out.
    """
    count, numbered, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count < 2:
        return []
    order = np.argsort(-areas, kind="stable")
    floor = max(9.0, smallest * float(areas.max()))
    return [numbered == 1 + int(k) for k in order if areas[k] >= floor]


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask with its holes closed: what a single ring around it encloses."""
    padded = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    cv2.floodFill(padded, None, (0, 0), 2)
    return np.asarray(padded[1:-1, 1:-1] != 2)


def ring_of(piece: np.ndarray) -> Ring:
    """Corners (x, y) of the outer border of one connected piece, on its own outermost pixels."""
    contours, _ = cv2.findContours(
        piece.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    points = max(contours, key=cv2.contourArea).reshape(-1, 2)
    return [(int(x), int(y)) for x, y in points]


def hull_of(mask: np.ndarray) -> tuple[Ring, np.ndarray]:
    """Convex ring around all pixels of a mask, and the bool (H, W) area it encloses."""
    rows, columns = np.nonzero(mask)
    hull = cv2.convexHull(np.stack([columns, rows], axis=1).astype(np.int32))
    area = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(area, hull, 1)
    return [(int(x), int(y)) for x, y in hull.reshape(-1, 2)], area.astype(bool)


def rings_of(mask: np.ndarray, most: int = 4) -> Iterator[tuple[Ring, np.ndarray]]:
    """Rings an annotator would draw around a finding, each with the bool area it encloses.

    Scattered findings (more than ``most`` pieces) get one convex ring, others one per piece.
    """
    pieces = components(mask)
    if len(pieces) > most:
        yield hull_of(np.logical_or.reduce(pieces))
        return
    for piece in pieces:
        ring = ring_of(piece)
        if len(ring) >= 3:
            yield ring, filled(piece)
