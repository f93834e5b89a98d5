"""Losses for labels and masks of which some are not annotated.

Every loss takes logits, computes in float32 whatever it is given (so it is safe under bf16
autocast), and averages over what is annotated. What is not annotated contributes exactly zero to
the value and to every gradient, whatever the logit there; where nothing is annotated the loss is 0
and still differentiable. Nothing here moves data from the device or depends on a value on it.
In several processes what is averaged over is that of the whole batch, see
:mod:`fx_d2.modeling.whole_batch`.

For labels, NaN in ``targets`` means not annotated. A negative target (an uncertain label that no
policy resolved) is treated alike. For masks, ``known`` says which (image, channel) is annotated, or
which pixel of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .whole_batch import mean_count, whole_any, whole_sum

DiceOver = Literal["image", "channel", "batch"]


def masked_bce(
    logits: Tensor,
    targets: Tensor,
    *,
    positive_weight: Tensor | None = None,
    negative_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy, averaged over the annotated labels.

    Args:
        logits: ``(N, C)``.
        targets: ``(N, C)`` in [0, 1], soft labels allowed; NaN where not annotated.
        positive_weight: ``(C,)`` factor of the positive part; None is 1.
        negative_weight: ``(C,)`` factor of the negative part; None is 1.

    Returns:
        A float32 scalar.
    """
    x, y, known = _labels(logits, targets)
    positive, negative = -y * F.logsigmoid(x), -(1 - y) * F.logsigmoid(-x)
    if positive_weight is not None:
        positive = positive * _per_class(positive_weight, x, "positive_weight")
    if negative_weight is not None:
        negative = negative * _per_class(negative_weight, x, "negative_weight")
    return _mean(positive + negative, known)


def class_weighted_bce(logits: Tensor, targets: Tensor, *, prevalence: Tensor) -> Tensor:
    """:func:`masked_bce` with weights e^(1 - p) for positives and e^p for negatives.

    A rare class's positives count up to e times as much; no weight explodes, unlike 1 / p.

    Args:
        logits: ``(N, C)``.
        targets: ``(N, C)``, NaN where not annotated.
        prevalence: ``(C,)`` share p of positives among the annotated training labels. NaN (a class
            that is never annotated) counts as one half.
    """
    p = _share(prevalence, logits)
    return masked_bce(logits, targets, positive_weight=(1 - p).exp(), negative_weight=p.exp())


def masked_ce(logits: Tensor, targets: Tensor, *, class_weight: Tensor | None = None) -> Tensor:
    """Cross-entropy over mutually exclusive classes, averaged over the annotated images.

    An image counts when all its classes are annotated and one of them, at least, is positive; the
    targets of an image are scaled to sum 1.

    Args:
        logits: ``(N, C)``.
        targets: ``(N, C)`` one-hot or soft; NaN where not annotated.
        class_weight: ``(C,)`` factor of each class; the mean is weighted by it, as torch does for
            class indices.

    Returns:
        A float32 scalar.
    """
    x, y, known = _labels(logits, targets)
    total = y.sum(1)
    counts = known.all(1) & (total > 0)
    # A softmax couples the classes: the row as a whole counts or does not.
    x = x.masked_fill(~counts[:, None], 0.0)
    share = y / total.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    share = share.masked_fill(~counts[:, None], 0.0)
    if class_weight is not None:
        share = share * _per_class(class_weight, x, "class_weight")
    # Without class weights this is the number of images that count.
    weight = mean_count(share.sum(), at_least=0.0)
    loss = -(share * F.log_softmax(x, dim=1)).sum()
    return loss / torch.where(weight > 0, weight, torch.ones_like(weight))


def focal(
    logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float | None = 0.25
) -> Tensor:
    """Sigmoid focal loss, averaged over the annotated labels.

    Args:
        logits: ``(N, C)``.
        targets: ``(N, C)`` in [0, 1]; NaN where not annotated. A soft target y mixes the positive
            and the negative loss y to 1 - y.
        gamma: how much easy labels count less; 0 is plain cross-entropy.
        alpha: factor of positives (negatives get 1 - alpha); None is 1 for both.

    Returns:
        A float32 scalar.
    """
    if gamma < 0:
        raise ValueError(f"gamma of the focal loss is {gamma}; it must be 0 or more.")
    x, y, known = _labels(logits, targets)
    log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
    # Powers as exponentials of the stable logarithms: finite gradients at p = 0 and 1, any gamma.
    positive = -y * (gamma * log_q).exp() * log_p
    negative = -(1 - y) * (gamma * log_p).exp() * log_q
    if alpha is not None:
        positive, negative = alpha * positive, (1 - alpha) * negative
    return _mean(positive + negative, known)


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    clip: float = 0.05,
    prevalence: Tensor | None = None,
) -> Tensor:
    """Asymmetric loss for multi-label images with few positives, over the annotated labels.

    Negatives are focused harder than positives and dropped when their probability is below
    ``clip``. The gradient goes through the focusing factors.

    Args:
        logits: ``(N, C)``.
        targets: ``(N, C)`` in [0, 1]; NaN where not annotated.
        gamma_negative: focusing of negatives; 0, or 1 and more.
        gamma_positive: focusing of positives; 0 or more.
        clip: the probability of a negative is lowered by this, to no less than 0.
        prevalence: ``(C,)`` where classes are weighed too, as :func:`class_weighted_bce` does.

    Returns:
        A float32 scalar.
    """
    if gamma_positive < 0 or gamma_negative < 0 or 0 < gamma_negative < 1 or not 0 <= clip < 1:
        raise ValueError(
            f"asymmetric loss: gamma_positive {gamma_positive} must be 0 or more, gamma_negative "
            f"{gamma_negative} 0 or at least 1, clip {clip} at least 0 and below 1."
        )
    x, y, known = _labels(logits, targets)
    log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
    positive = -y * (gamma_positive * log_q).exp() * log_p
    if clip > 0:
        shifted = (torch.sigmoid(x) - clip).clamp(min=0.0)
        negative = -(1 - y) * shifted**gamma_negative * torch.log1p(-shifted)
    else:
        negative = -(1 - y) * (gamma_negative * log_p).exp() * log_q
    if prevalence is not None:
        p = _share(prevalence, x)
        positive, negative = (1 - p).exp() * positive, p.exp() * negative
    return _mean(positive + negative, known)


def logit_adjusted_bce(
    logits: Tensor, targets: Tensor, *, prevalence: Tensor, tau: float = 1.0
) -> Tensor:
    """:func:`masked_bce` of logits to which the log odds of every class are added.

    What a rare class's odds explain the logits need not learn: they then say how much more likely
    than usual a class is, and a prediction of 0.5 is as likely as usual.

    Args:
        logits: ``(N, C)``, those of a prediction, without the addition.
        targets: ``(N, C)``, NaN where not annotated.
        prevalence: ``(C,)`` share of positives in training; NaN counts as one half.
        tau: factor of the log odds; 0 is plain cross-entropy.
    """
    p = _share(prevalence, logits)
    return masked_bce(logits.float() + tau * torch.logit(p), targets)


def ldam_bce(
    logits: Tensor,
    targets: Tensor,
    *,
    prevalence: Tensor,
    max_margin: float = 0.5,
    scale: float = 1.0,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Cross-entropy with margins by the label distribution (LDAM), over the annotated labels.

    Every class is a problem of two labels, present and absent. A label that n images have has to
    be right by a margin in proportion to n^(-1/4); the rarest label of all has ``max_margin``.

    Args:
        logits: ``(N, C)``.
        targets: ``(N, C)`` in [0, 1]; NaN where not annotated.
        prevalence: ``(C,)`` share of positives in training; NaN counts as one half.
        max_margin: in units of the logits.
        scale: factor of the logits after the margin.
        weights: of positives and of negatives, ``(C,)`` each, see :func:`effective_weights`.
    """
    p = _share(prevalence, logits)
    margin, other = p**-0.25, (1 - p) ** -0.25
    # None is below 1; without any class there is nothing to take the maximum of.
    longest = torch.cat((margin, other, margin.new_ones(1))).max()
    x, y, known = _labels(logits, targets)
    positive = -y * F.logsigmoid(scale * (x - max_margin * margin / longest))
    negative = -(1 - y) * F.logsigmoid(-scale * (x + max_margin * other / longest))
    if weights is not None:
        positive = positive * _per_class(weights[0], x, "weights of positives")
        negative = negative * _per_class(weights[1], x, "weights of negatives")
    return _mean(positive + negative, known)


def effective_weights(prevalence: Tensor, labelled: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Weights of positives and negatives by the effective number of images, (1 - b^n) / (1 - b).

    Args:
        prevalence: ``(C,)`` share of positives; NaN counts as one half.
        labelled: ``(C,)`` how many training images are labelled.
        beta: b, from 0 (all weights are 1) to below 1 (towards the inverse of n).

    Returns:
        Two tensors ``(C,)``, inverse to the effective numbers; a class's two have mean 1.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"MODEL.FX.CLS.LDAM.BETA is {beta}; it is from 0 to below 1")
    p = _share(prevalence, prevalence)
    numbers = torch.stack([p, 1 - p]).double() * labelled.double()
    if beta == 0:
        return torch.ones_like(p), torch.ones_like(p)
    inverse = 1 / -torch.expm1(numbers.clamp(min=1.0) * math.log(beta))
    positive, negative = (2 * inverse / inverse.sum(dim=0)).float()
    return positive, negative


def soft_dice(
    logits: Tensor,
    masks: Tensor,
    known: Tensor,
    *,
    over: DiceOver = "channel",
    smooth: float = 1.0,
    present: bool = False,
) -> Tensor:
    """1 - soft Dice of sigmoid channels, (2 sum(pg) + s) / (sum(p) + sum(g) + s).

    Args:
        logits: ``(N, C, H, W)``.
        masks: ``(N, C, H, W)``, 0 to 1, bool or any number type.
        known: ``(N, C)``, true where the image is annotated for the channel, or ``(N, C, H, W)``,
            true where the pixel is.
        over: what one sum runs over. "batch": all images, channels and pixels together, so that
            large structures dominate (Foundation X). "channel": all images and pixels of a
            channel, then the mean over the annotated channels (X+). "image": the pixels of one
            channel of one image, then the mean over the annotated ones.
        smooth: s above, positive. It makes the loss of an empty mask predicted empty 0.
        present: whether what has no foreground in one sum is left out of the mean, and of the sum
            of "batch".

    Returns:
        A float32 scalar.
    """
    if over not in ("image", "channel", "batch"):
        raise ValueError(f'soft Dice over {over!r}; it is "image", "channel" or "batch".')
    if smooth <= 0:
        raise ValueError(f"soft Dice with smooth {smooth}: an empty mask needs a positive one.")
    x, g, pixels, known = _masks(logits, masks, known)
    p = torch.sigmoid(x) * pixels
    both, total = (p * g).sum((2, 3)), p.sum((2, 3)) + g.sum((2, 3))
    if present:
        there = known & (g.sum((2, 3)) > 0)
        known = there if over == "image" else known & whole_any(there.any(0))
        both, total = both * known, total * known
    if over == "image":
        return _mean(1 - (2 * both + smooth) / (total + smooth), known)
    if over == "batch":
        both, total, known = both.sum(), total.sum(), known.any()
    else:
        both, total, known = both.sum(0), total.sum(0), known.any(0)
    # No mean of images: all processes have the same sums.
    (both, total), known = whole_sum(torch.stack((both, total))), whole_any(known)
    dice = 1 - (2 * both + smooth) / (total + smooth)
    return dice.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)


def mask_bce(
    logits: Tensor, masks: Tensor, known: Tensor, *, background_weight: float = 1.0
) -> Tensor:
    """Binary cross-entropy of sigmoid channels, averaged over the annotated pixels.

    Args:
        logits: ``(N, C, H, W)``.
        masks: ``(N, C, H, W)``.
        known: as in :func:`soft_dice`.
        background_weight: of a pixel outside the mask, against 1 of one inside. The mean is over
            weights: what is seldom seen gets more say, the loss does not get smaller.

    Returns:
        A float32 scalar.
    """
    if not 0 < background_weight < math.inf:
        raise ValueError(f"mask loss with background_weight {background_weight}; it is above 0")
    x, g, pixels, whole = _masks(logits, masks, known)
    loss = F.binary_cross_entropy_with_logits(x, g, reduction="none")
    if known.dim() == 2 and background_weight == 1:
        return _mean(loss.mean((2, 3)), whole)
    weight = (g + background_weight * (1 - g)) * pixels
    # Below one pixel there is nothing to average; that of a whole image is far above.
    return (loss * weight).sum() / mean_count(weight.sum(), at_least=background_weight)


def bce_dice(
    logits: Tensor,
    masks: Tensor,
    known: Tensor,
    *,
    over: DiceOver = "channel",
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    smooth: float = 1.0,
    background_weight: float = 1.0,
    present: bool = False,
) -> Tensor:
    """``bce_weight`` x :func:`mask_bce` + ``dice_weight`` x :func:`soft_dice`, see there."""
    dice = soft_dice(logits, masks, known, over=over, smooth=smooth, present=present)
    bce = mask_bce(logits, masks, known, background_weight=background_weight)
    return bce_weight * bce + dice_weight * dice


# By the name a config uses.
LABEL_LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": masked_bce,
    "ce": masked_ce,
    "focal": focal,
    "asymmetric": asymmetric,
    "asymmetric_weighted": asymmetric,
    "class_weighted": class_weighted_bce,
    "ldam": ldam_bce,
    "logit_adjusted": logit_adjusted_bce,
}
# Those that are also told ``prevalence``; the others take logits and targets alone.
NEED_PREVALENCE = ("asymmetric_weighted", "class_weighted", "ldam", "logit_adjusted")
# All take logits, masks, known.
MASK_LOSSES: dict[str, Callable[..., Tensor]] = {
    "dice": soft_dice,
    "bce": mask_bce,
    "bce_dice": bce_dice,
}


def _labels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 logits and targets, both 0 where unknown, and which are known."""
    if logits.dim() != 2 or logits.shape != targets.shape:
        raise ValueError(
            f"label loss: logits {tuple(logits.shape)} and targets {tuple(targets.shape)} "
            "must both be (images, classes)."
        )
    # Read before any cast: a NaN is no number to compare with, so this is false there.
    known = targets >= 0
    # The logit is replaced, not multiplied by 0, which would let an infinite one through.
    return (
        logits.float().masked_fill(~known, 0.0),
        targets.float().masked_fill(~known, 0.0),
        known,
    )


def _masks(logits: Tensor, masks: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Float32 logits and masks, both 0 where unknown; which pixels are known, and which channels.

    The pixels are (N, C, H, W), or (N, C, 1, 1) where whole channels are known.
    """
    per_pixel = known.dim() == 4
    fits = known.shape == (logits.shape if per_pixel else logits.shape[:2])
    if logits.dim() != 4 or logits.shape != masks.shape or not fits:
        raise ValueError(
            f"mask loss: logits {tuple(logits.shape)} and masks {tuple(masks.shape)} must both be "
            f"(images, channels, height, width), known {tuple(known.shape)} (images, channels) or "
            "the same."
        )
    known = known.bool()
    pixels = known if per_pixel else known[:, :, None, None]
    channels = known.flatten(2).any(2) if per_pixel else known
    unknown = ~pixels
    x, g = logits.float().masked_fill(unknown, 0.0), masks.float().masked_fill(unknown, 0.0)
    return x, g, pixels, channels


def _per_class(weight: Tensor, x: Tensor, name: str) -> Tensor:
    if weight.shape != (x.shape[1],):
        raise ValueError(f"{name} has shape {tuple(weight.shape)}; there are {x.shape[1]} classes.")
    return weight.to(x.device, torch.float32)


def _share(prevalence: Tensor, x: Tensor) -> Tensor:
    """Shares ``(C,)`` on the device of ``x``; a half where never annotated, and never 0 or 1."""
    share = prevalence.to(x.device, torch.float32).nan_to_num(0.5)
    # A class that is never or always there would have infinite odds.
    return share.clamp(1e-6, 1 - 1e-6)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean over the known ones; 0, with gradients of 0, when there are none."""
    return values.masked_fill(~known, 0.0).sum() / mean_count(known.sum())
