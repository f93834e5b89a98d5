"""Written mixes as datasets: finished, described and registered."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..atomic import replacing, write_atomically
from ..builtin import EVALUATOR_TYPE, register_source
from ..catalog import make_report
from ..errors import DataError
from ..readers import lesion_mix as reader
from ..readers.base import ReadRequest
from ..record import PackedRecords
from ..source import Part, Source
from ..sources import SOURCES, get_source
from .audit import Audit
from .build import FORMAT, MADE_NAME, RECORDS_NAME, Prepared, Written

_DROPPED = ("number", "base", "served", "recipe", "dropped")


def finish(folder: Path, prepared: Prepared, written: Written, found: Audit, seed: int) -> None:
    """Write the records and, last, what the folder is."""
    with replacing(folder / RECORDS_NAME) as path, path.open("w", encoding="utf-8") as stream:
        for row in written.rows:
            kept = {key: value for key, value in row.items() if key not in _DROPPED}
            stream.write(json.dumps(kept) + "\n")
    classes = prepared.base.cls_classes
    pasted = {
        prepared.bank.patches[number].label for row in written.rows for number in row["patches"]
    }
    boxes = [entry for row in written.rows for entry in row["boxes"] or ()]
    masked = {name for row in written.rows for name in row["masks"]}
    link = found.body["correlation"]
    body = {
        "format": FORMAT,
        "base": prepared.base.key,
        "cls_classes": list(classes),
        "thing_classes": [c for c in classes if c in pasted],
        "seg_classes": [c for c in classes if c in masked],
        "instance_masks": bool(boxes) and all("mask" in entry for entry in boxes),
        "images": len(written.rows),
        "seed": seed,
        "datasets": list(prepared.datasets),
        "bank": prepared.bank.header.get("datasets", []),
        "settings": prepared.settings.to_dict(),
        "audit": {key: link[key] for key in ("max_diff", "max_diff_pair", "pearson_r")},
    }
    write_atomically(folder / MADE_NAME, json.dumps(body, indent=1) + "\n")


def _described(folder: Path) -> dict[str, Any]:
    path = folder / MADE_NAME
    fix = "finish it with tools/make_lesion_mix.py; its audit has to hold"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}")
        base = get_source(body["base"])
        if tuple(body["cls_classes"]) != base.cls_classes:
            raise ValueError(f"classes that are not those of {base.key}")
        for key in ("thing_classes", "seg_classes"):
            body[key] = tuple(map(str, body[key]))
    except OSError as exc:
        raise DataError(f"no finished lesion mix ({exc.strerror})", file=path, fix=fix) from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise DataError(f"not a lesion mix ({exc})", file=path, fix=fix) from exc
    return body


def load_written(folder: Path, key: str) -> PackedRecords:
    """The records of a written mix as those of source ``key``."""
    report = make_report(key, folder)
    request = ReadRequest(folder, "train", get_source(key), report)
    return PackedRecords(reader.read(request))


def _row(name: str, folder: Path, body: dict[str, Any], base: Source) -> Source:
    """The mix as a source of its own: what was pasted are its boxes and masks."""
    tasks = ["cls"]
    tasks += ["loc"] if body["thing_classes"] else []
    tasks += ["seg"] if body["seg_classes"] else []
    return replace(
        base,
        key=name,
        title=f"{base.title}, lesions pasted",
        folder=str(folder),
        reader="lesion_mix",
        splits={"train": Part("train")},
        tasks=tuple(tasks),
        extra_tasks=(),
        paper_id=None,
        thing_classes=body["thing_classes"],
        seg_classes=body["seg_classes"],
        instance_masks=bool(body["instance_masks"]),
        resize_masks=False,
        image_size=None,
        options={},
        expected={},
        overlaps=(*base.overlaps, base.key),
    )


def register_mix(name: str, folder: str | os.PathLike[str]) -> tuple[str, str]:
    """Register a written mix twice.

    Args:
        name: ``dadam`` for a mix on ``cxr_lt`` gives the dataset ``cxr_lt_dadam``, whose records
            are of the source ``cxr_lt``, and the source ``cxr_lt_dadam``, whose split
            ``cxr_lt_dadam_train`` has boxes and masks too.
        folder: of the mix.

    Returns:
        The two names.
    """
    root = Path(folder).expanduser().absolute()
    body = _described(root)
    base = get_source(body["base"])
    key = f"{base.key}_{name}"
    if not name.isidentifier() or name in base.splits:
        raise DataError(
            f"a mix cannot be named {name!r}",
            expected=f"letters, digits and _, other than {sorted(base.splits)}",
            fix="change it in DATASETS.LESION_MIX",
        )
    if key in DatasetCatalog.list():
        if key in SOURCES and SOURCES[key].folder == str(root):
            return key, f"{key}_train"
        raise DataError(f"dataset {key!r} is registered already", fix="choose another name")
    DatasetCatalog.register(key, partial(load_written, root, base.key))
    MetadataCatalog.get(key).set(
        source=base.key,
        split=name,
        tasks=base.tasks,
        cls_classes=base.cls_classes,
        cls_kind=base.cls_kind,
        thing_classes=list(base.thing_classes),
        seg_classes=base.seg_classes,
        evaluator_type=EVALUATOR_TYPE,
        licence=base.licence,
        citation=base.citation,
    )
    register_source(_row(key, root, body, base))
    return key, f"{key}_train"


def register_written(mixes: Sequence[str]) -> None:
    """Register the mixes of ``DATASETS.LESION_MIX``: ``"name=folder"``."""
    for text in mixes:
        name, equals, folder = text.partition("=")
        if not equals or not name.strip() or not folder.strip():
            raise DataError(
                f"DATASETS.LESION_MIX has {text!r}",
                expected="'name=folder', as in 'dadam=output/x'",
            )
        register_mix(name.strip(), folder.strip())
