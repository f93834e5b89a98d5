"""Whether the patterns over ``source/task/metric`` in a config can find a metric.

Which metrics an evaluation can give is known from its heads. Said before the training, a misspelt
one costs a minute; found at the end of it, the best checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from detectron2.config import CfgNode

from fx_d2.data.build import source_of
from fx_d2.data.sources import SOURCES
from fx_d2.evaluation import EVALUATORS, Truth, build_evaluator, evaluator_options

from .setup import ConfigError, hint

Keys = Mapping[str, tuple[str, str]]
_TEACHER = "teacher/"


def result_keys(tasks: Mapping[str, Sequence[str]], answers: Sequence[str]) -> Keys:
    """What the results of a run are filed under: ``{key: (dataset, task)}``.

    Args:
        tasks: by name of the dataset that is evaluated.
        answers: of the model, see ``evaluated_models``.
    """
    sources = {name: source_of(name).key for name in tasks}
    pairs = [(name, task) for name, given in tasks.items() for task in given]
    counts = Counter((sources[name], task) for name, task in pairs)
    keys = {}
    for who in answers:
        for name, task in pairs:
            # Two splits of one source are told apart by their names, see merge_results.
            unique = counts[sources[name], task] == 1
            key = f"{sources[name] if unique else name}/{task}"
            keys[_TEACHER + key if who == "teacher" else key] = (name, task)
    return keys


def check_metric_patterns(cfg: CfgNode, keys: Keys) -> None:
    """Raise for a pattern that no evaluation could meet, or a key whose patterns all miss this run.

    One that would meet heads that this run does not have may stand beside one that meets some: a
    preset names the metric of every task.

    Args:
        cfg: with ``SOLVER.FX.BEST_METRIC``, ``PLATEAU.METRIC`` and ``EARLY_STOP.METRIC``.
        keys: of :func:`result_keys`; none where nothing is evaluated.
    """
    here = set(_metrics_of_run(cfg, keys))
    for setting, patterns in _settings(cfg):
        missing = [p for p in patterns if not _meets(p, here)]
        everywhere = here.union(_metrics_of_all()) if missing else here
        for pattern in missing:
            if not _meets(pattern, everywhere):
                problem = f"{setting} has {pattern!r}, which is no metric"
                known = sorted({_any_source(n) for n in here or everywhere})
                raise ConfigError(f"{hint(problem, _any_source(pattern), known)} {_told(here)}")
        if here and len(missing) == len(patterns):
            named = ", ".join(map(repr, patterns))
            raise ConfigError(f"{setting} has {named}, no metric of this run. {_told(here)}")


def _settings(cfg: CfgNode) -> Iterator[tuple[str, tuple[str, ...]]]:
    fx = cfg.SOLVER.FX
    nodes = {"PLATEAU": fx.PLATEAU, "EARLY_STOP": fx.EARLY_STOP}
    chosen = {"BEST_METRIC": fx.BEST_METRIC}
    chosen |= {f"{name}.METRIC": node.METRIC for name, node in nodes.items() if node.PATIENCE}
    for name, patterns in chosen.items():
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise ConfigError(f"SOLVER.FX.{name} has {pattern!r}; write 'source/task/metric'")
        if patterns:
            yield f"SOLVER.FX.{name}", tuple(patterns)


def _metrics_of_run(cfg: CfgNode, keys: Keys) -> Iterator[str]:
    for key, (dataset, task) in keys.items():
        options = evaluator_options(cfg, dataset)
        (evaluator,) = build_evaluator(dataset, [task], options=options).evaluators
        yield from (f"{key}/{metric}" for metric in evaluator.metric_names())


def _metrics_of_all() -> Iterator[str]:
    """Of every source there is, with and without a teacher."""
    for source in SOURCES.values():
        for task in source.all_tasks():
            options = {"hd95": True, "bce": True} if task == "seg" else {}
            evaluator = EVALUATORS[task](Truth("", (), source), **options)
            for metric in evaluator.metric_names():
                yield from (f"{who}{evaluator.key}/{metric}" for who in ("", _TEACHER))


def _meets(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _any_source(name: str) -> str:
    """``*/task/metric``: as long as the source is spelt out, it decides which names are near."""
    head, dash, cls = name.partition("-")  # "/" stands in names of classes too
    return "/".join(["*", *head.split("/")[-2:]]) + dash + cls if "/" in head else name


def _told(names: Iterable[str]) -> str:
    """The metrics of each task, without those of single classes."""
    by_task: dict[str, dict[str, None]] = {}
    for name in sorted(names):
        if "-" not in name:
            task, metric = name.split("/")[-2:]
            by_task.setdefault(task, {})[metric] = None
    if not by_task:
        return "Write 'source/task/metric'"
    listed = (f"*/{task}/ with {', '.join(metrics)}" for task, metrics in by_task.items())
    return f"There are {'; '.join(listed)}"
