"""The trunk: any timm network, any size, its taps, and how a config builds it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from tiny_trunks import TINY, plain, shake, tiny

from fx_d2.config import add_fx_config
from fx_d2.modeling.backbone import TimmBackbone
from fx_d2.modeling.backbone.channel_norm import ChannelNorm


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.FX.TRUNK.NAME = "swin_t"
    cfg.MODEL.FX.TRUNK.KWARGS = CfgNode({"embed_dim": 24, "depths": [1, 1, 1, 1]})
    return cfg


@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_stages_and_pooled_tap_are_timms_own(family):
    """Raw stages against ``features_only``, the pooled tap against timm's pre-logits."""
    size = (96, 128)
    any_size = {"strict_img_size": False, "always_partition": True} if family == "swin" else {}
    bound = {"img_size": size} if family == "coatnet" else {}
    backbone = tiny(family, img_size=size)
    shake(backbone)
    x = torch.randn(2, 3, *size)
    features = backbone(x)
    whole = plain(family, backbone, **any_size, **bound)
    expected = whole.forward_head(whole.forward_features(x), pre_logits=True)
    torch.testing.assert_close(backbone.pooled(features), expected, rtol=0, atol=2e-5)

    listed = plain(family, features_only=True, **any_size, **bound)
    state = {k.replace(".", "_"): v for k, v in backbone.net.state_dict().items()}
    named = {k.replace(".", "_"): k for k in listed.state_dict()}
    missing = set(named) - set(state)
    assert not missing
    listed.load_state_dict({own: state[k] for k, own in named.items()})
    maps = listed(x)[-4:]
    if str(listed.output_fmt) == "NHWC" or getattr(listed.output_fmt, "value", "") == "NHWC":
        assert family == "swin"
        maps = [m.permute(0, 3, 1, 2) for m in maps]
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for (name, found), wanted in zip(features.items(), maps, strict=True):
        assert torch.equal(found, wanted), name
        shape = backbone.output_shape()[name]
        assert found.shape == (2, shape.channels, size[0] // shape.stride, size[1] // shape.stride)


@pytest.mark.parametrize("family", TINY)
def test_every_parameter_gets_a_gradient(family):
    """No head, no layer past the last stage is left over: such parameters would upset DDP."""
    backbone = tiny(family, img_size=(64, 64))
    shake(backbone)
    features = backbone(torch.randn(2, 3, 64, 64))
    loss = backbone.pooled(features).square().sum()
    sum((f.square().mean() for f in features.values()), loss).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("size", [(512, 640), (800, 256)])
@torch.no_grad()
def test_a_swin_of_any_size_equals_one_built_for_that_size(size):
    """Exactly, in every stage; and without always_partition it does not."""
    backbone = tiny("swin")
    shake(backbone)
    x = torch.randn(1, 3, *size)
    built = plain("swin", backbone, img_size=size)
    expected = built.forward_intermediates(x, intermediates_only=True)
    for found, wanted in zip(backbone(x).values(), expected, strict=True):
        assert torch.equal(found, wanted)
    loose = tiny("swin", kwargs={"always_partition": False})
    loose.load_state_dict(backbone.state_dict())
    off = [(a - b).abs().max() for a, b in zip(loose(x).values(), expected, strict=True)]
    assert off[0] == off[1] == off[2] == 0 and off[3] > 0.1


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (224, 224)])
@torch.no_grad()
def test_a_swin_below_its_built_size_partitions_alike(size):
    backbone = tiny("swin")
    shake(backbone)
    x = torch.randn(1, 3, *size)
    built = plain("swin", backbone, img_size=size, always_partition=True)
    for found, wanted in zip(
        backbone(x).values(), built.forward_intermediates(x, intermediates_only=True), strict=True
    ):
        assert torch.equal(found, wanted)


@torch.no_grad()
def test_sizes_in_any_order_leave_nothing_behind():
    backbone = tiny("swin")
    first, second = torch.randn(1, 3, 64, 96), torch.randn(1, 3, 128, 64)
    before = backbone(first)["res5"]
    backbone(second)
    assert torch.equal(backbone(first)["res5"], before)


@pytest.mark.parametrize("family", [f for f in TINY if f != "coatnet"])
@torch.no_grad()
def test_odd_sizes_are_padded_at_the_right_and_bottom(family):
    backbone = tiny(family)
    x = torch.randn(2, 3, 70, 101)
    features = backbone(x)
    padded = backbone(F.pad(x, (0, 27, 0, 26)))
    assert features["res5"].shape[-2:] == (3, 4)
    assert all(torch.equal(features[k], padded[k]) for k in features)
    assert backbone.size_divisibility == 32


@torch.no_grad()
def test_a_network_bound_to_one_size():
    backbone = tiny("coatnet", img_size=(60, 100))
    assert backbone.built_size == (64, 128)
    assert backbone(torch.zeros(1, 3, 60, 100))["res5"].shape[-2:] == (2, 4)
    message = r"64 x 128 px and got 96 x 96.*MODEL\.FX\.TRUNK\.IMG_SIZE"
    with pytest.raises(ValueError, match=message):
        backbone(torch.zeros(1, 3, 96, 96))


@torch.no_grad()
def test_pooling_leaves_padding_out():
    """Of a batch padded for its larger image, the smaller one's mean is that of its own cells."""
    backbone = tiny("swin")
    shake(backbone)
    features = backbone(torch.randn(2, 3, 96, 128))
    pooled = backbone.pooled(features, [(96, 128), (33, 64)])
    normed = backbone.norm(features["res5"])
    torch.testing.assert_close(pooled[0], normed[0].mean((1, 2)))
    torch.testing.assert_close(pooled[1], normed[1, :, :2, :2].mean((1, 2)))
    with pytest.raises(ValueError, match="1 content sizes for 2 images"):
        backbone.pooled(features, [(96, 128)])


@torch.no_grad()
def test_norm_is_the_networks_own_or_asked_for():
    assert isinstance(tiny("swin").norm, ChannelNorm)
    assert tiny("convnext").norm.eps == 1e-6  # timm's ConvNeXt has another than Swin
    assert isinstance(tiny("resnet").norm, torch.nn.Identity)
    assert isinstance(tiny("swin", norm="none").norm, torch.nn.Identity)
    layer = tiny("resnet", norm="layer")
    x = torch.randn(2, 3, 64, 64)
    res5 = layer(x)["res5"]
    expected = F.layer_norm(res5.permute(0, 2, 3, 1), res5.shape[1:2]).mean((1, 2))
    torch.testing.assert_close(layer.pooled({"res5": res5}), expected)
    with pytest.raises(ValueError, match="'batch'"):
        tiny("swin", norm="batch")


def test_a_vision_transformer_has_one_stage():
    vit = TimmBackbone(
        name="vit_tiny_patch16_224", kwargs={"embed_dim": 24, "depth": 2, "num_heads": 2}
    )
    assert vit.output_shape() == {"res4": ShapeSpec(channels=24, stride=16)}
    features = vit(torch.randn(1, 3, 64, 96))
    assert features["res4"].shape == (1, 24, 4, 6) and vit.pooled(features).shape == (1, 24)
    with pytest.raises(ValueError, match=r"strides \[14"):
        TimmBackbone(
            name="vit_small_patch14_dinov2", kwargs={"embed_dim": 24, "depth": 1, "num_heads": 2}
        )


def test_a_network_without_padding_is_refused():
    """Its maps are not the image divided by the stride, so a pyramid does not fit together."""
    trunk = TimmBackbone(name="inception_v3")
    with pytest.raises(ValueError, match=r"inception_v3 .* stride 4 is \d+ x \d+ for 128 x 128 px"):
        trunk(torch.zeros(1, 3, 128, 128))


@pytest.mark.parametrize("name", ["selecsls42", "efficientnet_lite0", "swinv2_tiny_window8_256"])
@torch.no_grad()
def test_networks_without_a_row(name):
    """Part of SelecSLS's features is called "head"; an EfficientNet has layers past stage 4."""
    trunk = TimmBackbone(name=name).eval()
    features = trunk(torch.randn(1, 3, 64, 96))
    for stage, shape in trunk.output_shape().items():
        assert features[stage].shape[1:] == (shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert trunk.pooled(features).shape == (1, shape.channels)
    assert not [n for n, _ in trunk.named_parameters() if "conv_head" in n or "classifier" in n]


def test_built_by_detectron2_from_a_config(cfg, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(
        "MODEL:\n  FX:\n    TRUNK:\n      DROP_PATH: 0.1\n      NORM: none\n"
        "      GRAD_CHECKPOINT: True\n      KWARGS:\n"
        "        embed_dim: 12\n        depths: [1, 1, 1, 1]\n"
    )
    cfg.merge_from_file(str(file))
    backbone = build_backbone(cfg)
    assert isinstance(backbone, TimmBackbone)
    assert [s.channels for s in backbone.output_shape().values()] == [12, 24, 48, 96]
    assert [s.stride for s in backbone.output_shape().values()] == [4, 8, 16, 32]
    assert backbone.net.layers[0].grad_checkpointing
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.1)
    assert isinstance(backbone.norm, torch.nn.Identity)


def test_one_channel_images(cfg):
    cfg.INPUT.FX.CHANNELS = 1
    with pytest.raises(ValueError, match=r"1 channels.*MODEL\.PIXEL_MEAN names 3"):
        build_backbone(cfg)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.5], [0.25]
    assert build_backbone(cfg)(torch.zeros(1, 1, 64, 64))["res5"].shape == (1, 192, 2, 2)


def test_a_bound_trunk_is_built_for_the_configs_size(cfg):
    name, kwargs = TINY["coatnet"]
    cfg.MODEL.FX.TRUNK.NAME, cfg.INPUT.FX.SIZE = name, 96
    cfg.MODEL.FX.TRUNK.KWARGS = CfgNode({k: list(v) for k, v in kwargs.items()})
    assert build_backbone(cfg).built_size == (96, 96)
    cfg.MODEL.FX.TRUNK.IMG_SIZE = (64, 96)
    assert build_backbone(cfg).built_size == (64, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "swin_tt"}, "'swin_tt' is no known trunk; did you mean swin_"),
        ({"name": "convnext_tinny"}, "did you mean .*convnext_tiny"),
        ({"name": "swin_tiny_patch4_window7_224.ms_in9k"}, "no weights 'ms_in9k'.*ms_in1k"),
        ({"name": "swin_t", "kwargs": {"embed_dims": 24}}, "embed_dims.*MODEL.FX.TRUNK.KWARGS"),
    ],
)
def test_bad_names_and_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        TimmBackbone(**arguments)
    assert "\n" not in str(caught.value)
