"""Masks with pixels of which nothing is known, through the mapper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mapper_settings import plain, position

from fx_d2.data.mapper import FxMapper
from fx_d2.data.masks import encode_mask, load_mask

HEART = 2


def with_ignored(record):
    """The heart's right half is not known; the rest of the frame is."""
    height, width = record["height"], record["width"]
    front, ignored = np.zeros((2, height, width), dtype=bool)
    front[height // 4 : height // 2, width // 4 : width // 2] = True
    ignored[height // 4 : height // 2, width // 2 : 3 * width // 4] = True
    masks = {**record["masks"], "Heart": encode_mask(front)}
    return {**record, "masks": masks, "ignore_masks": {"Heart": encode_mask(ignored)}}


def test_without_ignored_pixels_nothing_changes(toy, fx_cfg) -> None:
    mapper = FxMapper(fx_cfg, True)
    for record in toy.records:
        item = mapper(record, "seg", position())
        assert item["sem_known"].shape == (3,)
        marked = mapper({**record, "ignore_masks": {}}, "seg", position())
        assert torch.equal(marked["sem_masks"], item["sem_masks"])
        assert torch.equal(marked["sem_known"].all(2).all(1), item["sem_known"])
        assert torch.equal(marked["sem_known"].any(2).any(1), item["sem_known"])


def test_ignored_pixels_move_with_the_image(toy, augmented_cfg) -> None:
    mapper = FxMapper(augmented_cfg, True)
    for number, record in enumerate(toy.records):
        marked = with_ignored(record)
        item = mapper(marked, "seg", position(number))
        # The same draws, the ignored pixels as if they were a mask.
        shown = {**marked["masks"], "Heart": marked["ignore_masks"]["Heart"]}
        other = mapper({**record, "masks": shown}, "seg", position(number))
        unknown = ~item["sem_known"][HEART]
        expected = (other["sem_masks"][HEART] > 0) & (item["sem_masks"][HEART] == 0)
        # Only where the two masks meet may a pixel be half of each.
        assert (unknown ^ expected).sum() <= 40 and unknown.sum() > 20
        assert item["sem_known"][:HEART].all()
        assert item["sem_known"][item["sem_masks"] > 0].all()


def test_no_background_appears_between_foreground_and_ignored(toy, fx_cfg) -> None:
    record = dict(toy.records[0])
    height, width = record["height"], record["width"]
    stripes = np.arange(width) % 2 == 0
    front = np.broadcast_to(stripes, (height, width))
    record["masks"] = {**record["masks"], "Heart": encode_mask(front)}
    record["ignore_masks"] = {"Heart": encode_mask(~front)}
    fx_cfg.INPUT.FX.SIZE = 24
    item = FxMapper(plain(fx_cfg), True)(record, "seg", position())
    background = item["sem_known"][HEART] & (item["sem_masks"][HEART] == 0)
    assert not background.any()


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_sides_change_places_with_their_ignored_pixels(toy, fx_cfg, flip) -> None:
    record = dict(toy.records[0])
    left = load_mask(record["masks"]["Left Lung"], record["height"], record["width"])
    record["ignore_masks"] = {"Left Lung": encode_mask(~left)}
    item = FxMapper(plain(fx_cfg, FLIP=flip), True)(record, "seg", position())
    side = 1 if flip else 0
    assert torch.equal(item["sem_known"][side], item["sem_masks"][side] > 0)
    assert item["sem_known"][1 - side].all()
