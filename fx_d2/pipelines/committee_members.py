"""A trained classifier as a member of a committee: its own input path, its logits, its layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fx_d2.data.errors import DataError, did_you_mean
from fx_d2.engine.ensemble import PathLike, Trained, load_trained
from fx_d2.engine.weights import digest
from fx_d2.explain import Classifier
from fx_d2.modeling.heads.context import stated_items
from fx_d2.modeling.heads.spec import HeadSpec
from fx_d2.predictor import Inputs

Image = PathLike | npt.NDArray[Any]
# Of a table of scores, beside the members.
_COLUMNS = ("class", "committee", "positives", "negatives", "uncertain")


class CommitteeError(ValueError):
    """A committee that cannot be; the message is one line."""


@dataclass(frozen=True)
class MemberSpec:
    """Which classifier, as a user names it.

    Args:
        path: output folder of a run, or its weights.
        head: source of the image labels; "" where the model has one such head only.
        layer: whose activations Grad-CAM looks at; "" is the last stage of the trunk.
        name: in tables and messages; "" is made from the path.
        weight: of its say in the committee.
    """

    path: PathLike
    head: str = ""
    layer: str = ""
    name: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """An image as one member sees it.

    Args:
        image: float32 (C, h, w) in [0, 1].
        content: (height, width) of the image within h x w; the rest, at the right and the bottom,
            is padding.
        height: of the original, in pixels.
        width: likewise.
    """

    image: Tensor
    content: tuple[int, int]
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Member:
    """One classifier of a committee.

    Args:
        name: in tables and messages.
        module: the network, in evaluation mode; layers are named in it.
        spec: of its head.
        places: where the committee's classes are among its logits.
        layer: for class activation maps.
        weight: float64 (K,), its say in every class.
        checksum: SHA-256 of its weights.
        origin: what a result says about where it came from.
        inputs: its own input path.
    """

    name: str
    module: nn.Module
    spec: HeadSpec
    places: tuple[int, ...]
    layer: str
    weight: npt.NDArray[np.float64]
    checksum: str
    origin: dict[str, Any]
    inputs: Inputs = field(repr=False)
    _content: tuple[int, int] | None = field(default=None, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """What its logits mean, in the order of the committee."""
        return tuple(self.spec.classes[place] for place in self.places)

    @property
    def black(self) -> float:
        """Value of air in its images."""
        return 0.0

    @property
    def zero(self) -> Tensor:
        """(C, 1, 1), what its own normalisation makes 0."""
        return cast(Any, self.module).pixel_mean

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return cast(Any, self.module).device

    def preprocess(self, image: Image) -> Prepared:
        """An image on this member's own input path.

        Args:
            image: a file, or grey values (H, W), bright = dense, of uint8, uint16 or a float type
                in [0, 1].

        Raises:
            DataError: it cannot be read.
        """
        sample = self.inputs[image][1]
        if isinstance(sample, DataError):
            raise sample
        found = sample["image"]
        # As the network would pad it itself; so a map of it covers what the tensor covers.
        unit = int(cast(Any, self.module).trunk.size_divisibility) or 1
        found = F.pad(found, (0, -found.shape[-1] % unit, 0, -found.shape[-2] % unit))
        height, width = sample["content_size"]
        return Prepared(found, (int(height), int(width)), sample["height"], sample["width"])

    def classify(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the committee's classes for (N, C, h, w) images without padding.

        Where ``preprocess`` gives the same content for all images (``INPUT.FX.RESIZE: square``),
        that content is meant; else see :meth:`classifier`.
        """
        return self.classifier(self._content)(images)

    def classifier(self, content: tuple[int, int] | None) -> Classifier:
        """A function like :meth:`classify` of images with this content; None is all of them."""

        def classify(images: Tensor) -> Tensor:
            return self._logits(images, content)[:, list(self.places)]

        return classify

    def answer(self, images: Tensor, content: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, each (N, K) float32, without a graph."""
        with torch.no_grad():
            logits = self._logits(images, content).float()
        exclusive = self.spec.kind == "multiclass"
        probabilities = logits.softmax(1) if exclusive else logits.sigmoid()
        places = list(self.places)
        return logits[:, places], probabilities[:, places]

    def _logits(self, images: Tensor, content: tuple[int, int] | None) -> Tensor:
        size = content or tuple(images.shape[-2:])
        batch = [
            {"image": image, "content_size": size, "source": self.spec.source} for image in images
        ]
        return cast(Any, self.module).label_logits(batch, self.spec.source)

    def weighing(self, weight: npt.NDArray[np.float64]) -> Member:
        """The same member with another say, (K,)."""
        return replace(self, weight=np.asarray(weight, dtype=np.float64))


def load_members(
    specs: Sequence[MemberSpec], device: torch.device
) -> list[tuple[MemberSpec, Trained, HeadSpec]]:
    """The trained models with the head each is asked for.

    Raises:
        CheckpointError: weights are missing or cannot be read; see :func:`load_trained`.
        CommitteeError: a model has no such head.
    """
    if not specs:
        raise CommitteeError("a committee has at least one member; name folders of runs or weights")
    found = []
    for spec, name in zip(specs, _names(specs), strict=True):
        if not np.isfinite(spec.weight) or spec.weight < 0:
            raise CommitteeError(f"member {name}: weight {spec.weight}; it is at least 0")
        trained = load_trained(spec.path, device)
        if not hasattr(trained.model, "label_logits"):
            raise CommitteeError(
                f"member {name}: {type(trained.model).__name__} gives no logits of image labels; "
                "FoundationX and FPSM do"
            )
        found.append((replace(spec, name=name), trained, _head(trained, spec.head, name)))
    return found


def make_member(
    spec: MemberSpec, trained: Trained, head: HeadSpec, classes: Sequence[str]
) -> Member:
    """A member that answers for these classes."""
    module = cast(Any, trained.model).answerer
    fx = trained.cfg.INPUT.FX
    layer = spec.layer or last_stage(module)
    if layer not in dict(module.named_modules()):
        known = [name for name, _ in module.named_modules() if name]
        raise CommitteeError(
            f"member {spec.name}: no layer {layer!r}.{did_you_mean(layer, known)} Its trunk has "
            + ", ".join(f"trunk.net.{name}" for name, _ in module.trunk.net.named_children())
        )
    try:
        stated = stated_items(module, {})
    except ValueError as exc:
        raise CommitteeError(f"member {spec.name}: {exc}") from exc
    return Member(
        name=spec.name,
        module=module,
        spec=head,
        places=tuple(head.classes.index(name) for name in classes),
        layer=layer,
        weight=np.full(len(classes), float(spec.weight)),
        checksum=trained.description.get("weights_sha256") or digest(trained.weights),
        origin=trained.origin(),
        inputs=Inputs(trained.cfg, head.source, stated),
        _content=(int(fx.SIZE), int(fx.SIZE)) if fx.RESIZE == "square" else None,
    )


def last_stage(module: nn.Module, least_cells: int = 0, side_px: int = 0) -> str:
    """The name of the layer that gives the last stage of the trunk.

    Args:
        module: the network.
        least_cells: the last stage that has so many cells along a side, where there is one.
        side_px: of the images.
    """
    info = cast(Any, module).trunk.net.feature_info
    facts = info if isinstance(info, list) else info.get_dicts()
    fine = [fact for fact in facts if side_px // fact["reduction"] >= least_cells]
    return f"trunk.net.{(fine or facts)[-1]['module']}"


def _head(trained: Trained, asked: str, name: str) -> HeadSpec:
    heads = {spec.source: spec for spec in cast(Any, trained.model).specs if spec.task == "cls"}
    if not heads:
        others = ", ".join(spec.name for spec in cast(Any, trained.model).specs)
        raise CommitteeError(f"member {name} has no head of image labels; it has {others}")
    asked = asked.removesuffix("/cls")
    if not asked and len(heads) == 1:
        return next(iter(heads.values()))
    if asked not in heads:
        what = f"has no head {asked!r}" if asked else "has several heads of image labels; name one"
        raise CommitteeError(
            f"member {name} {what}.{did_you_mean(asked, heads)} It has {', '.join(heads)}"
        )
    return heads[asked]


def _names(specs: Sequence[MemberSpec]) -> list[str]:
    """Names that differ, also from the columns of a table: the one given, else the folder's."""
    names: list[str] = []
    for spec in specs:
        path = os.fspath(spec.path).rstrip(os.sep)
        folder, file = os.path.split(os.path.abspath(path))
        is_file = file.endswith((".safetensors", ".pth", ".pt"))
        name = spec.name or (os.path.basename(folder) if is_file else file)
        if spec.name and name in (*names, *_COLUMNS):
            raise CommitteeError(f"a member cannot be named {name!r}: that name is taken")
        number, unique = 2, name
        while unique in (*names, *_COLUMNS):
            unique, number = f"{name}#{number}", number + 1
        names.append(unique)
    return names
