from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec

from fx_d2.modeling.heads.sem_seg import MultiSourceSegHead, SegDecoder
from fx_d2.modeling.heads.spec import HeadSpec
from fx_d2.modeling.losses import mask_bce, soft_dice

SHAPES = {f"res{i}": ShapeSpec(channels=4 * 2**i, stride=2**i) for i in range(2, 6)}
SPECS = [HeadSpec("organs", "seg", ("lung", "heart")), HeadSpec("air", "seg", ("ptx",))]


def features(height, width, n=1):
    return {
        name: torch.randn(n, s.channels, height // s.stride, width // s.stride)
        for name, s in SHAPES.items()
    }


@pytest.mark.parametrize("side", [32, 64, 96])
def test_the_decoder_gives_one_map_at_the_finest_stage(tiny_cfg, side):
    """Also for a last stage of one cell, and one image in training."""
    decoder = SegDecoder.from_config(tiny_cfg("siim_acr"), SHAPES).train()
    decoded = decoder(features(side, 64))
    assert decoded.shape == (1, 16, side // 4, 16)
    assert decoder.output_shape()["decoded"] == ShapeSpec(channels=16, stride=4)
    assert torch.isfinite(decoded).all() and decoded.std() > 0


def test_every_stage_reaches_the_map(tiny_cfg):
    decoder = SegDecoder.from_config(tiny_cfg("siim_acr"), SHAPES).eval()
    given = features(64, 64)
    for stage in given.values():
        stage.requires_grad_()
    decoder(given)[0, :, 0, 0].square().sum().backward()
    assert all(stage.grad.abs().sum() > 0 for stage in given.values())
    # From above it comes to the finest level too, not only to the fusion.
    with torch.no_grad():
        decoder.fuse[0].weight[:, :-16] = 0.0
    for stage in given.values():
        stage.grad = None
    decoder(given)[0, :, 0, 0].square().sum().backward()
    assert all(stage.grad.abs().sum() > 0 for stage in given.values())
    # The pyramid pooling shows every place the whole image.
    assert given["res5"].grad[0, :, -1, -1].abs().sum() > 0


def test_fewer_stages_and_unknown_ones(tiny_cfg):
    cfg = tiny_cfg("siim_acr", MODEL__FX__SEG__IN_FEATURES=("res3", "res5"))
    assert SegDecoder.from_config(cfg, SHAPES)(features(64, 64)).shape == (1, 16, 8, 8)
    cfg = tiny_cfg("siim_acr", MODEL__FX__SEG__IN_FEATURES=("res1", "res5"))
    with pytest.raises(ValueError, match=r"SEG.IN_FEATURES names \['res1'\]"):
        SegDecoder.from_config(cfg, SHAPES)


def test_each_source_has_its_own_channels_which_may_overlap():
    head = MultiSourceSegHead(specs=SPECS, in_dim=8)
    decoded = torch.randn(2, 8, 4, 4)
    assert head(decoded, "organs", (16, 20)).shape == (2, 2, 16, 20)
    assert head(decoded, "air", (16, 20)).shape == (2, 1, 16, 20)
    with torch.no_grad():
        head.organs.bias.fill_(9.0)
    assert (head(decoded, "organs", (4, 4)).sigmoid() > 0.5).all()  # both classes, everywhere


def test_losses_are_the_ones_asked_for():
    logits, known = torch.randn(2, 2, 4, 4), torch.tensor([[True, False], [True, True]])
    masks = torch.randint(0, 2, (2, 2, 4, 4))
    both = MultiSourceSegHead(specs=SPECS, in_dim=8).losses(logits, masks, known)
    assert both["loss_seg_bce"] == mask_bce(logits, masks, known)
    assert both["loss_seg_dice"] == soft_dice(logits, masks, known, over="channel")
    head = MultiSourceSegHead(specs=SPECS, in_dim=8, loss="dice", dice_over="batch")
    only = head.losses(logits, masks, known)
    assert only == {"loss_seg_dice": soft_dice(logits, masks, known, over="batch")}
    assert only["loss_seg_dice"] != both["loss_seg_dice"]
    head = MultiSourceSegHead(specs=SPECS, in_dim=8, loss="bce")
    assert list(head.losses(logits, masks, known)) == ["loss_seg_bce"]
    with pytest.raises(ValueError, match=r"SEG.LOSS is 'jaccard'; allowed: dice, bce, bce_dice"):
        MultiSourceSegHead(specs=SPECS, in_dim=8, loss="jaccard")
    with pytest.raises(ValueError, match=r"SEG.DICE_OVER is 'pixel'; allowed: image, channel"):
        MultiSourceSegHead(specs=SPECS, in_dim=8, dice_over="pixel")


def test_the_loss_of_the_pre_training():
    """Background at 0.1, half a Dice of what is there, pixels that are ignored."""
    logits, masks = torch.randn(2, 2, 4, 4), torch.randint(0, 2, (2, 2, 4, 4))
    masks[:, 1] = 0
    known = torch.rand(2, 2, 4, 4) < 0.7
    given = {"background_weight": 0.1, "dice_weight": 0.5, "dice_present": True}
    found = MultiSourceSegHead(specs=SPECS, in_dim=8, **given).losses(logits, masks, known)
    assert found["loss_seg_bce"] == mask_bce(logits, masks, known, background_weight=0.1)
    assert found["loss_seg_dice"] == 0.5 * soft_dice(logits, masks, known, present=True)
    with pytest.raises(ValueError, match=r"SEG.BACKGROUND_WEIGHT is 0; allowed: above 0"):
        MultiSourceSegHead(specs=SPECS, in_dim=8, background_weight=0)
    with pytest.raises(ValueError, match=r"SEG.DICE_WEIGHT is -1; allowed: 0 or more"):
        MultiSourceSegHead(specs=SPECS, in_dim=8, dice_weight=-1)


def test_a_batch_of_items_that_say_it_by_pixel_and_by_channel(tiny_model, item):
    """Two sizes: what is padding is not annotated where pixels are."""
    model = tiny_model("chestx_det", MODEL__FX__SEG__BACKGROUND_WEIGHT=0.1).train()
    large, small = item("chestx_det", "seg", side=64), item("chestx_det", "seg", 1, side=48)
    by_channel = model([large, small])
    count = len(large["sem_known"])
    small["sem_known"] = torch.ones(count, 48, 48, dtype=torch.bool)
    seen = []
    head = model.heads["seg"]
    losses = head.losses
    head.losses = lambda logits, masks, known: seen.append(known) or losses(logits, masks, known)
    mixed = model([large, small])
    (known,) = seen
    assert known.shape == (2, count, 64, 64) and known.dtype == torch.bool
    assert known[0].all() and known[1, :, :48, :48].all() and known[1].sum() == count * 48 * 48
    assert mixed["loss_seg_bce"] != by_channel["loss_seg_bce"]
    # All of a channel known by pixel is the same as by channel.
    del head.losses
    both = [large, item("chestx_det", "seg", 1)]
    first = model(both)
    both[1]["sem_known"] = torch.ones(count, 64, 64, dtype=torch.bool)
    for name, value in model(both).items():
        torch.testing.assert_close(value, first[name])
