"""The decoder of the published weights; tests/engine/convert compares its maths."""

from __future__ import annotations

import pytest
import torch

OPTIONS = {"MODEL__FX__SEG__DECODER": "upernet", "MODEL__FX__SEG__CHANNELS": 24}


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_every_parameter_of_it_is_trained(tiny_model, item, norm):
    model = tiny_model("chestx_det", MODEL__FX__SEG__NORM=norm, **OPTIONS).train()
    batch = [item("chestx_det", "seg", n) for n in (0, 1)]
    sum(model(batch).values()).backward()
    assert [n for n, p in model.seg_decoder.named_parameters() if p.grad is None] == []
    assert model.seg_decoder.output_shape()["decoded"].stride == 4


@torch.no_grad()
def test_padded_sizes_give_a_map_at_stride_four(tiny_model):
    model = tiny_model("chestx_det", **OPTIONS).eval()
    found = model.seg_decoder(model.trunk(torch.rand(1, 3, 64, 96)))
    assert found.shape == (1, 24, 16, 24)


def test_wrong_settings_are_named(tiny_model):
    with pytest.raises(ValueError, match="CHANNELS is 16 and has to be 24"):
        tiny_model("chestx_det", **{**OPTIONS, "MODEL__FX__SEG__CHANNELS": 16})
    with pytest.raises(ValueError, match="'upernett'; allowed: pyramid, upernet, pspnet, unet"):
        tiny_model("chestx_det", MODEL__FX__SEG__DECODER="upernett")
