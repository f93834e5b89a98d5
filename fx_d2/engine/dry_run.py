"""What a config would train, as a table, without training: the paper's table with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate

from fx_d2.data.build import build_joint_schedule

from .cycle import TRAINABLE, PhaseAt, Schedule
from .cycle_config import build_plan, with_max_iter
from .lock_release import patterns_by_group, refreshed


def dry_run(trainer: Any, cfg: CfgNode) -> str:
    """The schedule of a config as text; nothing is written and no image is read.

    Args:
        trainer: class with the builders of :class:`fx_d2.engine.trainer.FxTrainer`.
        cfg: with the keys of :func:`fx_d2.config.add_fx_config`.
    """
    loader = trainer.build_train_loader(cfg)
    schedule, max_iter, _ = build_plan(cfg, loader)
    if schedule is None:
        mix = build_joint_schedule(cfg, loader).describe()
        return f"{mix}\n{max_iter:,} iterations; everything is trainable in every step"
    cfg = with_max_iter(cfg, max_iter)
    model = trainer.build_model(_without_weights(cfg))
    members = patterns_by_group(schedule.cycle, model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counts = {group: sum(sizes[n] for n in names) for group, names in members.items()}
    rates = _Rates(trainer, cfg, model, schedule, members)
    rows = [
        [
            f"{at.first}-{at.last}",
            at.phase.source,
            at.phase.task,
            at.phase.name,
            f"{at.phase.share:.4g}",
            f"{taken.images:,}",
            *_cells(schedule, at, counts),
            rates.at(at) if at.first < max_iter else "not reached",
        ]
        for at, taken in schedule.rows()
    ]
    headers = ["iterations", "source", "task", "phase", "share", "images", *counts, "rate at start"]
    align = ["right" if name in ("iterations", "share", "images") else "left" for name in headers]
    table = tabulate(rows, headers, colalign=align, disable_numparse=True)
    return f"{_title(schedule, max_iter)}\n\n{table}"


def _without_weights(cfg: CfgNode) -> CfgNode:
    """Names and sizes are all that is looked at: nothing has to be found or downloaded."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.FX.TRUNK.PRETRAINED = ""
    return cfg


def _title(schedule: Schedule, max_iter: int) -> str:
    cycle = schedule.cycle
    title = (
        f"{cycle.name}: {len(cycle.slots)} slots, {len(schedule.rows())} phases, "
        f"{schedule.length:,} iterations a cycle; {max_iter:,} iterations are "
        f"{max_iter / schedule.length:.4g} cycles"
    )
    if cycle.order == "sequential":
        title += (
            f". Sequential: the phases of a source come {schedule.repeats} times, then the next"
        )
    return title


def _cells(schedule: Schedule, at: PhaseAt, counts: Mapping[str, int]) -> list[str]:
    """Per group: how many parameters are trained, ``locked``, or ``-`` where not used."""
    states = {group: schedule.cycle.state(at.phase, group) for group in counts}
    return [_short(counts[g]) if state == TRAINABLE else state for g, state in states.items()]


def _short(count: int) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


class _Rates:
    """The learning rates of a run that is not trained."""

    def __init__(
        self,
        trainer: Any,
        cfg: CfgNode,
        model: Any,
        schedule: Schedule,
        members: Mapping[str, tuple[str, ...]],
    ) -> None:
        optimizer = trainer.build_optimizer(cfg, model)
        scheduler = trainer.build_lr_scheduler(cfg, optimizer)
        self._scheduler = refreshed(cfg, scheduler, optimizer, schedule)
        index = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
        named = dict(model.named_parameters())
        self._of = {
            group: {index[id(named[name])] for name in names} for group, names in members.items()
        }

    def at(self, at: PhaseAt) -> str:
        """Those of what a phase trains, in its first iteration: ``1e-05, 0.0001``."""
        self._scheduler.last_epoch = at.first
        rates = self._scheduler.get_lr()
        mine = {rates[i] for group in at.phase.trainable for i in self._of[group]}
        return ", ".join(f"{rate:.3g}" for rate in sorted(mine))
