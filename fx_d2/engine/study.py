"""A study file: several trainings of one config that differ in what is compared.

The file is checked strictly, since a misspelt key would be found after days of training. What its
runs are is planned in :mod:`fx_d2.engine.study_plan`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fx_d2.data.source import TASKS
from fx_d2.data.sources import get_source

from .cycle import choose
from .setup import ConfigError
from .study_values import (
    files,
    flag,
    listed,
    mapping,
    number,
    read_file,
    seeds,
    text,
    whole,
)

WEIGHTS = "{weights}"  # of the run that a later step starts from
OUT = "{out}"  # the folder of the study, in settings and in words of 'prepare'
FULL = "full"  # all images that a target has
EACH_HEAD, JOINT, UNTRAINED, ENSEMBLE = "each_head", "joint", "untrained", "ensemble"
# What may be called before the runs: tools of this repository that make data, nothing else.
PREPARING = ("make_lesion_mix.py", "make_split.py")
Tree = dict[str, Any]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Names of what lies beside the arms in the folder of a study.
_TAKEN = ("world", "cache", "prepare")
# Set for every run by the study itself.
_OWN_KEYS = ("SEED", "OUTPUT_DIR")
# Set by the kinds of arms.
_JOINT_KEYS = ("CYCLE.", "SOLVER.MAX_ITER", "DATALOADER.FX.DATASET_RATIO")
_KIND_KEYS = {JOINT: _JOINT_KEYS, EACH_HEAD: (*_JOINT_KEYS, "SOLVER.WARMUP_ITERS", "FORGETTING.")}
_STUDY_KEYS = (
    *("title", "world", "prepare", "config", "common", "scorings", "metrics"),
    *("seeds", "arms"),
)
_WORLD_KEYS = ("patients", "seed", "size", "sources", "cache")
_ARM_KEYS = (
    *("about", "layers", "overrides", "each_head", "joint", "train", "weights", "ensemble"),
    "then",
)
_THEN_KEYS = (
    *("config", "layers", "overrides", "weights", "images", "draws", "seeds", "score_at"),
)


@dataclass(frozen=True)
class World:
    """A synthetic world that a study is run on.

    Args:
        patients, seed, size: as in ``tools/make_phantom.py``; size None is native.
        sources: keys; () is those that the runs use.
        cache: shorter side of the cached images in pixels; 0 caches none.
    """

    patients: int
    seed: int
    size: int | None
    sources: tuple[str, ...]
    cache: int


@dataclass(frozen=True)
class Then:
    """Few-shot runs after the training of an arm.

    Args:
        name: of its folder and table.
        config: file that is trained.
        layers: config files laid over it.
        overrides: nested settings laid over these.
        weights: to start from; ``{weights}`` is the arm's final ones, ``""`` random ones.
        images: numbers of images; ``full`` is all.
        draws: of each number.
        seeds: of the arm whose runs are continued; () is all.
        score_at: shares of the iterations after which a run is scored too.
    """

    name: str
    config: Path
    layers: tuple[Path, ...]
    overrides: Tree
    weights: str
    images: tuple[int | str, ...]
    draws: int
    seeds: tuple[int, ...]
    score_at: tuple[float, ...] = ()


@dataclass(frozen=True)
class Arm:
    """What is compared with the other arms.

    Args:
        name: of its folder and column.
        about: a sentence for the report.
        kind: ``""``, or ``each_head`` (a run per head, as long as the study's cycle trains that
            head), ``joint`` (heads in a random mix, in the shares of that cycle), ``untrained``
            (nothing is trained before the steps of ``then``), ``ensemble`` (nothing is trained:
            the mean probability of other arms is scored).
        layers: config files laid over config and common settings of the study.
        overrides: nested settings laid over these.
        starts: arms whose runs of the same seed are needed: the members of an ensemble, or the
            one whose final weights the training starts from.
        then: what follows.
    """

    name: str
    about: str
    kind: str
    layers: tuple[Path, ...]
    overrides: Tree
    starts: tuple[str, ...]
    then: tuple[Then, ...]


@dataclass(frozen=True)
class Study:
    """A study file; paths are absolute.

    Args:
        file: itself.
        title: of the report.
        world: None where the datasets lie elsewhere.
        prepare: calls of tools that make data before the runs, as lists of words.
        config: of every training.
        common: nested settings laid over it.
        scorings: how often every head is scored while all are trained, at even distances; 0 leaves
            that to FORGETTING. The best of many scores is larger than that of few, so forgetting is
            compared between arms that are scored equally often.
        metrics: ``task/metric`` of the columns of the report; () are those of FORGETTING.METRICS.
        seeds: each arm is trained once with each.
        arms: what is compared.
    """

    file: Path
    title: str
    world: World | None
    prepare: tuple[tuple[str, ...], ...]
    config: Path
    common: Tree
    scorings: int
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]

    def with_seeds(self, seeds: Sequence[int]) -> Study:
        """The same study with other seeds."""
        return replace(self, seeds=tuple(dict.fromkeys(seeds)))

    def arm(self, name: str) -> Arm:
        """The arm of a name; an unknown one is answered with the nearest."""
        try:
            choose(name, [arm.name for arm in self.arms], f"{self.file}: arm")
        except ValueError as exc:
            raise ConfigError(str(exc)) from exc
        return next(arm for arm in self.arms if arm.name == name)


def read_study(file: str | Path) -> Study:
    """Read and check a study file.

    Args:
        file: YAML; the files it names are relative to its folder.

    Raises:
        ConfigError: it cannot be read, or is no study; the message is one line.
    """
    return read_file(file, "study", "*.yaml", _study)


def _study(file: Path, raw: Any) -> Study:
    given = mapping(raw, "a study", _STUDY_KEYS, needed=("config", "seeds", "arms"))
    config = files(file, [given["config"]], "config")[0]
    common = settings(given.get("common"), "common")
    arms = mapping(given["arms"], "arms")
    if not arms:
        raise ValueError("arms is empty; name one or more")
    made = tuple(_arm(file, config, _name(name), item) for name, item in arms.items())
    _check_starts(made)
    return Study(
        file=file,
        title=text(given.get("title", file.stem), "title"),
        world=read_world(given["world"]) if given.get("world") is not None else None,
        prepare=tuple(
            _words(raw, f"prepare[{i}]")
            for i, raw in enumerate(listed(given.get("prepare", []), "prepare"))
        ),
        config=config,
        common=common,
        scorings=whole(given.get("scorings", 0), "scorings", 0),
        metrics=tuple(_metric(raw) for raw in listed(given.get("metrics", []), "metrics")),
        seeds=seeds(given["seeds"], "seeds"),
        arms=made,
    )


def _words(raw: Any, where: str) -> tuple[str, ...]:
    """A tool and what it is told; no shell reads it."""
    words = listed(raw, where)
    for word in words:
        if isinstance(word, bool) or not isinstance(word, (str, int, float)):
            raise ValueError(f"{where} has {str(word)[:60]!r}; write texts and numbers")
    if not words:
        raise ValueError(f"{where} is empty; write the name of a tool and its words")
    return (choose(str(words[0]), PREPARING, f"{where}: tool"), *map(str, words[1:]))


def _metric(raw: Any) -> str:
    task, separator, metric = text(raw, "metrics").partition("/")
    if task not in TASKS or not (separator and metric):
        raise ValueError(f"metrics has {raw!r}; write 'task/metric', e.g. 'cls/AUC'")
    return f"{task}/{metric}"


def _check_starts(arms: Sequence[Arm]) -> None:
    """An arm needs arms above it: so none waits for itself."""
    above: dict[str, Arm] = {}
    for arm in arms:
        for name in arm.starts:
            where = f"arms.{arm.name}.{arm.kind if arm.kind == ENSEMBLE else 'weights'}"
            choose(name, [other.name for other in arms], f"{where}: arm")
            if name not in above:
                raise ValueError(f"{where}: {name!r} has to stand above {arm.name!r}")
            if above[name].kind not in ("", JOINT):
                raise ValueError(
                    f"{where}: {name!r} is of the kind {above[name].kind!r}, which leaves no "
                    "single weights"
                )
        above[arm.name] = arm


def read_world(raw: Any) -> World:
    """The group ``world`` of a study file, and of others that have one."""
    given = mapping(raw, "world", _WORLD_KEYS, needed=("patients", "seed"))
    sources = listed(given.get("sources", []), "world.sources")
    size = given.get("size")
    return World(
        patients=whole(given["patients"], "world.patients", 1),
        seed=whole(given["seed"], "world.seed", 0),
        size=None if size is None else whole(size, "world.size", 1),
        sources=tuple(get_source(str(key)).key for key in sources),
        cache=whole(given.get("cache", 0), "world.cache", 0),
    )


def _arm(file: Path, config: Path, name: str, raw: Any) -> Arm:
    where = f"arms.{name}"
    given = mapping(raw if raw is not None else {}, where, _ARM_KEYS)
    kinds = {EACH_HEAD: False, JOINT: False, "train": True}
    for key in kinds:
        kinds[key] = flag(given.get(key, kinds[key]), f"{where}.{key}")
    chosen = [key for key in (EACH_HEAD, JOINT) if kinds[key]]
    chosen += [] if kinds["train"] else [UNTRAINED]
    chosen += [ENSEMBLE] if "ensemble" in given else []
    if len(chosen) > 1:
        raise ValueError(f"{where}: {' and '.join(chosen)} exclude each other; choose one")
    kind = chosen[0] if chosen else ""
    then = mapping(given.get("then") or {}, f"{where}.then")
    if kind == UNTRAINED:
        if not then:
            raise ValueError(f"{where} has 'train: false' and no 'then'; nothing would be done")
        for key in ("layers", "overrides"):
            if given.get(key):
                raise ValueError(f"{where}.{key} has no use with 'train: false'; put it in 'then'")
    if kind in (EACH_HEAD, ENSEMBLE) and then:
        raise ValueError(f"{where}.then: {kind} has no single weights to start from")
    overrides = settings(given.get("overrides"), f"{where}.overrides")
    starts = _starts(given, where, kind)
    if starts and "WEIGHTS" in overrides.get("MODEL", {}):
        raise ValueError(f"{where}.overrides has MODEL.WEIGHTS, which the study sets here")
    for key, _ in leaves(overrides):
        if key.startswith(_KIND_KEYS.get(kind, ())):
            raise ValueError(f"{where}.overrides has {key}, which {kind!r} sets itself")
    return Arm(
        name=name,
        about=text(given.get("about", ""), f"{where}.about"),
        kind=kind,
        layers=files(file, listed(given.get("layers", []), f"{where}.layers"), f"{where}.layers"),
        overrides=overrides,
        starts=starts,
        then=tuple(
            read_then(file, config, where, _name(k), item, kind) for k, item in then.items()
        ),
    )


def _starts(given: Mapping[str, Any], where: str, kind: str) -> tuple[str, ...]:
    """Names of the arms that ``weights: "{arm}"`` or ``ensemble: [arm, arm]`` asks for."""
    names = [str(name) for name in listed(given.get(ENSEMBLE, []), f"{where}.ensemble")]
    if kind == ENSEMBLE and (len(names) < 2 or len(set(names)) < len(names)):
        raise ValueError(f"{where}.ensemble is {names}; name two or more different arms")
    start = text(given.get("weights", ""), f"{where}.weights")
    if not start:
        return tuple(names)
    if not (start.startswith("{") and start.endswith("}")):
        raise ValueError(
            f'{where}.weights is {start!r}; write "{{arm}}" for the final weights of an arm, or '
            "the file as MODEL.WEIGHTS in 'overrides'"
        )
    if kind not in ("", JOINT):
        raise ValueError(f"{where}.weights has no use with {kind!r}")
    return (start[1:-1],)


def read_then(file: Path, config: Path, arm: str, name: str, raw: Any, kind: str) -> Then:
    """Few-shot runs as a study file describes them.

    Args:
        file: whose folder paths are relative to.
        config: where they name none.
        arm: what stands before their name in messages.
        name: of theirs.
        raw: their settings.
        kind: of the arm.
    """
    where = f"{arm}.then.{name}"
    given = mapping(raw, where, _THEN_KEYS, needed=("images",))
    start = text(given.get("weights", "" if kind == UNTRAINED else WEIGHTS), f"{where}.weights")
    if WEIGHTS in start and kind == UNTRAINED:
        raise ValueError(f"{where}.weights is {start!r}, but its arm has 'train: false'")
    if start and start != WEIGHTS:
        start = str(files(file, [start], f"{where}.weights")[0])
    images = listed(given["images"], f"{where}.images")
    if not images:
        raise ValueError(f"{where}.images is empty; write numbers, or {FULL!r}")
    own = given.get("config")
    layers = listed(given.get("layers", []), f"{where}.layers")
    return Then(
        name=name,
        config=config if own is None else files(file, [own], f"{where}.config")[0],
        layers=files(file, layers, f"{where}.layers"),
        overrides=settings(given.get("overrides"), f"{where}.overrides"),
        weights=start,
        images=tuple(n if n == FULL else whole(n, f"{where}.images", 1) for n in images),
        draws=whole(given.get("draws", 3), f"{where}.draws", 1),
        seeds=seeds(given["seeds"], f"{where}.seeds") if "seeds" in given else (),
        score_at=tuple(
            number(share, f"{where}.score_at")
            for share in listed(given.get("score_at", []), f"{where}.score_at")
        ),
    )


def settings(raw: Any, where: str) -> Tree:
    """Overrides as a config file has them: ``{"A.B": 1}`` becomes ``{"A": {"B": 1}}``."""
    tree: Tree = {}
    for key, value in mapping(raw if raw is not None else {}, where).items():
        if key.partition(".")[0] in _OWN_KEYS:
            raise ValueError(f"{where} has {key}, which the study sets for every run")
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = overlaid(tree, value)
    return tree


def overlaid(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """``under`` with the values of ``over``; groups are merged, all else is replaced."""
    result = dict(under)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = overlaid(before, value)
        result[key] = value
    return result


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``("A.B", value)`` of every value below groups; an empty group is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(raw: str) -> str:
    if not _NAME.fullmatch(raw) or raw in _TAKEN:
        raise ValueError(
            f"{raw[:60]!r} cannot be the name of a folder of the study; allowed: letters, digits, "
            f"'_', '-' and '.', but not {' or '.join(_TAKEN)}"
        )
    return raw
