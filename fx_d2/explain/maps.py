"""What every explainer takes and gives, and how it leaves the network as it found it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Images (N, C, H, W) to logits (N, K).
Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Explanation:
    """Maps of some classes for a batch of images, on the device of the images.

    Args:
        maps: (N, M, H, W) float32, at least 0, not scaled; M classes in the order asked for.
        logits: (N, K) of all classes at the images.
        completeness: (N, M) relative error of the sum of the attributions; None for methods whose
            maps have no sum to keep.
        steps: (N,) int64, path steps used; None for methods without a path.
    """

    maps: Tensor
    logits: Tensor
    completeness: Tensor | None = None
    steps: Tensor | None = None


@contextmanager
def left_alone(network: object) -> Iterator[None]:
    """Within this context a module is in evaluation mode and its parameters want no gradient.

    Afterwards every training flag and every ``requires_grad`` is what it was, also after an error.
    Something that is not a module is left to its owner.

    Args:
        network: a module, or any other callable.
    """
    if not isinstance(network, nn.Module):
        yield
        return
    flags = [(module, module.training) for module in network.modules()]
    wanting = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training  # train() would set the children too
        for parameter in wanting:
            parameter.requires_grad_(True)


def checked_images(images: Tensor) -> Tensor:
    """A float32 copy of (N, C, H, W) images that no graph leads to.

    Raises:
        ValueError: their shape, type or values are no images.
    """
    if images.dim() != 4 or not images.numel() or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}; expected float (N, C, H, W), N >= 1"
        )
    if not torch.isfinite(images).all():
        raise ValueError("images have values that are not finite")
    return images.detach().to(torch.float32, copy=True)


def checked_logits(logits: object, count: int, classes: Sequence[int]) -> Tensor:
    """Logits (N, K) that have the asked classes.

    Args:
        logits: what the classifier gave.
        count: N.
        classes: places among the K.

    Raises:
        TypeError: the classifier gives no tensor.
        ValueError: it gives another shape, or a class is not there or named twice.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"the classifier gives {type(logits).__name__}; expected logits (N, K)")
    if logits.dim() != 2 or len(logits) != count:
        raise ValueError(
            f"the classifier gives {tuple(logits.shape)} for {count} images; expected logits (N, K)"
        )
    known = logits.shape[1]
    wrong = [c for c in classes if not 0 <= c < known]
    if wrong or not classes or len(set(classes)) != len(classes):
        raise ValueError(
            f"classes {list(classes)}; expected different numbers from 0 to {known - 1}, the "
            "outputs of this classifier"
        )
    return logits


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps after a Gaussian filter that continues the border; their mean hardly changes.

    Args:
        maps: (N, M, H, W).
        sigma: in pixels; 0 gives the maps themselves.
    """
    if sigma <= 0:
        return maps
    radius = max(1, math.ceil(3 * sigma))
    places = torch.arange(-radius, radius + 1, dtype=torch.float32, device=maps.device)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = kernel / kernel.sum()
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    # Rows, then columns: the filter is separable.
    flat = F.pad(flat, (0, 0, radius, radius), mode="replicate")
    flat = F.conv2d(flat, kernel.view(1, 1, -1, 1))
    flat = F.pad(flat, (radius, radius, 0, 0), mode="replicate")
    return F.conv2d(flat, kernel.view(1, 1, 1, -1)).reshape(maps.shape)
