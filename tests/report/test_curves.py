"""Curves as a picture: what is drawn, and that phases are shaded by what they are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fx_d2.report.curves import draw_curves, running_median
from fx_d2.report.run_files import Curves, Span

ROWS = {
    i: {f"total/rsna/{'loc' if i % 2 else 'cls'}": 1.0 / (i + 1), "lr": 1e-3} for i in range(40)
}


def span(first: int, last: int, task: str, name: str, cycle: int = 1) -> Span:
    return Span(first, last, "rsna", task, name, cycle)


def picture(*spans: Span, rows: dict | None = None) -> np.ndarray:
    data = draw_curves(Curves(ROWS if rows is None else rows, spans))
    assert data == draw_curves(Curves(ROWS if rows is None else rows, spans)), "not repeatable"
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def orange(image: np.ndarray) -> int:
    """Pixels of the colour of localization, strong or faint."""
    blue, green, red = (image[..., i].astype(int) for i in range(3))
    return int(((red > green + 8) & (green > blue + 8)).sum())


def test_phases_are_shaded_and_a_lock_more_than_a_release():
    rows = {i: {"lr": 1e-3, "total_loss": 1.0} for i in range(40)}
    none = picture(rows=rows)
    release = picture(span(0, 39, "loc", "release"), rows=rows)
    lock = picture(span(0, 39, "loc", "lock"), rows=rows)
    assert orange(none) == 0 and orange(release) > 50_000
    assert release.mean() > lock.mean() + 5  # the darker shade
    half = picture(span(0, 19, "loc", "lock"), rows=rows)
    assert 0.4 < orange(half) / orange(lock) < 0.6


def test_a_panel_shades_its_own_task_only():
    losses = {i: {"total/rsna/cls": 1.0} for i in range(40)}
    assert orange(picture(span(0, 39, "loc", "lock"), rows=losses)) < 2_000  # in the legend only


def test_every_task_that_was_trained_has_a_panel():
    one = picture(rows={i: {"total/rsna/cls": 1.0} for i in range(9)})
    three = picture(rows={i: {**ROWS[i], "lr": 0.1} for i in range(9)})
    assert three.shape[0] > 2 * one.shape[0]


def test_a_single_point_and_a_constant_loss_can_be_drawn():
    assert picture(rows={0: {"total/rsna/seg": 0.0}}).size
    assert picture(rows={i: {"total_loss": 2.0} for i in range(3)}).size


def test_nothing_to_draw_is_said():
    with pytest.raises(ValueError, match="no losses yet"):
        draw_curves(Curves({3: {"rsna/cls/AUC": 0.7}}, []))


def test_running_median_by_hand():
    assert running_median([5.0, 1.0, 9.0, 2.0, 2.0], window=3) == [5.0, 5.0, 2.0, 2.0, 2.0]
    assert running_median([4.0]) == [4.0]
