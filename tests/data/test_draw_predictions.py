"""A drawn prediction shows what was found, where it is, and nothing over something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import ImageDraw

from fx_d2.data import draw
from fx_d2.data.draw import Picture
from fx_d2.data.draw_predictions import Look, draw_prediction

HEADS = {
    "rsna/cls": ("Normal", "Lung Opacity"),
    "rsna/loc": ("Lung Opacity", "Mass"),
    "chest/loc": ("Mass", "Nodule"),
    "chest/seg": ("Lung", "Mass"),
}
FILM = np.full((120, 200), 0.5, dtype=np.float32)


def instances(*found: tuple[list[float], float, int], mask: bool = False) -> Instances:
    result = Instances(FILM.shape)
    result.pred_boxes = Boxes(torch.tensor([f[0] for f in found]).reshape(-1, 4))
    result.scores = torch.tensor([f[1] for f in found])
    result.pred_classes = torch.tensor([f[2] for f in found], dtype=torch.int64)
    if mask:
        result.pred_masks = torch.zeros(len(found), *FILM.shape, dtype=torch.bool)
        result.pred_masks[:, 60:90, 20:60] = True
    return result


def prediction(**parts: Any) -> dict[str, Any]:
    return {"labels": {}, "instances": {}, "masks": {}, "height": 120, "width": 200, **parts}


def show(size_px: int = 400, heads: Any = HEADS, **parts: Any) -> Picture:
    return draw_prediction(FILM, prediction(**parts), Look(heads, size_px=size_px))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[float, ...]]]:
    """Everything that is written, with its place in the picture it was written on."""
    written: list[tuple[str, tuple[float, ...]]] = []
    original = ImageDraw.ImageDraw.text

    def note(self: Any, xy: Any, text: str, *args: Any, **kwargs: Any) -> None:
        box = self.textbbox(xy, text, font=kwargs["font"])
        assert box[0] >= 0 and box[2] <= self.im.size[0] and box[3] <= self.im.size[1] + 3, text
        written.append((text, box))
        original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return written


def has_colour(picture: Picture, number: int) -> bool:
    return bool((picture == draw.colour_of(number)).all(axis=2).any())


def test_boxes_from_the_threshold_on_with_their_scores(texts: list[Any]) -> None:
    picture = show(
        instances={"rsna": instances(([20, 30, 90, 80], 0.91, 0), ([100, 20, 150, 90], 0.49, 1))}
    )
    words = [text for text, _ in texts]
    assert "Lung Opacity 0.91" in words and "rsna/loc" in words
    assert not any("0.49" in word for word in words)
    assert has_colour(picture, 0) and not has_colour(picture, 1)


def test_a_class_has_one_colour_in_all_panels_and_pictures() -> None:
    mass = ([20, 30, 90, 80], 0.9, 1)
    one = show(instances={"rsna": instances(mass)})
    other = show(instances={"chest": instances(([20, 30, 90, 80], 0.9, 0))})
    assert has_colour(one, 1) and has_colour(other, 1)
    assert not has_colour(one, 0) and not has_colour(other, 0)


def test_masks_are_where_they_are() -> None:
    lung = torch.zeros(FILM.shape, dtype=torch.bool)
    lung[30:60, 20:80] = True
    empty = torch.zeros_like(lung)
    with_mask = show(masks={"chest": {"Lung": lung, "Mass": empty}})
    tinted = np.ptp(with_mask.astype(int), axis=2) > 25
    rows, columns = np.flatnonzero(tinted[:, :420].any(1)), np.flatnonzero(tinted[:, :420].any(0))
    assert abs(np.ptp(rows) - 2 * 30) <= 4 and abs(np.ptp(columns) - 2 * 60) <= 4
    plain = show(instances={"rsna": instances(([20, 60, 60, 90], 0.9, 0))})
    filled = show(instances={"rsna": instances(([20, 60, 60, 90], 0.9, 0), mask=True)})
    assert (plain != filled).any(axis=2).sum() > 0.8 * 80 * 60


def test_heads_that_found_nothing_are_named_not_drawn(texts: list[Any]) -> None:
    empty = {"Lung": torch.zeros(FILM.shape, dtype=torch.bool)}
    picture = show(instances={"rsna": instances()}, masks={"chest": empty})
    words = [text for text, _ in texts]
    assert "nothing found by rsna/loc, chest/seg" in words
    assert picture.shape[1] < 500  # the film alone
    assert np.ptp(picture.astype(int), axis=2).max() < 25


def test_bars_are_as_long_as_probabilities(texts: list[Any]) -> None:
    picture = show(labels={"rsna": {"Normal": 0.25, "Lung Opacity": 1.0}})
    words = [text for text, _ in texts]
    assert {"rsna", "Normal", "0.25", "Lung Opacity", "1.00"} <= set(words)
    bright = (picture == draw.POSITIVE).all(axis=2)
    dull = (picture == (92, 122, 160)).all(axis=2)
    assert bright.any(0).sum() > 3.5 * dull.any(0).sum() > 0


def test_any_number_of_sources_fits_a_screen(texts: list[Any]) -> None:
    many = {f"source{i}": {f"Class number {j}": j / 14 for j in range(14)} for i in range(11)}
    boxes = {"rsna": instances(([20, 30, 90, 80], 0.9, 0)), "chest": instances()}
    picture = show(labels=many, instances=boxes)
    assert 0.8 < picture.shape[1] / picture.shape[0] < 2.8
    assert sum(text.startswith("Class number") for text, _ in texts) == 11 * 14


@pytest.mark.parametrize("count", [3, 20, 45])
def test_names_never_cover_each_other(texts: list[Any], count: int) -> None:
    """Twenty boxes at one place, named within the film."""
    found = [([80.0, 60.0 + i / 9, 110.0, 90.0], 0.99 - i / 100, 0) for i in range(count)]
    show(640, instances={"rsna": instances(*found)})
    places = [box for text, box in texts if text.startswith("Lung Opacity 0.")]
    assert len(places) == min(count, 20)
    for i, a in enumerate(places):
        for b in places[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert any(text == "and 25 more" for text, _ in texts) == (count == 45)


@pytest.mark.parametrize("shape", [(3000, 40), (40, 3000), (1, 1), (64, 64)])
def test_any_shape(shape: tuple[int, int]) -> None:
    film = np.zeros(shape, dtype=np.float32)
    found = Instances(shape)
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, shape[1], shape[0]]]))
    found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    parts = prediction(instances={"rsna": found}, labels={"rsna": {"Normal": 0.5}})
    assert draw_prediction(film, parts, Look(HEADS, size_px=200)).ndim == 3
