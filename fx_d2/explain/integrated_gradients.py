"""Integrated Gradients of many classes, images and steps in shared passes.

The path integral is the one of Captum, whose result the tests compare with. What Captum's class
does not do is why it is written here: one forward pass serves all classes of an image, gradients
are summed as they come in place of being kept, and only images whose sum is still wrong get more
steps, which keep those already made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .maps import (
    Classifier,
    Explanation,
    checked_images,
    checked_logits,
    left_alone,
    smoothed,
)

BASELINES = ("black", "zero", "blur", "noise")
RULES = ("trapezoid", "right", "middle", "gauss_legendre")
# A point of these is one of the rule with twice the steps too.
_NESTED = ("trapezoid", "right")
_LEAST_CHANGE = 1e-6


@dataclass(frozen=True)
class IGSettings:
    """How the path is chosen and walked.

    Args:
        steps: of the path from the baseline to the image.
        max_raise: up to how many times as many where completeness is above the tolerance.
        tolerance: of the completeness error.
        batch: points of the path in a forward pass, over steps and images together.
        baseline: ``black`` (no attenuation: air), ``zero`` (what the network's normalisation makes
            0), ``blur`` (the image without its details) or ``noise`` (the mean over draws).
        rule: quadrature. ``trapezoid`` and ``right`` keep their points when steps are raised;
            ``right`` is the sum of the original paper, ``gauss_legendre`` Captum's default.
        smooth_grad: draws of noise on the image whose attributions are averaged; 0 is none.
        noise: standard deviation of that noise, as a share of the image's range.
        baseline_draws: draws of a ``noise`` baseline.
        baseline_noise: its standard deviation around ``zero``, as a share of the image's range.
        blur: standard deviation of a ``blur`` baseline, as a share of the shorter side.
        sigma: standard deviation of the filter over the finished map, as a share of the shorter
            side; 0 is none. Single gradients are grainy.
        precision: of the forward pass, ``fp32`` or ``bf16``. Its rounding is part of the
            completeness error.
        seed: of all noise; draws are the same for every image, so that neighbours in a batch do
            not matter.
    """

    steps: int = 50
    max_raise: int = 4
    tolerance: float = 0.05
    batch: int = 32
    baseline: Literal["black", "zero", "blur", "noise"] = "black"
    rule: Literal["trapezoid", "right", "middle", "gauss_legendre"] = "trapezoid"
    smooth_grad: int = 0
    noise: float = 0.1
    baseline_draws: int = 10
    baseline_noise: float = 0.25
    blur: float = 1 / 16
    sigma: float = 1 / 64
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("baseline", BASELINES),
            ("rule", RULES),
            ("precision", ("fp32", "bf16")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in ("steps", "max_raise", "batch", "baseline_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1")
        for name in ("tolerance", "smooth_grad", "noise", "baseline_noise", "blur", "sigma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 0")


def integrated_gradients(
    classifier: Classifier,
    images: Tensor,
    classes: Sequence[int],
    settings: IGSettings = IGSettings(),
    black: Tensor | float = 0.0,
    zero: Tensor | float = 0.0,
) -> Explanation:
    """How much each pixel moves the logit of each class on the way from the baseline.

    A map is the sum over channels of the absolute attributions. A module is explained in
    evaluation mode and left as it was; of a function, see :func:`fx_d2.explain.maps.left_alone`.
    Memory: a few times N * M * C * H * W floats, and one pass of ``settings.batch`` points.

    Args:
        classifier: images to logits; a function or a module.
        images: (N, C, H, W) as the classifier takes them.
        classes: M places among its logits.
        settings: see :class:`IGSettings`.
        black: value of air in these images: a number, or anything that broadcasts to (N, C, H, W),
            such as (C, 1, 1).
        zero: likewise, the value that the network's own normalisation makes 0.

    Raises:
        ValueError: images or classes are wrong, or the logits have no gradient.
    """
    with left_alone(classifier):
        images = checked_images(images)
        walker = _Walker(classifier, list(classes), settings)
        logits = walker.logits(images)
        total = error = change = None
        steps = torch.zeros(len(images), dtype=torch.int64)
        draws = 0
        for start, end in _pairs(images, settings, black, zero):
            draws += 1
            gradients, found, used = walker.integral(start, end)
            # (N, M, C, H, W)
            given = gradients.mul_((end - start).unsqueeze(1))
            steps = torch.maximum(steps, used)
            missing = given.sum((2, 3, 4)) - found
            total = given if total is None else total.add_(given)
            error = missing if error is None else error + missing
            change = found if change is None else change + found
    assert total is not None and error is not None and change is not None
    maps = (total / draws).abs_().sum(2)
    least = _LEAST_CHANGE * draws
    return Explanation(
        maps=smoothed(maps, settings.sigma * min(images.shape[-2:])),
        logits=logits,
        completeness=error.abs() / change.abs().clamp_min(least),
        steps=steps.to(maps.device),
    )


class _Walker:
    """Integrates the gradients of one classifier."""

    def __init__(self, classifier: Classifier, classes: list[int], settings: IGSettings) -> None:
        self._classifier, self._classes, self._settings = classifier, classes, settings

    def logits(self, images: Tensor) -> Tensor:
        """(N, K) float32, without a graph."""
        with torch.no_grad():
            return torch.cat([self._run(part) for part in images.split(self._settings.batch)])

    def integral(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean gradient on the path, with steps raised where it does not add up.

        Args:
            start: (N, C, H, W) baselines.
            end: (N, C, H, W) images.

        Returns:
            (N, M, C, H, W) mean gradients; (N, M) changes of the logits from start to end; (N,)
            steps used.
        """
        settings = self._settings
        change = (self.logits(end) - self.logits(start))[:, self._classes]
        steps = torch.full((len(end),), settings.steps, dtype=torch.int64)
        places, weights = _rule(settings.rule, settings.steps)
        gradients = self._weighted(start, end, places, weights)
        factor = 1
        while 2 * factor <= settings.max_raise:
            error = _relative(gradients, start, end, change)
            short = (error > settings.tolerance).any(1).cpu()
            if not short.any():
                break
            kept, places, weights = _twice(settings.rule, settings.steps * factor)
            factor *= 2
            where = short.nonzero().flatten().to(end.device)
            more = self._weighted(start[where], end[where], places, weights)
            gradients[where] = gradients[where].mul_(kept).add_(more)
            steps[short] = settings.steps * factor
        return gradients, change, steps

    def _weighted(
        self, start: Tensor, end: Tensor, places: np.ndarray, weights: np.ndarray
    ) -> Tensor:
        """(N, M, C, H, W): the weighted sum of the gradients at these places of each path."""
        count, shape = len(end), end.shape[1:]
        device = end.device
        result = torch.zeros(count, len(self._classes), shape.numel(), device=device)
        # Every (image, place), images slowest, so that a batch touches few images.
        image = torch.arange(count, device=device).repeat_interleave(len(places))
        place = torch.tensor(places, dtype=torch.float32, device=device).repeat(count)
        weight = torch.tensor(weights, dtype=torch.float32, device=device).repeat(count)
        for first in range(0, len(image), self._settings.batch):
            part = slice(first, first + self._settings.batch)
            rows, at = image[part], place[part].view(-1, 1, 1, 1)
            points = torch.lerp(start[rows], end[rows], at)
            # Convolutions of a processor take a tenth to a fifth less time with channels last.
            points = points.contiguous(memory_format=torch.channels_last)
            low, high = int(rows[0]), int(rows[-1]) + 1
            # A product with (images, points) sums in a fixed order, unlike an index_add on a GPU.
            share = torch.zeros(high - low, len(rows), device=device)
            share[rows - low, torch.arange(len(rows), device=device)] = weight[part]
            for number, gradient in enumerate(self._gradients(points)):
                result[low:high, number] += share @ gradient.flatten(1)
        return result.view(count, -1, *shape)

    def _gradients(self, points: Tensor) -> Iterator[Tensor]:
        """Per class, (P, C, H, W) of its logit at each point; one forward pass for all."""
        logits = self._run(points.requires_grad_(True))
        if not logits.requires_grad:
            raise ValueError(
                "the logits of this classifier have no gradient with respect to its images; is it "
                "wrapped in no_grad or does it detach?"
            )
        for number, place in enumerate(self._classes):
            kept = number + 1 < len(self._classes)
            (found,) = torch.autograd.grad(logits[:, place].sum(), points, retain_graph=kept)
            yield found

    def _run(self, images: Tensor) -> Tensor:
        half = self._settings.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            logits = self._classifier(images)
        return checked_logits(logits, len(images), self._classes).float()


def _relative(gradients: Tensor, start: Tensor, end: Tensor, change: Tensor) -> Tensor:
    """(N, M): by how much the attributions miss the change of the logit."""
    given = torch.einsum("nmchw,nchw->nm", gradients, end - start)
    return (given - change).abs() / change.abs().clamp_min(_LEAST_CHANGE)


def _rule(name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in [0, 1] and weights that sum to 1."""
    if name == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return (nodes + 1) / 2, weights / 2
    if name == "middle":
        return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    if name == "right":
        return np.arange(1, steps + 1) / steps, np.full(steps, 1 / steps)
    weights = np.full(steps + 1, 1 / steps)
    weights[[0, -1]] /= 2
    return np.arange(steps + 1) / steps, weights


def _twice(name: str, steps: int) -> tuple[float, np.ndarray, np.ndarray]:
    """What makes the rule with ``steps`` that with twice as many.

    Returns:
        What to multiply the sum so far with, and places and weights to add.
    """
    if name not in _NESTED:
        return 0.0, *_rule(name, 2 * steps)
    return 0.5, (np.arange(steps) + 0.5) / steps, np.full(steps, 0.5 / steps)


def _pairs(
    images: Tensor, settings: IGSettings, black: Tensor | float, zero: Tensor | float
) -> Iterator[tuple[Tensor, Tensor]]:
    """(baselines, images) of every draw, each (N, C, H, W)."""
    generator = torch.Generator().manual_seed(settings.seed)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    draws = settings.baseline_draws if settings.baseline == "noise" else 1
    for _ in range(max(settings.smooth_grad, 1)):
        end = images
        if settings.smooth_grad:
            end = images + settings.noise * (high - low) * _noise(images, generator)
        for _ in range(draws):
            if settings.baseline == "blur":
                start = smoothed(end, settings.blur * min(end.shape[-2:]))
            elif settings.baseline == "noise":
                deviation = settings.baseline_noise * (high - low)
                start = _filled(images, zero, "zero") + deviation * _noise(images, generator)
            elif settings.baseline == "zero":
                start = _filled(images, zero, "zero")
            else:
                start = _filled(images, black, "black")
            yield start, end


def _noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """(C, H, W), from the processor's generator: the same numbers on every device."""
    return torch.randn(images.shape[1:], generator=generator).to(images.device)


def _filled(images: Tensor, value: Tensor | float, name: str) -> Tensor:
    filling = torch.as_tensor(value, dtype=torch.float32, device=images.device)
    try:
        return filling.expand_as(images).clone()
    except RuntimeError as exc:
        raise ValueError(
            f"{name} is {tuple(filling.shape)}; expected a number or something that broadcasts to "
            f"{tuple(images.shape)}, such as ({images.shape[1]}, 1, 1)"
        ) from exc
