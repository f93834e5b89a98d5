"""CheXmask's table: organs as row-major run lengths with landmarks, one row per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fx_d2.phantom.writers.runs_out import absolute_row_runs, components, ring_of
from fx_d2.phantom.writers.text_out import write_csv

ORGANS = {"Heart": "heart", "Left Lung": "left_lung", "Right Lung": "right_lung"}
_HEADER = (
    "image_id,Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,Height,Width"
)
_POINTS = {"Right Lung": 44, "Left Lung": 50, "Heart": 26}  # in this order, 120 together


def organ_row(
    image_id: str, organs: Mapping[str, np.ndarray], *, good: bool, rng: np.random.Generator
) -> list[object]:
    """Cells of one image.

    Args:
        image_id: 32 hexadecimal digits.
        organs: bool (H, W) by organ.
        good: whether the estimated Dice is above what users keep.
        rng: two numbers are drawn.
    """
    mean = float(rng.uniform(0.75, 0.95) if good else rng.uniform(0.3, 0.6))
    best = mean + float(rng.uniform(0.005, 0.04))
    landmarks = [
        str(value)
        for name, count in _POINTS.items()
        for point in _border(organs[name], count)
        for value in point
    ]
    height, width = organs["Heart"].shape
    runs = {name: absolute_row_runs(mask) for name, mask in organs.items()}
    return [
        image_id, f"{mean:.6f}", f"{best:.6f}", ",".join(landmarks), runs["Left Lung"],
        runs["Right Lung"], runs["Heart"], height, width,
    ]  # fmt: skip


def _border(mask: np.ndarray, count: int) -> list[tuple[int, int]]:
    """``count`` points (x, y) along the border of the largest piece."""
    ring = ring_of(components(mask)[0])
    return [ring[(k * len(ring)) // count] for k in range(count)]


def write_organ_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write the table in the order of the images."""
    write_csv(path, _HEADER, rows)
