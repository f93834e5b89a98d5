"""A committee: classifiers of any trunk, size and source that answer for the same classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fx_d2.data.errors import did_you_mean
from fx_d2.engine.ensemble import PathLike
from fx_d2.explain import (
    CAM_METHODS,
    Explanation,
    IGSettings,
    class_activation,
    integrated_gradients,
)

from .committee_members import (
    CommitteeError,
    Image,
    Member,
    MemberSpec,
    Prepared,
    load_members,
    make_member,
)

__all__ = [
    "METHODS",
    "Answers",
    "Committee",
    "CommitteeError",
    "CommitteeMaps",
    "Member",
    "MemberSpec",
    "Prepared",
    "build_committee",
]

METHODS = ("integrated_gradients", *CAM_METHODS)


@dataclass(frozen=True)
class Answers:
    """What the members say about some images.

    Args:
        logits: float32 (members, N, K).
        probabilities: likewise.
        combined: (N, K), their mean, weighted by member and class.
    """

    logits: Tensor
    probabilities: Tensor
    combined: Tensor


@dataclass(frozen=True)
class CommitteeMaps:
    """The maps of every member in the frame of the original image.

    Args:
        maps: float32 (members, N, M, H, W), at least 0, not scaled.
        logits: (members, N, K) at the images.
        completeness: (members, N, M); None for methods that have none.
        steps: (members, N); likewise.
    """

    maps: Tensor
    logits: Tensor
    completeness: Tensor | None
    steps: Tensor | None


@dataclass(frozen=True, eq=False)
class Committee:
    """Classifiers behind one call; make it with :func:`build_committee`.

    ::

        committee = build_committee([MemberSpec("output/a"), MemberSpec("output/b")])
        images = [committee.prepare(path) for path in paths]
        committee.answer(images).combined             # (N, K) probabilities
        committee.explain(images, ["Edema"], size=(224, 224)).maps

    Args:
        classes: K names.
        members: each answers for them in this order.
    """

    classes: tuple[str, ...]
    members: tuple[Member, ...]

    def places(self, classes: Sequence[str]) -> list[int]:
        """Where classes stand among :attr:`classes`.

        Raises:
            KeyError: one does not.
        """
        for name in classes:
            if name not in self.classes:
                raise KeyError(
                    f"the committee has no class {name!r}.{did_you_mean(name, self.classes)} It "
                    f"has {', '.join(self.classes)}"
                )
        return [self.classes.index(name) for name in classes]

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """(members, K); a class in which no member has a say is everyone's alike."""
        found = np.stack([member.weight for member in self.members])
        found[:, found.sum(0) <= 0] = 1.0
        return found

    def weighing(self, weights: npt.NDArray[np.float64]) -> Committee:
        """The same committee with other weights (members, K)."""
        if weights.shape != (len(self.members), len(self.classes)):
            raise ValueError(
                f"weights are {weights.shape}; expected (members, classes) "
                f"{(len(self.members), len(self.classes))}"
            )
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("weights are finite numbers of at least 0")
        rows = zip(self.members, weights, strict=True)
        return replace(self, members=tuple(member.weighing(row) for member, row in rows))

    def prepare(self, image: Image) -> tuple[Prepared, ...]:
        """An image as each member sees it; raises DataError where it cannot be read."""
        return tuple(member.preprocess(image) for member in self.members)

    def combined(self, values: Tensor) -> Tensor:
        """(members, N, K) -> (N, K), their mean weighted by member and class."""
        weights = torch.as_tensor(self.weights, dtype=values.dtype, device=values.device)
        return (values * (weights / weights.sum(0))[:, None]).sum(0)

    def answer(self, images: Sequence[Sequence[Prepared]]) -> Answers:
        """Logits and probabilities of every member, and of all together.

        Args:
            images: N, each as :meth:`prepare` gives it.
        """
        logits, probabilities = [], []
        for member, seen in self._by_member(images):
            parts = [torch.empty(len(seen), len(self.classes)) for _ in range(2)]
            for content, places, batch in _alike(seen, member.device):
                for part, found in zip(parts, member.answer(batch, content), strict=True):
                    part[places] = found.cpu()
            logits.append(parts[0])
            probabilities.append(parts[1])
        stacked = torch.stack(probabilities)
        return Answers(torch.stack(logits), stacked, self.combined(stacked))

    def explain(
        self,
        images: Sequence[Sequence[Prepared]],
        classes: Sequence[str],
        *,
        size: tuple[int, int],
        method: str = "integrated_gradients",
        settings: IGSettings | None = None,
    ) -> CommitteeMaps:
        """Maps of every member, whatever the size of its images, in one frame.

        Args:
            images: N, each as :meth:`prepare` gives it.
            classes: M names.
            size: (H, W) of the maps; they cover the whole original, whatever its shape.
            method: of :data:`METHODS`.
            settings: of Integrated Gradients; None is the defaults.
        """
        if method not in METHODS:
            near = did_you_mean(method, METHODS)
            raise ValueError(f"explainer {method!r}; allowed: {', '.join(METHODS)}.{near}")
        places = self.places(classes)
        found = [
            _explained(member, seen, places, size, method, settings or IGSettings())
            for member, seen in self._by_member(images)
        ]
        return CommitteeMaps(
            maps=torch.stack([one.maps for one in found]),
            logits=torch.stack([one.logits for one in found]),
            completeness=_stacked([one.completeness for one in found]),
            steps=_stacked([one.steps for one in found]),
        )

    def _by_member(
        self, images: Sequence[Sequence[Prepared]]
    ) -> Iterator[tuple[Member, list[Prepared]]]:
        if not images:
            raise ValueError("no images")
        for number, member in enumerate(self.members):
            yield member, [seen[number] for seen in images]


def build_committee(
    specs: Sequence[MemberSpec | PathLike],
    *,
    classes: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> Committee:
    """A committee from run folders or weights.

    Args:
        specs: of the members; a path alone is one whose only head of image labels is meant.
        classes: that the committee answers for; None is all, which every member must then have.
        device: of all members.

    Raises:
        CheckpointError: weights are missing, damaged or of another model.
        CommitteeError: a head is not there, or the members' classes differ.
    """
    named = [spec if isinstance(spec, MemberSpec) else MemberSpec(spec) for spec in specs]
    loaded = load_members(named, torch.device(device))
    chosen = _classes([(spec.name, head.classes) for spec, _, head in loaded], classes)
    members = tuple(make_member(spec, trained, head, chosen) for spec, trained, head in loaded)
    return Committee(chosen, members)


def _classes(
    members: Sequence[tuple[str, Sequence[str]]], asked: Sequence[str] | None
) -> tuple[str, ...]:
    """The classes of the committee."""
    first, wanted = members[0]
    if asked is None:
        for name, found in members[1:]:
            lacking = [c for c in wanted if c not in found]
            more = [c for c in found if c not in wanted]
            if lacking or more:
                shared = [c for c in wanted if all(c in other for _, other in members)]
                raise CommitteeError(
                    f"members {first} and {name} have different classes:"
                    + (f" {name} lacks {', '.join(lacking)}" if lacking else "")
                    + (";" if lacking and more else "")
                    + (f" only {name} has {', '.join(more)}" if more else "")
                    + f". To do: name the classes; all have {', '.join(shared) or 'none'}"
                )
        return tuple(wanted)
    if not asked or len(set(asked)) != len(asked):
        raise CommitteeError(f"classes {list(asked)}; name at least one, and each once")
    for name, found in members:
        for c in asked:
            if c not in found:
                raise CommitteeError(
                    f"member {name} has no class {c!r}.{did_you_mean(c, found)} It has "
                    f"{', '.join(found)}"
                )
    return tuple(asked)


def _alike(
    images: Sequence[Prepared], device: torch.device
) -> Iterator[tuple[tuple[int, int], list[int], Tensor]]:
    """(content, which, (n, C, h, w)) of images that have their size and content in common."""
    groups: dict[tuple, list[int]] = defaultdict(list)
    for number, seen in enumerate(images):
        groups[(tuple(seen.image.shape), seen.content)].append(number)
    for (_, content), places in groups.items():
        yield content, places, torch.stack([images[n].image for n in places]).to(device)


def _explained(
    member: Member,
    seen: Sequence[Prepared],
    places: list[int],
    size: tuple[int, int],
    method: str,
    settings: IGSettings,
) -> Explanation:
    """Of all images, on the processor, in the frame of the originals."""
    found: list[Explanation] = []
    order: list[int] = []
    for content, which, batch in _alike(seen, member.device):
        classifier = member.classifier(content)
        if method == "integrated_gradients":
            one = integrated_gradients(
                classifier, batch, places, settings, member.black, member.zero
            )
        else:
            one = class_activation(member.module, classifier, batch, places, member.layer, method)
        height, width = content
        maps = resized(one.maps[..., :height, :width], size).cpu()
        found.append(replace(one, maps=maps, logits=one.logits.cpu()))
        order += which
    back = torch.tensor(order).argsort()
    return Explanation(
        maps=torch.cat([one.maps for one in found])[back],
        logits=torch.cat([one.logits for one in found])[back],
        completeness=_joined([one.completeness for one in found], back),
        steps=_joined([one.steps for one in found], back),
    )


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, M, h, w) at another size; where they shrink, an average."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)


def _joined(parts: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    known = [part.cpu() for part in parts if part is not None]
    return torch.cat(known)[order] if known else None


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.stack(known) if known else None
