"""The shortcut test as JSON and as a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fx_d2.data.atomic import write_atomically

from .shortcut import SHOWN, Row, verdicts

FORMAT = "fx_d2 shortcut test 1"
ONE_MODEL, ONE_EACH = "one_model", "trained_on_each"
_TITLES = {
    ONE_MODEL: "One model, shown parts of the image",
    ONE_EACH: "Models trained on each part",
}
_CAUTION = {
    ONE_MODEL: "A high figure without the lungs proves that the model can do without them. A low "
    "one does not clear it: a model is not made for images it was never trained on.",
    ONE_EACH: "A high figure without the lungs proves that the classes can be told without them, "
    "by whatever is trained on whole images too.",
}


def content(readings: dict[str, Sequence[Row]], dataset: str, high: float) -> dict[str, Any]:
    """The report as plain values.

    Args:
        readings: rows by ``one_model`` and ``trained_on_each``, those that were made.
        dataset: of the images.
        high: see :func:`~fx_d2.engine.shortcut.verdicts`.
    """
    result: dict[str, Any] = {"format": FORMAT, "dataset": dataset, "high": high, "readings": {}}
    for name, rows in readings.items():
        result["readings"][name] = {
            "rows": [
                {
                    "weights": row.weights,
                    "trained_on": row.trained_on,
                    "shown": row.shown,
                    "images": row.notes.get("images"),
                    "images_of_dataset": row.notes.get("images_of_dataset"),
                    "figures": row.figures,
                    "confusion": row.notes.get("confusion"),
                }
                for row in rows
            ],
            "verdicts": [vars(verdict) for verdict in verdicts(rows, high=high)],
        }
    return result


def page(readings: dict[str, Sequence[Row]], dataset: str, high: float) -> str:
    """The report for people."""
    lines = [f"# Shortcut test on {dataset}", ""]
    for name, rows in readings.items():
        lines += [f"## {_TITLES[name]}", ""]
        lines += [f"- {verdict.text}" for verdict in verdicts(rows, high=high)]
        lines += ["", _table(rows), "", _CAUTION[name], ""]
        lines += _left_out(rows)
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Sequence[Row]) -> str:
    classes = [m.partition("-")[2] for m in rows[0].figures if m.startswith("sensitivity-")]
    head = ["trained on", "shown", "AUC", "95 %", "macro-F1", "accuracy"]
    head += [f"recall {name}" for name in classes]
    cells = []
    for row in rows:
        auc, low, top = row.auc
        said = [row.figures.get(f"sensitivity-{name}") for name in classes]
        figures = [row.figures.get("F1"), row.figures.get("accuracy"), *said]
        shown = ["" if value is None else f"{value:.3f}" for value in figures]
        interval = f"{low:.3f} to {top:.3f}"
        cells.append([SHOWN[row.trained_on], SHOWN[row.shown], f"{auc:.3f}", interval, *shown])
    return tabulate(cells, head, "github", disable_numparse=True)


def _left_out(rows: Sequence[Row]) -> list[str]:
    """Images without a lung mask are in the row of whole images and in no other."""
    counted = [(row.notes.get("images"), row.notes.get("images_of_dataset")) for row in rows]
    if all(seen == there for seen, there in counted):
        return []
    said = ", ".join(
        f"{seen} of {there} ({SHOWN[row.shown]})"
        for row, (seen, there) in zip(rows, counted, strict=True)
    )
    return [f"Images scored: {said}. The others had no usable image or lung mask.", ""]


def write_report(
    readings: dict[str, Sequence[Row]], dataset: str, high: float, folder: Path
) -> tuple[Path, Path]:
    """Write ``shortcut.json`` and ``shortcut.md``, each atomically; their paths."""
    json_path, page_path = folder / "shortcut.json", folder / "shortcut.md"
    body = json.dumps(content(readings, dataset, high), indent=1, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(json_path, body + "\n")
    write_atomically(page_path, page(readings, dataset, high))
    return json_path, page_path
