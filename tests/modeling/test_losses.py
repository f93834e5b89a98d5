"""Every loss against a reference that shares no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from fx_d2.modeling.losses import (
    LABEL_LOSSES,
    MASK_LOSSES,
    NEED_PREVALENCE,
    asymmetric,
    bce_dice,
    class_weighted_bce,
    effective_weights,
    focal,
    ldam_bce,
    logit_adjusted_bce,
    mask_bce,
    masked_bce,
    masked_ce,
    soft_dice,
)

NAN = float("nan")
PREVALENCE = torch.tensor([0.01, 0.5, 0.9, 0.2, NAN])


def label_loss(name: str, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    extra = {"prevalence": PREVALENCE[: logits.shape[1]]} if name in NEED_PREVALENCE else {}
    return LABEL_LOSSES[name](logits, targets, **extra)


@pytest.fixture
def labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets (6, 5); two images fully annotated, one not at all, soft labels too."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 5, generator=generator) * 3
    targets = (torch.rand(6, 5, generator=generator) < 0.4).float()
    targets[0], targets[1, 0] = torch.tensor([1.0, 0, 0, 0, 0]), 0.7
    targets[2, :3] = NAN
    targets[3] = NAN
    targets[4, 4] = -1.0
    return logits, targets


@pytest.fixture
def masks() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, masks (3, 4, 6, 5) and known (3, 4): channel 3 is never annotated, image 2 never."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 4, 6, 5, generator=generator) * 2
    truth = torch.rand(3, 4, 6, 5, generator=generator) < 0.3
    truth[0, 1] = False  # annotated, empty
    known = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    return logits, truth, known


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reference(logits, targets, positive, negative) -> float:
    """Mean over known labels of y * positive(p) + (1 - y) * negative(p), label by label."""
    values = []
    for x, y in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        if not math.isnan(y) and y >= 0:
            p = sigmoid(x)
            values.append(y * positive(p) + (1 - y) * negative(p))
    return sum(values) / len(values)


def test_masked_bce(labels):
    expected = reference(*labels, lambda p: -math.log(p), lambda p: -math.log(1 - p))
    assert masked_bce(*labels).item() == pytest.approx(expected, rel=1e-5)


def test_masked_bce_is_plain_bce_where_all_is_known(labels):
    logits, _ = labels
    targets = (logits > 1).float()
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(masked_bce(logits, targets), expected)


def test_class_weights(labels):
    """By hand: e^(1 - p) for positives, e^p for negatives, class by class."""
    logits, targets = labels
    total, count = 0.0, 0
    for c, prevalence in enumerate([0.01, 0.5, 0.9, 0.2, 0.5]):
        for x, y in zip(logits[:, c].tolist(), targets[:, c].tolist(), strict=True):
            if not math.isnan(y) and y >= 0:
                p = sigmoid(x)
                total -= math.exp(1 - prevalence) * y * math.log(p)
                total -= math.exp(prevalence) * (1 - y) * math.log(1 - p)
                count += 1
    loss = class_weighted_bce(logits, targets, prevalence=PREVALENCE)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def by_class(logits, targets, one):
    """Mean over known labels of ``one(x, y, share of the label's class)``."""
    values = []
    for c, share in enumerate([0.01, 0.5, 0.9, 0.2, 0.5]):
        for x, y in zip(logits[:, c].tolist(), targets[:, c].tolist(), strict=True):
            if not math.isnan(y) and y >= 0:
                values.append(one(x, y, share))
    return sum(values) / len(values)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_logit_adjusted(labels, tau):
    """The probability whose odds are the image's times the class's, to the power of tau."""

    def one(x, y, share):
        odds = math.exp(x) * (share / (1 - share)) ** tau
        p = odds / (1 + odds)
        return -y * math.log(p) - (1 - y) * math.log(1 - p)

    loss = logit_adjusted_bce(*labels, prevalence=PREVALENCE, tau=tau)
    assert loss.item() == pytest.approx(by_class(*labels, one), rel=1e-4)
    if tau == 0:
        torch.testing.assert_close(loss, masked_bce(*labels))


def test_a_class_never_or_always_there_has_finite_odds():
    x = torch.randn(3, 2, requires_grad=True)
    for name in NEED_PREVALENCE:
        loss = LABEL_LOSSES[name](x, torch.ones(3, 2), prevalence=torch.tensor([0.0, 1.0]))
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(x.grad).all(), name


@pytest.mark.parametrize(("max_margin", "scale"), [(0.5, 1.0), (0.3, 4.0), (0.0, 1.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_ldam(labels, max_margin, scale, weighted):
    """Margins as published, n^(-1/4), of a set of 1000 images; the rarest is 10 of them."""
    numbers = {s: (1000 * s, 1000 * (1 - s)) for s in (0.01, 0.5, 0.9, 0.2)}
    unit = max_margin / 10 ** (-1 / 4)
    weights = {}
    for share, pair in numbers.items():
        inverse = [(1 - 0.99) / (1 - 0.99**n) for n in pair]
        weights[share] = [2 * v / sum(inverse) for v in inverse] if weighted else [1.0, 1.0]

    def one(x, y, share):
        present, absent = (unit * n ** (-1 / 4) for n in numbers[share])
        w = weights[share]
        return -w[0] * y * math.log(sigmoid(scale * (x - present))) - w[1] * (1 - y) * math.log(
            1 - sigmoid(scale * (x + absent))
        )

    given = effective_weights(PREVALENCE, torch.full((5,), 1000), 0.99) if weighted else None
    loss = ldam_bce(
        *labels, prevalence=PREVALENCE, max_margin=max_margin, scale=scale, weights=given
    )
    assert loss.item() == pytest.approx(by_class(*labels, one), rel=1e-4)
    if max_margin == 0 and not weighted:
        torch.testing.assert_close(loss, masked_bce(*labels))


def test_effective_weights_go_from_equal_to_inverse():
    share, labelled = torch.tensor([0.1, 0.5]), torch.tensor([200.0, 200.0])
    positive, negative = effective_weights(share, labelled, 0.0)
    torch.testing.assert_close((positive, negative), (torch.ones(2), torch.ones(2)))
    positive, negative = effective_weights(share, labelled, 1 - 1e-9)
    torch.testing.assert_close(positive, torch.tensor([1.8, 1.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(negative, torch.tensor([0.2, 1.0]), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="LDAM.BETA is 1.0; it is from 0 to below 1"):
        effective_weights(share, labelled, 1.0)


def test_asymmetric_with_class_weights(labels):
    def one(x, y, share):
        p = sigmoid(x)
        q = max(p - 0.05, 0.0)
        present = -math.exp(1 - share) * (1 - p) * math.log(p)
        return y * present - (1 - y) * math.exp(share) * q**4 * math.log(1 - q)

    loss = asymmetric(*labels, prevalence=PREVALENCE)
    assert loss.item() == pytest.approx(by_class(*labels, one), rel=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_masked_ce(labels, weighted):
    logits, targets = labels
    targets = targets.clone()
    targets[0] = F.one_hot(torch.tensor(2), 5)
    targets[1] = F.one_hot(torch.tensor(4), 5)
    targets[5] = F.one_hot(torch.tensor(0), 5)
    weight = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0]) if weighted else None
    rows = [0, 1, 5]  # 2 and 3 have a NaN, 4 an uncertain label
    expected = F.cross_entropy(logits[rows], targets[rows].argmax(1), weight=weight)
    torch.testing.assert_close(masked_ce(logits, targets, class_weight=weight), expected)


def test_masked_ce_of_soft_targets_and_of_an_image_of_no_class(labels):
    logits, targets = labels
    targets = targets.clone()
    targets[:] = NAN
    targets[0] = torch.tensor([0.5, 0.5, 0.0, 0.0, 1.0])
    targets[1] = 0.0  # annotated, and of none of the classes: a softmax cannot say that
    expected = F.cross_entropy(logits[:1], targets[:1] / 2)
    torch.testing.assert_close(masked_ce(logits, targets), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [0.25, None])
def test_focal(labels, gamma, alpha):
    logits, targets = labels
    hard = torch.where(targets >= 0, targets.round(), targets)
    known = hard >= 0
    expected = sigmoid_focal_loss(
        logits[known], hard[known], alpha=-1 if alpha is None else alpha, gamma=gamma
    ).mean()
    torch.testing.assert_close(focal(logits, hard, gamma=gamma, alpha=alpha), expected)


@pytest.mark.parametrize(
    ("gamma_negative", "gamma_positive", "clip"),
    [(4.0, 1.0, 0.05), (2.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.5, 0.2), (0.0, 0.0, 0.1)],
)
def test_asymmetric(labels, gamma_negative, gamma_positive, clip):
    def positive(p):
        return -((1 - p) ** gamma_positive) * math.log(p)

    def negative(p):
        shifted = max(p - clip, 0.0)
        return -(shifted**gamma_negative) * math.log(1 - shifted)

    loss = asymmetric(
        *labels, gamma_negative=gamma_negative, gamma_positive=gamma_positive, clip=clip
    )
    assert loss.item() == pytest.approx(reference(*labels, positive, negative), rel=1e-4)


def test_focal_and_asymmetric_without_focus_are_bce(labels):
    plain = masked_bce(*labels)
    torch.testing.assert_close(focal(*labels, gamma=0.0, alpha=None), plain)
    bare = asymmetric(*labels, gamma_negative=0, gamma_positive=0, clip=0)
    torch.testing.assert_close(bare, plain)


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_an_unknown_label_gets_exactly_no_gradient(labels, name):
    """Whatever the logit there, and the others' gradients do not depend on it."""
    logits, targets = labels
    if name == "ce":  # rows count as a whole
        targets = F.one_hot(torch.tensor([1, 2, 0, 4, 3, 3]), 5).float()
        targets[2, :3], targets[3] = NAN, NAN
    gradients = []
    for value in (0.0, -50.0, 1e30, float("inf"), NAN):
        x = logits.masked_fill(targets.isnan(), value).requires_grad_()
        loss = label_loss(name, x, targets)
        loss.backward()
        assert torch.isfinite(loss)
        unknown = targets.isnan()
        assert (x.grad[unknown] == 0).all()
        counts = ~unknown.any(1, keepdim=True) if name == "ce" else ~unknown & (targets >= 0)
        assert (x.grad[counts.expand_as(x)] != 0).float().mean() > 0.7
        gradients.append(x.grad)
    assert all(torch.equal(g, gradients[0]) for g in gradients)


@pytest.mark.parametrize("name", LABEL_LOSSES)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (0, 4), (2, 0)])
def test_nothing_annotated_is_a_differentiable_zero(name, shape):
    x = torch.randn(shape, requires_grad=True)
    loss = label_loss(name, x, torch.full(shape, NAN))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros(shape))


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_extreme_logits_stay_finite(name):
    x = torch.tensor([[1e4, -1e4, 1e4, -1e4], [80.0, -80.0, 0.0, 1e-9]], requires_grad=True)
    loss = label_loss(name, x, torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_label_losses_compute_in_float32(labels, name):
    """bf16 logits, also under autocast, lose nothing beyond their own rounding."""
    logits, targets = labels
    rounded = logits.bfloat16()
    expected = label_loss(name, rounded.float(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = label_loss(name, rounded, targets.bfloat16().float())
    assert loss.dtype == torch.float32
    reference_loss = label_loss(name, rounded.float(), targets.bfloat16().float())
    assert torch.equal(loss, reference_loss)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-3)


def dice_reference(logits, masks, known, over, smooth) -> float:
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    g, known = masks.double().numpy(), known.numpy()
    one = [(n, c) for n in range(len(p)) for c in range(p.shape[1]) if known[n, c]]
    groups = {
        "image": [[pair] for pair in one],
        "channel": [[(n, c) for n, c in one if c == k] for k in {c for _, c in one}],
        "batch": [one],
    }[over]
    losses = []
    for group in groups:
        both = sum((p[i] * g[i]).sum() for i in group)
        total = sum(p[i].sum() + g[i].sum() for i in group)
        losses.append(1 - (2 * both + smooth) / (total + smooth))
    return float(np.mean(losses))


@pytest.mark.parametrize("over", ["image", "channel", "batch"])
@pytest.mark.parametrize("smooth", [1.0, 1e-3])
def test_soft_dice(masks, over, smooth):
    loss = soft_dice(*masks, over=over, smooth=smooth)
    assert loss.item() == pytest.approx(dice_reference(*masks, over, smooth), rel=1e-5)


def test_mask_bce_and_the_sum(masks):
    logits, truth, known = masks
    expected = F.binary_cross_entropy_with_logits(logits[known], truth[known].float())
    torch.testing.assert_close(mask_bce(*masks), expected)
    both = bce_dice(*masks, over="batch", bce_weight=0.5, dice_weight=2.0)
    dice = dice_reference(*masks, "batch", 1.0)
    assert both.item() == pytest.approx(0.5 * expected.item() + 2 * dice, rel=1e-5)
    # Each part is told what it needs.
    weighed = bce_dice(*masks, over="image", smooth=3.0, background_weight=0.1, present=True)
    parts = mask_bce(*masks, background_weight=0.1), mask_bce(*masks)
    dices = soft_dice(*masks, over="image", smooth=3.0, present=True), soft_dice(*masks)
    torch.testing.assert_close(weighed, parts[0] + dices[0])
    assert abs(parts[0] - parts[1]) > 1e-3 and abs(dices[0] - dices[1]) > 1e-3


def test_a_perfect_mask_has_no_loss_and_an_empty_one_counts():
    truth = torch.zeros(1, 2, 4, 4)
    truth[:, 0, :2] = 1
    perfect = (truth - 0.5) * 200
    known = torch.ones(1, 2)
    assert bce_dice(perfect, truth, known).item() == pytest.approx(0, abs=1e-6)
    # the second channel is annotated and empty: filling it costs
    assert soft_dice(torch.full_like(perfect, 9.0), truth, known).item() > 0.5


CASES = [("dice", {"over": o}) for o in ("image", "channel", "batch")]
CASES += [("bce", {}), ("bce_dice", {"over": "batch"})]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_an_unknown_channel_gets_exactly_no_gradient(masks, name, options):
    logits, truth, known = masks
    gradients = []
    for value in (0.0, 1e30, float("inf"), NAN):
        x = logits.clone()
        x[~known] = value
        x.requires_grad_()
        loss = MASK_LOSSES[name](x, truth, known, **options)
        loss.backward()
        assert torch.isfinite(loss)
        assert (x.grad[~known] == 0).all()
        assert (x.grad[known] != 0).all()
        gradients.append(x.grad)
    assert all(torch.equal(g, gradients[0]) for g in gradients)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 1, 1, 1), (0, 2, 4, 4)])
def test_no_mask_annotated_is_a_differentiable_zero(name, options, shape):
    x = torch.randn(shape, requires_grad=True)
    loss = MASK_LOSSES[name](x, torch.ones(shape), torch.zeros(shape[:2]), **options)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros(shape))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_mask_losses_compute_in_float32(name, options):
    """A sum over 16 x 256 x 256 ones is 1,048,576; bf16 stops counting at 256."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 1, 256, 256, generator=generator).bfloat16()
    truth = torch.rand(16, 1, 256, 256, generator=generator) < 0.5
    known = torch.ones(16, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = MASK_LOSSES[name](logits, truth, known, **options)
    expected = MASK_LOSSES[name](logits.double().float(), truth, known, **options)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    if name == "dice":
        wanted = dice_reference(logits, truth, known.bool(), options["over"], 1.0)
        assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_wrong_shapes_and_arguments_are_named():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"\(2, 3\) and targets \(2, 4\)"):
        masked_bce(x, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"known \(2, 4\)"):
        soft_dice(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="there are 3 classes"):
        masked_bce(x, x, positive_weight=torch.ones(4))
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="'pixel'"):
        soft_dice(maps, maps, x, over="pixel")
    with pytest.raises(ValueError, match="smooth 0"):
        soft_dice(maps, maps, x, smooth=0)
    with pytest.raises(ValueError, match="clip 1.5"):
        asymmetric(x, x, clip=1.5)
    with pytest.raises(ValueError, match="gamma_negative 0.5"):
        asymmetric(x, x, gamma_negative=0.5)
    with pytest.raises(ValueError, match="-1"):
        focal(x, x, gamma=-1)


def by_pixel(known: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return known[:, :, None, None].expand_as(like).clone()


@pytest.mark.parametrize("over", ["image", "channel", "batch"])
def test_known_by_pixel_generalises_known_by_channel(masks, over):
    logits, truth, known = masks
    pixels = by_pixel(known, logits)
    assert torch.equal(soft_dice(logits, truth, pixels, over=over), soft_dice(*masks, over=over))
    torch.testing.assert_close(mask_bce(logits, truth, pixels), mask_bce(*masks))


def test_the_weighted_mean_over_known_pixels_by_hand(masks):
    logits, truth, known = masks
    pixels = by_pixel(known, logits) & (torch.arange(5) != 2)  # a column is ignored
    x, g = logits[pixels].double().numpy(), truth[pixels].double().numpy()
    loss = np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0) - x * g
    weight = np.where(g == 1, 1.0, 0.1)
    found = mask_bce(logits, truth, pixels, background_weight=0.1)
    assert found.item() == pytest.approx((loss * weight).sum() / weight.sum(), rel=1e-5)
    # By channel, the same weights over all pixels of what is annotated.
    found = mask_bce(logits, truth, known, background_weight=0.1)
    whole = mask_bce(logits, truth, by_pixel(known, logits), background_weight=0.1)
    torch.testing.assert_close(found, whole)
    # Dice of the remaining pixels.
    p = 1 / (1 + np.exp(-x))
    wanted = 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)
    assert soft_dice(logits, truth, pixels, over="batch").item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", MASK_LOSSES)
@pytest.mark.parametrize("background_weight", [1.0, 0.1])
def test_an_ignored_pixel_has_no_say(masks, name, background_weight):
    logits, truth, known = masks
    pixels = by_pixel(known, logits)
    pixels[:, :, :2] = False
    options = {} if name == "dice" else {"background_weight": background_weight}
    given = logits.clone().requires_grad_()
    loss = MASK_LOSSES[name](given, truth, pixels, **options)
    loss.backward()
    assert not given.grad[~pixels].any() and given.grad[pixels].any()
    wild = torch.where(pixels, logits, torch.tensor(float("nan")))
    other = torch.where(pixels, truth, ~truth)
    assert torch.equal(MASK_LOSSES[name](wild, other, pixels, **options), loss)
    # Nothing known at all: no loss, but one to go back from.
    none = MASK_LOSSES[name](given, truth, torch.zeros_like(pixels), **options)
    none.backward()
    assert none == 0 and torch.isfinite(given.grad).all()


def test_dice_of_what_is_there(masks):
    logits, truth, known = masks
    truth = truth.clone()
    # Annotated twice, never there; channel 1 is empty where it is annotated, 0 in one image.
    truth[:, 2] = truth[1, 0] = False
    ours = soft_dice(logits, truth, known, present=True)
    there = soft_dice(logits[:, :1], truth[:, :1], known[:, :1])
    torch.testing.assert_close(ours, there)
    assert ours != soft_dice(logits, truth, known)
    over_all = soft_dice(logits, truth, known, over="batch", present=True)
    torch.testing.assert_close(
        over_all, soft_dice(logits[:, :1], truth[:, :1], known[:, :1], over="batch")
    )
    # Per image: channel 0 of image 0 alone is there.
    known_there = torch.zeros_like(known)
    known_there[0, 0] = True
    torch.testing.assert_close(
        soft_dice(logits, truth, known, over="image", present=True),
        soft_dice(logits, truth, known_there, over="image"),
    )
    given = logits.clone().requires_grad_()
    nothing = soft_dice(given, torch.zeros_like(truth), known, present=True)
    nothing.backward()
    assert nothing == 0 and not given.grad.any()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_wrong_background_weight_is_refused(masks, weight):
    with pytest.raises(ValueError, match="background_weight"):
        mask_bce(*masks, background_weight=weight)
