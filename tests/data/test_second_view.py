from __future__ import annotations

import numpy as np
import pytest
import torch

from fx_d2.data.mapper import FxMapper
from fx_d2.data.second_view import SecondView
from fx_d2.data.task_loader import TaskLoader, WorkerConfig

GREY = ("BRIGHTNESS", "CONTRAST", "GAMMA", "NOISE", "BLUR_PX")


def place(number=0):
    return ("toy_chest", "x", 0, "1.0", number)


@pytest.fixture
def moving_cfg(fx_cfg):
    """Every geometric change, no grey one in the first view; a second view that changes nothing."""
    fx_cfg.TEACHER.VIEWS = 2
    for task in ("CLS", "LOC", "SEG"):
        node = fx_cfg.INPUT.FX.AUG[task]
        node.CROP_SCALE, node.FLIP, node.ROTATE_DEG = [0.3, 0.9], 0.5, 20.0
        node.SHIFT, node.SCALE, node.GEOMETRY_PROB = 0.1, 0.2, 1.0
        for key in GREY:
            node[key] = 0.0
    for key in GREY:
        fx_cfg.TEACHER.VIEW[key] = 0.0
    return fx_cfg


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
@pytest.mark.parametrize("mode", ["square", "keep"])
def test_both_views_show_the_same_place(toy, moving_cfg, task, mode):
    """Without grey changes they are equal to the last bit, whatever the geometry."""
    moving_cfg.INPUT.FX.RESIZE = mode
    mapper = FxMapper(moving_cfg, True)
    for number, record in enumerate(toy.records[:6]):
        found = mapper(record, task, place(number))
        assert torch.equal(found["image"], found["second_view"])


def test_grey_changes_are_of_one_view_each(toy, moving_cfg):
    still = FxMapper(moving_cfg, True)(toy.records[1], "cls", place())
    moving_cfg.TEACHER.VIEW.BRIGHTNESS, moving_cfg.TEACHER.VIEW.GREY_PROB = 0.5, 1.0
    other = FxMapper(moving_cfg, True)(toy.records[1], "cls", place())
    assert torch.equal(other["image"], still["image"])
    assert not torch.equal(other["second_view"], still["second_view"])
    # The same structure at the same place: brightness is a factor, up to the clipping at 1.
    before, after = still["image"][0].numpy(), other["second_view"][0].numpy()
    inside = (before > 0.05) & (after < 1)
    factors = after[inside] / before[inside]
    assert np.ptp(factors) < 1e-3 and abs(factors.mean() - 1) > 0.01
    moving_cfg.TEACHER.VIEW.BRIGHTNESS = 0.0
    moving_cfg.INPUT.FX.AUG.CLS.NOISE, moving_cfg.INPUT.FX.AUG.CLS.GREY_PROB = 0.2, 1.0
    noisy = FxMapper(moving_cfg, True)(toy.records[1], "cls", place())
    assert torch.equal(noisy["second_view"], still["image"])
    assert not torch.equal(noisy["image"], still["image"])


def test_padding_stays_black(toy, moving_cfg):
    moving_cfg.INPUT.FX.RESIZE = "keep"
    moving_cfg.TEACHER.VIEW.NOISE, moving_cfg.TEACHER.VIEW.GREY_PROB = 0.3, 1.0
    moving_cfg.INPUT.FX.AUG.LOC.CROP_SCALE = [1.0, 1.0]
    record = next(r for r in toy.records if abs(r["height"] - r["width"]) > 15)
    found = FxMapper(moving_cfg, True)(record, "loc", place())
    height, width = found["content_size"]
    view = found["second_view"]
    assert min(height, width) < 64 and view.shape == found["image"].shape
    assert (view[:, height:] == 0).all() and (view[:, :, width:] == 0).all()
    assert (view[:, :height, :width] > 0).float().mean() > 0.5


def test_draws_belong_to_the_position(toy, moving_cfg):
    moving_cfg.TEACHER.VIEW.NOISE, moving_cfg.TEACHER.VIEW.GREY_PROB = 0.2, 1.0
    mapper = FxMapper(moving_cfg, True)
    view = mapper(toy.records[2], "seg", place(3))["second_view"]
    np.random.rand(5)
    mapper(toy.records[1], "cls", place(9))
    assert torch.equal(view, mapper(toy.records[2], "seg", place(3))["second_view"])
    assert not torch.equal(view, mapper(toy.records[2], "seg", place(4))["second_view"])


@pytest.mark.slow
def test_workers_change_nothing(toy, moving_cfg):
    moving_cfg.TEACHER.VIEW.NOISE = 0.2
    views = []
    for workers in (0, 2):
        loader = TaskLoader(
            {(toy.source.key, "cls"): toy.records},
            FxMapper(moving_cfg, True),
            seed=3,
            batch_size=2,
            workers=WorkerConfig(num_workers=workers),
        )
        loader.activate(toy.source.key, "cls")
        views.append([item["second_view"] for batch in loader for item in batch])
        loader.close()
    assert len(views[0]) == len(views[1]) > 3
    assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))


def test_off_it_is_not_there_and_changes_no_draw(toy, augmented_cfg, monkeypatch):
    augmented_cfg.TEACHER.VIEWS = 2
    on = FxMapper(augmented_cfg, True)(toy.records[1], "seg", place())
    assert not torch.equal(on["image"], on["second_view"])
    evaluated = FxMapper(augmented_cfg, False)(toy.records[1], "seg", place())
    assert "second_view" not in evaluated
    augmented_cfg.TEACHER.VIEWS = 1

    def forbidden(*args):
        raise AssertionError("a second view was made")

    monkeypatch.setattr(SecondView, "__call__", forbidden)
    off = FxMapper(augmented_cfg, True)(toy.records[1], "seg", place())
    assert "second_view" not in off and torch.equal(off["image"], on["image"])
    augmented_cfg.TEACHER.VIEWS = 3
    with pytest.raises(ValueError, match="TEACHER.VIEWS is 3"):
        FxMapper(augmented_cfg, True)
