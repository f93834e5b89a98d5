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

import yaml

from fx_d2.data.sources import get_source

from .cycle import choose
from .setup import ConfigError

WEIGHTS = "{weights}"  # of the run that a later step starts from
FULL = "full"  # all images that a target has
EACH_HEAD, JOINT, UNTRAINED = "each_head", "joint", "untrained"
Tree = dict[str, Any]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Names of what lies beside the arms in the folder of a study.
_TAKEN = ("world", "cache")
# Set for every run by the study itself.
_OWN_KEYS = ("SEED", "OUTPUT_DIR")
# Set by the kinds of arms.
_JOINT_KEYS = ("CYCLE.", "SOLVER.MAX_ITER", "DATALOADER.FX.DATASET_RATIO")
_KIND_KEYS = {JOINT: _JOINT_KEYS, EACH_HEAD: (*_JOINT_KEYS, "SOLVER.WARMUP_ITERS", "FORGETTING.")}
_STUDY_KEYS = ("title", "world", "config", "common", "scorings", "seeds", "arms")
_WORLD_KEYS = ("patients", "seed", "size", "sources", "cache")
_ARM_KEYS = ("about", "layers", "overrides", "each_head", "joint", "train", "then")
_THEN_KEYS = ("config", "layers", "overrides", "weights", "images", "draws", "seeds", "score_at")


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
            (nothing is trained before the steps of ``then``).
        layers: config files laid over config and common settings of the study.
        overrides: nested settings laid over these.
        then: what follows.
    """

    name: str
    about: str
    kind: str
    layers: tuple[Path, ...]
    overrides: Tree
    then: tuple[Then, ...]


@dataclass(frozen=True)
class Study:
    """A study file; paths are absolute.

    Args:
        file: itself.
        title: of the report.
        world: None where the datasets lie elsewhere.
        config: of every training.
        common: nested settings laid over it.
        scorings: how often every head is scored while all are trained, at even distances; 0 leaves
            that to FORGETTING. The best of many scores is larger than that of few, so forgetting is
            compared between arms that are scored equally often.
        seeds: each arm is trained once with each.
        arms: what is compared.
    """

    file: Path
    title: str
    world: World | None
    config: Path
    common: Tree
    scorings: int
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
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "no study"
        raise ConfigError(f"there is no study file {file}; its folder has {there}")
    try:
        raw = yaml.load(path.read_text("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as exc:
        raise ConfigError(f"{file}: {' '.join(str(exc).split())[:300]}") from exc
    try:
        return _study(path, raw)
    except (KeyError, ValueError) as exc:
        text = exc.args[0] if isinstance(exc, KeyError) and exc.args else exc
        raise ConfigError(f"{file}: {' '.join(str(text).split())}") from exc


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: the first of two arms of one name would be lost."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._seen: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called for every mapping, again for one that others merge and that holds more by then."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice and id(node) not in self._seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} stands twice", node.start_mark
            )
        self._seen.add(id(node))
        super().flatten_mapping(node)


def _study(file: Path, raw: Any) -> Study:
    given = _mapping(raw, "a study", _STUDY_KEYS, needed=("config", "seeds", "arms"))
    config = _files(file, [given["config"]], "config")[0]
    common = settings(given.get("common"), "common")
    arms = _mapping(given["arms"], "arms")
    if not arms:
        raise ValueError("arms is empty; name one or more")
    return Study(
        file=file,
        title=_text(given.get("title", file.stem), "title"),
        world=_world(given["world"]) if given.get("world") is not None else None,
        config=config,
        common=common,
        scorings=_whole(given.get("scorings", 0), "scorings", 0),
        seeds=_seeds(given["seeds"], "seeds"),
        arms=tuple(_arm(file, config, _name(name), item) for name, item in arms.items()),
    )


def _world(raw: Any) -> World:
    given = _mapping(raw, "world", _WORLD_KEYS, needed=("patients", "seed"))
    sources = _list(given.get("sources", []), "world.sources")
    size = given.get("size")
    return World(
        patients=_whole(given["patients"], "world.patients", 1),
        seed=_whole(given["seed"], "world.seed", 0),
        size=None if size is None else _whole(size, "world.size", 1),
        sources=tuple(get_source(str(key)).key for key in sources),
        cache=_whole(given.get("cache", 0), "world.cache", 0),
    )


def _arm(file: Path, config: Path, name: str, raw: Any) -> Arm:
    where = f"arms.{name}"
    given = _mapping(raw if raw is not None else {}, where, _ARM_KEYS)
    kinds = {EACH_HEAD: False, JOINT: False, "train": True}
    for key in kinds:
        kinds[key] = _flag(given.get(key, kinds[key]), f"{where}.{key}")
    chosen = [key for key in (EACH_HEAD, JOINT) if kinds[key]]
    chosen += [] if kinds["train"] else [UNTRAINED]
    if len(chosen) > 1:
        raise ValueError(f"{where}: {' and '.join(chosen)} exclude each other; choose one")
    kind = chosen[0] if chosen else ""
    then = _mapping(given.get("then") or {}, f"{where}.then")
    if kind == UNTRAINED:
        if not then:
            raise ValueError(f"{where} has 'train: false' and no 'then'; nothing would be done")
        for key in ("layers", "overrides"):
            if given.get(key):
                raise ValueError(f"{where}.{key} has no use with 'train: false'; put it in 'then'")
    if kind == EACH_HEAD and then:
        raise ValueError(f"{where}.then: each_head has no single weights to start from")
    overrides = settings(given.get("overrides"), f"{where}.overrides")
    for key, _ in leaves(overrides):
        if key.startswith(_KIND_KEYS.get(kind, ())):
            raise ValueError(f"{where}.overrides has {key}, which {kind!r} sets itself")
    return Arm(
        name=name,
        about=_text(given.get("about", ""), f"{where}.about"),
        kind=kind,
        layers=_files(file, _list(given.get("layers", []), f"{where}.layers"), f"{where}.layers"),
        overrides=overrides,
        then=tuple(_then(file, config, where, _name(k), item, kind) for k, item in then.items()),
    )


def _then(file: Path, config: Path, arm: str, name: str, raw: Any, kind: str) -> Then:
    where = f"{arm}.then.{name}"
    given = _mapping(raw, where, _THEN_KEYS, needed=("images",))
    start = _text(given.get("weights", "" if kind == UNTRAINED else WEIGHTS), f"{where}.weights")
    if WEIGHTS in start and kind == UNTRAINED:
        raise ValueError(f"{where}.weights is {start!r}, but its arm has 'train: false'")
    if start and start != WEIGHTS:
        start = str(_files(file, [start], f"{where}.weights")[0])
    images = _list(given["images"], f"{where}.images")
    if not images:
        raise ValueError(f"{where}.images is empty; write numbers, or {FULL!r}")
    own = given.get("config")
    layers = _list(given.get("layers", []), f"{where}.layers")
    return Then(
        name=name,
        config=config if own is None else _files(file, [own], f"{where}.config")[0],
        layers=_files(file, layers, f"{where}.layers"),
        overrides=settings(given.get("overrides"), f"{where}.overrides"),
        weights=start,
        images=tuple(n if n == FULL else _whole(n, f"{where}.images", 1) for n in images),
        draws=_whole(given.get("draws", 3), f"{where}.draws", 1),
        seeds=_seeds(given["seeds"], f"{where}.seeds") if "seeds" in given else (),
        score_at=tuple(
            _number(share, f"{where}.score_at")
            for share in _list(given.get("score_at", []), f"{where}.score_at")
        ),
    )


def settings(raw: Any, where: str) -> Tree:
    """Overrides as a config file has them: ``{"A.B": 1}`` becomes ``{"A": {"B": 1}}``."""
    tree: Tree = {}
    for key, value in _mapping(raw if raw is not None else {}, where).items():
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


def _mapping(
    raw: Any, where: str, known: Sequence[str] = (), needed: Sequence[str] = ()
) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; write a mapping of names to values")
    given = {str(key): value for key, value in raw.items()}
    for key in given if known else ():
        choose(key, known, f"{where}: key")
    for key in needed:
        if key not in given:
            raise ValueError(f"{where} has no {key!r}")
    return given


def _list(raw: Any, where: str) -> list[Any]:
    if not isinstance(raw, list):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; write a list")
    return raw


def _whole(raw: Any, where: str, low: int) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or raw < low:
        raise ValueError(f"{where} is {str(raw)[:60]!r}; allowed: a whole number from {low}")
    return raw


def _number(raw: Any, where: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; write a number")
    return float(raw)


def _flag(raw: Any, where: str) -> bool:
    if not isinstance(raw, bool):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; allowed: true or false")
    return raw


def _text(raw: Any, where: str) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; write a text")
    return " ".join(raw.split())


def _seeds(raw: Any, where: str) -> tuple[int, ...]:
    seeds = [_whole(seed, where, 0) for seed in _list(raw, where)]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{where} is {raw}; write one or more different whole numbers")
    return tuple(seeds)


def _name(raw: str) -> str:
    if not _NAME.fullmatch(raw) or raw in _TAKEN:
        raise ValueError(
            f"{raw[:60]!r} cannot be the name of a folder of the study; allowed: letters, digits, "
            f"'_', '-' and '.', but not {' or '.join(_TAKEN)}"
        )
    return raw


def _files(file: Path, names: Sequence[Any], where: str) -> tuple[Path, ...]:
    found = []
    for name in names:
        path = Path(file.parent, _text(name, where)).resolve()
        if not path.is_file():
            raise ValueError(f"{where}: there is no file {path}")
        found.append(path)
    return tuple(found)
