"""The pyramid of localization against one computed by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from torch import nn

from fx_d2.config import add_fx_config
from fx_d2.modeling.neck import build_norm_fpn

STAGES = {f"res{i + 2}": ShapeSpec(channels=8 * 2**i, stride=4 * 2**i) for i in range(4)}


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


def stages(height: int = 96, width: int = 64) -> dict[str, torch.Tensor]:
    """Raw maps whose scale differs by a factor of a thousand, as a Swin's do."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(2, s.channels, height // s.stride, width // s.stride, generator=generator)
        * 10.0 ** (s.stride // 8)
        + 3
        for name, s in STAGES.items()
    }


def shake(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))


@torch.no_grad()
def test_levels_by_hand(cfg):
    """Norm over channels, lateral, sum with the coarser level doubled, 3 x 3, one max pool."""
    fpn = build_norm_fpn(cfg, STAGES).eval()
    shake(fpn)
    features = stages()
    state, found = fpn.state_dict(), fpn(features)
    above = None
    for i in (5, 4, 3, 2):
        x = features[f"res{i}"]
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = x * state[f"bottom_up.res{i}.weight"][:, None, None]
        x = x + state[f"bottom_up.res{i}.bias"][:, None, None]
        x = F.conv2d(x, state[f"fpn_lateral{i}.weight"], state[f"fpn_lateral{i}.bias"])
        if above is not None:
            x = x + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
        above = x
        x = F.conv2d(x, state[f"fpn_output{i}.weight"], state[f"fpn_output{i}.bias"], padding=1)
        torch.testing.assert_close(found[f"p{i}"], x, rtol=1e-4, atol=1e-4)
    assert torch.equal(found["p6"], found["p5"][:, :, ::2, ::2])


def test_shapes_and_gradients(cfg):
    fpn = build_norm_fpn(cfg, STAGES)
    features = {k: v.requires_grad_() for k, v in stages(64, 160).items()}
    found = fpn(features)
    shapes = fpn.output_shape()
    assert list(found) == list(shapes) == ["p2", "p3", "p4", "p5", "p6"]
    for name, level in found.items():
        stride = shapes[name].stride
        assert level.shape == (2, 16, -(-64 // stride), -(-160 // stride))
    assert fpn.size_divisibility == 32
    sum(level.square().mean() for level in found.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fpn.parameters())
    assert all(f.grad.abs().sum() > 0 for f in features.values())
    # the type that "no weight decay on norms" goes by
    norms = [m for m in fpn.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 4


def test_the_papers_three_stages(cfg):
    """From stride 8 on, in whatever order they are named; the unused stage has no parameters."""
    cfg.MODEL.FPN.IN_FEATURES = ["res5", "res3", "res4"]
    fpn = build_norm_fpn(cfg, STAGES)
    assert list(fpn(stages())) == ["p3", "p4", "p5", "p6"]
    assert not [name for name, _ in fpn.named_parameters() if "res2" in name or "2." in name]
    features = stages()
    del features["res2"]
    assert fpn(features)["p3"].shape == (2, 16, 12, 8)


def test_group_norm_and_unknown_stages(cfg):
    cfg.MODEL.FPN.NORM, cfg.MODEL.FPN.OUT_CHANNELS = "GN", 32
    assert any(isinstance(m, nn.GroupNorm) for m in build_norm_fpn(cfg, STAGES).modules())
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res7"]
    with pytest.raises(ValueError, match=r"\['res7'\] are no stages .* res2, res3, res4, res5"):
        build_norm_fpn(cfg, STAGES)
