"""What the stages hand on: sizes, boxes and maps stay in pixels of the film."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fx_d2.data.errors import DataError
from fx_d2.data.lung_input import LungCrop, prepare_lungs
from fx_d2.pipelines.hybrid_pictures import BOX_COLOUR, FilmPictures
from fx_d2.pipelines.stages import Crop, Film, HeatMap, LungMask, Scores, is_finding


@pytest.fixture
def film(tmp_path: Path) -> Film:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((90, 120), 100, dtype=np.uint8))
    return Film(tmp_path / "a.png")


def two_lungs(height: int = 90, width: int = 120) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[20:70, 20:50] = mask[20:70, 70:100] = True
    return mask


@pytest.mark.parametrize("content", [(64, 64), (32, 48), (200, 160)])
def test_a_map_comes_back_to_its_place(content: tuple[int, int]) -> None:
    """A quarter of the input, padded at the right and bottom, is a quarter of the box."""
    box, frame = (30, 10, 110, 74), (90, 120)
    crop = Crop(LungCrop(np.zeros((64, 80), dtype=np.float32), box, "crop"), frame)
    values = np.full((content[0] + 32, content[1] + 32), 9, dtype=np.float32)  # 9: padding
    values[: content[0], : content[1]] = 0
    values[: content[0] // 2, content[1] // 2 : content[1]] = 1
    found = crop.to_film(values, content)
    assert found.shape == frame and found.dtype == np.float32
    assert found.max() <= 1, "padding leaked into the film"
    expected = np.zeros(frame, dtype=bool)
    expected[10:42, 70:110] = True  # right upper quarter of the box
    assert ((found >= 0.5) == expected).mean() > 0.99
    assert not found[~crop.seen()].any()


def test_a_heat_map_is_drawn_within_the_box_it_is_of(film: Film) -> None:
    """Else the straight edge of a map would look like something on the film."""
    crop = Crop(
        LungCrop(np.zeros((64, 80), dtype=np.float32), (30, 10, 110, 74), "crop"), (90, 120)
    )
    heat = HeatMap("COVID", np.zeros((90, 120), dtype=np.float32), "grad_cam", "layer4")
    draw = FilmPictures(film, 120)
    boxed = draw.heat(heat, None, crop=crop)
    changed = (boxed != draw.heat(heat, None)).any(axis=2)
    edge = np.zeros((90, 120), dtype=bool)
    edge[10:74, 30:110] = True
    edge[11:73, 31:109] = False
    assert np.array_equal(changed, edge) and (boxed[edge] == BOX_COLOUR).all()


@pytest.mark.parametrize("box", [(0, 0, 121, 90), (-1, 0, 60, 60), (50, 50, 50, 60)])
def test_a_box_beyond_the_film_is_refused(box: tuple[int, int, int, int]) -> None:
    image = np.zeros((max(box[3] - box[1], 0), max(box[2] - box[0], 0)), dtype=np.float32)
    with pytest.raises(ValueError, match="not within a film of 90 x 120"):
        Crop(LungCrop(image, box, "crop"), (90, 120))


def test_an_image_of_another_size_than_its_box_is_refused() -> None:
    with pytest.raises(ValueError, match="its box"):
        Crop(LungCrop(np.zeros((5, 5), dtype=np.float32), (0, 0, 6, 5), "crop"), (90, 120))


def test_a_mask_bigger_than_the_film_is_named(film: Film) -> None:
    with pytest.raises(DataError, match=r"a\.png: the lung mask is 180 x 240; expected 90 x 120"):
        LungMask(two_lungs(180, 240)).check_size(film)
    LungMask(two_lungs()).check_size(film)


def test_what_a_mask_knows() -> None:
    lungs = LungMask(two_lungs())
    assert lungs.area == pytest.approx(3000 / 10800)
    assert lungs.pieces() == pytest.approx((1500 / 10800,) * 2) and lungs.edges() == ()
    speck = two_lungs()
    speck[2:4, 2:4] = True
    assert len(LungMask(speck).pieces()) == 2, "a speck counts as a lung"
    cut = np.zeros((90, 120), dtype=bool)
    cut[40:, :30] = True
    assert LungMask(cut).edges() == ("left", "bottom")
    assert LungMask(np.zeros((9, 9), dtype=bool)).pieces() == ()


def test_the_file_is_read_once(film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    from fx_d2.pipelines import stages

    real = stages.read_image
    monkeypatch.setattr(stages, "read_image", lambda p, voi: reads.append(voi) or real(p, voi=voi))
    for voi in ("auto", "ignore", "auto"):
        assert film.loaded(voi).pixels.shape == film.size == (90, 120)
    assert reads == ["auto"]


def test_who_is_positive() -> None:
    one = Scores("covid", {"COVID": 0.3, "Normal": 0.45, "Viral Pneumonia": 0.25}, exclusive=True)
    assert one.top == "Normal" and one.positive(0.1) == ()
    assert one.explained(0.1, 3) == ("Normal",)
    sick = Scores("covid", {"COVID": 0.4, "Normal": 0.35}, exclusive=True)
    assert sick.positive(0.9) == ("COVID",), "where one class is true no threshold is needed"
    many = Scores("nih", {"Mass": 0.6, "Edema": 0.9, "No Finding": 0.95, "Nodule": 0.2})
    assert many.positive(0.5) == ("Edema", "Mass")
    assert many.explained(0.5, 1) == ("Edema",) and many.explained(0.99, 3) == ("Edema",)
    assert not is_finding("No_Finding") and not is_finding("No Lung Opacity / Not Normal")


def test_a_map_of_zeros_stays_one() -> None:
    zeros = HeatMap("a", np.zeros((4, 4), dtype=np.float32), "grad_cam", "x").scaled()
    assert not zeros.any()
    values = np.array([[0, 2], [4, 1]], dtype=np.float32)
    assert HeatMap("a", values, "grad_cam", "x").scaled().max() == 1


def test_the_crop_of_real_lungs_maps_back() -> None:
    image = np.zeros((90, 120), dtype=np.float32)
    shown = prepare_lungs(image, two_lungs(), "mask+crop", 0.05)
    crop = Crop(shown, (90, 120))
    assert crop.to_film(np.ones((64, 64), dtype=np.float32), (64, 64))[crop.seen()].min() == 1
