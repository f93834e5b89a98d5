"""Results as Detectron2 expects them, as a table for people and as JSON."""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fx_d2.data.atomic import write_atomically

from .per_image import PerImage, write_per_image

FORMAT = "fx_d2 results 1"
_SUMMARY = "all"  # row label of a metric that is no single class's


class Results(OrderedDict):
    """``{"<source>/<task>": {metric: figure}}``, and in ``notes`` how each came about.

    Detectron2 flattens it to ``<source>/<task>/<metric>`` and compares it with
    ``TEST.EXPECTED_RESULTS`` rows ``["<source>/<task>", metric, figure, tolerance]``. A metric of
    one class is ``<metric>-<class>``, as Detectron2 writes them. There is never a NaN: a figure
    that cannot be computed is absent, and the notes name it.

    Args:
        figures: initial content.
    """

    def __init__(self, figures: Mapping[str, Mapping[str, float]] | None = None) -> None:
        super().__init__(figures or {})
        self.notes: dict[str, dict[str, Any]] = {}
        self.per_image: dict[str, PerImage] = {}  # by "<dataset>_<task>"

    def add(self, other: Results) -> None:
        """Take over the figures and notes of ``other``; a key can be taken once."""
        taken = set(self) & set(other)
        if taken:
            raise ValueError(f"{sorted(taken)} evaluated twice; use merge_results for two splits")
        self.update(other)
        self.notes.update(other.notes)
        self.per_image.update(other.per_image)


def prefixed(results: Results, prefix: str) -> Results:
    """The same figures and notes under keys that begin with ``prefix``."""
    renamed = Results({prefix + key: figures for key, figures in results.items()})
    renamed.notes = {prefix + key: notes for key, notes in results.notes.items()}
    return renamed


def merge_results(by_dataset: Mapping[str, Results]) -> Results:
    """One set of results from those of several datasets.

    Two splits of one source would share their keys: there the dataset's name takes the place of
    the source's (``rsna_val/loc``).
    """
    merged = Results()
    counts: dict[str, int] = {}
    for results in by_dataset.values():
        for key in results:
            counts[key] = counts.get(key, 0) + 1
    for dataset, results in by_dataset.items():
        renamed = Results()
        for key, figures in results.items():
            new = key if counts[key] == 1 else f"{dataset}/{key.rpartition('/')[2]}"
            renamed[new] = figures
            renamed.notes[new] = getattr(results, "notes", {}).get(key, {})
        renamed.per_image = getattr(results, "per_image", {})
        merged.add(renamed)
    return merged


def _cells(figures: Mapping[str, float]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Metric names in order, and figures by class and metric."""
    metrics: list[str] = []
    by_class: dict[str, dict[str, float]] = {_SUMMARY: {}}
    for name, value in figures.items():
        metric, _, cls = name.partition("-")
        if metric not in metrics:
            metrics.append(metric)
        by_class.setdefault(cls or _SUMMARY, {})[metric] = value
    return metrics, by_class


def format_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Tables in Markdown: one per source and task, a row per class and one for all of them."""
    parts = []
    notes = getattr(results, "notes", {})
    for key, figures in results.items():
        metrics, by_class = _cells(figures)
        shared = [m for m in metrics if any(m in v for c, v in by_class.items() if c != _SUMMARY)]
        lines = [f"### {key}", ""]
        if shared:
            table = [[c, *(_shown(v.get(m)) for m in shared)] for c, v in by_class.items()]
            lines += [tabulate(table, ["class", *shared], "github", disable_numparse=True), ""]
        rest = [m for m in metrics if m not in shared]
        if rest:
            table = [[m, _shown(by_class[_SUMMARY][m])] for m in rest]
            lines += [tabulate(table, ["metric", "figure"], "github", disable_numparse=True), ""]
        lines += _confusion(notes.get(key, {}).get("confusion"))
        lines += [
            f"Left out, {reason}: {_listed(names)}"
            for reason, names in notes.get(key, {}).get("left_out", {}).items()
        ]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def _confusion(found: Mapping[str, Any] | None) -> list[str]:
    """A table of who is taken for whom, where classes exclude each other."""
    if found is None:
        return []
    rows = [[c, *row] for c, row in zip(found["classes"], found["table"], strict=True)]
    head = ["images of ... said to be", *found["classes"]]
    return [tabulate(rows, head, "github", disable_numparse=True), ""]


def _listed(names: Any) -> str:
    if isinstance(names, Mapping):
        return ", ".join(f"{name} ({why})" for name, why in names.items())
    return ", ".join(map(str, names))


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def write_results(
    results: Results, folder: str | os.PathLike[str], *, per_image: bool = True
) -> tuple[Path, Path]:
    """Write ``results.json`` and ``results.md`` into ``folder``, each atomically; their paths.

    Args:
        results: of one or more datasets.
        folder: made where it is missing.
        per_image: whether ``per_image/<dataset>_<task>.csv`` are written too, before the others.
    """
    for key, figures in results.items():
        for name, value in figures.items():
            if not math.isfinite(value):
                raise ValueError(f"{key}/{name} is {value}; a figure that is none is left out")
    content: dict[str, Any] = {
        "format": FORMAT,
        "results": {key: dict(figures) for key, figures in results.items()},
        "notes": getattr(results, "notes", {}),
    }
    folder = Path(folder)
    if per_image:
        content["per_image"] = write_per_image(getattr(results, "per_image", {}), folder)
    json_path, table_path = folder / "results.json", folder / "results.md"
    write_atomically(json_path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_atomically(table_path, format_table(results))
    return json_path, table_path
