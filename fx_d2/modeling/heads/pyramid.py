"""Image labels from several levels of a feature pyramid: the head of FPSM.

A level is a stage of the trunk, counted as the poster of FPSM counts: 4 is the deepest (stride 32),
1 the finest (stride 4). Every level becomes one vector per image; a classifier says what each level
alone would say, and the levels together decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..backbone.channel_norm import ChannelNorm
from .classifier import (
    CLASSIFIER_REGISTRY,
    POOLS,
    LocalMap,
    MultiSourceClassifier,
    SourceClassifier,
    places_inside,
    top_down,
)
from .context import CONTEXTS, ContextEmbedding
from .spec import head_specs

KEY = "MODEL.FX.CLS.PYRAMID"
NECKS = ("fpn", "none")
FUSIONS = ("sum", "concat")
WEIGHTS = ("one", "resolution", "learned")
LEVEL_POOLS = ("avg", "csra")


@dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    Args:
        vector: (N, D), the mean over the places of the image, with its context.
        places: what it is the mean of, without the context.
    """

    vector: Tensor
    places: LocalMap


class LevelLogits(NamedTuple):
    """What the levels say, float32 (N, C) each: all together, and each of them alone."""

    fused: Tensor
    levels: tuple[Tensor, ...]


@dataclass(frozen=True)
class Layout:
    """Which stages are used, and how wide they are.

    Args:
        levels: {level: stage of the trunk}, deepest first.
        shapes: of these stages and of those between them.
        dim: channels that the neck makes of every stage; 0 leaves them as they are.
    """

    levels: Mapping[int, str]
    shapes: Mapping[str, ShapeSpec]
    dim: int

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> Layout:
        """The layout of ``MODEL.FX.CLS.PYRAMID`` on a trunk."""
        node = cfg.MODEL.FX.CLS.PYRAMID
        _check_choice("NECK", node.NECK, NECKS)
        asked = tuple(node.LEVELS)
        stage = {level: f"res{level + 1}" for level in (4, 3, 2, 1)}
        if not asked or len(set(asked)) < len(asked) or not set(asked) <= set(stage):
            raise ValueError(f"{KEY}.LEVELS is {asked}; name some of 4, 3, 2, 1, each once")
        levels = {level: stage[level] for level in sorted(asked, reverse=True)}
        missing = [f"{n} ({stage[n]})" for n in levels if stage[n] not in input_shape]
        if missing:
            raise ValueError(
                f"{KEY}.LEVELS asks for {', '.join(missing)}; the trunk has {(*input_shape,)}"
            )
        finest = input_shape[levels[min(levels)]].stride
        used = {k: s for k, s in input_shape.items() if k in levels.values()}
        if node.NECK == "fpn":  # goes through all stages from the deepest to the finest
            used = {k: s for k, s in input_shape.items() if s.stride >= finest}
        return cls(levels, used, node.DIM if node.NECK == "fpn" else 0)

    @property
    def dims(self) -> dict[int, int]:
        """Length of every level's vector."""
        return {n: self.dim or self.shapes[stage].channels for n, stage in self.levels.items()}

    @property
    def strides(self) -> dict[int, int]:
        """Pixels between two places of every level."""
        return {n: self.shapes[stage].stride for n, stage in self.levels.items()}


class PyramidEncoder(nn.Module):
    """Stages of the trunk to one vector per level and image; shared by all sources.

    Args:
        layout: of the levels.
        norm: whether a LayerNorm stands before every stage.
        contexts: {name: values}, see :class:`ContextEmbedding`; {} for none.
    """

    def __init__(
        self, layout: Layout, *, norm: bool, contexts: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        self.layout = layout
        shapes = dict(sorted(layout.shapes.items(), key=lambda item: item[1].stride))
        self.norms = nn.ModuleDict(
            {k: ChannelNorm(s.channels) if norm else nn.Identity() for k, s in shapes.items()}
        )
        self.laterals, self.smooth = nn.ModuleDict(), nn.ModuleDict()
        if layout.dim:
            dim = layout.dim
            self.laterals.update({k: nn.Conv2d(s.channels, dim, 1) for k, s in shapes.items()})
            self.smooth.update(
                {k: nn.Conv2d(dim, dim, 3, padding=1) for k in layout.levels.values()}
            )
        self.context = None
        if contexts:
            self.context = ContextEmbedding(contexts, sum(layout.dims.values()))

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> PyramidEncoder:
        """The encoder of ``MODEL.FX.CLS.PYRAMID``."""
        node = cfg.MODEL.FX.CLS.PYRAMID
        contexts = {}
        for name in node.CONTEXT:
            _check_choice("CONTEXT", name, tuple(CONTEXTS))
            contexts[name] = CONTEXTS[name][0]
        if "source" in contexts:
            contexts["source"] += tuple(dict.fromkeys(s.source for s in head_specs(cfg)))
        layout = Layout.from_config(cfg, input_shape)
        return cls(layout, norm=node.NORM, contexts=contexts)

    def forward(
        self,
        features: Mapping[str, Tensor],
        content_sizes: Sequence[tuple[int, int]],
        batch: Sequence[Mapping[str, Any]] = (),
    ) -> dict[int, Level]:
        """Vectors of the levels.

        Args:
            features: {stage: (N, C, h, w)}.
            content_sizes: per image (height, width) in pixels without padding.
            batch: what the images are known by; needed with a context only.

        Returns:
            {level: its vectors and places}, deepest first.
        """
        maps = {name: norm(features[name]) for name, norm in self.norms.items()}
        if self.laterals:
            sums = top_down([lateral(maps[name]) for name, lateral in self.laterals.items()])
            maps = dict(zip(self.laterals, sums, strict=True))
            maps = {name: smooth(maps[name]) for name, smooth in self.smooth.items()}
        added: Sequence[Tensor | None] = [None] * len(self.layout.levels)
        if self.context is not None:
            added = self.context(batch).split(list(self.layout.dims.values()), dim=1)
        levels = {}
        for (level, stage), context in zip(self.layout.levels.items(), added, strict=True):
            found = maps[stage]
            inside = places_inside(found, content_sizes, self.layout.strides[level])
            vector = _mean_inside(found, inside)
            vector = vector if context is None else vector + context
            levels[level] = Level(vector, LocalMap(found, inside))
        return levels


class LevelClassifier(nn.Module):
    """The layers of one source.

    ``sum`` adds the logits of the levels, from one classifier for all of them or from one each;
    ``concat`` puts their vectors side by side before one classifier, and what a level says alone is
    what that classifier says when the others are zero. Without a hidden layer ``concat`` is
    therefore the same function as ``sum`` of a classifier each, up to the bias.

    Args:
        dims: {level: length of its vector}.
        strides: {level: pixels between two places}.
        num_classes: outputs.
        fuse: ``sum`` or ``concat``.
        shared: one classifier for all levels; of ``sum`` only.
        weight: what a level counts: ``one``; ``resolution``, in proportion to the side of its map;
            or ``learned``, from equal ones. Their mean is 1.
        pool: ``avg``; or ``csra``, which adds to it the places that speak most for a class.
        csra_weight: of that addition.
        csra_sharpness: between the mean (towards 0) and the maximum (large) of the places.
        layers: see :class:`SourceClassifier`.
    """

    def __init__(
        self,
        dims: Mapping[int, int],
        strides: Mapping[int, int],
        num_classes: int,
        *,
        fuse: str = "sum",
        shared: bool = True,
        weight: str = "one",
        pool: str = "avg",
        csra_weight: float = 0.2,
        csra_sharpness: float = 1.0,
        **layers: Any,
    ) -> None:
        super().__init__()
        for key, name, allowed in (
            ("FUSE", fuse, FUSIONS),
            ("WEIGHT", weight, WEIGHTS),
            ("POOL", pool, LEVEL_POOLS),
        ):
            _check_choice(key, name, allowed)
        if pool == "csra" and layers.get("projector"):
            raise ValueError(
                f"{KEY}.POOL 'csra' asks every place what it says for a class, with one linear "
                "layer: set MODEL.FX.CLS.PROJECTOR to 0"
            )
        self.dims, self.fuse = dict(dims), fuse
        self.residual = (csra_weight, csra_sharpness) if pool == "csra" else None
        self.joint: SourceClassifier | None = None
        self.own = nn.ModuleDict()
        if fuse == "concat":
            self.joint = SourceClassifier(sum(dims.values()), num_classes, **layers)
        elif shared:
            if len(set(dims.values())) > 1:
                raise ValueError(
                    f"{KEY}.SHARED needs levels of one length; these have {tuple(dims.values())}: "
                    f"set {KEY}.NECK to 'fpn' or SHARED to False"
                )
            self.joint = SourceClassifier(next(iter(dims.values())), num_classes, **layers)
        else:
            self.own.update(
                {f"level{n}": SourceClassifier(d, num_classes, **layers) for n, d in dims.items()}
            )
        self.level_weights: nn.Parameter | None = None
        sides = torch.tensor([1.0 / strides[n] for n in dims])
        fixed = sides / sides.mean() if weight == "resolution" else torch.ones(len(dims))
        self.register_buffer("fixed_weights", fixed, persistent=False)
        if weight == "learned":
            self.level_weights = nn.Parameter(torch.zeros(len(dims)))

    def weights(self) -> Tensor:
        """(levels,) what every level counts."""
        if self.level_weights is None:
            return self.fixed_weights
        return self.level_weights.softmax(dim=0) * len(self.dims)

    def forward(self, levels: Mapping[int, Level]) -> LevelLogits:
        """Vectors (N, D) of every level -> logits (N, C) of all together and of each."""
        weights = self.weights()
        alone = [self._alone(levels, level) for level in self.dims]
        residuals = [self._residual(levels[level], level) for level in self.dims]
        said = [a if r is None else a + r for a, r in zip(alone, residuals, strict=True)]
        if self.fuse == "sum":
            fused = _weighted(weights, said)
        else:
            rows = zip(weights, (levels[n].vector for n in self.dims), strict=True)
            fused = self._joint()(torch.cat([w * vector for w, vector in rows], dim=1), None)
            if self.residual is not None:
                fused = fused + _weighted(weights, [r for r in residuals if r is not None])
        return LevelLogits(fused, tuple(said))

    def _joint(self) -> SourceClassifier:
        assert self.joint is not None
        return self.joint

    def _alone(self, levels: Mapping[int, Level], level: int) -> Tensor:
        vector = levels[level].vector
        if self.fuse == "concat":
            parts = [
                vector if n == level else vector.new_zeros(len(vector), d)
                for n, d in self.dims.items()
            ]
            vector = torch.cat(parts, dim=1)
        return self._classifier(level)(vector, None)

    def _classifier(self, level: int) -> SourceClassifier:
        return self.own[f"level{level}"] if self.joint is None else self.joint

    def _residual(self, level: Level, number: int) -> Tensor | None:
        if self.residual is None:
            return None
        factor, sharpness = self.residual
        matrix = self._classifier(number).linear.weight
        if self.fuse == "concat":
            matrix = matrix.split(list(self.dims.values()), dim=1)[list(self.dims).index(number)]
        votes = torch.einsum("nd...,cd->nc...", level.places.features, matrix).flatten(2).float()
        return factor * POOLS["attention"](votes, level.places.inside.flatten(2), sharpness)


@CLASSIFIER_REGISTRY.register()
class PyramidClassifier(MultiSourceClassifier):
    """A :class:`LevelClassifier` per source, as attributes named by source."""

    encoder = PyramidEncoder

    @configurable
    def __init__(
        self, *, dims: Mapping[int, int], strides: Mapping[int, int], aux: float = 0.5, **rest: Any
    ) -> None:
        """Build the heads.

        Args:
            dims: {level: length of its vector}, deepest first.
            strides: {level: pixels between two places}.
            aux: weight of the sum of every level's own loss; of no account with one level.
            rest: see :class:`MultiSourceClassifier` and :class:`LevelClassifier`.
        """
        self.dims, self.strides = dict(dims), dict(strides)
        super().__init__(in_dim=0, **rest)
        if aux < 0:
            raise ValueError(f"{KEY}.AUX is {aux}; it is 0 or more")
        self.aux = aux if len(dims) > 1 else 0.0

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """The arguments that the config decides."""
        node, layout = cfg.MODEL.FX.CLS.PYRAMID, Layout.from_config(cfg, input_shape)
        arguments = MultiSourceClassifier.from_config(cfg, input_shape)
        for of_the_other in ("in_dim", "local_dim", "sharpness"):
            del arguments[of_the_other]
        return arguments | {
            "dims": layout.dims,
            "strides": layout.strides,
            "fuse": node.FUSE,
            "shared": node.SHARED,
            "aux": node.AUX,
            "weight": node.WEIGHT,
            "pool": node.POOL,
            "csra_weight": node.CSRA_WEIGHT,
            "csra_sharpness": node.CSRA_SHARPNESS,
        }

    def build_source(self, _in_dim: int, num_classes: int, **layers: Any) -> nn.Module:
        """The layers of one source."""
        return LevelClassifier(self.dims, self.strides, num_classes, **layers)

    def forward(self, _pooled: Tensor, local: Any, source: str) -> Any:
        """Logits of one source from what :class:`PyramidEncoder` gives."""
        return self.get_submodule(source)(local)

    def losses(self, logits: Any, labels: Tensor, source: str) -> dict[str, Tensor]:
        """The loss of all levels together, and ``aux`` times the sum of theirs alone."""
        found = super().losses(logits.fused, labels, source)
        if self.aux:
            alone = [
                super(PyramidClassifier, self).losses(z, labels, source) for z in logits.levels
            ]
            total = torch.stack([value for losses in alone for value in losses.values()]).sum()
            found["loss_cls_levels"] = self.aux * total
        return found

    def fused(self, logits: Any) -> Tensor:
        """(N, C) of all levels together."""
        return logits.fused

    def inference(self, logits: Any, source: str) -> list[dict[str, float]]:
        """Of all levels together -> {class: probability} per image."""
        return super().inference(logits.fused, source)


def _mean_inside(x: Tensor, inside: Tensor) -> Tensor:
    """(N, D, h, w) -> (N, D), the mean over the places of the image."""
    # In bf16 a sum over the places of a fine level would lose most of them.
    return (x * inside).sum((2, 3), dtype=torch.float32) / inside.sum((2, 3))


def _weighted(weights: Tensor, logits: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * z for w, z in zip(weights, logits, strict=True)]).sum(dim=0)


def _check_choice(key: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise ValueError(f"{KEY}.{key} is {name!r}; allowed: {', '.join(allowed)}")
