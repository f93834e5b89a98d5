"""Which heads a model has: one per task and source, derived from the table of sources.

The one place where the modelling code looks at the data layer; everything else is told.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.layers import ShapeSpec

from fx_d2.data.build import source_of, tasks_of
from fx_d2.data.source import TASKS
from fx_d2.data.sources import get_source

ANY_CLASS = "any"


@dataclass(frozen=True)
class HeadSpec:
    """One head.

    Args:
        source: key of its source.
        task: ``cls``, ``loc`` or ``seg``.
        classes: names of its outputs, in order.
        kind: of an image label: ``multilabel``, ``multiclass`` or ``binary``.
        agnostic: boxes of every class of the source become its single class.
        instance_masks: whether boxes have a mask.
    """

    source: str
    task: str
    classes: tuple[str, ...]
    kind: str = "multilabel"
    agnostic: bool = False
    instance_masks: bool = False

    @property
    def name(self) -> str:
        """``source/task``, as heads are asked for and metrics are named."""
        return f"{self.source}/{self.task}"


def head_specs(cfg: Any) -> list[HeadSpec]:
    """The heads of a config: sources in its order, each with the tasks it trains."""
    named = tuple(cfg.MODEL.FX.SOURCES)
    keys = named or tuple(source_of(name).key for name in cfg.DATASETS.TRAIN)
    specs = []
    for key in dict.fromkeys(keys):
        source = get_source(key)
        for task in tasks_of(cfg, source):
            agnostic = task == "loc" and source.loc_agnostic and cfg.MODEL.FX.LOC.AGNOSTIC
            specs.append(
                HeadSpec(
                    source=key,
                    task=task,
                    classes=(ANY_CLASS,) if agnostic else source.classes(task),
                    kind=source.cls_kind if task == "cls" else "multilabel",
                    agnostic=agnostic,
                    instance_masks=task == "loc" and source.instance_masks and cfg.MODEL.MASK_ON,
                )
            )
    if not specs:
        raise ValueError(
            f"no heads: DATASETS.TRAIN is {tuple(cfg.DATASETS.TRAIN)}, MODEL.FX.SOURCES is {named},"
            f" DATASETS.TASKS is {tuple(cfg.DATASETS.TASKS)}; name a source annotated for a task"
        )
    return specs


def specs_of(cfg: Any, task: str) -> list[HeadSpec]:
    """The heads of one task."""
    return [spec for spec in head_specs(cfg) if spec.task == task]


def stage_channels(
    names: Sequence[str], input_shape: Mapping[str, ShapeSpec], key: str
) -> dict[str, int]:
    """Channels of the stages named by a config key, in that order."""
    missing = [name for name in names if name not in input_shape]
    if missing:
        raise ValueError(f"{key}.IN_FEATURES names {missing}; the trunk has {tuple(input_shape)}")
    return {name: input_shape[name].channels for name in names}


def select_heads(
    specs: Sequence[HeadSpec], asked: Iterable[str | tuple[str, str]] | None
) -> list[HeadSpec]:
    """The heads asked for, in the order of ``specs``.

    Args:
        specs: the heads there are.
        asked: each ``"source/task"``, ``(source, task)``, a source or a task; None is all.

    Raises:
        KeyError: for a head that does not exist, with near names and the list.
    """
    if asked is None:
        return list(specs)
    if isinstance(asked, str):
        asked = (asked,)
    chosen: set[str] = set()
    for item in asked:
        name = item if isinstance(item, str) else "/".join(item)
        found = {s.name for s in specs if name in (s.name, s.source, s.task)}
        if not found:
            raise KeyError(_no_head(name, specs))
        chosen |= found
    return [spec for spec in specs if spec.name in chosen]


def _no_head(name: str, specs: Sequence[HeadSpec]) -> str:
    known = [s.name for s in specs]
    near = difflib.get_close_matches(name, [*known, *(s.source for s in specs), *TASKS], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no head {name!r}.{hint} This model has {', '.join(known)}"
