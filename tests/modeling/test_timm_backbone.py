"""The trunk: any timm network, any size, its taps and its weights."""

from __future__ import annotations

import http.server
import pickle
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from huggingface_hub import constants
from safetensors.torch import save_file

from fx_d2.config import add_fx_config
from fx_d2.modeling.backbone import TimmBackbone, weights
from fx_d2.modeling.backbone.channel_norm import ChannelNorm
from fx_d2.modeling.backbone.presets import PRESETS
from fx_d2.modeling.backbone.weights import WeightsError

ROOT = Path(__file__).resolve().parents[2]

# One tiny variant of each family: (name, kwargs).
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_t", {"embed_dim": 24, "depths": (1, 1, 2, 2)}),
    "tresnet": ("tresnet_m", {"layers": [1, 1, 1, 1], "width_factor": 0.25}),
    "coatnet": (
        "coatnet_0",
        {"embed_dim": (16, 32, 32, 64), "depths": (1, 1, 1, 1), "stem_width": (8, 16)},
    ),
    "convnext": ("convnext_t", {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}),
    "resnet": ("resnet50", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}),
}


def tiny(family: str, **arguments: Any) -> TimmBackbone:
    name, kwargs = TINY[family]
    torch.manual_seed(0)
    arguments["kwargs"] = {**kwargs, **arguments.get("kwargs", {})}
    return TimmBackbone(name=name, **arguments).eval()


def plain(family: str, backbone: TimmBackbone | None = None, **arguments: Any) -> torch.nn.Module:
    """The same network as timm builds it, with the weights of a trunk."""
    name, kwargs = TINY[family]
    arguments = {"num_classes": 0, **kwargs, **arguments}
    net = timm.create_model(PRESETS[name].network, **arguments).eval()
    if backbone is not None:
        state = backbone.net.state_dict()
        own = {"swin": "norm", "coatnet": "norm", "convnext": "head.norm"}.get(family)
        state |= {f"{own}.{k}": v for k, v in backbone.norm.state_dict().items()}
        net.load_state_dict(state)
    return net


def shake(module: torch.nn.Module) -> None:
    """Weights away from their start values, where a norm or a scale left out would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.add_((0.5 if p.dim() == 1 or "relative" in name else 0.02) * noise)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.FX.TRUNK.NAME = "swin_t"
    cfg.MODEL.FX.TRUNK.KWARGS = CfgNode({"embed_dim": 24, "depths": [1, 1, 1, 1]})
    return cfg


# --- the network and its taps ---------------------------------------------------------------------


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
    trunk = TimmBackbone(name="legacy_xception")
    with pytest.raises(ValueError, match=r"legacy_xception .* stride 4 is 15 x 15 for 64 x 64 px"):
        trunk(torch.zeros(1, 3, 64, 64))


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


# --- training switches ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY)
def test_checkpointing_recomputes_and_changes_no_gradient(family):
    x = torch.randn(2, 3, 64, 64)
    gradients, calls = [], []
    for on in (False, True):
        backbone = tiny(family, grad_checkpoint=on, img_size=(64, 64)).train()
        counted = [
            m
            for m in backbone.net.modules()
            if "Block" in type(m).__name__ or type(m).__name__ == "Bottleneck"
        ]
        runs: list[int] = []
        for module in counted:
            # Before the block: recomputing stops as soon as it has what it needs.
            module.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(1)
        features = backbone(x)
        sum(f.square().mean() for f in features.values()).backward()
        gradients.append({n: p.grad for n, p in backbone.net.named_parameters()})
        calls.append(len(runs))
    assert 0 < calls[0] < calls[1]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", TINY)
def test_drop_path_acts_in_training_only(family):
    backbone = tiny(family, drop_path=0.3, img_size=(64, 64))
    shake(backbone)  # a branch that starts as zero shows nothing
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone(x)["res5"], backbone(x)["res5"])
        for m in backbone.modules():  # drop path alone, not BatchNorm
            m.train(type(m).__name__ == "DropPath")
        drawn = [backbone(x)["res5"] for _ in range(8)]
        assert any(not torch.equal(drawn[0], d) for d in drawn[1:])
    assert not any(type(m).__name__ == "DropPath" for m in tiny(family).modules())


@torch.no_grad()
def test_bf16_and_channels_last_give_the_same_features():
    backbone = tiny("swin")
    x = torch.randn(1, 3, 64, 64)
    exact = backbone(x)
    last = backbone.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for name, value in exact.items():
        torch.testing.assert_close(last[name], value, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = backbone.pooled(backbone(x))
    torch.testing.assert_close(rough.float(), backbone.pooled(exact), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("family", TINY)
def test_layer_ids_name_every_parameter_from_the_stem_up(family):
    backbone = tiny(family)
    ids = backbone.layer_ids()
    assert set(ids) == {name for name, _ in backbone.named_parameters()}
    assert sorted(set(ids.values())) == list(range(max(ids.values()) + 1))
    order = [i for name, i in ids.items() if name.startswith("net.")]
    assert order[0] == 0 and ids[list(ids)[-1]] == max(ids.values())
    assert order == sorted(order)


# --- config ---------------------------------------------------------------------------------------


def test_built_by_detectron2_from_a_config(cfg, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(
        "MODEL:\n  FX:\n    TRUNK:\n      DROP_PATH: 0.1\n      GRAD_CHECKPOINT: True\n"
        "      KWARGS:\n        embed_dim: 12\n        depths: [1, 1, 1, 1]\n"
    )
    cfg.merge_from_file(str(file))
    backbone = build_backbone(cfg)
    assert isinstance(backbone, TimmBackbone)
    assert [s.channels for s in backbone.output_shape().values()] == [12, 24, 48, 96]
    assert [s.stride for s in backbone.output_shape().values()] == [4, 8, 16, 32]
    assert backbone.net.layers[0].grad_checkpointing


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


# --- presets at their real size -------------------------------------------------------------------


def real_size(preset: str) -> tuple[TimmBackbone, dict[str, torch.Size], torch.Size]:
    """Shapes at 64 x 96 px, without weights and without computing anything."""
    with torch.device("meta"):
        backbone = TimmBackbone(name=preset, img_size=(64, 96), drop_path=0.2)
        features = backbone(torch.zeros(2, 3, 64, 96))
    pooled = backbone.pooled(features)
    return backbone, {k: v.shape for k, v in features.items()}, pooled.shape


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_at_their_real_size_and_as_documented(preset):
    """Strides, channels, size and licence of every preset are what docs/backbones.md says."""
    backbone, shapes, pooled = real_size(preset)
    channels = [s.channels for s in backbone.output_shape().values()]
    strides = (4, 8, 16, 32)
    assert list(shapes.values()) == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
    ]
    assert pooled == (2, channels[-1])

    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{preset}` "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    facts = timm.models.get_pretrained_cfg(backbone.network)
    assert cells[1] == f"`{backbone.network}`"
    assert cells[2] == " / ".join(map(str, channels))
    assert cells[3] == f"{sum(p.numel() for p in backbone.parameters()) / 1e6:.1f}"
    assert cells[4] == getattr(backbone.net, "output_fmt", "NCHW")
    assert cells[5].startswith("fixed at build" if backbone.built_size else "any")
    assert cells[6] == f"{facts.mean[0]:g}.. / {facts.std[0]:g}.."
    assert cells[7].lower() == facts.license


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_presets_compute_at_their_real_size(preset):
    backbone = TimmBackbone(name=preset, img_size=(64, 64)).eval()
    features = backbone(torch.randn(1, 3, 64, 64))
    assert all(f.isfinite().all() and f.std() > 0 for f in features.values())
    assert backbone.pooled(features).isfinite().all()


# --- weights --------------------------------------------------------------------------------------


@pytest.fixture
def trained() -> dict[str, torch.Tensor]:
    """A tiny Swin's state dict as timm names it, with a classifier."""
    torch.manual_seed(5)
    net = plain("swin", num_classes=7)
    shake(net)
    return net.state_dict()


def assert_trained(backbone: TimmBackbone, trained: dict[str, torch.Tensor]) -> None:
    own = backbone.net.state_dict()
    assert all(torch.equal(own[k], trained[k]) for k in own)
    assert torch.equal(backbone.norm.weight, trained["norm.weight"])
    assert torch.equal(backbone.norm.bias, trained["norm.bias"])


@pytest.mark.parametrize(
    ("prefix", "inside"),
    [
        ("", None),
        ("module.", "teacher"),  # Ark
        ("backbone.0.", "teacher_model"),  # Foundation X
        ("trunk.net.", "model"),
    ],
)
def test_weights_from_a_file_of_any_wrapping(tmp_path, trained, prefix, inside):
    state = {f"{prefix}{k}": v for k, v in trained.items()}
    state["projector.0.weight"] = torch.zeros(4, 4)
    file = tmp_path / "weights.pth"
    wrong = {k: torch.zeros_like(v) for k, v in state.items()}
    content = state if inside is None else {inside: state, "student": wrong, "epoch": 3}
    torch.save(content, file)
    backbone = tiny("swin", pretrained=str(file))
    assert_trained(backbone, trained)
    report = backbone.weights_report
    assert report.complete and len(report.loaded) == len(tiny("swin").state_dict())
    assert report.unused == ("projector.0.weight",)
    assert str(file) in str(report) and (inside is None or f"['{inside}']" in str(report))


def test_weights_from_safetensors_and_old_names(tmp_path, trained):
    """Names of the original Swin: downsampling at the end of a stage, position indices stored."""

    def old(name: str) -> str:
        return re.sub(
            r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name
        )

    state = {old(k): v.contiguous() for k, v in trained.items()}
    assert "layers.0.downsample.reduction.weight" in state
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    backbone = tiny("swin", pretrained=str(file))
    assert_trained(backbone, trained)
    assert backbone.weights_report.complete


def test_the_report_names_what_did_not_load(tmp_path, trained, caplog):
    lacking = {k: v for k, v in trained.items() if k != "norm.bias"}
    lacking["layers.3.blocks.0.mlp.fc1.bias"] = torch.zeros(5)
    lacking["extra.weight"] = torch.zeros(2)
    file = tmp_path / "weights.safetensors"
    save_file(lacking, file)
    backbone = tiny("swin", pretrained=str(file))
    report = backbone.weights_report
    assert not report.complete
    assert report.missing == ("norm.bias",) and report.unused == ("extra.weight",)
    assert report.mismatched == ("layers.3.blocks.0.mlp.fc1.bias ((5,), (768,))",)
    assert torch.equal(backbone.norm.weight, trained["norm.weight"])
    assert "1 still random, absent in the file: norm.bias" in caplog.text


@pytest.mark.parametrize("family", ["swin", "tresnet", "resnet"])
@torch.no_grad()
def test_a_stem_for_one_channel_answers_as_the_colour_stem_to_grey(tmp_path, family):
    """From 3 to 1 and back: the same features for the grey image and the grey image three times."""
    colour = tiny(family)
    shake(colour)
    file = tmp_path / "weights.pth"
    torch.save(plain(family, colour).state_dict(), file)
    grey = tiny(family, in_channels=1, pretrained=str(file))
    x = torch.rand(1, 1, 64, 64)
    expected = colour(x.repeat(1, 3, 1, 1))["res5"]
    torch.testing.assert_close(grey(x)["res5"], expected, rtol=1e-4, atol=1e-4)
    assert "from" in str(grey.weights_report.adapted) and grey.weights_report.complete
    if family != "tresnet":  # its stem folds pixels into channels: see the docs
        torch.save(
            grey.net.state_dict() | {f"norm.{k}": v for k, v in grey.norm.state_dict().items()},
            file,
        )
        again = tiny(family, pretrained=str(file))
        torch.testing.assert_close(
            again(x.repeat(1, 3, 1, 1))["res5"], expected, rtol=1e-4, atol=1e-4
        )


class Planted:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_bad_files_are_one_clear_line(tmp_path, trained):
    mark = tmp_path / "executed"
    code, cut = tmp_path / "code.pth", tmp_path / "cut.pth"
    with code.open("wb") as stream:
        pickle.dump({"model": Planted(mark)}, stream, protocol=2)
    torch.save(trained, cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 3, "args": "none"}, tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(plain("resnet").state_dict(), tmp_path / "resnet.pth")
    torch.save(
        plain("swin", embed_dim=48).state_dict() | {"n": torch.zeros(1)}, tmp_path / "wide.pth"
    )
    torch.save(plain("swin", depths=(1, 1, 9, 2)).state_dict(), tmp_path / "deep.pth")
    for name, message in {
        "absent.pth": "no file",
        "code.pth": "needs code to be loaded, which is refused.*safetensors",
        "cut.pth": "cut.pth",
        "bad.safetensors": "is no safetensors file",
        "empty.pth": "empty.pth",
        "none.pth": "holds no weights.*epoch, args",
        "list.pth": "holds no weights",
        "resnet.pth": "SwinTransformer are in .*resnet.pth.*MODEL.FX.TRUNK.NAME",
        "wide.pth": "wide.pth",
        "deep.pth": "deep.pth does not fit SwinTransformer",
    }.items():
        with pytest.raises(WeightsError, match=message) as caught:
            tiny("swin", pretrained=str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert not mark.exists()


# --- the model hub, of which none is reached ------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def refused(match: str, **arguments: Any) -> float:
    """Seconds until asking for published weights failed."""
    start = time.monotonic()
    with pytest.raises(WeightsError, match=match) as caught:
        tiny("swin", pretrained="timm", **arguments)
    assert "\n" not in str(caught.value)
    return time.monotonic() - start


def test_published_weights_switched_off(empty_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = "HF_HUB_OFFLINE, and timm/swin_tiny_patch4_window7_224.ms_in1k is not in.*Download"
    assert refused(message) < 5


def test_published_weights_without_a_network(empty_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as listener:  # a port that nobody answers on
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert refused("cannot be reached .*refused") < 5


def test_published_weights_from_a_silent_host(empty_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "HUB_TIMEOUT_S", 0.5)
    with socket.socket() as listener:  # takes the call and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert refused("cannot be reached .*timed out|no answer") < 5


def test_published_weights_that_the_host_does_not_have(empty_cache, monkeypatch):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path.rpartition("/")[2])
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        host = f"http://127.0.0.1:{server.server_port}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, host)
        monkeypatch.setattr(constants, "ENDPOINT", host)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert refused("gave no file .*404.*Download") < 20
        server.shutdown()
    assert {"model.safetensors", "pytorch_model.bin"} <= set(asked)


def test_published_weights_in_the_local_cache_need_no_network(empty_cache, monkeypatch, trained):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = empty_cache / "models--timm--swin_tiny_patch4_window7_224.ms_in1k"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    save_file({k: v.contiguous() for k, v in trained.items()}, snapshot / "model.safetensors")
    assert_trained(tiny("swin", pretrained="timm"), trained)


def test_a_network_without_published_weights(empty_cache):
    with pytest.raises(WeightsError, match="no weights of coatnet_0_224 on the model hub"):
        TimmBackbone(name="coatnet_0_224", pretrained="timm", kwargs=TINY["coatnet"][1])
