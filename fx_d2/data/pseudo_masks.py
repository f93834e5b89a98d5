"""Folders of pseudo-masks as datasets: what they hold, and their registration.

``<folder>/`` holds ``shards/00000.json`` ... (COCO-style, see :mod:`.readers.pseudo_masks`) and,
when all is done, ``pseudo_masks.json``: what it is. ``tools/make_pseudo_masks.py`` writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .builtin import register_source
from .errors import DataError
from .source import Part, Source
from .sources import SOURCES, get_source

MADE_NAME = "pseudo_masks.json"
SHARD_FOLDER = "shards"
FORMAT = "fx_d2 pseudo masks 1"
FIX = "make it again with tools/make_pseudo_masks.py"


@dataclass(frozen=True)
class PseudoMasks:
    """A finished folder.

    Args:
        folder: where it is.
        base: row of the source whose images these are.
        dataset: the registered dataset that was explained.
        classes: of the committee, in the order of the shards' categories.
        kept: those that are not excluded.
        shards: how many files.
        fingerprint: of everything that decided their content.
        val_patients: whose images are the split ``val``.
    """

    folder: Path
    base: Source
    dataset: str
    classes: tuple[str, ...]
    kept: tuple[str, ...]
    shards: int
    fingerprint: str
    val_patients: frozenset[str]

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return shard_path(self.folder, number)


def shard_path(folder: Path, number: int) -> Path:
    """The file of shard ``number`` in a folder."""
    return folder / SHARD_FOLDER / f"{number:05d}.json"


def read_pseudo_masks(folder: str | os.PathLike[str]) -> PseudoMasks:
    """What a folder says about itself; the shards are not read.

    Raises:
        DataError: it is not there, not finished, or not what the tool writes.
    """
    root = Path(folder).expanduser().absolute()
    path = root / MADE_NAME
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}, expected {FORMAT!r}")
        classes, kept = _names(body["classes"]), _names(body["kept"])
        strange = [name for name in kept if name not in classes]
        if strange or not kept:
            raise ValueError(f"kept classes {strange or list(kept)} of {list(classes)}")
        shards = body["shards"]
        if not isinstance(shards, int) or isinstance(shards, bool) or shards < 1:
            raise ValueError(f"shards is {shards!r}")
        return PseudoMasks(
            folder=root,
            base=get_source(str(body["source"])),
            dataset=str(body["dataset"]),
            classes=classes,
            kept=kept,
            shards=shards,
            fingerprint=str(body["fingerprint"]),
            val_patients=frozenset(map(str, body["val_patients"])),
        )
    except OSError as exc:
        raise DataError(
            f"no finished pseudo-masks ({exc.strerror})", file=path,
            fix="finish them with tools/make_pseudo_masks.py",
        ) from exc  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        problem = str(exc.args[0]) if exc.args else type(exc).__name__
        raise DataError(f"no pseudo-masks ({problem})", file=path, fix=FIX) from exc


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise ValueError(f"classes {value!r}")
    if len(set(value)) != len(value):
        raise ValueError(f"a class stands twice in {value}")
    return tuple(value)


def _row(key: str, made: PseudoMasks) -> Source:
    base = made.base
    splits = {"train": Part("train"), "val": Part("val"), "all": Part("all")}
    if not made.val_patients:
        del splits["val"]
    return replace(
        base,
        key=key,
        title=f"{base.title}, pseudo-masks",
        folder=str(made.folder),
        images_of=base.images_of or base.key,
        reader="pseudo_masks",
        splits=splits,
        tasks=("seg",),
        extra_tasks=("cls",) if base.cls_classes else (),
        paper_id=None,
        thing_classes=(),
        loc_agnostic=False,
        instance_masks=False,
        seg_classes=made.kept,
        resize_masks=True,  # maps are smaller than radiographs
        options={},
        expected={},
        overlaps=(*base.overlaps, base.key),
    )


def register_folder(name: str, folder: str | os.PathLike[str]) -> str:
    """Register a folder of pseudo-masks as a source of its own.

    Args:
        name: ``doll`` for masks of ``chexpert`` gives the source ``chexpert_doll``.
        folder: of the masks.

    Returns:
        The key of the source.
    """
    made = read_pseudo_masks(folder)
    key = f"{made.base.key}_{name}"
    if not name.isidentifier() or name in made.base.splits:
        raise DataError(
            f"pseudo-masks cannot be named {name!r}",
            expected=f"letters, digits and _, other than {sorted(made.base.splits)}",
            fix="change it in DATASETS.PSEUDO_MASKS",
        )
    if key in SOURCES:
        if SOURCES[key] == _row(key, made):
            return key
        raise DataError(
            f"source {key!r} is registered already, of other pseudo-masks",
            file=made.folder,
            fix="choose another name in DATASETS.PSEUDO_MASKS",
        )
    try:
        register_source(_row(key, made))
    except ValueError as exc:
        raise DataError(str(exc), file=made.folder, fix="choose another name") from exc
    return key


def register_pseudo_masks(folders: Sequence[str]) -> None:
    """Register the folders of ``DATASETS.PSEUDO_MASKS``: ``"name=folder"``."""
    for text in folders:
        name, equals, folder = text.partition("=")
        if not equals or not name.strip() or not folder.strip():
            raise DataError(
                f"DATASETS.PSEUDO_MASKS has {text!r}",
                expected="'name=folder', as in 'doll=output/doll'",
            )
        register_folder(name.strip(), folder.strip())
