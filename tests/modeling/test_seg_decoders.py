"""PSPNet, and what all decoders keep to: shapes, what reaches the map, and in a whole model."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec

from fx_d2.modeling.heads.seg_decoders import SEG_DECODERS, PSPNetDecoder

SHAPES = {f"res{i}": ShapeSpec(channels=4 * 2**i, stride=2**i) for i in range(2, 6)}
WIDTHS = {"fpn": 32}  # its norms have 32 groups
OPTIONS = {"bins": (1, 2), "norm": "GN", "dropout": 0.0}


def channels(*names: str) -> dict[str, int]:
    return {name: SHAPES[name].channels for name in names}


def features(side: int = 64) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(2, s.channels, side // s.stride, side // s.stride, requires_grad=True)
        for name, s in SHAPES.items()
    }


@pytest.mark.parametrize("name", ["pyramid", "upernet", "pspnet", "fpn"])
@pytest.mark.parametrize("side", [32, 96])
def test_one_map_at_the_finest_stage(tiny_cfg, name, side):
    width = WIDTHS.get(name, 16)
    cfg = tiny_cfg("siim_acr", MODEL__FX__SEG__DECODER=name, MODEL__FX__SEG__CHANNELS=width)
    decoder = SEG_DECODERS[name].from_config(cfg, SHAPES).train()
    decoded = decoder(features(side))
    assert decoded.shape == (2, width, side // 4, side // 4)
    assert decoder.output_shape()["decoded"] == ShapeSpec(channels=width, stride=4)
    assert torch.isfinite(decoded).all() and decoded.std() > 0


def test_pspnet_of_the_last_stage_shows_every_place_the_whole_image():
    decoder = PSPNetDecoder(channels("res5"), stride=32, dim=16, **OPTIONS).eval()
    given = features()
    decoded = decoder(given)
    assert decoded.shape == (2, 16, 2, 2) and decoder.output_shape()["decoded"].stride == 32
    decoded[0, :, 0, 0].square().sum().backward()
    assert given["res5"].grad[0, :, -1, -1].abs().sum() > 0
    assert given["res4"].grad is None  # the last stage alone


def test_pspnet_drops_whole_channels_in_training_only():
    decoder = PSPNetDecoder(channels("res5"), stride=32, dim=64, **{**OPTIONS, "dropout": 0.5})
    torch.manual_seed(0)
    seen = {mode: decoder.train(mode)(features()).detach() for mode in (True, False)}
    gone = {mode: (found == 0).flatten(2).all(2).float().mean() for mode, found in seen.items()}
    assert 0.35 < gone[True] - gone[False] < 0.65


def test_pspnet_lays_several_stages_side_by_side():
    decoder = PSPNetDecoder(channels("res4", "res5"), stride=16, dim=16, **OPTIONS).eval()
    given = features()
    decoder(given).square().sum().backward()
    assert all(given[name].grad.abs().sum() > 0 for name in ("res4", "res5"))
    assert decoder.pooling.reduce[0][0].in_channels == 64 + 128


@pytest.mark.parametrize("name", ["pspnet", "fpn"])
def test_a_model_learns_and_predicts_with_it(tiny_model, item, name):
    stages = ("res4", "res5") if name == "pspnet" else ("res2", "res3", "res4", "res5")
    options = {"MODEL__FX__SEG__DECODER": name, "MODEL__FX__SEG__IN_FEATURES": stages}
    options["MODEL__FX__SEG__CHANNELS"] = 32
    model = tiny_model("chestx_det", **options).train()
    losses = model([item("chestx_det", "seg", n) for n in range(2)])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.seg_decoder.parameters())
    (found,) = model.eval()([item("chestx_det", "seg")], heads=["seg"])
    assert all(mask.shape == (120, 90) for mask in found["masks"]["chestx_det"].values())


def test_pspnet_on_a_dilated_resnet(tiny_cfg):
    """As configs/doll has it: the last stage at stride 8 is what "res3" means then."""
    from detectron2.modeling import build_model

    cfg = tiny_cfg(
        "siim_acr",
        MODEL__FX__SEG__DECODER="pspnet",
        MODEL__FX__SEG__IN_FEATURES=("res3",),
        MODEL__FX__TRUNK__NAME="resnet10t",
    )
    cfg.DATASETS.TASKS = ("seg",)
    cfg.MODEL.FX.TRUNK.KWARGS.clear()
    cfg.MODEL.FX.TRUNK.KWARGS.output_stride = 8
    model = build_model(cfg).eval()
    seen = model.trunk(torch.rand(1, 3, 64, 64))
    assert seen["res3"].shape == (1, 512, 8, 8) and "res5" not in seen
    assert model.seg_decoder.pooling.reduce[0][0].in_channels == 512
