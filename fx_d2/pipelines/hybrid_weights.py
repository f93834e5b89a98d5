"""The models of the hybrid pipeline, from a folder of runs or named one by one.

::

    DIR/segmentors/<name>/    a run each (or <name>.safetensors with its .json); all are combined
    DIR/classifier/           one run
    DIR/                      or: a run itself, whose model has lung masks and image labels

A path may name the head to use: ``runs/joint@covid_radiography``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.engine.weights import LAST

SEGMENTORS, CLASSIFIER = "segmentors", "classifier"
_SUFFIX = ".safetensors"
_LAYOUT = f"{SEGMENTORS}/<run> and {CLASSIFIER}/, or the output folder of a run"


@dataclass(frozen=True)
class StageWeights:
    """A checkpoint in its role.

    Args:
        path: a ``.safetensors`` file or the output folder of a run.
        head: the source whose head is used; "" where there is one only.
    """

    path: Path
    head: str = ""

    @property
    def name(self) -> str:
        """Of the run, for tables."""
        return self.path.name.removesuffix(_SUFFIX)

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> StageWeights:
        """From ``PATH`` or ``PATH@SOURCE``; a path that is there is never taken apart."""
        path = Path(text).expanduser()
        if path.exists() or "@" not in path.name:
            return cls(path)
        name, _, head = path.name.rpartition("@")
        return cls(path.with_name(name), head)


@dataclass(frozen=True)
class HybridWeights:
    """All checkpoints of a pipeline.

    Args:
        segmentors: of lungs; empty where masks come from elsewhere.
        classifier: of what the lungs show.
    """

    segmentors: tuple[StageWeights, ...]
    classifier: StageWeights


def find_weights(
    folder: str | os.PathLike[str] | None,
    segmentors: Sequence[str | os.PathLike[str]] = (),
    classifier: str | os.PathLike[str] | None = None,
    *,
    need_segmentors: bool = True,
) -> HybridWeights:
    """What a folder holds; what is named stands in its place.

    Args:
        folder: see above, or None.
        segmentors: paths, each with ``@SOURCE`` or without.
        classifier: likewise.
        need_segmentors: whether none at all is an error.

    Raises:
        CheckpointError: a stage has no weights; the message says where they were looked for.
    """
    named = [StageWeights.parse(text) for text in segmentors]
    one = None if classifier is None else StageWeights.parse(classifier)
    if folder is not None:
        given = StageWeights.parse(folder)
        if not given.path.is_dir() and not given.path.is_file():
            raise CheckpointError("there is no such folder", file=given.path, expected=_LAYOUT)
        run = given.path.is_file() or (given.path / LAST).is_file()
        if not named and need_segmentors:
            named = [given] if run else list(_segmentors_in(given.path))
        if one is None:
            one = given if run else _classifier_in(given.path)
    if one is None:
        raise _missing(CLASSIFIER, folder)
    if not named and need_segmentors:
        raise _missing(SEGMENTORS, folder)
    return HybridWeights(tuple(_unlike(named)), one)


def _segmentors_in(folder: Path) -> Iterable[StageWeights]:
    place = folder / SEGMENTORS
    if (place / LAST).is_file():  # a single run
        return [StageWeights(place)]
    if not place.is_dir():
        return []
    return [
        StageWeights(path)
        for path in sorted(place.iterdir())
        if (path.is_dir() and (path / LAST).is_file()) or path.suffix == _SUFFIX
    ]


def _classifier_in(folder: Path) -> StageWeights | None:
    place = folder / CLASSIFIER
    if (place / LAST).is_file():
        return StageWeights(place)
    files = sorted([*place.glob(f"*{_SUFFIX}"), *folder.glob(f"{CLASSIFIER}{_SUFFIX}")])
    if len(files) > 1:
        raise CheckpointError(
            f"there are {len(files)} classifiers: {', '.join(f.name for f in files[:5])}",
            file=place,
            expected="one",
            fix="name one with --classifier",
        )
    return StageWeights(files[0]) if files else None


def _missing(what: str, folder: str | os.PathLike[str] | None) -> CheckpointError:
    option = "--segmentor PATH" if what == SEGMENTORS else "--classifier PATH"
    return CheckpointError(
        f"no weights of the {what}",
        file=None if folder is None else Path(folder) / what,
        expected=_LAYOUT,
        fix=f"put a run there, or name it with {option}",
    )


def _unlike(given: Sequence[StageWeights]) -> list[StageWeights]:
    """Each once: a model that votes twice would outvote another."""
    result: dict[tuple[str, str], StageWeights] = {}
    for one in given:
        result.setdefault((os.path.realpath(one.path), one.head), one)
    return list(result.values())
