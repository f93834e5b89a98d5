"""Class activation maps light up where the answer comes from, in any layout of the layer."""

from __future__ import annotations

import itertools

import pytest
import torch
from captum.attr import LayerGradCam
from timm import create_model
from torch import Tensor, nn
from torch.nn import functional as F

from fx_d2.explain import CAM_METHODS, class_activation

SQUARE = (slice(40, 56), slice(8, 24))


def seeing_net(strides: tuple[int, int] = (4, 4)) -> nn.Sequential:
    """Class 0 is how much is bright, class 1 how much is dark; no training, known weights."""
    conv = nn.Conv2d(1, 2, strides, stride=strides)
    linear = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand_as(conv.weight))
        conv.bias.zero_()
        linear.weight.copy_(torch.eye(2))
    return nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def bright_square(height: int = 64, width: int = 64) -> Tensor:
    images = torch.zeros(1, 1, height, width)
    images[0, 0][SQUARE] = 1.0
    return images


@pytest.mark.parametrize("method", CAM_METHODS)
@pytest.mark.parametrize("width", [64, 32])
def test_a_bright_square_is_found_where_it_is(method: str, width: int) -> None:
    net, images = seeing_net(), bright_square(width=width)
    found = class_activation(net, net, images, [0, 1], "1", method)
    assert found.maps.shape == (1, 2, 64, width) and found.completeness is None
    bright, dark = found.maps[0]
    assert float(bright[SQUARE].sum() / bright.sum()) > 0.8
    assert bright[48, 16] == bright.max() > 0 and dark.max() == 0
    assert bright[:36].max() == 0 and bright[:, 28:].max() == 0
    torch.testing.assert_close(found.logits, net(images))


def test_grad_cam_is_captums() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2), nn.Tanh(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.LazyLinear(3)
    )
    images = torch.rand(2, 2, 20, 16)
    net(images)
    found = class_activation(net, net, images, [2, 0], "2")
    for place, c in enumerate([2, 0]):
        theirs = LayerGradCam(net, net[2]).attribute(images, c, relu_attributions=True)
        theirs = F.interpolate(theirs, (20, 16), mode="bilinear", align_corners=False)
        assert theirs.max() > 0
        torch.testing.assert_close(found.maps[:, place : place + 1], theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["grad_cam++", "layer_cam"])
def test_the_other_methods_are_those_of_their_papers(method: str) -> None:
    """On a layer whose activations and gradients have both signs."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.LazyLinear(2)
    )
    images = torch.rand(2, 2, 13, 13)
    net(images)
    activation = net[:3](images).detach()  # (2, 3, 4, 4)
    gradients = net[4].weight[1].detach().view(3, 4, 4)  # what follows is linear
    assert all((x < 0).any() and (x > 0).any() for x in (activation, gradients))
    expected = torch.zeros(2, 1, 4, 4)
    for n, k in itertools.product(range(2), range(3)):
        a, g = activation[n, k], gradients[k]
        weight = g.clamp(min=0)
        if method == "grad_cam++":
            alpha = g**2 / (2 * g**2 + a.sum() * g**3)
            weight = (alpha * weight).sum()
        expected[n] += weight * a
    expected = F.interpolate(expected.clamp(min=0), (13, 13), mode="bilinear", align_corners=False)
    found = class_activation(net, net, images, [1], "2", method)
    assert expected.max() > 0
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-6)


class Turned(nn.Module):
    """A convolution with its channels last, or with its places as tokens, as transformers are."""

    def __init__(self, conv: nn.Module, tokens: bool = False, extra: int = 0) -> None:
        super().__init__()
        self.conv, self.tokens, self.extra = conv, tokens, extra

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().permute(0, 2, 3, 1)
        if not self.tokens:
            return x
        return F.pad(x.flatten(1, 2), (0, 0, self.extra, 0), value=9.0)


class Back(nn.Module):
    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.extra :].flatten(1, -2).mean(1)


@pytest.mark.parametrize("method", CAM_METHODS)
@pytest.mark.parametrize("width", [64, 32])
@pytest.mark.parametrize(("tokens", "extra"), [(False, 0), (True, 0), (True, 1)])
def test_channels_last_and_tokens_give_the_same_map(
    method: str, width: int, tokens: bool, extra: int
) -> None:
    net, images = seeing_net(), bright_square(width=width)
    expected = class_activation(net, net, images, [0], "1", method)
    turned = nn.Sequential(Turned(net[0], tokens, extra), Back(extra), net[4])
    found = class_activation(turned, turned, images, [0], "0", method)
    torch.testing.assert_close(found.maps, expected.maps)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_stage_of_a_swin_is_read_with_its_channels_last(stage: int) -> None:
    """At 96 px the first stage is (N, 24, 24, 24): its shape alone does not tell."""
    torch.manual_seed(0)
    net = create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=3,
        img_size=96,
        embed_dim=24,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 8),
    ).eval()
    images = torch.rand(2, 3, 96, 96)
    kept: list[Tensor] = []
    handle = net.layers[stage].register_forward_hook(lambda *a: kept.append(a[2]))
    logits = net(images)
    handle.remove()
    activation = kept[0]
    assert activation.shape[1:] == ((24, 24, 24) if stage == 0 else (3, 3, 192))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), activation)
    weights = gradient.mean((1, 2), keepdim=True)
    expected = (weights * activation).sum(-1).relu().detach()
    found = class_activation(net, net, images, [1], f"layers.{stage}")
    small = F.interpolate(expected[:, None], (96, 96), mode="bilinear", align_corners=False)
    assert expected.max() > 0
    torch.testing.assert_close(found.maps, small, rtol=1e-4, atol=1e-7)
    if stage == 0:
        forced = class_activation(net, net, images, [1], "layers.0", layout="nchw")
        assert not torch.allclose(forced.maps, small)


@pytest.mark.parametrize("method", CAM_METHODS)
def test_a_model_is_left_as_it_was(method: str) -> None:
    net = seeing_net().train()
    net[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    class_activation(net, net, bright_square(), [0], "1", method)
    with pytest.raises(RuntimeError, match="on purpose"):
        class_activation(net, _raising(net), bright_square(), [0], "1", method)
    with pytest.raises(ValueError, match="classes"):
        class_activation(net, net, bright_square(), [5], "1", method)
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert all(parameter.grad is None for parameter in net.parameters())


def _raising(net: nn.Module):
    def classifier(images: Tensor) -> Tensor:
        net(images)
        raise RuntimeError("on purpose")

    return classifier


def test_wrong_layers_are_said() -> None:
    net, images = seeing_net(), bright_square()
    outer = nn.ModuleDict({"trunk": net, "unused": nn.Linear(1, 1)})
    with pytest.raises(KeyError, match=r"no layer 'trunk.7' .* Did you mean 'trunk\.\d'"):
        class_activation(outer, net, images, [0], "trunk.7")
    with pytest.raises(KeyError, match=r"Did you mean 'trunk.3'.* begins with trunk, unused"):
        class_activation(outer, net, images, [0], "3")
    with pytest.raises(KeyError, match="no layer ''"):
        class_activation(outer, net, images, [0], "")
    with pytest.raises(ValueError, match="'unused' takes no part"):
        class_activation(outer, net, images, [0], "unused")
    with pytest.raises(ValueError, match=r"'trunk.3' gives \(1, 2\) .* expected a map"):
        class_activation(outer, net, images, [0], "trunk.3")
    with pytest.raises(ValueError, match="'trunk.1' has no effect"):
        class_activation(outer, lambda x: net(x).detach(), images, [0], "trunk.1")
    with pytest.raises(ValueError, match=r"method 'score_cam'; allowed: grad_cam"):
        class_activation(outer, net, images, [0], "trunk.1", "score_cam")
    with pytest.raises(ValueError, match="layout 'chw'"):
        class_activation(outer, net, images, [0], "trunk.1", layout="chw")
