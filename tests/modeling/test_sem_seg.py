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
