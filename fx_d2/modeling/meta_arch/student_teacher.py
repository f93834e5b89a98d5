"""Foundation X with a teacher: a slow average of the student, which the student stays close to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _IncompatibleKeys
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fx_d2.data.source import TASKS

from ..whole_batch import share
from .foundation_x import Asked, Batch, FoundationX

PREFIX = "teacher."  # of the teacher's tensors in a checkpoint
ANSWERS = ("student", "teacher")
MIXES = ("sum", "convex")
BUFFERS = ("average", "copy")
LOSS = "loss_consistency"


def _mse(mine: Tensor, its: Tensor) -> Tensor:
    return F.mse_loss(mine, its)


def _unit_mse(mine: Tensor, its: Tensor) -> Tensor:
    return F.mse_loss(F.normalize(mine, dim=1), F.normalize(its, dim=1))


def _cosine(mine: Tensor, its: Tensor) -> Tensor:
    # Half the squared distance of unit vectors: 1 - cosine, and exactly 0 for equal ones.
    return _unit_mse(mine, its) * (mine.shape[1] / 2)


# Features (N, C, ...) of student and teacher -> scalar.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mse,
    "unit_mse": _unit_mse,
    "cosine": _cosine,
}


@META_ARCH_REGISTRY.register()
class StudentTeacher(FoundationX):
    """A :class:`FoundationX`, the student, that holds a second one, its teacher.

    The student's parameters keep their names, so a checkpoint loads into a plain FoundationX; the
    teacher stands beside them as ``teacher.*``, and weights without it load into both. The teacher
    is in ``state_dict()`` and moves with the model, but it is no submodule: ``parameters()``,
    ``train()``, optimizers, freezing and distributed wrappers see the student only.

    In training a batch gives ``loss_consistency`` too: the distance between what the heads of its
    task look at in the student and in the teacher, see :meth:`FoundationX.seen`. The student sees
    ``image``, the teacher ``second_view`` of the same place where the batch has one. Features that
    are locked cost no forward pass of the teacher.
    """

    @configurable
    def __init__(
        self,
        *,
        weight: float = 1.0,
        mix: str = "sum",
        distances: Mapping[str, str] | None = None,
        answer: str = "teacher",
        **parts: Any,
    ) -> None:
        """Build the student and its copy.

        Args:
            weight: of the consistency loss; a ramp changes ``consistency_weight`` while it trains.
            mix: ``sum`` adds it to the losses of the task, ``convex`` also takes 1 - weight of
                these.
            distances: {task: key of ``DISTANCES``}.
            answer: whose predictions the model gives, ``student`` or ``teacher``.
            parts: see :class:`FoundationX`.
        """
        teacher = FoundationX(**copy.deepcopy(parts))
        super().__init__(**parts)
        if mix not in MIXES:
            raise ValueError(f"TEACHER.MIX is {mix!r}; allowed: {MIXES}")
        if weight < 0 or (mix == "convex" and weight > 1):
            raise ValueError(
                f"TEACHER.WEIGHT is {weight}; it is at least 0, and at most 1 with TEACHER.MIX "
                "'convex'"
            )
        self.distances = dict.fromkeys(TASKS, "cosine") | dict(distances or {})
        unknown = set(self.distances.values()) - set(DISTANCES)
        if unknown:
            raise ValueError(f"TEACHER.DISTANCE names {sorted(unknown)}; allowed: {(*DISTANCES,)}")
        self.weight, self.mix = weight, mix
        self.consistency_weight = weight
        self._answer = _known_answer(answer)
        # In a tuple, so that it is no submodule.
        self._held = (teacher.eval().requires_grad_(False),)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """The arguments that the config decides."""
        node = cfg.TEACHER
        # Where both are evaluated, asking for one prediction gives the teacher's.
        answer = "teacher" if node.EVALUATE == "both" else node.EVALUATE
        distances = dict.fromkeys(TASKS, node.DISTANCE)
        for text in node.DISTANCE_BY:
            task, _, name = text.partition("=")
            if task not in TASKS:
                raise ValueError(
                    f"TEACHER.DISTANCE_BY has {text!r}; write 'task=distance', a task of {TASKS}"
                )
            distances[task] = name
        return FoundationX.from_config(cfg) | {
            "weight": float(node.WEIGHT),
            "mix": node.MIX,
            "distances": distances,
            "answer": answer,
        }

    @property
    def teacher(self) -> FoundationX:
        """The teacher: always in evaluation mode, never with a gradient."""
        return self._held[0]

    @property
    def answerer(self) -> FoundationX:
        """Student or teacher, whichever predicts."""
        return self.teacher if self._answer == "teacher" else self

    def forward(self, batch: Batch, heads: Asked | None = None) -> Any:
        """Losses of the student in training, predictions of either in evaluation.

        Args:
            batch: see :meth:`FoundationX.forward`; in training ``second_view`` may stand beside
                ``image``.
            heads: likewise.

        Returns:
            As there, in training with ``loss_consistency`` where it can teach anything.
        """
        if not self.training and self._answer == "teacher":
            return self.teacher(batch, self._asked if heads is None else heads)
        if not self.training or not batch or self.consistency_weight == 0:
            return super().forward(batch, heads)
        spec = self._route(batch)
        losses, seen = self._learn(batch, spec)
        if self.mix == "convex":
            share = 1.0 - self.consistency_weight
            losses = {name: value * share for name, value in losses.items()}
        if any(features.requires_grad for features in seen.values()):
            losses[LOSS] = self.consistency_weight * self.consistency(seen, batch, spec.task)
        return losses

    def consistency(self, seen: Mapping[str, Tensor], batch: Batch, task: str) -> Tensor:
        """How far the student is from the teacher, without a weight.

        Args:
            seen: what :meth:`seen` gives for the student.
            batch: what the teacher looks at.
            task: of the batch.

        Returns:
            () float32; the mean where there are several maps. No gradient reaches the teacher.
        """
        views = [{**item, "image": item.get("second_view", item["image"])} for item in batch]
        with torch.no_grad():
            targets = self.teacher.seen(views, task)
        distance = DISTANCES[self.distances[task]]
        parts = [distance(seen[name].float(), targets[name].float()) for name in targets]
        mean = torch.stack(parts).mean()
        return mean * share(len(next(iter(targets.values()))), mean)

    @torch.no_grad()
    def update_teacher(self, momentum: float, buffers: str = "average") -> None:
        """Move the teacher towards the student: ``momentum * teacher + (1 - momentum) * student``.

        Args:
            momentum: in [0, 1].
            buffers: running statistics are averaged as weights are (``average``) or taken over
                (``copy``). What is not a float, such as a counter, is always taken over.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}; it is in [0, 1]")
        if buffers not in BUFFERS:
            raise ValueError(f"TEACHER.BUFFERS is {buffers!r}; allowed: {BUFFERS}")
        mine, its = FoundationX.state_dict(self), self.teacher.state_dict()
        copied = {name for name, value in mine.items() if not value.is_floating_point()}
        if buffers == "copy":
            copied |= {name for name, _ in self.named_buffers() if name in mine}
        averaged = [name for name in mine if name not in copied]
        average = get_ema_multi_avg_fn(momentum)
        average([its[n] for n in averaged], [mine[n] for n in averaged], None)
        for name in copied:
            its[name].copy_(mine[name])

    @contextmanager
    def answering(self, who: str) -> Iterator[StudentTeacher]:
        """Within this context predictions are those of ``student`` or ``teacher``."""
        before, self._answer = self._answer, _known_answer(who)
        try:
            yield self
        finally:
            self._answer = before

    def for_both(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a plain FoundationX, for the teacher too; others as they are."""
        found = dict(weights)
        if not any(name.startswith(PREFIX) for name in found):
            found |= {PREFIX + name: value for name, value in weights.items()}
        return found

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        """The student's as those of a plain FoundationX, then the teacher's."""
        found = super().state_dict(
            *args, destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        held = prefix + PREFIX
        self.teacher.state_dict(destination=found, prefix=held, keep_vars=keep_vars)
        return found

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Weights of a student and a teacher, or those of a plain FoundationX for both."""
        missing: list[str] = []
        unexpected: list[str] = []
        weights = self.for_both(state_dict)
        for prefix, load in (("", super().load_state_dict), (PREFIX, self.teacher.load_state_dict)):
            own = {
                name[len(prefix) :]: value
                for name, value in weights.items()
                if name.startswith(PREFIX) == bool(prefix)
            }
            report = load(own, strict=strict, assign=assign)
            missing += [prefix + name for name in report.missing_keys]
            unexpected += [prefix + name for name in report.unexpected_keys]
        return _IncompatibleKeys(missing, unexpected)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        for held in getattr(self, "_held", ()):  # not there yet while the student is built
            held._apply(fn, recurse)
        return self


def _known_answer(who: str) -> str:
    if who not in ANSWERS:
        raise ValueError(f"TEACHER.EVALUATE is {who!r}; allowed: {(*ANSWERS, 'both')}")
    return who


def teacher_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's tensors of a checkpoint, under the names of a plain FoundationX."""
    return {n.removeprefix(PREFIX): v for n, v in weights.items() if n.startswith(PREFIX)}


def evaluated_models(model: nn.Module, which: str) -> Sequence[str]:
    """Who is evaluated by ``TEACHER.EVALUATE``; a model without a teacher is ``""``."""
    if not isinstance(model, StudentTeacher):
        return ("",)
    return ANSWERS if which == "both" else (_known_answer(which),)
