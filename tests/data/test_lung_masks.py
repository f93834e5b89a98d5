"""The mapper shows the lungs of a record: its own mask, one of a folder, or one that it brings."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from mapper_settings import plain, position

from fx_d2.data.errors import DataError
from fx_d2.data.lung_input import LungMaskError, prepare_lungs
from fx_d2.data.lung_masks import LungInput
from fx_d2.data.mapper import FxMapper
from fx_d2.data.masks import encode_mask

SIZE = (80, 120)


@pytest.fixture
def record(toy, tmp_path):
    """A film with a bright square outside of its lungs."""
    pixels = np.full(SIZE, 100, dtype=np.uint8)
    pixels[::2] = 140
    pixels[5:15, 5:15] = 255
    path = tmp_path / "film.png"
    assert cv2.imwrite(str(path), pixels)
    lungs = np.zeros(SIZE, dtype=bool)
    lungs[20:60, 40:80] = True
    kept = {key: toy.records[0][key] for key in ("image_id", "source", "patient_id", "labels")}
    size = {"height": SIZE[0], "width": SIZE[1]}
    return {**kept, **size, "file_name": str(path), "masks": {"Lungs": encode_mask(lungs)}}


@pytest.fixture
def lung_cfg(fx_cfg):
    cfg = plain(fx_cfg)
    cfg.DATASETS.TASKS = ("cls",)
    cfg.INPUT.FX.INTENSITY.MODE = "depth"
    cfg.INPUT.FX.LUNGS.MODE = "mask+crop"
    cfg.INPUT.FX.LUNGS.MARGIN = 0.0
    return cfg


def _image(cfg, record, *, train=False):
    return FxMapper(cfg, train)(record, "cls", position())


@pytest.mark.parametrize("train", [False, True])
def test_modes_reach_the_network(lung_cfg, record, train):
    lung_cfg.INPUT.FX.SIZE = 40
    found = _image(lung_cfg, record, train=train)
    assert found["image"].shape == (3, 40, 40)
    assert found["shown_box"] == (40.0, 20.0, 80.0, 60.0)
    assert (found["height"], found["width"]) == SIZE
    assert found["image"].min() > 0.35 and found["image"].max() < 0.6  # neither fill nor square
    lung_cfg.INPUT.FX.LUNGS.MODE = "background"
    found = _image(lung_cfg, record, train=train)
    assert found["image"].max() > 0.9 and found["shown_box"] == (0.0, 0.0, 120.0, 80.0)
    assert (found["image"][0, 12:28, 15:25] == 0).all()
    lung_cfg.INPUT.FX.LUNGS.MODE = "none"
    assert "shown_box" not in _image(lung_cfg, record, train=train)


def test_normalised_before_it_is_cut(lung_cfg, record):
    """The lungs' grey values are those they have in the whole film."""
    lung_cfg.INPUT.FX.INTENSITY.MODE = "minmax"
    lung_cfg.INPUT.FX.SIZE = 40
    cut = _image(lung_cfg, record)["image"]
    assert cut.max() < 0.3 and cut.min() == 0  # 140 of 100..255; by itself the cut would reach 1


@pytest.mark.parametrize(
    ("mode", "margin", "least", "box"),
    [
        ("mask", 0.25, 64, (0, 0, 120, 80)),
        ("mask+crop", 0.25, 16, (30, 10, 90, 70)),
        ("mask+crop", 0.0, 64, (28, 8, 92, 72)),
    ],
)
def test_every_setting_is_used(lung_cfg, record, mode, margin, least, box):
    grey = np.random.default_rng(0).random(SIZE, dtype=np.float32)
    lungs = np.zeros(SIZE, dtype=bool)
    lungs[20:60, 40:80] = True
    node = lung_cfg.INPUT.FX.LUNGS
    node.MODE, node.MARGIN, node.FILL, node.MIN_SIDE_PX = mode, margin, 0.3, least
    found = LungInput.from_config(lung_cfg)(grey, record, SIZE)
    expected = prepare_lungs(grey, lungs, mode, margin, 0.3, min_side_px=least)
    assert found.box == expected.box == box and np.array_equal(found.image, expected.image)


def test_the_shown_box_is_one_of_the_original_though_a_cache_is_smaller(lung_cfg, record):
    small = np.random.default_rng(0).random((40, 90), dtype=np.float32)
    image, about = LungInput.from_config(lung_cfg).shown(small, record, SIZE)
    assert np.array_equal(image, small[10:30, 30:60])
    assert about == {"shown_box": (40.0, 20.0, 80.0, 60.0)}


def test_masks_of_a_folder(lung_cfg, record, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    lung_cfg.INPUT.FX.LUNGS.SOURCE = str(folder)
    with pytest.raises(LungMaskError, match=rf"film.png, .*no lung mask.*{record['image_id']}.png"):
        _image(lung_cfg, record)
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[10:30, 60:90] = 255
    cv2.imwrite(str(folder / "film.png"), mask)
    assert _image(lung_cfg, record)["shown_box"] == (60.0, 10.0, 90.0, 30.0)
    cv2.imwrite(str(folder / f"{record['image_id']}.png"), mask[:, ::-1])
    assert _image(lung_cfg, record)["shown_box"] == (30.0, 10.0, 60.0, 30.0)
    (folder / record["source"]).mkdir()
    cv2.imwrite(str(folder / record["source"] / f"{record['image_id']}.png"), mask[::-1])
    assert _image(lung_cfg, record)["shown_box"] == (60.0, 50.0, 90.0, 70.0)
    cv2.imwrite(str(folder / record["source"] / f"{record['image_id']}.png"), np.kron(mask, [1, 1]))
    with pytest.raises(DataError, match=r"mask is 80 x 240.*expected 80 x 120"):
        _image(lung_cfg, record)


def test_a_mask_file_outside_of_the_folder_is_never_read(lung_cfg, record, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    cv2.imwrite(str(tmp_path / "secret.png"), np.full(SIZE, 255, dtype=np.uint8))
    lung_cfg.INPUT.FX.LUNGS.SOURCE = str(folder)
    for image_id in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(LungMaskError, match="no lung mask"):
            _image(lung_cfg, record | {"image_id": image_id})


def test_a_record_may_bring_its_mask(lung_cfg, record):
    lungs = np.zeros(SIZE, dtype=np.uint8)
    lungs[0:40, 0:30] = 1
    assert _image(lung_cfg, record | {"lungs": lungs})["shown_box"] == (0.0, 0.0, 30.0, 40.0)
    with pytest.raises(LungMaskError, match=r"film.png.*lung mask is 40 x 120.*expected 80 x 120"):
        _image(lung_cfg, record | {"lungs": lungs[:40]})


def test_records_without_lungs(lung_cfg, record):
    left = {"Left Lung": record["masks"]["Lungs"]}
    right = np.zeros(SIZE, dtype=bool)
    right[20:60, 10:20] = True
    both = left | {"Right Lung": encode_mask(right)}
    assert _image(lung_cfg, record | {"masks": both})["shown_box"] == (10.0, 20.0, 80.0, 60.0)
    empty = {"Lungs": encode_mask(np.zeros(SIZE, dtype=bool))}
    for masks, said in (
        (left, "no mask of both lungs"),
        ({}, "no mask of the lungs"),
        (empty, "the lung mask is empty"),
    ):
        with pytest.raises(LungMaskError, match=said) as caught:
            _image(lung_cfg, record | {"masks": masks})
        assert record["file_name"] in str(caught.value)


def test_settings_that_do_not_go_together(lung_cfg, toy):
    lung_cfg.DATASETS.TASKS = ("cls", "seg")
    with pytest.raises(ValueError, match=r"'mask\+crop' cuts the image.*DATASETS.TASKS"):
        FxMapper(lung_cfg, False)
    lung_cfg.INPUT.FX.LUNGS.MODE = "mask"
    FxMapper(lung_cfg, False)
    lung_cfg.INPUT.FX.LESION_MIX.PROB = 0.5
    with pytest.raises(ValueError, match="LUNGS.MODE and INPUT.FX.LESION_MIX.PROB exclude each"):
        LungInput.from_config(lung_cfg)
    lung_cfg.INPUT.FX.LESION_MIX.PROB = 0.0
    lung_cfg.INPUT.FX.LUNGS.SOURCE = "nowhere"
    with pytest.raises(ValueError, match=r"INPUT.FX.LUNGS.SOURCE 'nowhere' is no folder"):
        FxMapper(lung_cfg, False)
    lung_cfg.INPUT.FX.LUNGS.MODE = "lungs"
    with pytest.raises(ValueError, match=r"lung mode 'lungs'; allowed: none, mask"):
        FxMapper(lung_cfg, False)
