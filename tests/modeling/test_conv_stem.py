"""The convolutional stem of trunks that are trained from scratch."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone

from fx_d2.config import add_fx_config
from fx_d2.modeling.backbone.conv_stem import ConvStem
from fx_d2.modeling.backbone.timm_backbone import TimmBackbone

TINY = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


def test_it_takes_the_place_of_the_patch_embedding_and_nothing_else():
    own = TimmBackbone(name="swin_t", kwargs=TINY)
    conv = TimmBackbone(name="swin_t", stem="conv", kwargs=TINY)
    assert conv.output_shape() == own.output_shape()
    changed = set(own.state_dict()) ^ set(conv.state_dict())
    assert changed and all(".patch_embed.proj." in f".{name}" for name in changed)
    assert "net.patch_embed.proj.weight" not in conv.state_dict()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (96, 70)])
def test_shapes_and_gradients(channels, size):
    trunk = TimmBackbone(name="swin_t", in_channels=channels, stem="conv", kwargs=TINY)
    features = trunk(torch.rand(2, channels, *size))
    own = TimmBackbone(name="swin_t", in_channels=channels, kwargs=TINY)
    expected = own(torch.rand(2, channels, *size))
    assert {k: v.shape for k, v in features.items()} == {k: v.shape for k, v in expected.items()}
    trunk.pooled(features).square().sum().backward()
    stem = trunk.net.patch_embed.proj
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stem.parameters())


def test_its_patches_overlap():
    """What makes it a different stem: a pixel beyond a patch's border has a say in it."""
    seen = {}
    for stem in ("own", "conv"):
        trunk = TimmBackbone(name="swin_t", stem=stem, kwargs=TINY).eval()
        image = torch.rand(1, 3, 32, 32, requires_grad=True)
        trunk.net.patch_embed.proj(image)[0, :, 3, 3].sum().backward()
        rows = image.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
        seen[stem] = (int(rows.min()), int(rows.max()))
    assert seen["own"] == (12, 15)
    assert seen["conv"][0] < 12 and seen["conv"][1] > 15


def test_every_parameter_of_it_belongs_to_the_first_layer():
    trunk = TimmBackbone(name="swin_t", stem="conv", kwargs=TINY)
    layers = trunk.layer_ids()
    assert {layers[f"net.{n}"] for n, _ in trunk.net.named_parameters() if "patch_embed" in n} == {
        0
    }


def test_it_keeps_by_how_much_an_image_differs_from_others():
    """A faint picture and the same one at three times the contrast are not the same to it.

    Normalising each image or place by itself would make them one.
    """
    stem = TimmBackbone(name="swin_t", stem="conv", kwargs=TINY).net.patch_embed.proj
    faint = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        with torch.no_grad():
            plain, strong = stem.train(training)(torch.cat([faint, 3 * faint]))
        # About zero, as pictures are where the stem gets them: all that is left is the contrast.
        assert (strong - plain).norm() > 0.5 * plain.norm(), training


def test_a_config_asks_for_it():
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FX.TRUNK.NAME = "build_timm_backbone", "swin_t"
    cfg.MODEL.FX.TRUNK.KWARGS = CfgNode(TINY)
    for stem, expected in (("own", False), ("conv", True)):
        cfg.MODEL.FX.TRUNK.STEM = stem
        assert isinstance(build_backbone(cfg).net.patch_embed.proj, ConvStem) is expected
    for momentum in (0.02, 0.3):
        cfg.MODEL.FX.TRUNK.STEM_MOMENTUM = momentum
        norms = [m for m in build_backbone(cfg).modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert {m.momentum for m in norms} == {momentum}


def test_how_long_its_running_statistics_remember():
    image = torch.rand(2, 3, 32, 32)
    moved = {}
    for momentum in (0.5, 0.01):
        trunk = TimmBackbone(name="swin_t", stem="conv", stem_momentum=momentum, kwargs=TINY)
        trunk.net.patch_embed.proj(image)
        norms = [m for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        moved[momentum] = [float((m.running_var - 1).abs().mean()) for m in norms]
        assert all(moved[momentum])
    ratios = [a / b for a, b in zip(*moved.values(), strict=True)]
    assert ratios[0] == pytest.approx(50, rel=0.5), ratios
    with pytest.raises(ValueError, match="STEM_MOMENTUM"):
        TimmBackbone(name="swin_t", stem="conv", stem_momentum=0.0, kwargs=TINY)


@pytest.mark.parametrize(("name", "stem"), [("resnet50", "conv"), ("swin_t", "convs")])
def test_what_cannot_be(name, stem):
    with pytest.raises(ValueError, match=r"MODEL\.FX\.TRUNK\.STEM"):
        TimmBackbone(name=name, stem=stem)
