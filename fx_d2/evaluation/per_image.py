"""Figures of single images: written beside the results, read again, and sorted worst first."""

from __future__ import annotations

import csv
import hashlib
import heapq
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fx_d2.data.atomic import replacing

FOLDER = "per_image"
_TEXT = ("image_id", "class")
Row = Mapping[str, Any]  # by column; text in the columns of _TEXT, else numbers


@dataclass(frozen=True)
class PerImage:
    """The figures of the images of one dataset and task.

    Args:
        columns: their names.
        lines: makes the lines; called when they are wanted, as most results are never written.
    """

    columns: tuple[str, ...]
    lines: Callable[[], Iterable[Sequence[Any]]]

    def rows(self) -> list[Row]:
        """The lines by column."""
        return [dict(zip(self.columns, line, strict=True)) for line in self.lines()]


def write_per_image(tables: Mapping[str, PerImage], folder: Path) -> dict[str, str]:
    """Write ``per_image/<name>.csv`` of each table, each atomically.

    Args:
        tables: by ``<dataset>_<task>``.
        folder: of the results.

    Returns:
        ``{name: SHA-256}`` of the files, by which results know their own.
    """
    written = {}
    for name, table in tables.items():
        with replacing(_place(folder, name)) as path:
            with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(table.columns)
                writer.writerows([_cell(value) for value in line] for line in table.lines())
            written[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return written


def _place(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.csv"


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_per_image(
    folder: str | os.PathLike[str],
    dataset: str,
    task: str,
    *,
    metrics: Mapping[str, Any],
    image_ids: Iterable[str],
) -> list[Row] | None:
    """What an evaluation wrote about the images, if it was of these weights and these images.

    Args:
        folder: that may hold ``results.json``.
        dataset: registered name.
        task: of its figures.
        metrics: ``{"<source>/<task>/<metric>": figure}`` that stand beside the weights; the
            figures of the results have to be the same to the last digit.
        image_ids: of all images of the dataset as it is now.

    Returns:
        The rows, or None where there are none that can be trusted.
    """
    folder, known = Path(folder), set(image_ids)
    try:
        content = json.loads((folder / "results.json").read_text("utf-8"))
        key, notes = next(
            (key, notes)
            for key, notes in content["notes"].items()
            if notes["dataset"] == dataset and key.endswith(f"/{task}")
        )
        figures = content["results"][key]
        data = _place(folder, f"{dataset}_{task}").read_bytes()
        same = content["per_image"][f"{dataset}_{task}"] == hashlib.sha256(data).hexdigest()
        same &= notes["images_of_dataset"] == len(known) and bool(figures)
        same &= all(metrics.get(f"{key}/{name}") == value for name, value in figures.items())
        text = io.StringIO(data.decode("utf-8"), newline="")
        rows = [_parsed(row) for row in csv.DictReader(text)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, csv.Error):
        return None  # older, of another tool, or damaged: an evaluation says it anew
    return rows if same and all(row["image_id"] in known for row in rows) else None


def _parsed(row: Mapping[str, str]) -> Row:
    return {name: text if name in _TEXT else float(text) for name, text in row.items()}


@dataclass(frozen=True, order=True)
class Mistake:
    """How wrong a prediction is; the larger the worse.

    Args:
        error: of the image, and what decides between equal ones.
        image_id: whose.
        text: the figures in words.
    """

    error: tuple[float, float]
    image_id: str
    text: str


def worst_images(rows: Iterable[Row], task: str, num: int) -> dict[str, list[Mistake]]:
    """The ``num`` worst images of each class, the worst first; of ``loc``, of all (``""``).

    ``seg``: by Dice, then by wrong pixels. ``cls``: by the distance of probability and label.
    ``loc``: by lesions missed and boxes too many, then by the best score. An image without any
    error is none of them; a class without an error has an empty list.
    """
    groups: dict[str, list[Mistake]] = {}
    for row in rows:
        mistake = _MISTAKES[task](row)
        group = groups.setdefault(str(row.get("class", "")), [])
        if mistake.error[0] > 0 and math.isfinite(mistake.error[0]):
            group.append(mistake)
    return {name: heapq.nlargest(num, found) for name, found in groups.items()}


def _of_masks(row: Row) -> Mistake:
    true, said = int(row["true_px"]), int(row["predicted_px"])
    missing = 1 - row["dice"]
    text = f"Dice {row['dice']:.2f}, IoU {row['iou']:.2f}, {true} px true, {said} px predicted"
    return Mistake((missing, missing * (true + said)), row["image_id"], text)


def _of_labels(row: Row) -> Mistake:
    error = abs(row["label"] - row["probability"])
    known = "positive" if row["label"] else "negative"
    text = f"{known}, probability {row['probability']:.2f}"
    return Mistake((error, 0.0), row["image_id"], text)


def _of_boxes(row: Row) -> Mistake:
    true, shown, found = (int(row[name]) for name in ("boxes_true", "boxes_shown", "matched"))
    text = f"{found} of {true} found, {shown - found} too many, best score {row['best_score']:.2f}"
    return Mistake((true - found + shown - found, row["best_score"]), row["image_id"], text)


_MISTAKES: dict[str, Callable[[Row], Mistake]] = {
    "cls": _of_labels,
    "loc": _of_boxes,
    "seg": _of_masks,
}
