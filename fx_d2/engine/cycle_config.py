"""From ``CYCLE`` in a config to the schedule of a run: presets, patterns and what is on disk."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from detectron2.config import CfgNode

from fx_d2.data.build import build_joint_schedule
from fx_d2.data.sources import SOURCES
from fx_d2.data.task_loader import Key, TaskLoader

from .cycle import GROUPS, ORDERS, TASKS, Cycle, Group, Pass, Phase, Schedule, Slot, choose
from .optimizer import parse_numbers
from .weights import CheckpointError

CUSTOM, JOINT = "custom", "joint"
SLOT_IS = ("visit", "phase")
LR_PER = ("step", "cycle")
LOCKED_LAYERS = ("eval", "train")
_FOLDER = Path(__file__).with_name("cycles")
# What a choice is when neither config nor preset says anything.
_DEFAULTS = {"ORDER": "cyclic", "SLOT_IS": "visit", "LOCKED_LAYERS": "eval", "LR_PER": "step"}
_CHOICES = {
    "ORDER": (*ORDERS, JOINT),
    "SLOT_IS": SLOT_IS,
    "LOCKED_LAYERS": LOCKED_LAYERS,
    "LR_PER": LR_PER,
}
# Key of a record that says it is annotated for a task.
_ANNOTATION = {"cls": "labels", "loc": "annotations", "seg": "masks"}


class Plan(NamedTuple):
    """What a run trains, and for how long.

    Args:
        schedule: None for joint training.
        max_iter: iterations of the run.
        lines: all that decides which step trains what; stands in the training state.
    """

    schedule: Schedule | None
    max_iter: int
    lines: list[str]


def preset_names() -> tuple[str, ...]:
    """Values of ``CYCLE.NAME`` that ship with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


@lru_cache
def _read(name: str) -> Mapping[str, Any]:
    return yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def preset(name: str) -> Mapping[str, Any]:
    """What a preset says, as the keys of ``CYCLE``; nothing for ``custom``."""
    if name == CUSTOM:
        return {}
    return _read(choose(name, (*preset_names(), CUSTOM), "CYCLE.NAME"))


def cycle_choice(cfg: Any, key: str) -> str:
    """The value of a key of ``CYCLE`` with few values: the config's, else the preset's."""
    node = cfg.CYCLE
    fallback = preset(node.NAME) if node.NAME else {"ORDER": JOINT}
    value = node[key] or fallback.get(key) or _DEFAULTS[key]
    return choose(value, _CHOICES[key], f"CYCLE.{key}")


def check_cycle(cfg: Any, keys: Sequence[Key]) -> None:
    """Raise for what is wrong in ``CYCLE``, as far as it can be told without any record.

    Args:
        cfg: with the keys of :func:`fx_d2.config.add_fx_config`.
        keys: every (source, task) that is trained.
    """
    node = cfg.CYCLE
    if not node.NAME:
        idle = [key for key in ("SLOTS", "PHASES", "GROUPS", "ORDER") if node[key]]
        if idle:
            raise ValueError(
                f"CYCLE.{idle[0]} is set but CYCLE.NAME is not; name a preset "
                f"({', '.join(preset_names())}) or {CUSTOM!r}"
            )
    for key in ("CYCLES", "MAX_STEPS_PER_PHASE"):
        if not isinstance(node[key], int) or node[key] < 0:
            raise ValueError(f"CYCLE.{key} is {node[key]!r}; allowed: 0 or a whole number above")
    longest = _longest(cfg)
    chosen = {key: cycle_choice(cfg, key) for key in _CHOICES}
    if chosen["ORDER"] != JOINT:
        cycle = build_cycle(cfg, keys)
        cycle.schedule(lambda _: Pass(1, 1), cfg.CYCLE.CYCLES)
        _check_phase_names(longest, (phase for slot in cycle.slots for phase in slot.phases))
    elif chosen["LR_PER"] == "cycle":
        raise ValueError("CYCLE.LR_PER is 'cycle', but joint training has no cycle; use 'step'")


def build_plan(cfg: Any, loader: TaskLoader) -> Plan:
    """The schedule of a config; reads the records that it needs to know the number of.

    Args:
        cfg: with the keys of :func:`fx_d2.config.add_fx_config`.
        loader: of the datasets to train.
    """
    check_cycle(cfg, loader.keys)
    longest = _longest(cfg)
    if cycle_choice(cfg, "ORDER") == JOINT:
        return _joint(cfg, loader)

    def measured(phase: Phase) -> Pass:
        most = longest.get(f"{phase.task}/{phase.name}", longest[phase.task])
        return _pass(cfg, loader, phase, most)

    schedule = build_cycle(cfg, loader.keys).schedule(measured, cfg.CYCLE.CYCLES)
    return Plan(schedule, schedule.total or cfg.SOLVER.MAX_ITER, schedule.lines())


def with_max_iter(cfg: CfgNode, max_iter: int) -> CfgNode:
    """``cfg`` with this ``SOLVER.MAX_ITER``: schedules of the learning rate are built from it."""
    if max_iter == cfg.SOLVER.MAX_ITER:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = max_iter
    cfg.freeze()
    return cfg


def check_same_lines(then: Sequence[str], now: Sequence[str]) -> None:
    """Raise when a run that is resumed had another schedule, with the first difference."""
    for was, is_now in zip_longest(then, now, fillvalue="nothing"):
        if was != is_now:
            raise CheckpointError(
                f"the schedule of this run has {is_now!r}",
                expected=f"{was!r} as in the run it would resume",
                fix="resume with its own config, or start anew in another OUTPUT_DIR",
            )


def _joint(cfg: Any, loader: TaskLoader) -> Plan:
    fx = cfg.DATALOADER.FX
    lines = [
        f"joint training of {' '.join(cfg.DATASETS.TRAIN)}",
        f"tasks {' '.join([*cfg.DATASETS.TASKS, *cfg.DATASETS.EXTRA_TASKS])}",
        f"ratio {' '.join(fx.DATASET_RATIO)}, repeat to longest: {fx.REPEAT_TO_LONGEST}",
    ]
    max_iter = cfg.SOLVER.MAX_ITER
    if cfg.CYCLE.CYCLES:
        max_iter = cfg.CYCLE.CYCLES * build_joint_schedule(cfg, loader).round_steps
    return Plan(None, max_iter, lines)


def build_cycle(cfg: Any, keys: Sequence[Key]) -> Cycle:
    """The cycle of ``CYCLE``.

    Args:
        cfg: with the keys of :func:`fx_d2.config.add_fx_config`.
        keys: every (source, task) there is, in the order that ``*`` stands for.
    """
    node, given = cfg.CYCLE, preset(cfg.CYCLE.NAME)
    groups = _groups(node.GROUPS or given.get("GROUPS") or {}, optional=not node.GROUPS)
    by_task = {**(given.get("PHASES") or {}), **dict(node.PHASES)}
    for task in by_task:
        choose(task, TASKS, "CYCLE.PHASES: task")
    slots: list[Slot] = []
    for entry in node.SLOTS or given.get("SLOTS") or ():
        pattern, own = _entry(entry)
        for source, task in _matching(pattern, keys):
            if own is None and task not in by_task:
                raise ValueError(
                    f"CYCLE.PHASES has no phases for {task}, which slot {source}/{task} needs; "
                    f"add them, or leave {task} out of DATASETS.TASKS"
                )
            raw = by_task[task] if own is None else own
            if not isinstance(raw, (list, tuple)):
                raise ValueError(f"phases of {source}/{task}: {raw!r} is not a list of phases")
            phases = [_phase(source, task, item, groups) for item in raw]
            if cycle_choice(cfg, "SLOT_IS") == "phase":
                slots += [Slot(source, task, (phase,)) for phase in phases]
            else:
                slots.append(Slot(source, task, tuple(phases)))
    if not slots:
        raise ValueError("CYCLE.SLOTS is empty; '*' is every source and task of DATASETS.TRAIN")
    return Cycle(cfg.CYCLE.NAME, tuple(slots), groups, cycle_choice(cfg, "ORDER"))


def _groups(given: Mapping[str, Any], *, optional: bool) -> Mapping[str, Group]:
    if not given:
        return GROUPS
    groups = {}
    for name, item in given.items():
        where = f"CYCLE.GROUPS.{name}"
        if isinstance(item, Mapping):
            for key in item:
                choose(key, ("patterns", "tasks"), f"{where}: key")
            patterns, tasks = item.get("patterns"), item.get("tasks", TASKS)
        else:
            patterns, tasks = item, TASKS
        groups[name] = Group(
            _words(patterns, f"{where}.patterns"), _words(tasks, f"{where}.tasks"), optional
        )
    return groups


def _words(given: Any, where: str) -> tuple[str, ...]:
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(f"{where} is {given!r}; write a list of names")
    return tuple(str(word) for word in given)


def _entry(entry: Any) -> tuple[str, Any]:
    """(pattern, its own phases or None) of an item of ``CYCLE.SLOTS``."""
    if isinstance(entry, Mapping):
        for key in entry:
            choose(key, ("slot", "phases"), "CYCLE.SLOTS: key")
        if "slot" in entry:
            return str(entry["slot"]), entry.get("phases")
    elif isinstance(entry, str):
        return entry, None
    raise ValueError(f"CYCLE.SLOTS has {entry!r}; write 'source/task', or slot: 'source/task'")


def _matching(pattern: str, keys: Sequence[Key]) -> list[Key]:
    """The (source, task) that a slot stands for; none is an error that says why."""
    source, _, task = pattern.partition("/")
    task = task or "*"
    found = [k for k in keys if fnmatchcase(k[0], source) and fnmatchcase(k[1], task)]
    if found:
        return found
    where, there = f"CYCLE.SLOTS has {pattern!r}", list(dict.fromkeys(key for key, _ in keys))
    if not any(fnmatchcase(key, source) for key in there):
        if source in SOURCES:
            raise ValueError(f"{where}, but DATASETS.TRAIN only has {', '.join(there)}")
        near = difflib.get_close_matches(source, [*there, *SOURCES], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}: there is no source {source!r}{hint}")
    if not any(fnmatchcase(name, task) for name in TASKS):
        choose(task, TASKS, f"{where}: task")
    has = ", ".join(f"{key}/{name}" for key, name in keys if fnmatchcase(key, source))
    raise ValueError(f"{where}, which is not trained here; there is {has}")


def _phase(source: str, task: str, item: Any, groups: Mapping[str, Group]) -> Phase:
    where = f"phases of {source}/{task}"
    if not isinstance(item, Mapping):
        raise ValueError(f"{where}: {item!r} is no phase; write {{name, share, train}}")
    for key in item:
        choose(key, ("name", "share", "train"), f"{where}: key")
    if "train" not in item:
        raise ValueError(f"{where}: {dict(item)} does not say what to train")
    train = item["train"]
    trainable = tuple(groups) if train == "all" else _words(train, f"{where}: train")
    return Phase(source, task, str(item.get("name", "release")), item.get("share", 1.0), trainable)


def _longest(cfg: Any) -> dict[str, int]:
    """Iterations after which a phase ends at the latest, by task or "task/phase"; 0 is never."""
    key = "CYCLE.MAX_STEPS_PER_PHASE_BY"
    longest = dict.fromkeys(TASKS, int(cfg.CYCLE.MAX_STEPS_PER_PHASE))
    for name, steps in parse_numbers(key, cfg.CYCLE.MAX_STEPS_PER_PHASE_BY).items():
        choose(name.partition("/")[0], TASKS, f"{key}: task of {name!r}")
        if steps != int(steps):
            raise ValueError(f"{key} has {name}={steps:g}; allowed: 0 or a whole number above")
        longest[name] = int(steps)
    return longest


def _check_phase_names(longest: Mapping[str, int], phases: Iterable[Phase]) -> None:
    """An exception for a phase that is not there would silently change nothing."""
    there = list(dict.fromkeys(f"{phase.task}/{phase.name}" for phase in phases))
    for name in longest:
        if "/" in name:
            choose(name, there, "CYCLE.MAX_STEPS_PER_PHASE_BY")


def _pass(cfg: Any, loader: TaskLoader, phase: Phase, most: int) -> Pass:
    records = loader.records(phase.source, phase.task)
    annotation = _ANNOTATION[phase.task]
    if not any(annotation in r and _is_known(r[annotation]) for r in records):
        raise ValueError(
            f"slot {phase.source}/{phase.task} has no data: none of its {len(records)} training "
            f"records is annotated for {phase.task}"
        )
    steps = loader.steps_per_pass(phase.source, phase.task, phase.share)
    images = loader.images_per_pass(phase.source, phase.task, phase.share)
    if most and most < steps:
        steps = most
    return Pass(min(images, steps * cfg.SOLVER.IMS_PER_BATCH), steps)


def _is_known(annotation: Any) -> bool:
    """An empty list of boxes or set of masks is known too: nothing was found."""
    return not (isinstance(annotation, np.ndarray) and np.isnan(annotation).all())
