"""The mapper with a cache of small copies: the same geometry, less work."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from mapper_settings import plain, position

from fx_d2.data.cache_build import build_cache
from fx_d2.data.errors import DataError
from fx_d2.data.images import read_image
from fx_d2.data.mapper import FileReader, FxMapper
from fx_d2.data.masks import encode_mask
from fx_d2.data.sources import SOURCES


class HalfSize(FileReader):
    """Stands for a cache: half the pixels, the facts of the original."""

    def read(self, record):
        loaded = read_image(record["file_name"])
        small = cv2.resize(loaded.pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        return replace(loaded, pixels=small)


def test_a_cache_changes_no_geometry(toy, fx_cfg):
    record = toy.records[1]
    fx_cfg.INPUT.FX.SIZE = 32
    cfg = plain(fx_cfg)
    tasks = ("loc", "seg")
    direct = FxMapper(cfg, True)(record, tasks, position())
    cached = FxMapper(cfg, True, reader=HalfSize())(record, tasks, position())
    assert (cached["height"], cached["width"]) == (record["height"], record["width"])
    torch.testing.assert_close(
        cached["instances"].gt_boxes.tensor, direct["instances"].gt_boxes.tensor, atol=0.1, rtol=0
    )
    assert (cached["sem_masks"] != direct["sem_masks"]).float().mean() < 0.03
    assert (cached["image"] - direct["image"]).abs().mean() < 0.05


def test_masks_of_cached_images_are_decoded_once(toy, fx_cfg, monkeypatch):
    fx_cfg.INPUT.FX.SIZE = 32
    fx_cfg.INPUT.FX.AUG.SEG.GEOMETRY_PROB = 1.0
    records = list(toy.records)[:3]
    mapper = FxMapper(fx_cfg, True, reader=HalfSize())
    first = [mapper(r, "seg", position()) for r in records]

    def decode(*_, **__):
        raise AssertionError("decoded again")

    monkeypatch.setattr("fx_d2.data.mapper.load_mask", decode)
    second = [mapper(r, "seg", position()) for r in records]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["sem_masks"], b["sem_masks"])
    assert any(a["sem_masks"].any() for a in first)
    with pytest.raises(AssertionError, match="decoded again"):
        FxMapper(fx_cfg, True)(records[0], "seg", position())  # originals are not kept


def test_kept_masks_are_those_of_source_image_and_class(toy, fx_cfg, monkeypatch):
    """Two sources may name an image alike, and VinDr-CXR's rows even share the file."""
    fx_cfg.INPUT.FX.SIZE = 32
    monkeypatch.setitem(SOURCES, "toy_twin", replace(toy.source, key="toy_twin"))
    one, other = toy.records[:2]
    height, width = one["height"], one["width"]
    masks = {}
    for number, name in enumerate(("Left Lung", "Right Lung")):
        masks[name] = np.zeros((height, width), bool)
        masks[name][:, number * width // 2 : (number + 1) * width // 2] = True
    upper = np.zeros((height, width), bool)
    upper[: height // 2] = True
    records = [
        {**one, "masks": {name: encode_mask(mask) for name, mask in masks.items()}},
        {**one, "source": "toy_twin", "masks": {"Left Lung": encode_mask(upper)}},
        {**one, "image_id": other["image_id"], "masks": {"Left Lung": encode_mask(~upper)}},
    ]
    mapper = FxMapper(plain(fx_cfg), True, reader=HalfSize())
    for _ in range(2):  # made, then kept
        found = [mapper(record, "seg", position())["sem_masks"].numpy() for record in records]
        assert found[0][0][:, :15].all() and not found[0][0][:, 17:].any()
        assert found[0][1][:, 17:].all() and not found[0][1][:, :15].any()
        assert found[1][0][:15].all() and not found[1][0][17:].any()
        assert found[2][0][17:].all() and not found[2][0][:15].any()


def test_a_cache_smaller_than_the_input_is_refused(toy, fx_cfg):
    fx_cfg.INPUT.FX.SIZE = 66  # half of 70 to 130 pixels is less
    with pytest.raises(DataError, match="cached copy"):
        FxMapper(fx_cfg, False, reader=HalfSize())(toy.records[1], "cls", position())
    fx_cfg.INPUT.FX.SIZE = 500  # the originals themselves are smaller: that is no fault
    FxMapper(fx_cfg, False)(toy.records[1], "cls", position())


def test_a_real_cache_is_used_transparently(toy, fx_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy.folder.parent))
    monkeypatch.setitem(SOURCES, "toy_chest", replace(toy.source, folder=toy.folder.name))
    folder = tmp_path / toy.folder.name
    files = [r["file_name"] for r in toy.records]
    build_cache(files, folder, 66, root=toy.folder, progress=False)
    direct = FxMapper(plain(fx_cfg), False)
    fx_cfg.INPUT.FX.CACHE = str(tmp_path)
    cached = FxMapper(fx_cfg, False)
    for record in toy.records:
        one, other = (m(record, ("cls", "loc"), position()) for m in (direct, cached))
        assert (one["height"], one["width"]) == (other["height"], other["width"])
        assert (one["image"] - other["image"]).abs().mean() < 0.02
        if "instances" in one:
            boxes = [r["instances"].gt_boxes.tensor for r in (one, other)]
            torch.testing.assert_close(*boxes, atol=0.1, rtol=0)
