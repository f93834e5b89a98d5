"""Attributions are those of the definition and of Captum, and batches change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from fx_d2.explain import IGSettings, integrated_gradients
from fx_d2.explain.maps import smoothed

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


@pytest.mark.parametrize(
    ("rule", "method"),
    [("right", "riemann_right"), ("middle", "riemann_middle"), ("gauss_legendre", None)],
)
def test_it_gives_what_captum_gives(rule: str, method: str | None) -> None:
    net, images = tiny_net().eval(), drawn(*SHAPE)
    settings = replace(PLAIN, rule=rule, steps=20, batch=7)
    found = integrated_gradients(net, images, [1, 3], settings, black=-0.3)
    for place, c in enumerate([1, 3]):
        theirs, delta = IntegratedGradients(net).attribute(
            images,
            torch.full_like(images, -0.3),
            target=c,
            n_steps=20,
            method=method or "gausslegendre",
            return_convergence_delta=True,
        )
        expected = theirs.abs().sum(1)
        assert expected.max() > 1e-2
        torch.testing.assert_close(found.maps[:, place], expected, rtol=1e-4, atol=1e-6)
        change = net(images)[:, c] - net(torch.full_like(images, -0.3))[:, c]
        assert found.completeness is not None
        torch.testing.assert_close(
            found.completeness[:, place], (delta / change).abs(), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("rule", ["trapezoid", "gauss_legendre"])
def test_batches_change_nothing(rule: str) -> None:
    net, images = tiny_net().eval(), drawn(5, 2, 6, 5)
    settings = replace(PLAIN, rule=rule, steps=11, max_raise=4, tolerance=0.03)
    together = integrated_gradients(net, images, [0, 2, 3], replace(settings, batch=17))
    assert together.steps is not None
    assert rule != "trapezoid" or sorted(set(together.steps.tolist())) == [22, 44]
    enough = (together.completeness <= 0.03).all(1)  # every class counts
    assert ((together.steps == 44) | enough).all()
    slowest = int(together.steps.argmax())
    for n in {0, slowest}:
        alone = integrated_gradients(net, images[n : n + 1], [0, 2, 3], replace(settings, batch=1))
        assert alone.steps.tolist() == [together.steps[n]]
        torch.testing.assert_close(alone.maps[0], together.maps[n], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(alone.logits[0], together.logits[n], rtol=1e-5, atol=1e-6)
    # Nor do the other classes, where they ask for no more steps.
    fixed = replace(settings, max_raise=1)
    of_all = integrated_gradients(net, images, [0, 2, 3], fixed)
    of_one = integrated_gradients(net, images, [2], replace(fixed, batch=5))
    torch.testing.assert_close(of_one.maps[:, 0], of_all.maps[:, 1], rtol=1e-5, atol=1e-7)


def kinked(x: Tensor) -> Tensor:
    """Along a path from 0 its gradient jumps; few steps miss where."""
    total = x.sum((1, 2, 3))
    return torch.stack([torch.relu(total - 0.77) * 5, total], dim=1)


@pytest.mark.parametrize("rule", ["trapezoid", "right", "middle", "gauss_legendre"])
def test_steps_are_raised_where_they_are_too_few(rule: str) -> None:
    images = torch.full((2, 1, 2, 2), 0.25)
    images[1] = -1.0  # far from the kink: nothing to raise
    settings = replace(PLAIN, rule=rule, steps=4, tolerance=0.05)
    few = integrated_gradients(kinked, images, [0], settings)
    assert few.steps.tolist() == [4, 4] and few.completeness[0] > 0.05
    more = integrated_gradients(kinked, images, [0], replace(settings, max_raise=64))
    assert more.completeness.max() <= 0.05 and more.steps[1] == 4
    assert more.steps[0] in (8, 16, 32, 64, 128, 256)
    limited = integrated_gradients(kinked, images, [0], replace(settings, max_raise=5))
    assert limited.steps.max() <= 16
    # A rule that keeps its points gives what it gives from scratch with as many steps.
    scratch = replace(settings, steps=int(more.steps[0]))
    expected = integrated_gradients(kinked, images[:1], [0], scratch)
    torch.testing.assert_close(more.maps[:1], expected.maps, rtol=1e-5, atol=1e-6)


def test_one_forward_pass_serves_all_classes_and_raised_steps_are_kept() -> None:
    calls: list[int] = []
    net = tiny_net().eval()

    def counting(x: Tensor) -> Tensor:
        if x.requires_grad:
            calls.append(len(x))
        return net(x)

    settings = replace(PLAIN, steps=10, batch=8)
    integrated_gradients(counting, drawn(*SHAPE), [0, 1, 2, 3], settings)
    assert sum(calls) == 3 * 11 and calls == [8, 8, 8, 8, 1]
    calls.clear()
    never = replace(settings, tolerance=0.0, max_raise=4)
    found = integrated_gradients(counting, drawn(*SHAPE), [0], never)
    assert found.steps.tolist() == [40] * 3 and sum(calls) == 3 * (40 + 1)


def test_a_module_is_left_as_it_was() -> None:
    net = tiny_net().train()
    net[1].eval()  # flags differ
    net[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    found = integrated_gradients(net, drawn(*SHAPE), [0], PLAIN)
    again = integrated_gradients(net.eval(), drawn(*SHAPE), [0], PLAIN)
    assert torch.equal(found.maps, again.maps)  # no dropout, no batch statistics
    net.train()
    net[1].eval()
    with pytest.raises(RuntimeError, match="channels"):
        integrated_gradients(net, drawn(2, 3, 6, 5), [0], PLAIN)
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert not found.maps.requires_grad and not found.logits.requires_grad


def test_images_and_grad_mode_are_left_as_they_were() -> None:
    net, images = tiny_net().eval(), drawn(*SHAPE)
    kept = images.clone()
    with torch.no_grad():
        found = integrated_gradients(net, images, [0], PLAIN)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        made_there = drawn(*SHAPE)
        within = integrated_gradients(net, made_there, [0], PLAIN)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(within.maps, found.maps)
    assert torch.equal(integrated_gradients(net, made_there, [0], PLAIN).maps, found.maps)
    assert torch.equal(images, kept) and not images.requires_grad


def test_baselines() -> None:
    weight, images = drawn(2, *SHAPE[1:], seed=1), drawn(*SHAPE)
    classifier = linear(weight)

    def maps(**settings: object) -> Tensor:
        found = integrated_gradients(
            classifier, images, [1], replace(PLAIN, **settings), black=-2.0, zero=0.5
        )
        return found.maps[:, 0]

    def expected(start: Tensor | float) -> Tensor:
        return (weight[1] * (images - start)).abs().sum(1)

    torch.testing.assert_close(maps(baseline="black"), expected(-2.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(maps(baseline="zero"), expected(0.5), rtol=0, atol=1e-5)
    narrow = maps(baseline="blur", blur=1e-3)
    torch.testing.assert_close(narrow, torch.zeros_like(narrow), rtol=0, atol=1e-5)
    wide = smoothed(images, 0.4 * 5)  # a share of the shorter side
    torch.testing.assert_close(maps(baseline="blur", blur=0.4), expected(wide), rtol=0, atol=1e-5)
    one = maps(baseline="noise", baseline_draws=1, seed=1)
    assert torch.equal(one, maps(baseline="noise", baseline_draws=1, seed=1))
    assert not torch.allclose(one, maps(baseline="noise", baseline_draws=1, seed=2))
    many = maps(baseline="noise", baseline_draws=100, steps=1)
    # The error of a mean over 100 draws is a tenth of that of one.
    assert (many - expected(0.5)).abs().mean() < (one - expected(0.5)).abs().mean() / 4


def test_noise_is_averaged_with_its_sign() -> None:
    # Attributions of a linear model average to those of the image itself; their absolute values
    # would not.
    weight, images = drawn(1, *SHAPE[1:], seed=1), 0.01 * drawn(*SHAPE)
    settings = replace(PLAIN, smooth_grad=60, noise=0.5, steps=1)
    found = integrated_gradients(linear(weight), images, [0], settings)
    expected = (weight[0] * images).abs().sum(1)
    assert ((found.maps[:, 0] - expected).abs() < 0.02).all()
    assert found.completeness is not None and found.completeness.max() < 1e-3


def test_noise_is_added_in_proportion_to_the_range() -> None:
    # Of a sum of squares a pixel's part is its own square: where the image is 0, that of the noise.
    images = torch.zeros(1, 1, 8, 8)
    images[..., 0] = 3.0

    def squares(x: Tensor) -> Tensor:
        return (x**2).sum((2, 3))

    for noise in (0.0, 0.1, 0.2):
        settings = replace(PLAIN, smooth_grad=50, noise=noise)
        found = integrated_gradients(squares, images, [0], settings)
        square = float(found.maps[0, 0, :, 1:].mean())
        assert square == pytest.approx((3 * noise) ** 2, rel=0.15, abs=1e-9)


def test_the_steps_are_those_of_the_draw_that_needed_most() -> None:
    # Each draw is a path of its own; which of them is raised depends on its noise.
    images = torch.full((1, 1, 2, 2), 0.25)
    images[0, 0, 0, 0] = -0.05
    settings = replace(PLAIN, steps=4, max_raise=4, tolerance=0.05, noise=1.0)
    apart: list[int] = []
    calls: list[int] = []

    def counting(x: Tensor) -> Tensor:
        if x.requires_grad:
            calls.append(len(x))
        return kinked(x)

    for draws in range(1, 8):  # those of a longer run begin with those of a shorter one
        calls.clear()
        found = integrated_gradients(counting, images, [0], replace(settings, smooth_grad=draws))
        apart.append(sum(calls) - sum(n + 1 for n in apart) - 1)
        assert found.steps.tolist() == [max(apart)]
    assert len(set(apart)) > 1 and apart[-1] < max(apart)


def test_noise_does_not_depend_on_the_neighbours() -> None:
    net, images = tiny_net().eval(), drawn(*SHAPE)
    settings = replace(PLAIN, smooth_grad=2, baseline="noise", baseline_draws=2, steps=4)
    together = integrated_gradients(net, images, [0], settings)
    alone = integrated_gradients(net, images[2:], [0], settings)
    torch.testing.assert_close(together.maps[2:], alone.maps, rtol=1e-4, atol=1e-7)


def test_maps_are_smoothed_without_losing_their_sum() -> None:
    images = torch.zeros(1, 1, 64, 64)
    images[0, 0, 30, 20] = 1.0
    weight = torch.ones(1, 1, 64, 64)
    sharp = integrated_gradients(linear(weight), images, [0], PLAIN).maps[0, 0]
    smooth = integrated_gradients(linear(weight), images, [0], replace(PLAIN, sigma=1 / 64)).maps[
        0, 0
    ]
    assert sharp[30, 20] == pytest.approx(1.0) and int((sharp > 0).sum()) == 1
    assert float(smooth.sum()) == pytest.approx(1.0, rel=1e-5)
    assert smooth.argmax() == 30 * 64 + 20
    # One pixel of standard deviation.
    for far in (1, 2, 3):
        expected = math.exp(-(far**2) / 2)
        assert float(smooth[30, 20 + far] / smooth[30, 20]) == pytest.approx(expected, rel=1e-3)


def test_bf16_is_near_and_gives_float32() -> None:
    net, images = tiny_net().eval(), drawn(*SHAPE)
    exact = integrated_gradients(net, images, [0], PLAIN)
    rough = integrated_gradients(net, images, [0], replace(PLAIN, precision="bf16"))
    assert rough.maps.dtype == rough.logits.dtype == torch.float32
    assert not torch.equal(rough.maps, exact.maps)
    torch.testing.assert_close(rough.maps, exact.maps, rtol=0.1, atol=0.02 * exact.maps.max())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": torch.zeros(2, 6, 5)}, r"images are torch.float32 \(2, 6, 5\)"),
        ({"images": torch.zeros(1, 2, 6, 5, dtype=torch.uint8)}, "torch.uint8"),
        ({"images": torch.full((1, 2, 6, 5), torch.nan)}, "not finite"),
        ({"classes": [4]}, r"classes \[4\]; expected different numbers from 0 to 3"),
        ({"classes": []}, r"classes \[\]"),
        ({"classes": [1, 1]}, r"classes \[1, 1\]"),
        ({"black": torch.zeros(3, 1, 1)}, r"black is \(3, 1, 1\); expected .* \(2, 1, 1\)"),
        ({"classifier": lambda x: x.detach().flatten(1)[:, :4]}, "have no gradient"),
        ({"classifier": lambda x: x.flatten(1)[0]}, r"gives \(60,\) for 1 images"),
    ],
)
def test_wrong_use_is_said(given: dict, message: str) -> None:
    arguments = {
        "classifier": tiny_net().eval(),
        "images": drawn(1, 2, 6, 5),
        "classes": [0],
        "settings": PLAIN,
    }
    with pytest.raises(ValueError, match=message):
        integrated_gradients(**{**arguments, **given})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("baseline", "white", "baseline 'white'; allowed: black, zero, blur, noise"),
        ("rule", "simpson", "rule 'simpson'; allowed"),
        ("precision", "fp16", "precision 'fp16'"),
        ("steps", 0, "steps is 0; it is at least 1"),
        ("tolerance", float("nan"), "tolerance is nan"),
        ("sigma", -1.0, "sigma is -1.0; it is at least 0"),
    ],
)
def test_wrong_settings_are_said(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IGSettings(**{name: value})
