"""What an arm of a study trains that takes its steps from the study's own cycle.

A single-task baseline is worth something only where each head gets as many steps alone as it gets
in the cycle; a random mix likewise.
"""

from __future__ import annotations

import json
from collections import Counter

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.data.build import build_task_loader, source_of, tasks_of
from fx_d2.data.task_loader import Key, TaskLoader

from .cycle_config import build_plan
from .optimizer import Patterns
from .setup import ConfigError, config_errors
from .study import EACH_HEAD, JOINT, Tree, overlaid


class Budget:
    """Steps that the study's own cycle gives to each head; records are read when asked for.

    Args:
        cfg: of the study, without an arm.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._loaders: dict[str, TaskLoader] = {}
        self._steps: dict[Key, int] | None = None
        self.cycle_steps = 0

    def by_head(self) -> dict[Key, int]:
        """``{(source, task): steps}`` over the whole run."""
        if self._steps is None:
            self._steps = self._counted()
        return self._steps

    def max_iter(self, cfg: CfgNode) -> int:
        """Iterations of a training; what its cycle needs is found out on the way."""
        with config_errors():
            return build_plan(cfg, self._loader(cfg)).max_iter

    def _loader(self, cfg: CfgNode) -> TaskLoader:
        """Arms that differ in how they train share the records, which may be many."""
        what = [cfg.DATASETS.dump(), cfg.DATALOADER.dump(), cfg.SOLVER.IMS_PER_BATCH]
        mark = json.dumps(what)
        if mark not in self._loaders:
            self._loaders[mark] = build_task_loader(cfg)
        return self._loaders[mark]

    def _counted(self) -> dict[Key, int]:
        with config_errors():
            schedule, max_iter, _ = build_plan(self._cfg, self._loader(self._cfg))
        if schedule is None:
            raise ConfigError(
                f"the study's own CYCLE.NAME is {self._cfg.CYCLE.NAME!r}, joint training; "
                f"{EACH_HEAD} and {JOINT} take the steps of each head from a cycle: name one in "
                "'config' or 'common'"
            )
        steps: Counter[Key] = Counter()
        at = 0
        while at < max_iter:
            phase = schedule.phase_at(at)
            end = min(phase.last + 1, max_iter)
            steps[phase.phase.source, phase.phase.task] += end - at
            at = end
        self.cycle_steps = min(schedule.length, max_iter)
        return dict(steps)


def heads_of(cfg: CfgNode) -> list[Key]:
    """Every (source, task) that a config trains, in its order."""
    with config_errors():
        sources = [source_of(name) for name in cfg.DATASETS.TRAIN]
        return list(dict.fromkeys((s.key, task) for s in sources for task in tasks_of(cfg, s)))


def joint(cfg: CfgNode, budget: Budget | None) -> Tree:
    """A random head in every step, each about as often as in the study's cycle."""
    cycle: Tree = {"NAME": JOINT, "ORDER": "", "CYCLES": 0, "LR_PER": ""}
    tree: Tree = {"CYCLE": cycle}
    if budget is None:
        return tree
    steps = budget.by_head()
    ratio = [f"{'/'.join(key)}={number}" for key, number in steps.items()]
    tree["SOLVER"] = {"MAX_ITER": sum(steps.values())}
    tree["DATALOADER"] = {"FX": {"DATASET_RATIO": ratio, "REPEAT_TO_LONGEST": False}}
    if cfg.FORGETTING.AFTER in ("slot", "cycle"):
        tree["FORGETTING"] = {"AFTER": "iterations", "PERIOD": budget.cycle_steps}
    return tree


def one_head(cfg: CfgNode, head: Key, budget: Budget | None) -> Tree:
    """A single head, alone on its trunk, for the steps that it has in the study's cycle."""
    source, task = head
    with config_errors():
        own = {
            part: [name for name in cfg.DATASETS[part] if source_of(name).key == source]
            for part in ("TRAIN", "TEST")
        }
    if not own["TEST"]:
        raise ConfigError(f"DATASETS.TEST has nothing of {source}; {EACH_HEAD} scores every head")
    extra = [name for name in cfg.DATASETS.EXTRA_TASKS if name == "/".join(head)]
    tree: Tree = {
        "DATASETS": {**own, "TASKS": [task], "EXTRA_TASKS": extra},
        "MODEL": {"FX": {"SOURCES": []}},
        "DATALOADER": {"FX": {"DATASET_RATIO": []}},
        "CYCLE": {"NAME": JOINT, "ORDER": "", "CYCLES": 0, "LR_PER": ""},
        "FORGETTING": {"AFTER": ""},
        # The last weights are scored; a pattern over another task's metric would be refused.
        "SOLVER": {"FX": {"BEST_METRIC": []}},
    }
    if budget is not None:
        mine = budget.by_head().get(head, 0)
        if not mine:
            raise ConfigError(f"the study's cycle gives no step to {source}/{task}; train longer")
        # A warm-up for all heads together would be most of what one head has.
        warm_up = min(int(cfg.SOLVER.WARMUP_ITERS), mine // 10)
        tree["SOLVER"].update(MAX_ITER=mine, WARMUP_ITERS=warm_up)
    return tree


def without_idle_patterns(body: Tree, cfg: CfgNode) -> Tree:
    """Without the patterns over parameters that a model of fewer heads does not have.

    Elsewhere such a pattern is a mistake, and training refuses it.
    """
    fx = cfg.SOLVER.FX
    if not (fx.LR_FACTORS or fx.NO_DECAY):
        return body
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.FX.TRUNK.PRETRAINED, cfg.MODEL.DEVICE = "", "cpu"
    with config_errors():
        names = [name for name, _ in build_model(cfg).named_parameters()]
    kept: Tree = {}
    for key in ("LR_FACTORS", "NO_DECAY"):
        texts = [str(text) for text in fx[key]]
        by_text = {t: t.rpartition("=")[0].strip() if key == "LR_FACTORS" else t for t in texts}
        patterns = Patterns(key, dict.fromkeys(by_text.values(), 1.0))
        for name in names:
            patterns.value(name, 1.0)
        kept[key] = [text for text, pattern in by_text.items() if pattern in patterns.used]
    return overlaid(body, {"SOLVER": {"FX": kept}})
