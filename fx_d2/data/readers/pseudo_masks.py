"""Pseudo-masks (``tools/make_pseudo_masks.py``): shards of COCO-style JSON with two RLEs per mask.

A shard has ``info`` (with the fingerprint of what made it), ``categories``, ``images`` and
``annotations``. An image has, per category, what became of its channel (``states``); a channel that
is ``kept`` has an annotation with ``segmentation`` (foreground) and ``ignore`` (pixels of which
nothing is known), one that is ``negative`` is background throughout, and any other is not
annotated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..catalog import patient_of, source_root
from ..errors import DataError
from ..masks import empty_mask
from ..pseudo_masks import FIX, FORMAT, PseudoMasks, read_pseudo_masks
from ..record import Record
from .base import MAX_SIDE_PX, ReadRequest, relative_name

_PARTS = ("train", "val", "all")


def read(request: ReadRequest) -> Iterator[Record]:
    """The records of ``train``, ``val`` or ``all``."""
    if request.part not in _PARTS:
        raise ValueError(f"part {request.part!r}; allowed: {_PARTS}")
    made = read_pseudo_masks(request.root)
    images = source_root(made.base.key)
    for number in range(made.shards):
        path = made.shard(number)
        body = read_shard(path, made.classes, made.fingerprint)
        masks = _masks_by_image(body, path, made.classes)
        for entry in body["images"]:
            try:
                record = _record(request, entry, masks, made, images, path)
            except DataError as error:
                request.report.bad("bad image of a shard", error)
                continue
            held = patient_of(record) in made.val_patients
            if request.part == "all" or held == (request.part == "val"):
                yield record


def read_shard(path: Path, classes: tuple[str, ...], fingerprint: str) -> dict[str, Any]:
    """The content of a shard that belongs to its folder.

    Args:
        path: the file.
        classes: of its categories, in order.
        fingerprint: of what made the folder.

    Raises:
        DataError: it cannot be read, or another committee or other settings made it.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        info = body["info"]
        if info["format"] != FORMAT:
            raise ValueError(f"format {info['format']!r}")
        found = [category["name"] for category in body["categories"]]
        for part in ("images", "annotations"):
            if not isinstance(body[part], list):
                raise ValueError(f"{part} is no list")
    except OSError as exc:
        raise DataError(
            f"shard cannot be read ({exc.strerror})", file=path, expected="every shard", fix=FIX
        ) from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise DataError(
            f"not a shard ({type(exc).__name__}: {exc})", file=path,
            fix="delete it and call tools/make_pseudo_masks.py again",
        ) from exc  # fmt: skip
    if info.get("fingerprint") != fingerprint or found != list(classes):
        raise DataError(
            f"shard of another committee or of other settings "
            f"({str(info.get('fingerprint'))[:12]})",
            file=path,
            expected=f"fingerprint {fingerprint[:12]}, as its folder states",
            fix="keep shards in the folder they were made in; delete this one and call "
            "tools/make_pseudo_masks.py again",
        )
    return body


def _masks_by_image(
    body: dict[str, Any], path: Path, classes: tuple[str, ...]
) -> dict[Any, dict[str, tuple[dict[str, Any], dict[str, Any]]]]:
    """``{image id: {class: (foreground, ignored)}}``."""
    found: dict[Any, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {}
    for number, entry in enumerate(body["annotations"]):
        try:
            name = classes[_whole(entry["category_id"], 1, len(classes)) - 1]
            pair = (_rle(entry["segmentation"]), _rle(entry["ignore"]))
            if pair[0]["size"] != pair[1]["size"]:
                raise ValueError("two sizes")
            found.setdefault(_whole(entry["image_id"], 1), {})[name] = pair
        except (KeyError, TypeError, ValueError) as exc:
            raise DataError(
                f"not a mask ({type(exc).__name__}: {exc})", file=path,
                row=f"annotation {number}", fix=FIX,
            ) from exc  # fmt: skip
    return found


def _rle(value: Any) -> dict[str, Any]:
    size, counts = value["size"], value["counts"]
    height, width = (_whole(side, 1, MAX_SIDE_PX) for side in size)
    if not isinstance(counts, str):
        raise ValueError(f"counts of type {type(counts).__name__}")
    return {"size": [height, width], "counts": counts}


def _whole(value: Any, low: int, high: int | None = None) -> int:
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or value < low or (high is not None and value > high):
        raise ValueError(f"{value!r} is not a whole number from {low}")
    return value


def _record(
    request: ReadRequest,
    entry: Any,
    masks: dict[Any, dict[str, tuple[dict[str, Any], dict[str, Any]]]],
    made: PseudoMasks,
    images: Path,
    path: Path,
) -> Record:
    try:
        own = masks.get(_whole(entry["id"], 1), {})
        name = relative_name(entry["file_name"], file=path, row=f"image {entry['id']}")
        image_id, states = entry["image_id"], entry["states"]
        if not isinstance(image_id, str) or not image_id:
            raise ValueError(f"image_id is {image_id!r}")
        if not isinstance(states, list) or len(states) != len(made.classes):
            raise ValueError(f"{len(made.classes)} states expected, one per category")
        record: Record = {
            "file_name": str(images / name),
            "image_id": image_id,
            "source": request.source.key,
            **{key: _text_or_none(entry[key]) for key in ("patient_id", "view")},
        }
        if entry.get("height") is not None:
            record["height"] = _whole(entry["height"], 1, MAX_SIDE_PX)
            record["width"] = _whole(entry["width"], 1, MAX_SIDE_PX)
        if entry.get("labels") is not None:
            record["labels"] = _labels(entry["labels"], len(request.source.cls_classes))
        record["masks"], record["ignore_masks"] = {}, {}
        for cls, state in zip(made.classes, states, strict=True):
            if cls not in made.kept:
                continue
            if state == "negative":
                record["masks"][cls] = empty_mask()
            elif state == "kept":
                record["masks"][cls], record["ignore_masks"][cls] = own[cls]
    except (KeyError, TypeError, ValueError) as exc:
        if isinstance(exc, DataError):
            raise
        raise DataError(
            f"not an image of a shard ({type(exc).__name__}: {exc})", file=path, fix=FIX
        ) from exc
    return record


def _text_or_none(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _labels(values: Any, count: int) -> np.ndarray:
    found = np.array([np.nan if v is None else v for v in values], dtype=np.float32)
    known = found[~np.isnan(found)]
    if found.shape != (count,) or not np.isin(known, (-1, 0, 1)).all():
        raise ValueError(f"labels are {values}; expected {count} of 0, 1, -1 or null")
    return found
