"""Films of the gallery: which, what is drawn of them, and what is said in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from fx_d2.data.draw import POSITIVE
from fx_d2.data.masks import encode_mask
from fx_d2.data.sources import get_source
from fx_d2.report.gallery import chosen_films, draw_bars, draw_example, gallery_sheet, spread

SIZE = 64
SOURCE = get_source("siim_acr")  # labels, boxes and masks of one class
HEADS = {f"siim_acr/{task}": ("Pneumothorax",) for task in ("cls", "loc", "seg")}


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    grey = np.linspace(40, 200, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "film.png"), grey)
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[8:24, 8:24] = True
    box = {"bbox": [8, 8, 24, 24], "bbox_mode": 0, "category_id": 0}
    return {
        "file_name": str(tmp_path / "film.png"),
        "image_id": "film",
        "height": SIZE,
        "width": SIZE,
        "source": "siim_acr",
        "patient_id": None,
        "labels": np.array([1.0], dtype=np.float32),
        "annotations": [box],
        "masks": {"Pneumothorax": encode_mask(mask)},
    }


def prediction(score: float = 0.9, probability: float = 0.8, *, empty: bool = False) -> dict:
    found = Instances((SIZE, SIZE))
    found.pred_boxes = Boxes(torch.tensor([[40.0, 40.0, 60.0, 60.0]]))
    found.scores, found.pred_classes = torch.tensor([score]), torch.tensor([0])
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[40:60, 40:60] = not empty
    return {
        "labels": {"siim_acr": {"Pneumothorax": probability}},
        "instances": {"siim_acr": found},
        "masks": {"siim_acr": {"Pneumothorax": mask}},
    }


def coloured(picture: np.ndarray) -> np.ndarray:
    """Rows and columns of pixels that are not grey, below the title."""
    spread_of = picture[30:].max(axis=2).astype(int) - picture[30:].min(axis=2)
    return np.argwhere(spread_of > 20)


def test_truth_and_prediction_are_drawn_where_they_are(record):
    example = draw_example(record, SOURCE, prediction(), HEADS, size_px=320)
    assert example.prediction is not None and example.bars is not None
    truth, said = coloured(example.truth), coloured(example.prediction)
    # 8..24 of 64 is 40..120 of 320; 40..60 is 200..300. Names of boxes stand around them.
    assert truth[:, 1].max() < 200 < said[:, 1].max()
    assert said[:, 0].min() > 120 > truth[:, 0].min()
    assert example.words == (
        "truth: Pneumothorax, box Pneumothorax, mask Pneumothorax; "
        "prediction: Pneumothorax 0.80, box Pneumothorax, mask Pneumothorax"
    )
    assert len(example.pictures) == 3 and example.title == "siim_acr  film"


def test_what_is_not_said_is_not_drawn(record):
    output = prediction(score=0.3, probability=0.2, empty=True)
    example = draw_example(record, SOURCE, output, HEADS, size_px=320)
    assert example.words.endswith("prediction: nothing")
    assert example.prediction is not None and len(coloured(example.prediction)) == 0


def test_a_model_without_boxes_and_masks_gets_the_film_and_the_bars(record):
    output = {**prediction(), "instances": {}, "masks": {}}
    example = draw_example(record, SOURCE, output, {"siim_acr/cls": ("Pneumothorax",)})
    assert example.prediction is None and len(coloured(example.truth)) == 0
    assert example.words == "truth: Pneumothorax; prediction: Pneumothorax 0.80"


def test_heads_of_other_sources_are_not_shown(record):
    output = prediction()
    other = prediction()["instances"]["siim_acr"]
    output["instances"]["rsna"] = other
    heads = {**HEADS, "rsna/loc": ("Lung Opacity",)}
    assert "Lung" not in draw_example(record, SOURCE, output, heads).words


def test_classes_that_the_model_does_not_tell_apart_are_one(record):
    heads = {**HEADS, "siim_acr/loc": ("any",)}
    words = draw_example(record, SOURCE, prediction(), heads).words
    assert words.count("box any") == 2 and "box Pneumothorax" not in words


def test_bars_are_as_long_as_their_probability_and_mark_what_is_true():
    names = {"a": 1.0, "b": 0.5, "c": 0.0}
    both = draw_bars(names, {"a": 1, "b": 0, "c": 0}, 0.4, height_px=200)
    none = draw_bars(names, {"a": 0, "b": 0, "c": 0}, 0.4, height_px=200)

    def gold(picture: np.ndarray) -> list[int]:
        rows = (np.abs(picture.astype(int) - POSITIVE).sum(axis=2) == 0).sum(axis=1)
        return sorted(set(map(int, rows[rows > 30])))

    half, whole = gold(none)
    assert whole == pytest.approx(2 * half, abs=2)
    assert (both != none).any() and both.shape == none.shape
    unknown = draw_bars(names, {"a": float("nan"), "b": 0, "c": 0}, 0.4, height_px=200)
    assert (unknown != none).any() and (unknown != both).any()


def test_many_classes_fit_below_each_other():
    names = {f"class {i}": 0.5 for i in range(30)}
    picture = draw_bars(names, {}, 0.5, height_px=200)
    assert picture.shape[0] >= 30 * 12


def test_films_with_findings_come_first_whatever_a_model_says():
    def film(name: str, label: float, boxes: int) -> dict:
        return {"image_id": name, "source": "x", "labels": [label], "annotations": [{}] * boxes}

    films = [film("none", 0, 0), film("label", 1, 0), film("box", 1, 2), film("nan", np.nan, 0)]
    order = [f["image_id"] for f in chosen_films(films, seed=1)]
    assert order[:2] == ["box", "label"] and set(order[2:]) == {"none", "nan"}
    many = [film(str(i), 1, 1) for i in range(20)]
    first = [f["image_id"] for f in chosen_films(many, seed=1)]
    assert first == [f["image_id"] for f in chosen_films(many[::-1], seed=1)]
    assert first != [f["image_id"] for f in chosen_films(many, seed=2)]


def test_as_many_sources_as_there_can_be():
    sources = [
        SimpleNamespace(key=key, tasks=("cls", "loc", "seg")[:tasks])
        for key, tasks in (("one", 1), ("three", 3), ("two", 2))
    ]
    assert spread(sources, 2) == {"three": 1, "two": 1}
    assert spread(sources, 4) == {"three": 2, "two": 1, "one": 1}
    assert spread(sources, 0) == {} and spread([], 4) == {}


def test_a_sheet_holds_all_films(record):
    example = draw_example(record, SOURCE, prediction(), HEADS, size_px=100)
    one, four = gallery_sheet([example]), gallery_sheet([example] * 4)
    assert four.shape[0] > 1.8 * one.shape[0] and four.shape[1] > 1.8 * one.shape[1]
