"""Image labels: a classifier per source on the shared trunk.

The paper's classifier is one linear layer on the averaged last stage. A nodule of one cell in a 7 x
7 map is one forty-ninth of that average, so an optional second path lets every place of a finer
map vote for each class and keeps the strongest votes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone.channel_norm import ChannelNorm
from ..losses import LABEL_LOSSES, NEED_PREVALENCE, effective_weights, masked_bce
from .spec import HeadSpec, specs_of, stage_channels

CLASSIFIER_REGISTRY = Registry("CLASSIFIER")
CLASSIFIER_REGISTRY.__doc__ = """
Heads for image labels, called with ``(cfg, input_shape)``: the shapes of the trunk's features.
"""


def build_classifier(cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The classifier named by ``MODEL.FX.CLS.NAME``."""
    return CLASSIFIER_REGISTRY.get(cfg.MODEL.FX.CLS.NAME)(cfg, input_shape)


def build_classifier_encoder(cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> nn.Module | None:
    """What all sources' classifiers share, as the classifier's class says; None without any."""
    entry = CLASSIFIER_REGISTRY.get(cfg.MODEL.FX.CLS.NAME)
    return getattr(entry, "encoder", LocalEncoder).from_config(cfg, input_shape)


def top_down(laterals: Sequence[Tensor]) -> list[Tensor]:
    """Maps of equal channels, fine to coarse: each with all coarser ones added to it."""
    sums = [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        size = lateral.shape[-2:]
        sums.append(lateral + F.interpolate(sums[-1], size=size, mode="nearest"))
    return sums[::-1]


def places_inside(
    features: Tensor, content_sizes: Sequence[tuple[int, int]], stride: int
) -> Tensor:
    """Bool (N, 1, h, w), the places of a map (N, C, h, w) that see part of the image."""
    inside = torch.zeros(len(features), 1, *features.shape[-2:], dtype=torch.bool)
    for i, (height, width) in enumerate(content_sizes):
        inside[i, :, : -(-height // stride), : -(-width // stride)] = True
    return inside.to(features.device, non_blocking=True)


def _lse(votes: Tensor, inside: Tensor, sharpness: float) -> Tensor:
    votes = (votes * sharpness).masked_fill(~inside, -torch.inf)
    return (torch.logsumexp(votes, dim=2) - inside.sum(dim=2).log()) / sharpness


def _attention(votes: Tensor, inside: Tensor, sharpness: float) -> Tensor:
    weights = (votes * sharpness).masked_fill(~inside, -torch.inf).softmax(dim=2)
    return (votes * weights).sum(dim=2)


def _max(votes: Tensor, inside: Tensor, _: float) -> Tensor:
    return votes.masked_fill(~inside, -torch.inf).amax(dim=2)


def _avg(votes: Tensor, inside: Tensor, _: float) -> Tensor:
    return (votes * inside).sum(dim=2) / inside.sum(dim=2)


# votes (N, C, places), inside bool (N, 1, places), sharpness -> (N, C)
POOLS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "lse": _lse,
    "attention": _attention,
    "max": _max,
    "avg": _avg,
}


@dataclass(frozen=True)
class LocalMap:
    """What every place of an image looks like.

    Args:
        features: (N, dim, h, w).
        inside: bool (N, 1, h, w), the places that see part of the image and not only padding.
    """

    features: Tensor
    inside: Tensor


class LocalEncoder(nn.Module):
    """Fuses stages of the trunk into one map in which every place can vote; shared by all sources.

    Args:
        channels: of each stage, by name, fine to coarse.
        stride: of the finest stage.
        dim: of the map.
    """

    def __init__(self, channels: Mapping[str, int], stride: int, dim: int) -> None:
        super().__init__()
        self.stride = stride
        self.norms = nn.ModuleDict({k: ChannelNorm(c) for k, c in channels.items()})
        self.laterals = nn.ModuleDict({k: nn.Conv2d(c, dim, 1) for k, c in channels.items()})
        self.smooth = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False),
            # Place by place, so that what is far away, padding included, changes no vote.
            ChannelNorm(dim),
            nn.GELU(),
        )

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> LocalEncoder | None:
        """The encoder of ``MODEL.FX.CLS.LOCAL``; None when that names no stage."""
        names = tuple(cfg.MODEL.FX.CLS.LOCAL.IN_FEATURES)
        if not names:
            return None
        channels = stage_channels(names, input_shape, "MODEL.FX.CLS.LOCAL")
        return cls(channels, input_shape[names[0]].stride, cfg.MODEL.FX.CLS.LOCAL.DIM)

    def forward(
        self,
        features: Mapping[str, Tensor],
        content_sizes: Sequence[tuple[int, int]],
        _batch: Sequence[Mapping[str, Any]] = (),
    ) -> LocalMap:
        """Fuse the stages.

        Args:
            features: {stage: (N, C, h, w)}.
            content_sizes: per image (height, width) in pixels without padding.
        """
        laterals = [lay(self.norms[name](features[name])) for name, lay in self.laterals.items()]
        fused = self.smooth(top_down(laterals)[0])
        return LocalMap(fused, places_inside(fused, content_sizes, self.stride))


class SourceClassifier(nn.Module):
    """The layers of one source.

    Args:
        in_dim: channels of the pooled last stage.
        num_classes: outputs.
        projector: channels of a hidden layer, 0 for none.
        dropout: share of the features dropped in training.
        local_dim: channels of the local map, 0 for none.
        pool: how the votes of all places become one.
        sharpness: of that pooling.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        projector: int = 0,
        dropout: float = 0.0,
        local_dim: int = 0,
        pool: str = "lse",
        sharpness: float = 4.0,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"MODEL.FX.CLS.LOCAL.POOL is {pool!r}; allowed: {tuple(POOLS)}")
        self.projector = None
        if projector:
            self.projector = nn.Sequential(nn.Linear(in_dim, projector), nn.GELU())
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(projector or in_dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.votes = None
        if local_dim:
            # The bias of `linear` is enough for both paths.
            self.votes = nn.Conv2d(local_dim, num_classes, 1, bias=False)
            nn.init.trunc_normal_(self.votes.weight, std=0.02)
        self.pool, self.sharpness = POOLS[pool], sharpness

    def forward(self, pooled: Tensor, local: LocalMap | None) -> Tensor:
        """(N, D) and the local map, if there is one -> float32 logits (N, C)."""
        hidden = pooled if self.projector is None else self.projector(pooled)
        logits = self.linear(self.dropout(hidden)).float()
        if self.votes is not None:
            assert local is not None, "this classifier was built with a local path"
            votes = self.votes(local.features).flatten(2).float()
            logits = logits + self.pool(votes, local.inside.flatten(2), self.sharpness)
        return logits


@CLASSIFIER_REGISTRY.register()
class MultiSourceClassifier(nn.Module):
    """A :class:`SourceClassifier` per source, as attributes named by source."""

    @configurable
    def __init__(
        self,
        *,
        specs: Sequence[HeadSpec],
        in_dim: int,
        loss: str = "bce",
        multiclass_loss: str = "ce",
        prevalence: Mapping[str, Sequence[float]] | None = None,
        labelled: Mapping[str, Sequence[float]] | None = None,
        loss_options: Mapping[str, Mapping[str, Any]] | None = None,
        **layers: Any,
    ) -> None:
        """Build the heads.

        Args:
            specs: of the sources with image labels.
            in_dim: channels of the trunk's pooled last stage.
            loss: of independent labels, a key of ``LABEL_LOSSES``.
            multiclass_loss: where exactly one class is true, likewise.
            prevalence: for the losses that need it: {source: share of positives, per class}.
            labelled: for ``ldam``: {source: how many training images are labelled, per class}.
            loss_options: {loss: further arguments of it}.
            layers: see :class:`SourceClassifier`.
        """
        super().__init__()
        for key, name in (("LOSS", loss), ("MULTICLASS_LOSS", multiclass_loss)):
            if name not in LABEL_LOSSES:
                raise ValueError(
                    f"MODEL.FX.CLS.{key} is {name!r}; allowed: {', '.join(LABEL_LOSSES)}"
                )
        self.specs = {spec.source: spec for spec in specs}
        self.loss, self.multiclass_loss = loss, multiclass_loss
        self.prevalence = _per_class("PREVALENCE", prevalence or {}, self.specs)
        self.labelled = _per_class("LABELLED", labelled or {}, self.specs)
        self.loss_options = {name: dict(given) for name, given in (loss_options or {}).items()}
        # Whether ``ldam`` weighs labels by their numbers; a hook turns it on late in training.
        self.reweighted = False
        for spec in specs:
            self.add_module(spec.source, self.build_source(in_dim, len(spec.classes), **layers))

    def build_source(self, in_dim: int, num_classes: int, **layers: Any) -> nn.Module:
        """The layers of one source."""
        return SourceClassifier(in_dim, num_classes, **layers)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """The arguments that the config decides."""
        node = cfg.MODEL.FX.CLS
        last = max(input_shape.values(), key=lambda shape: shape.stride)
        return {
            "specs": specs_of(cfg, "cls"),
            "in_dim": last.channels,
            "loss": node.LOSS,
            "multiclass_loss": node.MULTICLASS_LOSS,
            "prevalence": dict(node.PREVALENCE),
            "labelled": dict(node.LABELLED),
            "loss_options": _loss_options(node),
            "projector": node.PROJECTOR,
            "dropout": node.DROPOUT,
            "local_dim": node.LOCAL.DIM if node.LOCAL.IN_FEATURES else 0,
            "pool": node.LOCAL.POOL,
            "sharpness": node.LOCAL.SHARPNESS,
        }

    def forward(self, pooled: Tensor, local: LocalMap | None, source: str) -> Tensor:
        """Logits (N, C) of one source."""
        return self.get_submodule(source)(pooled, local)

    def losses(self, logits: Tensor, labels: Tensor, source: str) -> dict[str, Tensor]:
        """The loss of one source, under the name of its kind.

        Args:
            logits: (N, C).
            labels: (N, C), NaN where there is no target.
            source: whose.
        """
        exclusive = self.specs[source].kind == "multiclass"
        name = self.multiclass_loss if exclusive else self.loss
        part = f"loss_cls_{name}"
        options = dict(self.loss_options.get(name, {}))
        if name in NEED_PREVALENCE:
            if source not in self.prevalence:
                return {part: masked_bce(logits, labels)}
            options["prevalence"] = logits.new_tensor(self.prevalence[source], dtype=torch.float32)
        if name == "ldam":
            beta = options.pop("beta", 0.0)
            if self.reweighted and source in self.labelled:
                numbers = logits.new_tensor(self.labelled[source], dtype=torch.float32)
                options["weights"] = effective_weights(options["prevalence"], numbers, beta)
        return {part: LABEL_LOSSES[name](logits, labels, **options)}

    def fused(self, logits: Any) -> Tensor:
        """(N, C) of what a call gives; some classifiers say more than one thing."""
        return logits

    def inference(self, logits: Tensor, source: str) -> list[dict[str, float]]:
        """(N, C) -> {class: probability} per image; they sum to 1 where one class is true."""
        spec = self.specs[source]
        exclusive = spec.kind == "multiclass"
        probabilities = logits.softmax(dim=1) if exclusive else logits.sigmoid()
        return [dict(zip(spec.classes, row, strict=True)) for row in probabilities.tolist()]


def _per_class(
    key: str, given: Mapping[str, Sequence[float]], specs: Mapping[str, HeadSpec]
) -> dict[str, tuple[float, ...]]:
    for source, values in given.items():
        if source in specs and len(values) != len(specs[source].classes):
            raise ValueError(
                f"MODEL.FX.CLS.{key}.{source} has {len(values)} values; "
                f"its classes are {specs[source].classes}"
            )
    return {source: tuple(map(float, values)) for source, values in given.items()}


def _loss_options(node: Any) -> dict[str, dict[str, Any]]:
    """{loss: its arguments}, as ``MODEL.FX.CLS`` has them."""
    asymmetric = {
        "gamma_negative": node.ASYMMETRIC.GAMMA_NEGATIVE,
        "gamma_positive": node.ASYMMETRIC.GAMMA_POSITIVE,
        "clip": node.ASYMMETRIC.CLIP,
    }
    return {
        "asymmetric": asymmetric,
        "asymmetric_weighted": asymmetric,
        "focal": {"gamma": node.FOCAL.GAMMA, "alpha": node.FOCAL.ALPHA},
        "ldam": {
            "max_margin": node.LDAM.MAX_MARGIN,
            "scale": node.LDAM.SCALE,
            "beta": node.LDAM.BETA,
        },
        "logit_adjusted": {"tau": node.TAU},
    }
