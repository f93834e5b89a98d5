"""A chain file: classify, explain, pre-train, choose the epoch, adapt - what each stage is told.

It is checked strictly, since a misspelt key would be found after days of training. What is done
with it is in :mod:`fx_d2.pipelines.doll.chain_stages`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fx_d2.engine.cycle import choose
from fx_d2.engine.study import Then, Tree, World, read_then, read_world, settings
from fx_d2.engine.study_values import (
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

from .settings import DollSettings

MODES = ("full", "seg_adapters", "heads")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_KEYS = (
    *("title", "world", "common", "members", "masks", "pretrain", "choose", "targets", "seeds"),
    "random",
)
_TRAINING_KEYS = ("config", "layers", "overrides")
# Without these, a chain adapts what another one has pre-trained.
_BEFORE = ("members", "masks", "pretrain")
_SPEC_KEYS = ("head", "layer", "weight")
_MEMBER_KEYS = (*_TRAINING_KEYS, "seed", "path", *_SPEC_KEYS)
# Named by the chain itself.
_OWN_MASK_KEYS = ("members",)


@dataclass(frozen=True)
class Training:
    """A config that is trained.

    Args:
        config: file.
        layers: config files laid over it.
        overrides: nested settings laid over these.
    """

    config: Path
    layers: tuple[Path, ...]
    overrides: Tree


@dataclass(frozen=True)
class ChainMember:
    """A classifier of the committee.

    Args:
        name: of its folder, in tables.
        training: None where it is trained already.
        seed: of its training.
        path: output folder or weights of one that is trained already.
        spec: ``head``, ``layer`` and ``weight``, as ``tools/make_pseudo_masks.py`` takes them.
    """

    name: str
    training: Training | None
    seed: int
    path: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Masks:
    """How the committee is explained.

    Args:
        config: settings of ``tools/make_pseudo_masks.py``; None is their defaults.
        overrides: settings laid over these.
        limit: only so many images; 0 is all.
    """

    config: Path | None
    overrides: Tree
    limit: int


@dataclass(frozen=True)
class Probe:
    """What every epoch of the pre-training is tried on: see ``tools/best_epoch.py``."""

    training: Training
    images: int
    draws: int


@dataclass(frozen=True)
class Target:
    """What the pre-trained network is adapted to.

    Args:
        runs: few-shot runs; ``full`` is all images.
        modes: of ``MODEL.FX.TUNE.MODE``, each by itself.
        folds: whether every seed has a fold of its own: of as many as there are seeds, of all
            images of the source.
        cache: shorter side in pixels of its images, decoded once; 0 decodes them every time.
    """

    runs: Then
    modes: tuple[str, ...]
    folds: bool = False
    cache: int = 0


@dataclass(frozen=True)
class Chain:
    """A chain file; paths are absolute.

    Args:
        file: itself.
        title: of the summary.
        world: None where the datasets lie elsewhere.
        common: nested settings of every training.
        members: of the committee.
        masks: see :class:`Masks`.
        pretrain: its datasets are the masks. None, as for the masks, where the networks of another
            chain are adapted.
        choose: None takes the last epoch.
        targets: by name.
        seeds: of pre-training and adapting, each once.
        random: whether the targets are trained from random weights too, everything of them.
    """

    file: Path
    title: str
    world: World | None
    common: Tree
    members: tuple[ChainMember, ...]
    masks: Masks | None
    pretrain: Training | None
    choose: Probe | None
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]
    random: bool


def read_chain(file: str | Path) -> Chain:
    """Read and check a chain file.

    Args:
        file: YAML; the files it names are relative to its folder.

    Raises:
        ConfigError: it cannot be read, or is no chain; the message is one line.
    """
    return read_file(file, "chain", "*chain*.yaml", _chain)


def _chain(file: Path, raw: Any) -> Chain:
    given = mapping(raw, "a chain", _KEYS)
    if not any(key in given for key in _BEFORE) and given.get("targets"):
        return _chain_of_targets(file, given)
    given = mapping(raw, "a chain", needed=_BEFORE)
    members = mapping(given["members"], "members")
    if not members:
        raise ValueError("members is empty; name one classifier or more")
    pretrain = mapping(given["pretrain"], "pretrain", _TRAINING_KEYS)
    chosen = given.get("choose")
    return Chain(
        members=tuple(_member(file, _named(name), item) for name, item in members.items()),
        masks=_masks(file, given["masks"]),
        pretrain=_training(file, pretrain, "pretrain"),
        choose=None if chosen is None else _probe(file, chosen),
        world=read_world(given["world"]) if given.get("world") is not None else None,
        **_ending(file, given),
    )


def _chain_of_targets(file: Path, given: Mapping[str, Any]) -> Chain:
    """Adapting alone."""
    for key in ("world", "choose"):
        if given.get(key) is not None:
            raise ValueError(f"{key} has no use without {', '.join(_BEFORE)}")
    return Chain(
        members=(), masks=None, pretrain=None, choose=None, world=None, **_ending(file, given)
    )


def _ending(file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """What every chain has."""
    targets = mapping(given.get("targets") or {}, "targets")
    found = {
        "file": file,
        "title": text(given.get("title", file.stem), "title"),
        "common": settings(given.get("common"), "common"),
        "targets": tuple(_target(file, _named(name), item) for name, item in targets.items()),
        "seeds": seeds(given.get("seeds", [0]), "seeds"),
        "random": flag(given.get("random", True), "random"),
    }
    folded = [target.runs.name for target in found["targets"] if target.folds]
    if folded and len(found["seeds"]) < 2:
        raise ValueError(f"targets.{folded[0]}.folds: a fold per seed, and there is one seed")
    return found


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:60]!r} cannot be the name of a folder; allowed: letters, digits, '_', '-', '.'"
        )
    return name


def _training(file: Path, given: Mapping[str, Any], where: str) -> Training:
    if "config" not in given:
        raise ValueError(f"{where} has no 'config'")
    layers = listed(given.get("layers", []), f"{where}.layers")
    return Training(
        files(file, [given["config"]], f"{where}.config")[0],
        files(file, layers, f"{where}.layers"),
        settings(given.get("overrides"), f"{where}.overrides"),
    )


def _member(file: Path, name: str, raw: Any) -> ChainMember:
    where = f"members.{name}"
    given = mapping(raw, where, _MEMBER_KEYS)
    spec: dict[str, Any] = {
        key: text(given[key], f"{where}.{key}") for key in ("head", "layer") if key in given
    }
    if "weight" in given:
        spec["weight"] = number(given["weight"], f"{where}.weight")
    if "path" not in given:
        training = _training(file, given, where)
        return ChainMember(
            name, training, whole(given.get("seed", 0), f"{where}.seed", 0), "", spec
        )
    more = [key for key in (*_TRAINING_KEYS, "seed") if key in given]
    if more:
        raise ValueError(f"{where} has 'path', which is trained already, and {more[0]!r}")
    path = Path(file.parent, text(given["path"], f"{where}.path")).resolve()
    if not path.exists():
        raise ValueError(f"{where}.path: there is no {path}")
    return ChainMember(name, None, 0, str(path), spec)


def _masks(file: Path, raw: Any) -> Masks:
    given = mapping(raw, "masks", ("config", "overrides", "limit"))
    config = given.get("config")
    overrides = dict(mapping(given.get("overrides") or {}, "masks.overrides"))
    for key in overrides:
        choose(
            key.partition(".")[0], [f.name for f in fields(DollSettings)], "masks.overrides: key"
        )
        if key in _OWN_MASK_KEYS:
            raise ValueError(f"masks.overrides has {key}; the chain's own 'members' says them")
    return Masks(
        None if config is None else files(file, [config], "masks.config")[0],
        settings(overrides, "masks.overrides") if overrides else {},
        whole(given.get("limit", 0), "masks.limit", 0),
    )


def _probe(file: Path, raw: Any) -> Probe:
    given = mapping(raw, "choose", (*_TRAINING_KEYS, "images", "draws"))
    return Probe(
        _training(file, given, "choose"),
        whole(given.get("images", 12), "choose.images", 1),
        whole(given.get("draws", 2), "choose.draws", 1),
    )


def _target(file: Path, name: str, raw: Any) -> Target:
    where = f"targets.{name}"
    given = mapping(raw, where)
    modes = listed(given.pop("modes", list(MODES)), f"{where}.modes")
    for mode in modes:
        choose(str(mode), MODES, f"{where}.modes: mode")
    if not modes or len(set(modes)) < len(modes):
        raise ValueError(f"{where}.modes is {modes}; write one or more different modes")
    if "config" not in given:
        raise ValueError(f"{where} has no 'config'")
    for key in ("weights", "seeds"):
        if key in given:
            raise ValueError(f"{where} has {key!r}, which the chain sets")
    folds = flag(given.pop("folds", False), f"{where}.folds")
    cache = whole(given.pop("cache", 0), f"{where}.cache", 0)
    given = {"images": ["full"], "draws": 1, **given}
    runs = read_then(file, file, "targets", name, given, "untrained")
    return Target(runs, tuple(modes), folds, cache)
