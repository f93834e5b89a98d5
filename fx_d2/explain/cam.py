"""Grad-CAM, Grad-CAM++ and Layer-CAM of any named layer.

Captum's LayerGradCam takes dimension 1 for channels, which the stages of a Swin keep last, and it
has neither of the other two; one hook and one gradient serve all three here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .maps import Classifier, Explanation, checked_images, checked_logits, left_alone

Layout = Literal["auto", "nchw", "nhwc"]
# Tokens before those of places: a class, registers.
_PREFIX_TOKENS = (0, 1, 2, 4, 5)


def class_activation(
    model: nn.Module,
    classifier: Classifier,
    images: Tensor,
    classes: Sequence[int],
    layer: str,
    method: str = "grad_cam",
    layout: Layout = "auto",
) -> Explanation:
    """Where a layer speaks for each class, resized to the images.

    Hooks are removed and the model is as it was afterwards, also when it raises.

    Args:
        model: the layer is in it.
        classifier: images to logits, by way of ``model``.
        images: (N, C, H, W) as the classifier takes them.
        classes: M places among its logits.
        layer: name as in ``model.named_modules()``; its output is (N, C, h, w), (N, h, w, C) or
            tokens (N, L, C).
        method: ``grad_cam``, ``grad_cam++`` or ``layer_cam``.
        layout: of a four-dimensional output where its shape does not tell.

    Raises:
        KeyError: there is no such layer; the message has near names.
        ValueError: its output has no places, or no effect on the logits; or an argument is wrong.
    """
    if method not in _METHODS:
        raise ValueError(f"CAM method {method!r}; allowed: {', '.join(CAM_METHODS)}")
    if layout not in ("auto", "nchw", "nhwc"):
        raise ValueError(f"layout {layout!r}; allowed: auto, nchw, nhwc")
    module = _layer(model, layer)
    images = checked_images(images)
    found: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layer {layer!r} gives {type(output).__name__}; name a layer that gives a tensor"
            )
        # A leaf of its own: nothing before the layer is differentiated. What follows gets a copy,
        # which it may change in place.
        leaf = output.detach().requires_grad_(True)
        found.append(leaf)
        return leaf.clone()

    with left_alone(model), torch.enable_grad():
        handle = module.register_forward_hook(keep)
        try:
            logits = checked_logits(classifier(images), len(images), classes)
        finally:
            handle.remove()
        if not found:
            raise ValueError(f"layer {layer!r} takes no part in this classifier")
        maps = [
            _METHODS[method](
                *_as_nchw(
                    _gradient(logits, c, found[-1], layer), found[-1], images, module, layer, layout
                )
            )
            for c in classes
        ]
    resized = F.interpolate(
        torch.stack(maps, dim=1), images.shape[-2:], mode="bilinear", align_corners=False
    )
    return Explanation(maps=resized, logits=logits.detach().float())


def _layer(model: nn.Module, name: str) -> nn.Module:
    known = dict(model.named_modules())
    if name and name in known:
        return known[name]
    names = [known_name for known_name in known if known_name]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    # Someone who gave the end of a name is helped more by the names that end so.
    near = [n for n in names if n.endswith(f".{name}")][:3] or near
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    top = ", ".join(child for child, _ in model.named_children())
    raise KeyError(f"no layer {name!r} in {type(model).__name__}.{hint} It begins with {top}")


def _gradient(logits: Tensor, place: int, activation: Tensor, layer: str) -> Tensor:
    if not logits.requires_grad:
        raise ValueError(f"layer {layer!r} has no effect on the logits")
    (gradient,) = torch.autograd.grad(
        logits[:, place].sum(), activation, retain_graph=True, allow_unused=True
    )
    if gradient is None:
        raise ValueError(f"layer {layer!r} has no effect on the logits")
    return gradient


def _as_nchw(
    gradient: Tensor,
    activation: Tensor,
    images: Tensor,
    module: nn.Module,
    layer: str,
    layout: Layout,
) -> tuple[Tensor, Tensor]:
    """Activation and gradient as float32 (N, C, h, w)."""
    turn = _turn(activation, images, module, layer, layout)
    return turn(activation.detach().float()), turn(gradient.float())


def _turn(
    activation: Tensor, images: Tensor, module: nn.Module, layer: str, layout: Layout
) -> Callable[[Tensor], Tensor]:
    """What makes an output of this layer (N, C, h, w)."""
    shape = tuple(activation.shape)
    ratio = images.shape[-2] / images.shape[-1]
    if len(shape) == 4 and shape[0] == len(images):
        if layout == "auto":
            layout = _layout(shape, ratio, module)
        return _last_to_second if layout == "nhwc" else _same
    if len(shape) == 3 and shape[0] == len(images):
        for prefix in _PREFIX_TOKENS:
            height = round(math.sqrt(max(shape[1] - prefix, 0) * ratio))
            if height and (shape[1] - prefix) % height == 0:
                width = (shape[1] - prefix) // height
                if _fits(height, width, ratio):
                    return _Tokens(prefix, height, width)
    raise ValueError(
        f"layer {layer!r} gives {shape} for images {tuple(images.shape)}; expected a map "
        "(N, C, h, w) or (N, h, w, C), or tokens (N, h * w, C)"
    )


def _layout(shape: tuple[int, ...], ratio: float, module: nn.Module) -> Layout:
    first, last = _fits(*shape[2:], ratio), _fits(*shape[1:3], ratio)
    if first != last:
        return "nchw" if first else "nhwc"
    # As many channels as rows: what the layer computes with last tells where it keeps them.
    for part in reversed(list(module.modules())):
        if isinstance(part, (nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            return "nchw"
        if isinstance(part, (nn.Linear, nn.LayerNorm)):
            return "nhwc"
    return "nchw"


def _fits(height: int, width: int, ratio: float) -> bool:
    """Whether a map of this size can be of images with this height per width."""
    return abs(height - width * ratio) <= max(1.0, ratio) * 0.75 and height > 0 and width > 0


def _same(x: Tensor) -> Tensor:
    return x


def _last_to_second(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class _Tokens:
    """Tokens (N, L, C) as a map; the first ones may stand for no place."""

    def __init__(self, prefix: int, height: int, width: int) -> None:
        self._prefix, self._size = prefix, (height, width)

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, self._prefix :].unflatten(1, self._size).permute(0, 3, 1, 2)


def _grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * activation).sum(1).relu()


def _grad_cam_plus_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """Weights of equation 19 of its paper, for the exponential of the logit as score."""
    square = gradient**2
    summed = activation.sum((2, 3), keepdim=True)
    below = 2 * square + summed * gradient**3
    share = torch.where(below == 0, torch.zeros_like(below), square / below)
    weights = (share * gradient.relu()).sum((2, 3), keepdim=True)
    return (weights * activation).sum(1).relu()


def _layer_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    return (gradient.relu() * activation).sum(1).relu()


_METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": _grad_cam,
    "grad_cam++": _grad_cam_plus_plus,
    "layer_cam": _layer_cam,
}
CAM_METHODS = tuple(_METHODS)
