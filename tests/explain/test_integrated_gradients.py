"""Attributions are those of the definition and of Captum, and batches change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from fx_d2.explain import IGSettings, integrated_gradients

PLAIN = IGSettings(sigma=0.0, max_raise=1)
SHAPE = (3, 2, 6, 5)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.einsum("nchw,kchw->nk", x, weight) + 3.0


def tiny_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(24, 4),
        nn.Tanh(),
    )


@pytest.mark.parametrize("rule", ["trapezoid", "right", "middle", "gauss_legendre"])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_linear_model_gives_its_closed_form(rule: str, steps: int) -> None:
    weight, images = drawn(4, *SHAPE[1:], seed=1), drawn(*SHAPE)
    black = drawn(2, 1, 1, seed=2)
    settings = replace(PLAIN, rule=rule, steps=steps)
    found = integrated_gradients(linear(weight), images, [2, 0], settings, black)
    for place, c in enumerate([2, 0]):
        expected = (weight[c] * (images - black)).abs().sum(1)
        torch.testing.assert_close(found.maps[:, place], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logits, linear(weight)(images))
    assert found.completeness is not None and found.completeness.max() < 1e-4
    assert found.steps is not None and found.steps.tolist() == [steps] * 3


@pytest.mark.parametrize("rule", ["trapezoid", "middle", "gauss_legendre"])
def test_a_quadratic_model_gives_its_closed_form(rule: str) -> None:
    # z = x' Q x with symmetric Q: the mean gradient on the way from b is Q (x + b).
    size = 2 * 6 * 5
    matrix = drawn(size, size, seed=3) / size
    matrix = matrix + matrix.T

    def classifier(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.einsum("ni,ij,nj->n", flat, matrix, flat)[:, None]

    images = drawn(*SHAPE)
    found = integrated_gradients(classifier, images, [0], replace(PLAIN, rule=rule), 0.5)
    gradient = (images + 0.5).flatten(1) @ matrix
    expected = (gradient.view(SHAPE) * (images - 0.5)).abs().sum(1)
    torch.testing.assert_close(found.maps[:, 0], expected, rtol=0, atol=1e-5)
